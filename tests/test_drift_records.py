"""Distances from BF16 over the whole vocabulary, as cells record them."""

import json
import os
import shutil
from pathlib import Path

from cba_utils import load_items, load_model
from cba_utils.answering.drift import as_mlx, as_numpy, distances
from cba_utils.answering.likelihood import load_texts, token_ids
from cba_utils.answering.prompts import chat_ids, user_text
from cba_utils.names import DRIFT
from cba_utils.study import cell
from cba_utils.study.states import States
from test_records import FILES, PARAMETERS

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def logp(model, ids):
    """Log-probabilities after every token, by the model's own call, in 64 bits."""
    x = np.array(model(mx.array([ids])).astype(mx.float32), dtype=float)[0]
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def direct(before, now):
    """The three distances by their definitions."""
    p, q = np.exp(before), np.exp(now)
    return np.stack(
        [
            (p * (before - now)).sum(-1),
            np.abs(p - q).sum(-1) / 2,
            before.argmax(-1) != now.argmax(-1),
        ],
        axis=-1,
    )


def states():
    return Path(os.environ["CBA_CACHE"]) / "states"


@given(st.lists(st.lists(st.floats(-30, 30), min_size=4, max_size=4), min_size=2, max_size=2))
@settings(max_examples=50, deadline=None)
def test_distances_are_those_of_their_definitions(rows):
    before, now = (np.array([row]) - np.logaddexp.reduce(row) for row in rows)
    found = distances(mx.array(rows[1:]), mx.array(rows[:1]))
    np.testing.assert_allclose(found[:, :2], direct(before, now)[:, :2], rtol=1e-4, atol=1e-5)


def test_bf16_states_are_kept_bit_for_bit():
    hidden = mx.random.normal((5, 8)).astype(mx.bfloat16)
    assert mx.array_equal(as_mlx(as_numpy(hidden)), hidden)


@pytest.mark.parametrize("compute", [None, "native"])
def test_distances_equal_those_of_the_models_own_calls(checkpoint, tmp_path, compute):
    """Every item and every sequence, against one prompt at a time through mlx_lm's models."""
    parameters = PARAMETERS | dict(
        model=str(checkpoint), precision="q3", limit=12, orders="cyclic", compute=compute
    )
    tables = cell.evaluate(parameters, tmp_path)
    one, other = (load_model(checkpoint, name, compute) for name in ("bf16", "q3"))
    close = dict(rtol=2e-3, atol=2e-5) if compute is None else dict(rtol=0.1, atol=0.02)
    answers = tables["answers"]
    shown = answers[answers["order"] == "012"].set_index("item_id")
    assert answers.loc[answers["order"] != "012", DRIFT].isna().all(axis=None)
    items = load_items("bundled", condition="both").set_index("item_id").loc[shown.index]
    for item, row in zip(items.to_dict("records"), shown[DRIFT].to_numpy(), strict=True):
        ids = chat_ids(one.hf_tokenizer, [user_text(item)])[0][0]
        wanted = direct(logp(one.model, ids)[-1], logp(other.model, ids)[-1])
        np.testing.assert_allclose(row, wanted, **close)
    assert shown["vocab_kl"].min() > 1e-4
    ids = token_ids(load_texts("bundled", one, 0), one, 4 * 64)
    for k, row in enumerate(tables["perplexity"][DRIFT].to_numpy()):
        part = ids[64 * k : 64 * (k + 1) - 1]
        wanted = direct(logp(one.model, part), logp(other.model, part))
        scale = {**close, "atol": 64 * close["atol"]}
        np.testing.assert_allclose(row[:2], wanted.sum(axis=0)[:2], **scale)
        assert abs(row[2] - wanted[:, 2].sum()) <= (0 if compute is None else 4)


def test_the_reference_is_computed_again_to_the_same_bytes(mistral, tmp_path):
    """Left by its own cell, or made for a cell that finds none: the same records."""
    parameters = PARAMETERS | dict(model=str(mistral), limit=600, orders="cyclic")
    shutil.rmtree(states(), ignore_errors=True)
    own = cell.evaluate({**parameters, "precision": "bf16"}, tmp_path / "bf16")
    assert (own["answers"].query("order == '012'")[DRIFT] == 0).all(axis=None)
    left = {path.name: path.read_bytes() for path in states().rglob("*.npy")}
    cell.evaluate(parameters, tmp_path / "one")
    shutil.rmtree(states())
    cell.evaluate(parameters, tmp_path / "two")
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert {path.name: path.read_bytes() for path in states().rglob("*.npy")} == left
    assert left
    known = json.loads((tmp_path / "two" / "provenance.json").read_text())
    other = {**known["identity"], "adapter_sha256": "0" * 64}
    assert States(other).key != States(known["identity"]).key
    States(known["identity"]).remove()
    assert not list(states().rglob("*.npy"))


def test_a_cell_without_its_reference_says_so(mistral, tmp_path):
    path = load_model(mistral, "q4").path
    parameters = PARAMETERS | dict(model=str(path), limit=5)
    tables = cell.evaluate(parameters, tmp_path)
    known = json.loads((tmp_path / "provenance.json").read_text())
    assert "vocab_kl" not in tables["answers"] and "vocab_kl" not in tables["perplexity"]
    assert known["notes"] == [
        "not compared over the vocabulary: the checkpoint is quantized already, and there is no bf16"
    ]


def test_a_long_text_is_compared_at_its_beginning(mistral, monkeypatch, tmp_path):
    monkeypatch.setattr("cba_utils.answering.likelihood.MOST_TOKENS", 16 * 63)
    parameters = PARAMETERS | dict(model=str(mistral), limit=5, sequences=20)
    found = cell.evaluate(parameters, tmp_path)["perplexity"]
    assert found["vocab_kl"].notna().tolist() == [True] * 16 + [False] * 4
