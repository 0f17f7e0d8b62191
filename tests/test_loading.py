"""What is loaded is what was asked: labels, files, settings, templates, and the trial."""

import json
import re
import shutil

import cba_utils.answering.templates as templates
from cba_utils import load_items, load_model, score_letters
from cba_utils.answering import quantizers
from cba_utils.answering.precisions import most_bits_first
from cba_utils.answering.quantizers.affine import BITS
from cba_utils.answering.trial import try_out
from cba_utils.names import PROJECT
from cba_utils.study.protocol import cells, read_study
from cba_utils.study.provenance import cell_identity
from conftest import PLAIN, build_checkpoint

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten

ITEMS = load_items("bundled", condition="both").iloc[[0, 400]]
LOGP = ["logp_A", "logp_B", "logp_C"]


def settings(folder, **changes):
    """Change settings of a checkpoint; None takes one out."""
    path = folder / "config.json"
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
    return folder


def weights(folder):
    return dict(mx.load(str(folder / "model.safetensors")))


def store(folder, tensors, name="model.safetensors"):
    mx.save_safetensors(str(folder / name), tensors, metadata={"format": "mlx"})
    return folder


@pytest.fixture
def copy(mistral, tmp_path):
    return shutil.copytree(mistral, tmp_path / "model")


def converted(source, tmp_path, name, **how):
    mlx_lm.convert(str(source), mlx_path=str(tmp_path / name), quantize=True, **how)
    return tmp_path / name


def refused(folder, precisions, words):
    for precision in precisions:
        with pytest.raises(ValueError, match=words) as error:
            load_model(folder, precision, compute="native")
        assert repr(precision) in str(error.value) and str(folder) in str(error.value)
        assert "\n" not in str(error.value)


