from cba_utils import load_model, perplexity
from cba_utils.answering.likelihood import (
    load_texts,
    published_losses,
    published_perplexity,
    token_ids,
)
from cba_utils.chapters.perplexity import Chapter
from cba_utils.measures.perplexity import rank_correlation
from studies import study_of

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pandas as pd
import pytest


def test_equals_one_sequence_at_a_time_with_mlx_losses(checkpoint):
    loaded = load_model(checkpoint, "q4")
    texts = load_texts("bundled", loaded, 0)[:6]
    found = perplexity(loaded, texts, sequence_length=64)
    ids = loaded.hf_tokenizer.encode(" ".join(texts), add_special_tokens=False)
    for row in found.itertuples():
        sequence = mx.array([ids[64 * row.sequence : 64 * (row.sequence + 1)]])
        losses = nn.losses.cross_entropy(loaded.model(sequence[:, :-1]), sequence[:, 1:])
        assert row.tokens == 63
        assert row.nll == pytest.approx(losses.sum().item(), rel=1e-4)
    assert len(found) == len(ids) // 64


@pytest.mark.parametrize("precision", ["bf16", "q4"])
def test_the_published_perplexity_is_that_of_mlx_lm(
    mistral, tmp_path, monkeypatch, capsys, precision
):
    """Sample, seed, batches and standard error: mlx-lm's own functions on the same conversations."""
    from mlx_lm import perplexity as theirs
    from mlx_lm.tuner.datasets import ChatDataset

    talks = [
        [
            {"role": "user", "content": f"say {n} " * (n % 7 + 1)},
            {"role": "assistant", "content": f"{n} it is"},
        ]
        for n in range(300)
    ]
    pd.DataFrame({"messages": talks}).to_parquet(tmp_path / "train-0.parquet")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(tmp_path))
    loaded = load_model(mistral, precision, compute="native")
    rows = ChatDataset([{"messages": talk} for talk in talks], loaded.tokenizer)
    monkeypatch.setattr(theirs, "load_dataset", lambda args, tokenizer: (rows, [], []))
    np.random.seed(123)
    data = theirs.load_data(loaded.tokenizer, "allenai/tulu-3-sft-mixture", 20, 64)
    value, error = theirs.eval_ppl(loaded.model, data, batch_size=8)
    texts = load_texts("allenai/tulu-3-sft-mixture", loaded, 20 * 64, seed=123)
    ids = token_ids(texts, loaded, 20 * 64)
    np.testing.assert_array_equal(np.array(data).ravel(), ids)
    ours = perplexity(loaded, [ids], 64)
    beside = ours.join(published_losses(loaded, [ids], 64))
    assert published_perplexity(beside) == pytest.approx((value, error), rel=1e-4)
    np.testing.assert_allclose(beside["nll"], beside["nll_published"], rtol=2e-3)
    assert np.exp(ours["nll"].sum() / ours["tokens"].sum()) == pytest.approx(value, rel=1e-3)


def test_a_random_model_is_as_lost_as_chance(mistral):
    loaded = load_model(mistral)
    loaded.model.lm_head.weight = mx.zeros_like(loaded.model.lm_head.weight)
    nll = perplexity(loaded, load_texts("bundled", loaded, 0)[:3], 32)
    assert np.exp(nll["nll"].sum() / nll["tokens"].sum()) == pytest.approx(640, rel=1e-4)


def test_hub_conversations_come_in_the_seeds_order(mistral, tmp_path, monkeypatch):
    loaded = load_model(mistral)
    talks = [[{"role": "user", "content": f"say {n}"}] for n in range(50)]
    pd.DataFrame({"messages": talks}).to_parquet(tmp_path / "train-0.parquet")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(tmp_path))
    found = load_texts("allenai/tulu-3-sft-mixture", loaded, 30, seed=123)
    first = np.random.RandomState(123).permutation(50)[0]
    assert loaded.hf_tokenizer.decode(found[0]) == f"<s>[INST]say {first}[/INST]"
    assert sum(map(len, found)) >= 30 > sum(map(len, found[:-1]))


def test_too_little_text_and_too_long_sequences_are_named(mistral):
    loaded = load_model(mistral)
    with pytest.raises(ValueError, match="fewer than one sequence of 100"):
        perplexity(loaded, ["short"], 100)
    with pytest.raises(ValueError, match="sequence_length: 600 must lie between 2 and the context"):
        perplexity(loaded, ["short"], 600)


def test_the_page_puts_the_published_perplexity_beside_ours_where_records_have_it():
    study = study_of("none", templates=4)
    assert "is not in these records" in Chapter(study).text("perplexity_published")
    nll = study.perplexity["nll"]
    # one token of each sequence has the rest of the losses
    study.perplexity = study.perplexity.assign(nll_published=1.01 * nll, squares_published=nll**2)
    page = Chapter(study)
    table, _ = page.table_perplexity_published()
    rows = study.perplexity[study.perplexity["precision"] == "q3"]
    rows = rows[rows["model"] == rows["model"].iloc[0]]
    shown = table[(table["precision"] == "Q3") & (table["model"] == rows["model"].iloc[0])].iloc[0]
    mean = rows["nll"].sum() / rows["tokens"].sum()
    assert shown["ours"] == pytest.approx(np.exp(mean))
    assert shown["as published"] == pytest.approx(np.exp(1.01 * mean))
    assert shown["its standard error"] > 0
    means = study.perplexity.groupby(["model", "precision"])[["nll", "tokens"]].sum()
    most = 1 - np.exp(-0.01 * (means["nll"] / means["tokens"]).max())
    assert f"at most {100 * most:.2f}\u00a0%" in page.text("tab_perplexity_published")


def test_a_rank_correlation_knows_no_scale_and_is_missing_where_nothing_differs():
    rng = np.random.default_rng(1)
    x, y, bases = rng.random(12), rng.random(12), np.repeat(np.arange(6), 2)
    wanted = rank_correlation(x, y, bases)
    assert rank_correlation((x - x.min()) / np.ptp(x), 40 * y, bases) == wanted
    for pair in ((np.ones(12), y), (x, np.ones(12))):
        found = rank_correlation(*pair, bases)
        assert np.isnan([found["estimate"], found["low"], found["high"]]).all() and found["n"] == 12


def test_a_rank_correlation_is_read_precision_by_precision():
    page = Chapter(study_of(replicates=8))
    assert "is 0." in page.text("answer_rank") or "is −" in page.text("answer_rank")
    said = {"above": {"estimate": 0.8, "low": 0.4, "high": 0.9, "n": 8, "known": True},
            "none": {"estimate": 0.1, "low": -0.4, "high": 0.5, "n": 8, "known": True}}  # fmt: skip
    page.ranks = {"q4": said["above"], "q3": said["none"]}
    assert page.text("answer_rank").endswith(
        "it marks the checkpoints that changed at Q4 and no others."
    )
    page.ranks = {"q4": said["above"], "q3": said["above"]}
    assert page.text("answer_rank").endswith("it marks the checkpoints that changed.")
    page.ranks = {"q4": said["none"], "q3": said["none"]}
    assert "is not shown to mark" in page.text("answer_rank")
    assert "too few checkpoints" in Chapter(study_of()).text("answer_rank")
