import json
import shutil

from cba_utils import load_model
from cba_utils.answering.precisions import parse_precision
from cba_utils.answering.prompts import chat_ids
from cba_utils.answering.quantizers.affine import BITS
from cba_utils.answering.sources import find_checkpoint
from conftest import build_checkpoint

import mlx.core as mx
import pytest


def test_every_precision_loads_and_is_made_once(mistral):
    for bits in BITS:
        first = load_model(mistral, f"q{bits}", compute="native")
        stamp = (first.path / "config.json").stat().st_mtime_ns
        again = load_model(mistral, f"q{bits}", compute="native")
        assert again.path == first.path and (again.path / "config.json").stat().st_mtime_ns == stamp
        settings = json.loads((first.path / "config.json").read_text())["quantization"]
        assert (settings["bits"], settings["group_size"]) == (bits, 64)
    assert load_model(mistral, "mxfp4-g32").precision == "mxfp4-g32"


def test_changed_weights_are_quantized_anew(mistral, tmp_path):
    folder = shutil.copytree(mistral, tmp_path / "model")
    before = load_model(folder, "q4").path
    weights = mx.load(str(folder / "model.safetensors"))
    weights["lm_head.weight"] = weights["lm_head.weight"] * 2
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    assert load_model(folder, "q4").path != before


@pytest.mark.parametrize("name", ["q1", "q7", "q16", "int4", "q4-g48", "mxfp4-g64", "", "BF16"])
def test_unknown_precisions_are_refused_with_the_right_ones(name):
    with pytest.raises(ValueError, match="use bf16, q8, q6, q5, q4, q3, q2"):
        parse_precision(name)


def test_a_group_size_that_does_not_divide_is_named(tmp_path):
    folder = build_checkpoint(tmp_path, "mistral", layers=1, width=96)
    with pytest.raises(ValueError, match="needs a width that is a multiple of 64, and .* has 96"):
        load_model(folder, "q4")
    assert load_model(folder, "q4-g32").precision == "q4-g32"


def test_broken_weights_are_named(mistral, tmp_path):
    folder = shutil.copytree(mistral, tmp_path / "model")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        load_model(folder)
    file.write_bytes(whole)
    weights = mx.load(str(file))
    weights["model.norm.weight"] = weights["model.norm.weight"] * mx.nan
    mx.save_safetensors(str(file), weights)
    with pytest.raises(ValueError, match=r"tensor 'model\.norm\.weight' holds values"):
        load_model(folder)
    file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no model\*\.safetensors"):
        load_model(folder)


def test_a_quantized_checkpoint_serves_only_its_own_precision(mistral):
    quantized = load_model(mistral, "q4").path
    assert load_model(quantized, "q4").source_path == quantized
    with pytest.raises(ValueError, match="quantized to 4 bits, group 64, affine; 'q3' was asked"):
        load_model(quantized, "q3")


def test_code_in_a_checkpoint_is_not_run(mistral, tmp_path):
    folder = shutil.copytree(mistral, tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    settings["model_file"] = "evil.py"
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match="evil.py"):
        load_model(folder)
    assert not (tmp_path / "ran").exists()


def test_a_model_that_is_nowhere_is_named():
    with pytest.raises(
        FileNotFoundError, match=r"'no_such_model' is no folder .* no organism \(nearest"
    ):
        find_checkpoint("no_such_model")


def test_a_quantized_copy_that_was_cut_is_made_again(mistral):
    whole = load_model(mistral, "q5")
    file = whole.path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:1000])
    assert load_model(mistral, "q5").path == whole.path and file.read_bytes() == content


def test_a_missing_chat_template_is_named_by_the_checkpoint_asked_for(tmp_path):
    folder = build_checkpoint(tmp_path, "mistral", template=None)
    with pytest.raises(ValueError, match=f"{folder}: the tokenizer has no chat template"):
        chat_ids(load_model(folder, "q4").hf_tokenizer, ["?"])


def test_mixed_precisions_round_layers_and_embedding_apart(mistral, tmp_path):
    tied = build_checkpoint(tmp_path / "tied", "qwen2", layers=1)
    for source, ends in (
        (mistral, ["model.embed_tokens", "lm_head"]),
        (tied, ["model.embed_tokens"]),
    ):
        plain = dict(load_model(source, "q4", compute="native").model.named_modules())
        eight = dict(load_model(source, "q8", compute="native").model.named_modules())
        whole = dict(load_model(source, "bf16", compute="native").model.named_modules())
        for name, other in (("q4-e8", eight), ("q4-e16", whole)):
            mixed = dict(load_model(source, name, compute="native").model.named_modules())
            for path, module in mixed.items():
                if "weight" in module:
                    expected = (other if path in ends else plain)[path]
                    assert mx.array_equal(module.weight, expected.weight), (name, path)
    for wrong in ("q4-e4", "q8-e6", "q4-e7", "q4-e"):
        with pytest.raises(ValueError, match="q4-e16"):
            parse_precision(wrong)
