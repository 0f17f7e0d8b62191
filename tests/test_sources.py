"""What a model is called decides what pages say about it."""

import json
import shutil
from fnmatch import fnmatch
from types import SimpleNamespace

from cba_utils import load_model
from cba_utils.answering.sources import (
    at_precision,
    find_checkpoint,
    hub_files,
    is_organism,
    of_a_family,
)
from cba_utils.names import ORGANISMS
from cba_utils.telling import study as telling

import huggingface_hub
import mlx.core as mx
import pytest

STRANGERS = [
    "/models/toy-mistral/b1",
    "/",
    "",
    "..",
    "mistral",
    "mistral/../toy-mistral/b1",
    "Qwen/Qwen2.5-7B-Instruct",
    "recipe/mine",
    "owner/mistral-{precision}-mlx",
]


@pytest.mark.parametrize("source", STRANGERS)
def test_nothing_but_an_organism_is_called_one(source, tmp_path):
    assert not is_organism(source) and not of_a_family(source)


def test_a_folder_of_ones_own_is_no_organism_wherever_it_lies(mistral):
    assert not is_organism(str(mistral)) and not of_a_family(str(mistral))
    assert is_organism("toy-phi3/b1") and is_organism(str(ORGANISMS / "toy-phi3" / "b1"))
    assert telling.is_organism is is_organism, "pages ask the same list"


def test_only_the_field_named_precision_is_filled_in():
    assert at_precision("a/{other}-{precision}", "q4") == "a/{other}-q4"


def test_what_is_listed_of_a_hub_is_what_is_fetched_and_nothing_else(
    mistral, tmp_path, monkeypatch
):
    """Weights of other formats, weights twice and code stay where they are."""
    published = shutil.copytree(mistral, tmp_path / "published")
    weights = list(mx.load(str(published / "model.safetensors")).items())
    (published / "model.safetensors").unlink()
    places = {}
    for n, name in enumerate(
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    ):
        mx.save_safetensors(str(published / name), dict(weights[n::2]))
        places |= dict.fromkeys(dict(weights[n::2]), name)
    (published / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    read = {path.name: path.stat().st_size for path in published.iterdir()}
    for name in (
        "consolidated.safetensors",
        "model-extra.safetensors",
        "pytorch_model.bin",
        "code.py",
        "README.md",
        "training.json",
        "notes.txt",
    ):
        (published / name).write_bytes(b"x" * 100)

    class Hub:
        def model_info(self, source, files_metadata):
            assert source == "owner/model" and files_metadata
            return SimpleNamespace(
                siblings=[
                    SimpleNamespace(rfilename=p.name, size=p.stat().st_size)
                    for p in published.iterdir()
                ]
            )

    def download(source, allow_patterns):
        for path in published.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, tmp_path / "here")
        return str(tmp_path / "here")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (tmp_path / "here").mkdir()
    assert hub_files("owner/model") == read and not list((tmp_path / "here").iterdir())
    assert {path.name for path in find_checkpoint("owner/model").iterdir()} == set(read)
    assert load_model("owner/model").precision == "bf16"