# As their tools write them; the weights need not be theirs, because what config.json says is enough.
FOREIGN = {
    "awq": dict(
        quantization_config=dict(quant_method="awq", bits=4, group_size=64, version="gemm")
    ),
    "gptq": dict(
        quantization_config=dict(quant_method="gptq", bits=4, group_size=128, desc_act=False)
    ),
    "mxfp4": dict(quantization_config=dict(quant_method="mxfp4")),
    "fp8": dict(quantization_config=dict(quant_method="fp8", weight_block_size=[128, 128])),
    "bitsandbytes": dict(quantization_config=dict(quant_method="bitsandbytes", load_in_4bit=True)),
    "compressed-tensors": dict(
        quantization_config=dict(quant_method="compressed-tensors", format="pack-quantized")
    ),
    "compressed": dict(compression_config=dict(format="int-quantized")),
    "inside": dict(text_config=dict(quantization_config=dict(quant_method="fp8"))),
    "nameless": dict(quantization_config=dict(config_groups={})),
    "activations": dict(quantize_activations=True),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_format_is_named_at_every_precision(copy, kind):
    refused(
        settings(copy, **FOREIGN[kind]),
        ["bf16", "q8", "q4", "q3", "mxfp4-g32"],
        "the weights are not those of .* (quantized|config.json) ",
    )


def test_modelopts_own_file_is_seen(copy):
    (copy / "hf_quant_config.json").write_text(
        json.dumps({"quantization": {"quant_algo": "NVFP4"}})
    )
    refused(copy, ["bf16", "nvfp4-g16"], "ModelOpt")


def test_fp8_without_a_word_in_the_settings_is_seen_in_the_weights(copy):
    header, content = {}, b""
    for name, value in weights(copy).items():
        kind = "F8_E4M3" if name.endswith("_proj.weight") else "F32"
        data = (
            np.array(value.astype(mx.float32))
            .astype(np.uint8 if kind != "F32" else np.float32)
            .tobytes()
        )
        header[name] = {
            "dtype": kind,
            "shape": list(value.shape),
            "data_offsets": [len(content), len(content) + len(data)],
        }
        content += data
    head = json.dumps(header).encode()
    (copy / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + content)
    refused(copy, ["bf16", "q4"], "they are FP8")


def test_a_mixed_recipe_is_the_precision_of_that_name_and_no_other(tmp_path):
    base = build_checkpoint(tmp_path / "base", "mistral", layers=8)
    mixed = converted(
        base, tmp_path, "mixed", q_bits=4, q_group_size=64, quant_predicate="mixed_3_6"
    )
    refused(
        mixed,
        ["q4", "q3", "q6", "bf16"],
        "quantized to 3 bits, group 64, affine .* modules. and 6 bits, group 64, affine",
    )
    refused(mixed, ["mixed-4-6"], "'mixed-4-6' was asked for")
    theirs, ours = (load_model(folder, "mixed-3-6", compute="native") for folder in (mixed, base))
    assert re.search("modules are 6 bits, group 64, affine", " ".join(ours.notes))
    for (path, one), (_, other) in zip(
        tree_flatten(theirs.model.parameters()), tree_flatten(ours.model.parameters()), strict=True
    ):
        assert mx.array_equal(one, other), path


def test_what_the_top_of_the_settings_says_is_not_believed(mistral, tmp_path):
    """mlx-lm's AWQ writes 4 bits at the top, whatever the layers have."""
    three = converted(mistral, tmp_path, "three", q_bits=3, q_group_size=64)
    layers = {
        path: {"bits": 3, "group_size": 64}
        for path, module in load_model(three, "q3", compute="native").model.named_modules()
        if hasattr(module, "bits")
    }
    settings(three, quantization=dict(bits=4, group_size=64, **layers), quantization_config=None)
    refused(three, ["q4"], "quantized to 3 bits, group 64, affine; 'q4' was asked for")
    assert load_model(three, "q3").precision == "q3"


def test_one_layer_left_unquantized_is_told(mistral, tmp_path):
    part = converted(
        mistral,
        tmp_path,
        "part",
        q_bits=4,
        q_group_size=64,
        quant_predicate=lambda path, _: "lm_head" not in path,
    )
    refused(part, ["q4", "bf16"], "4 bits, group 64, affine .* and not quantized .1 modules")


def test_trained_scales_are_told_from_rounding(mistral, tmp_path):
    for bits in BITS:
        made = converted(mistral, tmp_path, f"q{bits}", q_bits=bits, q_group_size=64)
        assert load_model(made, f"q{bits}", compute="native").notes == ()
    tensors = weights(made)
    rng = np.random.default_rng(0)
    for name in [name for name in tensors if name.endswith(".biases")]:
        factor = mx.array(rng.uniform(0.8, 1.2, tensors[name].shape)).astype(mx.bfloat16)
        tensors[name] = tensors[name] * factor
    refused(store(made, tensors), ["q2"], "rounding to nearest does not give")


@pytest.mark.parametrize("kind", [mx.float16, mx.float32])
def test_other_floats_are_rounded_to_bf16_once_and_told(copy, kind, tmp_path):
    rng = np.random.default_rng(0)
    fine = {
        name: (value.astype(mx.float32) * mx.array(rng.uniform(0.99, 1.01, value.shape))).astype(
            kind
        )
        for name, value in weights(copy).items()
    }
    rounded = {name: value.astype(mx.bfloat16) for name, value in fine.items()}
    store(copy, fine)
    twin = store(shutil.copytree(copy, tmp_path / "twin"), rounded)
    for precision in ("bf16", "q4"):
        loaded, wanted = load_model(copy, precision), load_model(twin, precision)
        assert "rounded to BF16 once" in loaded.notes[0] and not wanted.notes
        for (_, mine), (_, theirs) in zip(
            tree_flatten(loaded.model.parameters()),
            tree_flatten(wanted.model.parameters()),
            strict=True,
        ):
            assert mx.array_equal(mine, theirs)


def test_what_an_architecture_keeps_at_other_bits_is_told(tmp_path):
    """`mlx_lm.convert` itself leaves some layers of Granite at eight bits."""
    more = dict(
        logits_scaling=4.0,
        attention_multiplier=0.2,
        embedding_multiplier=2.0,
        residual_multiplier=0.5,
        attention_bias=False,
        mlp_bias=False,
    )
    folder = build_checkpoint(tmp_path / "granite", "granite", **more)
    loaded = load_model(folder, "q4")
    assert [note for note in loaded.notes if "modules are 8 bits, group 64, affine" in note]


def shards(folder, index=True):
    tensors = list(weights(folder).items())
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    parts = [dict(tensors[n::3]) for n in range(3)]
    for name, part in zip(names, parts, strict=True):
        store(folder, part, name)
    if index:
        places = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return names


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(copy, index):
    names = shards(copy, index)
    assert load_model(copy).precision == "bf16"
    (copy / names[1]).unlink()
    for precision in ("bf16", "q4"):
        with pytest.raises(FileNotFoundError, match=f"{copy}.*{names[1]} is not there"):
            load_model(copy, precision)


def test_files_beside_the_models_are_not_read(copy):
    wanted = score_letters(load_model(copy), ITEMS)[LOGP]
    shards(copy)
    other = {name: value * 2 for name, value in weights_of(copy).items()}
    store(copy, other, "consolidated.safetensors")
    store(copy, other, "model-00001-of-00001.safetensors")
    np.testing.assert_array_equal(score_letters(load_model(copy), ITEMS)[LOGP], wanted)


def weights_of(folder):
    return {
        name: value
        for file in folder.glob("model-*-of-00003.safetensors")
        for name, value in mx.load(str(file)).items()
    }


def test_a_tensor_that_is_there_twice_is_named(copy):
    store(copy, {"model.norm.weight": mx.ones(128)}, "model-extra.safetensors")
    with pytest.raises(ValueError, match="'model.norm.weight' is in .* as well"):
        load_model(copy)


def test_a_tokenizer_of_another_model_is_told(tmp_path):
    folder = build_checkpoint(tmp_path / "few", "mistral", vocab_size=512)
    refused_words = "has the id 5.., and the model has 512 embeddings"
    with pytest.raises(ValueError, match=refused_words):
        load_model(folder)


BAD_SETTINGS = {
    "a list": ([1, 2], "holds a list"),
    "no model_type": ({"model_type": None}, "model_type is missing"),
    "unknown": ({"model_type": "nothing_like_it"}, "nothing_like_it"),
    "text": ({"hidden_size": "128"}, "hidden_size is '128'; it must be a whole number"),
    "zero heads": ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    "a million layers": ({"num_hidden_layers": 1_000_000}, "num_hidden_layers is 1,000,000"),
    "other widths": ({"hidden_size": 96}, "cannot load this checkpoint"),
    "NaN": ({"rms_norm_eps": float("nan")}, "config.json: .*NaN"),
}


@pytest.mark.parametrize("kind", BAD_SETTINGS)
def test_settings_that_no_model_has_are_named(copy, kind):
    change, words = BAD_SETTINGS[kind]
    if isinstance(change, list):
        (copy / "config.json").write_text(json.dumps(change))
    else:
        settings(copy, **change)
    with pytest.raises(ValueError, match=words) as error:
        load_model(copy, "q4")
    assert str(copy) in str(error.value) and "\n" not in str(error.value)


BAD_TEMPLATES = {
    "syntax": ("{% for m in messages %}", "cannot render a question"),
    "include": ("{% include 'x' %}", "cannot render a question"),
    "access": ("{{ messages.__class__.__mro__ }}", "cannot render a question"),
    "types": ("{{ messages + 1 }}", "cannot render a question"),
    "endless": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "does not come to an end",
    ),
    "huge": (PLAIN + "{{ 'a b ' * 100000 }}", "tokens of a question of three words"),
    "deaf": ("{{ bos_token }}What?", "leaves out what the user asks"),
}


