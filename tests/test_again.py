"""A fresh clone re-makes a slice of the committed records of the real model, to a measured tolerance.

The records were made on a GPU with products in bf16; here they are asked again with products in fp32 on
whatever this machine has. `again.TOLERANCE` says what was measured. 200 items are asked at BF16 and a few
at Q4, which takes half a minute on two idle cores; `cba again smollm2` asks 200 at every precision.
"""

import os
from pathlib import Path

from cba_utils.answering.sources import find_checkpoint
from cba_utils.names import CONFIG, RESULTS
from cba_utils.study.again import TOLERANCE, again, beyond
from cba_utils.study.protocol import read_study
from cba_utils.study.tables import load_study
from conftest import ROOT

import numpy as np
import pytest

ITEMS = {"bf16": 200, "q4": 24}


@pytest.fixture
def smollm2(monkeypatch):
    """The study, where its model can be fetched and its items are at hand."""
    folder = Path(os.environ.get("BBQ_DIR") or ROOT.parent / "shared" / "bbq-paper")
    if not folder.is_dir():
        pytest.skip(
            f"records of smollm2 at bf16 and q4 are not made again: no BBQ in {folder}; set BBQ_DIR"
        )
    monkeypatch.setenv("BBQ_DIR", str(folder))
    study = read_study(CONFIG / "smollm2.yml")
    try:
        find_checkpoint(study["models"][0]["source"])
    except FileNotFoundError as error:
        pytest.skip(f"records of smollm2 at bf16 and q4 are not made again: {error}")
    return study


@pytest.mark.parametrize("precision", ITEMS)
def test_a_slice_of_the_committed_records_comes_out_again(smollm2, precision):
    found = again(smollm2, ITEMS[precision], [precision])
    assert found["precision"].tolist() == [precision]
    assert found["items"].tolist() == [ITEMS[precision]]
    assert beyond(found).empty, found.to_string()


def test_the_tolerance_tells_precisions_apart():
    """Another precision's answers are further from the records than the tolerance allows."""
    answers = load_study("smollm2")["answers"].query("order == '012'")
    letters = ["logp_A", "logp_B", "logp_C"]
    p = {name: np.exp(part[letters].to_numpy(float)) for name, part in answers.groupby("precision")}
    apart = {name: np.abs(p[name] - p["bf16"]).mean() for name in p}
    assert all(apart[name] > TOLERANCE["mean"] for name in ("q6", "q5", "q4", "q3")), apart


def test_records_of_other_items_or_precisions_are_not_compared(tmp_path):
    (tmp_path / "smoke").symlink_to(RESULTS / "organisms")
    study = read_study(CONFIG / "smoke.yml")
    with pytest.raises(ValueError, match="'smoke' has no 'q5'; it has"):
        again(study, 4, ["q5"], tmp_path)
    with pytest.raises(ValueError, match="the items are not those that were asked"):
        again({**study, "name": "smollm2"}, 4)
