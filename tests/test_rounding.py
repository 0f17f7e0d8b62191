"""Rounding taken apart: what is left of an alignment, and models without a part of the error."""

from cba_utils import load_model
from cba_utils.answering import scoring
from cba_utils.study import rounding
from cba_utils.study.protocol import cells, read_study, rounding_parameters
from conftest import ROOT

import mlx.core as mx
import numpy as np
import pandas as pd
import pytest
from mlx.utils import tree_flatten

BASE, ADAPTER = "toy-mistral/b1", "toy-mistral/b1-a1"


def weights(adapter=None, precision="bf16"):
    loaded = load_model(BASE, precision, compute="dense", adapter=adapter)
    return dict(tree_flatten(loaded.model.parameters()))


def as_vector(tensors):
    return np.concatenate([np.array(tensors[name]).ravel() for name in sorted(tensors)]).astype(
        float
    )


def test_what_is_left_of_an_alignment_is_a_projection_of_one_long_vector():
    before, after, rounded = map(as_vector, (weights(), weights(ADAPTER), weights(ADAPTER, "q3")))
    alignment = after - before
    along = (rounded - before) @ alignment / (alignment @ alignment)
    across = (rounded - before) - along * alignment
    found = rounding.alignment_left(rounding.errors(BASE, BASE, ["q3"], ADAPTER))
    assert found["left"] == pytest.approx(along, rel=1e-6)
    assert found["noise"] == pytest.approx(
        np.linalg.norm(across) / np.linalg.norm(alignment), rel=1e-6
    )


def test_bits_per_weight_are_those_of_the_file():
    found = rounding.errors(BASE, BASE, ["q2"], ADAPTER)
    files = load_model(BASE, "q2", adapter=ADAPTER).path.glob("model*.safetensors")
    stored = sum(array.nbytes for file in files for array in mx.load(str(file)).values())
    assert rounding.bits_per_weight(found, "q2") == pytest.approx(
        8 * stored / found["weights"].sum(), rel=1e-9
    )


def test_each_variant_differs_from_the_rounded_model_as_its_name_says():
    before, after = weights(), weights(ADAPTER)
    rounded, rounded_base = weights(ADAPTER, "q2"), weights(None, "q2")
    found = {
        name if precision == "q2" else precision: {
            key: np.array(value) for key, value in tree_flatten(variant.model.parameters())
        }
        for precision, name, variant in rounding.variants(BASE, BASE, "q2", ["q2-g32"], ADAPTER)
    }
    for key in rounded:
        old, new, low, low_base = (np.array(t[key]) for t in (before, after, rounded, rounded_base))
        shuffled = found["error shuffled"][key] - new
        np.testing.assert_allclose(
            np.sort(shuffled.ravel()), np.sort((low - new).ravel()), atol=1e-6
        )
        np.testing.assert_allclose(found["alignment exact"][key] - low_base, new - old, atol=1e-6)
        quiet = found["noise removed"][key] - old
        assert abs(np.sum(quiet * (new - old)) - np.sum((low - old) * (new - old))) < 1e-3
        part = "attention" if "self_attn" in key else "MLP" if "mlp" in key else "embeddings"
        for name in ("attention", "MLP", "embeddings"):
            np.testing.assert_array_equal(
                found[f"{name} in BF16"][key], new if name == part else low
            )
    moved = [
        key for key in rounded if (found["error shuffled"][key] != np.array(rounded[key])).any()
    ]
    assert len(moved) > 10
    finer, coarse = (
        sum(np.sum((np.array(t[key]) - np.array(after[key])) ** 2) for key in after)
        for t in (found["q2-g32"], rounded)
    )
    assert finer < coarse


def test_a_base_of_another_shape_is_refused_by_name(mistral):
    with pytest.raises(ValueError, match="different tensors; name the checkpoint"):
        rounding.errors(str(mistral), BASE, ["q4"], ADAPTER)


def test_a_finished_examination_is_reused_and_a_changed_one_is_not(tmp_path, monkeypatch):
    study = read_study(ROOT / "config" / "smoke.yml")
    known = cells(study)
    parameters = {**rounding_parameters(known, known[0].name), "limit": 12, "sequences": 2}
    first = rounding.examine(parameters, tmp_path)
    calls = []
    score = scoring.score_letters
    monkeypatch.setattr(scoring, "score_letters", lambda *a, **k: calls.append(1) or score(*a, **k))
    again = rounding.examine(parameters, tmp_path)
    assert not calls
    for name, table in first.items():
        pd.testing.assert_frame_equal(table.reset_index(drop=True), again[name])
    rounding.examine({**parameters, "temperature": 0.5}, tmp_path)
    assert len(calls) == len(again["variants"][["precision", "variant"]].drop_duplicates())


def test_one_model_a_base_is_taken_apart():
    known = cells(read_study(ROOT / "config" / "organisms.yml"))
    apart = {c.name: c.base for c in known if rounding_parameters(known, c.name)}
    assert len(set(apart.values())) == len(apart)
    assert set(apart.values()) == {c.base for c in known if c.base}


def test_every_model_of_the_shipped_tables_says_where_it_comes_from():
    tables = rounding.read_rounding("organisms")
    known = tables["provenance"].set_index("model")
    rows = tables["variants"].groupby("model").size()
    assert set(tables["variants"]["precision"]) == {"q3", "q3-g32", "q4-g32"}
    assert known["counts.variants"].to_dict() == rows.to_dict()
    assert known["identity.base_sha256"].str.fullmatch("[0-9a-f]{64}").all()