@pytest.mark.parametrize("kind", BAD_TEMPLATES)
def test_a_template_that_cannot_be_asked_with_is_named(tmp_path, kind, monkeypatch):
    if kind == "endless":
        monkeypatch.setattr(templates, "LONGEST", 1)
    template, words = BAD_TEMPLATES[kind]
    folder = build_checkpoint(tmp_path / "model", "mistral", template=template)
    with pytest.raises(ValueError, match=words) as error:
        load_model(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_named_templates_are_resolved_as_transformers_does(tmp_path, mistral):
    other = "{{ bos_token }}{{ messages[-1]['content'] }}"
    folder = build_checkpoint(
        tmp_path / "model", "mistral", template={"default": PLAIN, "tool_use": other}
    )
    loaded, wanted = load_model(folder), load_model(mistral)
    np.testing.assert_array_equal(
        score_letters(loaded, ITEMS)[LOGP], score_letters(wanted, ITEMS)[LOGP]
    )
    assert identity(folder)["chat_template_sha256"] == identity(mistral)["chat_template_sha256"]
    nameless = build_checkpoint(tmp_path / "other", "mistral", template={"a": PLAIN, "b": other})
    with pytest.raises(ValueError, match=f"{nameless}: the chat template cannot render"):
        load_model(nameless)


def identity(folder, precision="bf16", **changes):
    parameters = cells(read_study(PROJECT / "config" / "smoke.yml"))[0].parameters()
    parameters |= {"model": str(folder), "adapter": None, "precision": precision, **changes}
    return cell_identity(parameters, ITEMS, load_model(folder, precision, parameters["compute"]))


SAME = (
    "prompts_sha256",
    "tokenizer_sha256",
    "chat_template_sha256",
    "generation_sha256",
    "ends",
    "weights_sha256",
)


def test_what_is_asked_is_the_same_at_all_precisions(copy):
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    found = [identity(copy, precision) for precision in ("bf16", "q4")]
    assert all(found[0][key] == found[1][key] for key in SAME) and found[0]["ends"] == [1, 7]
    assert load_model(copy, "q4").tokenizer.eos_token_ids == {1, 7}


def test_a_quantized_copy_takes_its_words_from_its_source(copy):
    """Also after it was made: the tokenizer and the ends of text are never those of an older copy."""
    before = load_model(copy, "q4")
    (copy / "chat_template.jinja").write_text(PLAIN.replace("[INST]", "[INST] "))
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": 9}))
    after = load_model(copy, "q4")
    assert after.path == before.path and 9 in after.tokenizer.eos_token_ids
    assert after.hf_tokenizer.chat_template != before.hf_tokenizer.chat_template


def test_identity_changes_with_all_that_decides_and_not_with_the_day(copy, monkeypatch):
    first = identity(copy)
    assert identity(copy) == first

    def changed(*keys, **parameters):
        found = identity(copy, **parameters)
        # What a cell is compared with is that of the same reference in all that decides.
        assert {k for k in found if found[k] != first[k]} - {"reference"} == set(keys)

    changed("parameters", "compute", compute="native")
    changed("parameters", "prompts_sha256", prompt="short")
    (copy / "generation_config.json").write_text(json.dumps({"top_p": 0.9}))
    changed("generation_sha256")
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": 9}))
    changed("generation_sha256", "ends")
    (copy / "generation_config.json").unlink()
    settings(copy, eos_token_id=5)
    changed("ends", "weights_sha256")
    settings(copy, eos_token_id=1)
    dated = PLAIN.replace("{{ bos_token }}", "{{ bos_token }}{{ strftime_now('%d %b %Y') }}")
    (copy / "chat_template.jinja").write_text(dated)
    changed("prompts_sha256", "tokenizer_sha256", "chat_template_sha256")
    first = identity(copy)
    changed("parameters", "prompts_sha256", date="2026-12-24")
    # transformers' own clock, on another day
    import transformers.utils.chat_template_utils as clock

    class Later(clock.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 6)

    monkeypatch.setattr(clock, "datetime", Later)
    assert identity(copy) == first


MLA = dict(
    n_routed_experts=4,
    n_shared_experts=1,
    moe_intermediate_size=64,
    kv_lora_rank=32,
    q_lora_rank=32,
    qk_rope_head_dim=16,
    qk_nope_head_dim=16,
    v_head_dim=16,
    first_k_dense_replace=2,
    rope_scaling=None,
    num_key_value_heads=1,
)


@pytest.mark.parametrize("heads", [1, 4])
def test_latent_attention_gives_the_numbers_of_its_own_call(tmp_path, heads):
    """Its layers test the mask: one that is to be added would be read the other way round."""
    folder = build_checkpoint(
        tmp_path / "mla",
        "deepseek_v3",
        num_attention_heads=heads,
        **{**MLA, "num_key_value_heads": heads},
    )
    loaded = load_model(folder)
    from cba_utils.answering.prompts import chat_ids, user_text

    found = score_letters(loaded, ITEMS)[LOGP].to_numpy()
    for row, (_, item) in zip(found, ITEMS.iterrows(), strict=True):
        (ids,), _ = chat_ids(loaded.hf_tokenizer, [user_text(item)])
        logp = nn.log_softmax(loaded.model(mx.array([ids]))[0, -1])
        own = [mx.logsumexp(logp[mx.array(tokens)]).item() for tokens in loaded.letters]
        np.testing.assert_allclose(row, own, atol=5e-3)


def test_the_trial_finds_masks_that_are_read_the_other_way_round(tmp_path, monkeypatch):
    from cba_utils.answering import engine

    def added(self, n, return_array=False, window_size=None):
        seen = own(self, n, return_array, window_size)
        return seen if seen is None or isinstance(seen, str) else mx.where(seen, 0.0, -1e9)

    own = engine._PrefixCache.make_mask
    folder = build_checkpoint(tmp_path / "mla", "deepseek_v3", **{**MLA, "num_attention_heads": 1})
    monkeypatch.setattr(engine._PrefixCache, "make_mask", added)
    with pytest.raises(ValueError, match="'deepseek_v3', which cannot be asked here: .* own call"):
        load_model(folder)


@pytest.mark.parametrize("break_it", ["positions", "neighbours"])
def test_the_trial_finds_a_broken_cache(mistral, monkeypatch, break_it):
    from cba_utils.answering import engine

    class Broken(engine._PrefixCache):
        def __init__(self, keys, values, *more):
            super().__init__(keys, values, *more)
            if break_it == "positions":
                self.offset = 0
            elif keys is not None:
                self._values = values[::-1] * 0.5

    monkeypatch.setattr(engine, "_PrefixCache", Broken)
    with pytest.raises(ValueError, match="other probabilities than from its own call"):
        load_model(mistral)


def test_compute_native_is_offered_where_it_works(mistral, tmp_path, monkeypatch):
    from cba_utils.answering import cpu_kernels

    own = cpu_kernels._attention
    monkeypatch.setattr(cpu_kernels, "_attention", lambda *args, **more: 2 * own(*args, **more))
    with pytest.raises(
        ValueError, match="'mistral', .* own call .*; with compute: native it can be asked"
    ):
        load_model(mistral)
    assert load_model(mistral, compute="native").compute == "native"


@pytest.mark.parametrize(
    "architecture, more",
    [
        ("stablelm", dict(use_qkv_bias=False, partial_rotary_factor=0.5, layer_norm_eps=1e-5)),
        ("phi", dict(partial_rotary_factor=0.5, layer_norm_eps=1e-5)),
    ],
)
def test_architectures_that_want_a_cache_named_have_a_perplexity(tmp_path, architecture, more):
    from cba_utils import perplexity

    loaded = load_model(build_checkpoint(tmp_path / "model", architecture, **more))
    assert len(perplexity(loaded, ["one two three four five six seven"], 8)) >= 1


OTHERS = {
    "sinks": (
        "gpt_oss",
        dict(
            head_dim=32,
            num_local_experts=2,
            num_experts_per_tok=1,
            rope_theta=1e4,
            sliding_window=64,
            rope_scaling=None,
            layer_types=["sliding_attention", "full_attention"],
        ),
    ),
    "also sees": (
        "gemma3",
        dict(
            text_config=dict(
                model_type="gemma3_text",
                hidden_size=128,
                num_hidden_layers=2,
                intermediate_size=384,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=32,
                vocab_size=640,
                sliding_window_pattern=2,
                max_position_embeddings=400,
            )
        ),
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_more_kinds_pass_the_trial(tmp_path, kind):
    architecture, more = OTHERS[kind]
    loaded = load_model(build_checkpoint(tmp_path / "model", architecture, **more))
    found = try_out(loaded)
    assert 0 < found["logits"] < 1e-3 and found["perplexity"] < 1e-3


def test_a_folder_for_each_precision(mistral, tmp_path):
    shutil.copytree(mistral, tmp_path / "m-bf16")
    converted(mistral, tmp_path, "m-q4", q_bits=4, q_group_size=64)
    source = str(tmp_path / "m-{precision}")
    assert load_model(source, "bf16").source_path == tmp_path / "m-bf16"
    assert load_model(source, "q4").path == tmp_path / "m-q4"
    shutil.move(tmp_path / "m-q4", tmp_path / "m-q3")
    with pytest.raises(ValueError, match="4 bits, group 64, affine; 'q3' was asked for"):
        load_model(source, "q3")


def test_another_quantizer_is_one_more_file(mistral, tmp_path, monkeypatch):
    """The example of CONTRIBUTING.md, as it stands there."""
    page = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(from cba_utils\.answering\.quantizers.*?)```", page, re.S)
    (tmp_path / "fine.py").write_text(example)
    monkeypatch.setattr(quantizers, "__path__", [*quantizers.__path__, str(tmp_path)])
    quantizers.quantizers.cache_clear()
    try:
        loaded = load_model(mistral, "fine4", compute="native")
        kept = {m.group_size for _, m in loaded.model.named_modules() if hasattr(m, "bits")}
        assert kept == {32} and most_bits_first(["q4", "fine4"]) == ["fine4", "q4"]
    finally:
        quantizers.quantizers.cache_clear()
