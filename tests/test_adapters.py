"""An adapter is fused to the weights that mlx_lm.fuse writes, or refused in one line."""

import json
import shutil
import subprocess
import sys

from cba_utils import load_model
from cba_utils.names import ORGANISMS
from cba_utils.study.protocol import check_study, read_study

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

BASES = sorted(
    p.parent for p in ORGANISMS.glob("*/*/model.safetensors") if p.parent.name in ("base", "b1")
)


@pytest.fixture(params=BASES, ids=lambda p: p.parent.name)
def base(request):
    return request.param


@pytest.fixture
def adapter(base, tmp_path):
    """A LoRA adapter as `mlx_lm.lora` writes it, of some rank, with weights that change answers."""
    network, _ = mlx_lm.load(str(base))
    settings = {"rank": 3, "scale": 4.0, "dropout": 0.1}
    network.freeze()
    linear_to_lora_layers(network, 3, dict(settings))
    mx.random.seed(1)
    weights = {
        name: (0.1 * mx.random.normal(value.shape)).astype(mx.bfloat16)
        for name, value in tree_flatten(network.trainable_parameters())
    }
    folder = tmp_path / "adapter"
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    written = {
        "fine_tune_type": "lora",
        "num_layers": 3,
        "lora_parameters": settings,
        "model": str(base),
    }
    (folder / "adapter_config.json").write_text(json.dumps(written))
    return folder


def changed(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def tensors(model):
    return dict(tree_flatten(model.parameters()))


def equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        np.testing.assert_array_equal(
            *(
                np.array(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x)
                for x in (value, other[name])
            )
        )


def test_weights_are_those_of_mlx_lm_fuse(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("CBA_CACHE", str(tmp_path / "cache"))
    command = [sys.executable, "-m", "mlx_lm", "fuse", "--model", base, "--adapter-path", adapter]
    command += ["--save-path", tmp_path / "fused"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    for precision in ("bf16", "q4"):
        mine = load_model(base, precision, "native", adapter)
        equal(
            tensors(mine.model), tensors(load_model(tmp_path / "fused", precision, "native").model)
        )
    assert mine.adapter_path == adapter and mine.source_path == base
    assert "fused" in mine.notes[0] and "BF16" in mine.notes[0]


def test_answers_are_those_of_the_adapter_unfused(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("CBA_CACHE", str(tmp_path / "cache"))
    unfused, _ = mlx_lm.load(str(base), adapter_path=str(adapter))
    ids = mx.arange(20, 80)[None]
    wanted = np.array(unfused(ids).astype(mx.float32))
    found = np.array(load_model(base, "bf16", "native", adapter).model(ids).astype(mx.float32))
    plain = np.array(load_model(base, "bf16", "native").model(ids).astype(mx.float32))
    # bf16 rounds the two ways of computing differently; the adapter itself moves logits far more
    assert np.abs(found - wanted).mean() < 0.1 * np.abs(plain - wanted).mean()


def test_full_adapters_replace_weights(base, tmp_path, monkeypatch):
    monkeypatch.setenv("CBA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "full"
    folder.mkdir()
    name = "model.norm.weight"
    new = 2 * mx.load(str(base / "model.safetensors"))[name]
    mx.save_safetensors(str(folder / "adapters.safetensors"), {name: new})
    (folder / "adapter_config.json").write_text(
        json.dumps({"fine_tune_type": "full", "num_layers": 4})
    )
    loaded = load_model(base, "bf16", "native", folder)
    equal(tensors(loaded.model), tensors(load_model(base, "bf16", "native").model) | {name: new})


def test_what_cannot_be_fused_is_refused_in_one_line(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("CBA_CACHE", str(tmp_path / "cache"))

    def refused(words, model=base, kind=ValueError):
        with pytest.raises(kind, match=words) as caught:
            load_model(model, "bf16", "native", adapter)
        assert "\n" not in str(caught.value)

    changed(adapter, fine_tune_type="dora")
    refused("'dora'; lora and full are fused here")
    changed(adapter, fine_tune_type="lora", model="owner/another-model")
    refused("trained on 'owner/another-model'")
    changed(adapter, model=str(base), lora_parameters={"rank": 2, "scale": 4.0, "dropout": 0.0})
    refused("does not fit .*shape")
    changed(adapter, lora_parameters={"rank": 3, "scale": 4.0, "dropout": 0.0})
    quantized = load_model(base, "q4", "native").path
    changed(adapter, model=str(quantized))
    refused("is quantized, and adapters are fused at full precision", quantized)
    (adapter / "adapters.safetensors").write_bytes(b"cut")
    changed(adapter, model=str(base))
    refused("not a whole safetensors file")
    shutil.rmtree(adapter)
    refused("adapter: .* is no folder with adapter_config.json", kind=FileNotFoundError)


def test_a_study_names_an_adapter_and_cells_know_it(adapter, base):
    study = read_study("config/smoke.yml") | {"families": {"mine": "mine"}}
    entry = {"name": "mine", "source": str(base), "adapter": str(adapter), "family": "mine"}
    plain = {"name": "plain", "source": str(base), "family": "mine"}
    # the same base with and without it are two models
    checked = check_study(study | {"models": [entry, plain]}, "here")
    assert checked["models"][0]["adapter"] == str(adapter)
    with pytest.raises(
        ValueError, match="adapter of mine: 'nowhere' is no folder with adapter_config"
    ):
        check_study(study | {"models": [entry | {"adapter": "nowhere"}]}, "here")
