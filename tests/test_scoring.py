from functools import cache

from cba_utils import load_items, load_model, perplexity, sample_answers, score_letters
from cba_utils.answering import cores
from cba_utils.answering.engine import prefix_tree
from cba_utils.answering.prompts import chat_ids, user_text
from cba_utils.answering.scoring import PAPER_SEEDS, stream
from conftest import build_checkpoint

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_map
from mlx_lm.sample_utils import make_sampler

MANY = load_items("bundled", condition="both").iloc[::12]
ITEMS = load_items("bundled", condition="both").iloc[[0, 1, 2, 3, 200, 366, 480]]


@pytest.fixture(scope="module", params=["bf16", "q4", "q3"])
def loaded(request, checkpoint):
    return load_model(checkpoint, request.param)


def test_letters_equal_those_of_one_prompt_at_a_time(loaded):
    answers = score_letters(loaded, ITEMS, orders="cyclic", temperature=0.3)
    for _, row in answers.iterrows():
        item = ITEMS.set_index("item_id").loc[row["item_id"]]
        ids, _ = chat_ids(loaded.hf_tokenizer, [user_text(item, row["order"])])
        logits = np.array(loaded.model(mx.array(ids))[0, -1].astype(mx.float32), dtype=float)
        for suffix, temperature in (("", 1.0), ("_t", 0.3)):
            p = np.exp(logits / temperature - np.logaddexp.reduce(logits / temperature))
            mine = [p[letter].sum() for letter in loaded.letters]
            found = np.exp([row[f"logp_{letter}{suffix}"] for letter in "ABC"])
            np.testing.assert_allclose(found, mine, rtol=2e-3, atol=1e-7)
            assert row[f"mass_other{suffix}"] == pytest.approx(1 - sum(mine), abs=1e-4)


def test_roles_and_right_answer_follow_the_order_shown(mistral):
    answers = score_letters(_remembered(mistral), ITEMS, orders="all")
    items = ITEMS.set_index("item_id")
    for _, row in answers.iterrows():
        item = items.loc[row["item_id"]]
        for letter, index in zip("ABC", map(int, row["order"]), strict=True):
            assert item[f"{row[f'role_{letter}']}_index"] == index
            assert (row["correct"] == letter) == (item["label"] == index)


def test_samples_equal_the_papers_loop(loaded, items=ITEMS):
    """Seed, generate, parse, one item and seed at a time, as the published code does."""
    samples = sample_answers(loaded, items).set_index(["item_id", "seed"])
    sampler = make_sampler(temp=0.3)
    for _, item in items.iterrows():
        (ids,), _ = chat_ids(loaded.hf_tokenizer, [user_text(item)])
        for seed in PAPER_SEEDS:
            mx.random.seed(seed)
            text = mlx_lm.generate(
                loaded.model, loaded.tokenizer, ids, max_tokens=5, sampler=sampler
            )
            assert samples.loc[(item["item_id"], seed), "raw_response"] == text


def test_samples_equal_the_papers_loop_on_native_kernels(mistral):
    test_samples_equal_the_papers_loop(load_model(mistral, "q4", compute="native"), ITEMS.head(1))


def test_dense_weights_are_the_quantized_weights(checkpoint):
    """With activations in fp32 for both, quantized kernels and dense products agree."""
    dense, native = (load_model(checkpoint, "q3", compute=kind) for kind in ("dense", "native"))
    native.model.update(
        tree_map(
            lambda v: v.astype(mx.float32) if v.dtype == mx.bfloat16 else v,
            native.model.parameters(),
        )
    )
    mine, theirs = (score_letters(model, ITEMS)["logp_A"] for model in (dense, native))
    np.testing.assert_allclose(mine, theirs, atol=5e-3)


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(len(ITEMS))), megabytes=st.sampled_from([1, 4, 1000]))
def test_answers_do_not_depend_on_company(mistral, order, megabytes):
    """Order of items, batch size and neighbours change nothing beyond fp32 rounding."""
    loaded = _remembered(mistral)
    alone = pd.concat([score_letters(loaded, ITEMS.iloc[[n]]) for n in order])
    together = pd.concat(
        [a for a, _ in stream(loaded, ITEMS.iloc[list(order)], memory=megabytes * 2**20)]
    )
    assert alone["item_id"].tolist() == together["item_id"].tolist()
    np.testing.assert_allclose(alone["logp_B"], together["logp_B"], atol=2e-4)


