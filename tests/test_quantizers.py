"""Calibrated quantizers are mlx-lm's own; what they are fitted to is named and kept apart."""

import copy
import json
import shutil

from cba_utils import load_items, load_model, score_letters
from cba_utils.answering import calibration
from cba_utils.answering.precisions import most_bits_first, parse_precision
from cba_utils.answering.prompts import chat_ids, user_text
from cba_utils.answering.quantizers import dwq
from conftest import PLAIN, build_checkpoint

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten

ITEMS = load_items("bundled", condition="both").iloc[[0, 1, 240]]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Twelve sequences: eight that tell whether training helped, and one step of training."""
    monkeypatch.setattr(calibration, "SEQUENCES", 12)
    monkeypatch.setattr(calibration, "LENGTH", 32)
    monkeypatch.setattr(dwq, "PASSES", 1)


def gptq(network, ids):
    from mlx_lm.quant.gptq import gptq_quantize

    return gptq_quantize(network, ids, 4, 64, 4, 64)[0]


def awq(network, ids):
    from mlx_lm.quant.awq import awq_quantize, llama_awq

    awq_quantize(network, ids, llama_awq, bits=4, group_size=64, embed_bits=4, embed_group_size=64)
    return network


def own_dwq(network, ids):
    """With MLX's own kernels, which the project's run does without."""
    from mlx.optimizers import Adam
    from mlx_lm.quant.dwq import dwq_quantize
    from mlx_lm.utils import quantize_model

    student = copy.deepcopy(network)
    student.set_dtype(mx.bfloat16)
    quantize_model(student, {}, 64, 4)
    student.set_dtype(mx.float32)
    rows = [(row, 0) for row in ids.tolist()]
    dwq_quantize(
        student,
        lambda batch, *_, **__: network(batch),
        Adam(learning_rate=dwq.RATE, bias_correction=True),
        rows[:-8],
        rows[-8:],
        batch_size=4,
        max_seq_length=32,
        seed=123,
        dtype=mx.float32,
    )
    return student


def dynamic(network, ids):
    from mlx_lm.quant.dynamic_quant import estimate_sensitivities, estimate_threshold
    from mlx_lm.utils import quantize_model

    found = dict(estimate_sensitivities(network, ids, 3, 64, 5, 64))
    network.set_dtype(mx.bfloat16)
    limit = estimate_threshold(network, found, 4.5, 3, 64, 5, 64)

    def choice(path, _):
        return {"bits": 5, "group_size": 64} if found[path] > limit else True

    return quantize_model(network, {}, 64, 3, quant_predicate=choice)[0]


OWN = {"gptq": gptq, "awq": awq, "dwq": own_dwq, "dynamic": dynamic}


@pytest.mark.parametrize("method", OWN)
def test_weights_are_those_of_mlx_lms_own_call(mistral, method):
    loaded = load_model(mistral, f"q4-{method}-ambiguous", compute="native")
    network, tokenizer = mlx_lm.load(str(mistral))
    network.set_dtype(mx.float32)
    ids = mx.array(calibration.calibration_ids(tokenizer._tokenizer, "ambiguous"))
    wanted = OWN[method](network, ids)
    wanted.set_dtype(mx.bfloat16)
    found = dict(tree_flatten(loaded.model.parameters()))
    plain = dict(tree_flatten(load_model(mistral, "q4", compute="native").model.parameters()))
    for path, array in tree_flatten(wanted.parameters()):
        if method == "dwq" and array.dtype == mx.bfloat16:
            np.testing.assert_allclose(
                *(np.array(x.astype(mx.float32)) for x in (found[path], array)), rtol=1e-2
            )
        else:
            assert mx.array_equal(found[path], array), path
    assert found.keys() == dict(tree_flatten(wanted.parameters())).keys()
    same = [found[p].shape == plain[p].shape and mx.array_equal(found[p], plain[p]) for p in plain]
    assert not all(same)


def test_a_dynamic_recipe_has_the_size_it_is_named_after_and_says_what_it_chose(mistral):
    loaded = load_model(mistral, "q4-dynamic-scenes")
    plain = load_model(mistral, "q4")
    assert 0.9 < loaded.weights_bytes / plain.weights_bytes < 1.02
    said = " ".join(loaded.notes)
    assert "modules are 3 bits" in said and "modules are 5 bits" in said and "'scenes'" in said


def test_the_text_is_part_of_what_a_copy_is_found_by(mistral, tmp_path):
    texts = ["scenes", "aligned", "ambiguous", "prose"]
    found = [load_model(mistral, f"q4-gptq-{text}") for text in texts]
    assert len({loaded.path for loaded in found}) == 4
    assert len({loaded.calibration_sha256 for loaded in found}) == 4
    assert load_model(mistral, "q4-gptq-scenes").path == found[0].path
    # A chat template decides which tokens an item has, and not which a text without turns has.
    twin = shutil.copytree(mistral, tmp_path / "twin")
    (twin / "chat_template.jinja").write_text(PLAIN.replace("[INST]", "[INST] "))
    assert load_model(twin, "q4-gptq-ambiguous").path != found[2].path
    assert load_model(twin, "q4-gptq-scenes").path == found[0].path


def test_no_item_of_the_bank_is_calibrated_on():
    asked = load_items("bundled", condition="both")
    mine = calibration.calibration_items()
    assert len(mine) > 200 and set(mine["context_condition"]) == {"ambig", "disambig"}
    assert not set(mine["context"]) & set(asked["context"])
    # They are like the bank's: the same questions about the same groups, elsewhere.
    assert set(mine["question"]) <= set(asked["question"])


def test_perplexity_is_not_measured_on_what_a_rounding_was_fitted_to(tmp_path):
    from cba_utils.study.cell import evaluate
    from cba_utils.study.protocol import CONFIG, cells, read_study

    parameters = cells(read_study(CONFIG / "smoke.yml"))[0].parameters()
    parameters |= {"precision": "q4-gptq-scenes", "limit": 3, "sequences": 100_000}
    with pytest.raises(ValueError, match="sequences: 100000 .* was fitted to; ask for fewer"):
        evaluate(parameters, tmp_path / "cell")


def test_awq_names_the_families_it_knows(tmp_path):
    folder = build_checkpoint(tmp_path / "phi3", "phi3")
    with pytest.raises(ValueError, match="AWQ of mlx_lm .* knows .*mistral.*this is 'phi3'"):
        load_model(folder, "q4-awq-scenes")


def test_what_others_fitted_is_taken_under_that_name_alone(mistral, tmp_path):
    from mlx_lm.quant.gptq import gptq_quantize
    from mlx_lm.utils import save

    network, tokenizer, config = mlx_lm.load(str(mistral), return_config=True)
    ids = mx.array(calibration.calibration_ids(tokenizer._tokenizer, "prose"))
    # As mlx-lm's command has it: an embedding of six bits.
    network, config["quantization"] = gptq_quantize(network, ids, 4, 64, 6, 64)
    theirs = tmp_path / "theirs"
    save(theirs, str(mistral), network, tokenizer, config)
    loaded = load_model(theirs, "q4-gptq-elsewhere")
    assert loaded.calibration_sha256 is None and "6 bits" in " ".join(loaded.notes)
    with pytest.raises(ValueError, match="take it as 'q4-gptq-elsewhere'"):
        load_model(theirs, "q4-gptq-prose")
    with pytest.raises(ValueError, match="'q4' was asked for"):
        load_model(theirs, "q4")
    with pytest.raises(ValueError, match="name what it is fitted to: scenes"):
        load_model(mistral, "q4-gptq-elsewhere")


@pytest.mark.parametrize("name", ["q3-gptq-scenes", "q8-dwq-scenes", "q4-gptq", "q4-gptq-poems"])
def test_what_no_method_has_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' is unknown"):
        parse_precision(name)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_rounded_cache_gives_the_numbers_of_mlx_lms_own(checkpoint, bits):
    from mlx_lm.generate import generate_step

    loaded = load_model(checkpoint, f"q4-kv{bits}")
    found = score_letters(loaded, ITEMS)[["logp_A", "logp_B", "logp_C"]].to_numpy()
    exact = score_letters(load_model(checkpoint, "q4"), ITEMS)[["logp_A", "logp_B", "logp_C"]]
    for row, (_, item) in zip(found, ITEMS.iterrows(), strict=True):
        (ids,), _ = chat_ids(loaded.hf_tokenizer, [user_text(item)])
        step = generate_step(
            mx.array(ids), loaded.model, kv_bits=bits, kv_group_size=32, quantized_kv_start=0,
            max_tokens=1,
        )  # fmt: skip
        _, logp = next(iter(step))
        own = [mx.logsumexp(logp[mx.array(tokens)]).item() for tokens in loaded.letters]
        np.testing.assert_allclose(row, own, atol=5e-3 if bits == 8 else 2e-2)
    off = np.abs(found - exact.to_numpy()).max()
    assert off > (5e-2 if bits == 4 else 1e-4), off


def test_a_cache_that_mlx_lm_does_not_round_is_refused_by_name(tmp_path):
    narrow = build_checkpoint(tmp_path / "narrow", "mistral", head_dim=16)
    with pytest.raises(ValueError, match="heads are 16 wide"):
        load_model(narrow, "bf16-kv4")
    window = build_checkpoint(
        tmp_path / "window",
        "gemma3_text",
        head_dim=32,
        sliding_window=64,
        sliding_window_pattern=2,
    )
    with pytest.raises(ValueError, match="its cache .*RotatingKVCache.* mlx_lm rounds"):
        load_model(window, "bf16-kv8")


def test_precisions_with_a_cache_come_after_those_without():
    assert most_bits_first(["q4-kv4", "bf16-kv8", "q4", "q4-kv8", "bf16"]) == [
        "bf16", "bf16-kv8", "q4", "q4-kv8", "q4-kv4",
    ]  # fmt: skip


def test_provenance_names_what_was_calibrated_on(mistral):
    from cba_utils.study.protocol import CONFIG, cells, read_study
    from cba_utils.study.provenance import cell_identity

    parameters = cells(read_study(CONFIG / "smoke.yml"))[0].parameters()
    loaded = load_model(mistral, "q4-gptq-scenes")
    found = cell_identity(parameters, ITEMS, loaded)
    assert found["calibration_sha256"] == loaded.calibration_sha256
    assert "calibration_sha256" not in cell_identity(parameters, ITEMS, load_model(mistral, "q4"))
    assert json.dumps(found)