def test_answers_do_not_depend_on_the_number_of_cores(mistral, monkeypatch):
    found = []
    for number in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", number)
        monkeypatch.setattr(cores, "_workers", cache(cores._workers.__wrapped__))
        found.append(score_letters(_remembered(mistral), MANY, orders="cyclic"))
    pd.testing.assert_frame_equal(*found, check_exact=True)


def test_an_error_in_one_piece_reaches_the_caller_and_leaves_nothing_running(mistral):
    def fail(piece):
        if piece == 1:
            raise ValueError("piece 1")
        return piece

    with pytest.raises(ValueError, match="piece 1"):
        list(cores.map_pieces(_remembered(mistral), fail, range(9)))
    assert list(cores.map_pieces(_remembered(mistral), abs, [-1, -2])) == [1, 2]


_LOADED = {}


def _remembered(folder):
    return _LOADED.setdefault(folder, load_model(folder))


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=20))
def test_prefix_tree_spells_every_prompt(prompts):
    prompts = sorted(prompts)
    levels, leaves = prefix_tree(prompts, shortest=2)
    nodes = {node.number: node for level in levels for node in level}
    for prompt, leaf in zip(prompts, leaves, strict=True):
        spelled, number = [], leaf
        while number is not None:
            spelled = nodes[number].tokens + spelled
            number = nodes[number].parent
        assert spelled == prompt
        assert nodes[leaf].tokens


def test_six_orders_run_fewer_tokens_than_six_prompts(mistral):
    tokenizer = load_model(mistral).hf_tokenizer
    from cba_utils.answering.prompts import ORDERS

    texts = [user_text(item, order) for _, item in ITEMS.iterrows() for order in ORDERS["all"]]
    prompts = sorted(chat_ids(tokenizer, texts)[0])
    levels, _ = prefix_tree(prompts)
    run = sum(len(node.tokens) for level in levels for node in level)
    assert run < 0.6 * sum(map(len, prompts))


def test_a_prompt_longer_than_the_context_is_named(mistral):
    long = ITEMS.head(1).assign(context="word " * 600)
    with pytest.raises(ValueError, match=f"item '{long['item_id'].iloc[0]}': its prompt has"):
        score_letters(_remembered(mistral), long)


@pytest.mark.parametrize("bad", [{"orders": "some"}, {"temperature": 0.0}])
def test_bad_parameters_are_named(mistral, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        score_letters(_remembered(mistral), ITEMS, **bad)


# Architectures that scale or cap their logits, or look back no further than a window.
OTHERS = {
    "cohere": {"layer_norm_eps": 1e-5, "logit_scale": 0.1},
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32},
    "gemma3_text": {"head_dim": 32, "sliding_window": 24, "sliding_window_pattern": 2},
    "granite": {
        "logits_scaling": 4.0,
        "attention_multiplier": 0.2,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "llama": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 24},
}


@pytest.mark.parametrize("architecture", OTHERS)
@pytest.mark.parametrize("compute", ["dense", "native"])
def test_other_architectures_give_the_logits_of_their_own_call(architecture, compute, tmp_path):
    """One prompt at a time through the model itself, with mlx-lm's own cache and masks."""
    folder = build_checkpoint(tmp_path, architecture, **OTHERS[architecture])
    loaded = load_model(folder, compute=compute)
    answers = score_letters(loaded, ITEMS, orders="cyclic")
    ids = ITEMS.set_index("item_id")
    for _, row in answers.iterrows():
        prompt, _ = chat_ids(
            loaded.hf_tokenizer, [user_text(ids.loc[row["item_id"]], row["order"])]
        )
        logp = nn.log_softmax(loaded.model(mx.array(prompt))[0, -1].astype(mx.float32))
        mine = [mx.logsumexp(logp[mx.array(tokens)]).item() for tokens in loaded.letters]
        found = row[["logp_A", "logp_B", "logp_C"]].tolist()
        np.testing.assert_allclose(found, mine, atol=5e-3 if compute == "dense" else 0.5)
    nll = perplexity(loaded, [prompt[0]], 48)
    losses = nn.losses.cross_entropy(
        loaded.model(mx.array([prompt[0][:47]])), mx.array([prompt[0][1:48]])
    )
    assert nll["nll"].iloc[0] == pytest.approx(losses.astype(mx.float32).sum().item(), rel=1e-2)


def test_an_architecture_that_cannot_be_asked_is_named(tmp_path):
    folder = build_checkpoint(
        tmp_path, "gpt_neox", layer_norm_eps=1e-5, rotary_pct=1.0, rotary_emb_base=10000
    )
    with pytest.raises(ValueError, match="architecture 'gpt_neox', which cannot be asked here"):
        load_model(folder, "q4")
