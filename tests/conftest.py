"""Tiny random checkpoints in the paper's architectures, built in seconds."""

import json
import os
from pathlib import Path

import cba_utils  # noqa: F401  (binds the fast BLAS before MLX is imported)

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[1]
BBQ = ROOT.parent / "shared" / "bbq"

PLAIN = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}\n"
    "{% else %}[INST]{{ m['content'] }}[/INST]{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ bos_token }}{% for m in messages %}[INST]{{ m['content'] }}[/INST]{% endfor %}"
)

# Files that wait for whole books, browsers and clusters begin first: workers take whole files, and one that
# begins last keeps everybody waiting.
LONG = (
    "test_rehearsal",
    "test_browser",
    "test_workflow",
    "test_again",
    "test_slurm",
    "test_chapters",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(name) if (name := item.path.stem) in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    os.environ["CBA_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def build_checkpoint(folder, architecture, width=128, layers=2, template=PLAIN, **config):
    """A random model with its tokenizer, in the files a hub checkpoint has."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>", "[INST]", "[/INST]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([(ROOT / "data" / "heldout.txt").read_text()[:40000]], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = template
    wrapped.save_pretrained(folder)
    settings = {
        "model_type": architecture,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": 3 * width,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": 640,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "tie_word_embeddings": architecture == "qwen2",
        "bos_token_id": 0,
        "eos_token_id": 1,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    mx.random.seed(len(architecture))
    network, arguments = _get_classes(settings)
    weights = tree_flatten(network(arguments.from_dict(settings)).parameters())
    # Wide weights: answers of a random model should differ from item to item.
    mx.save_safetensors(
        str(folder / "model.safetensors"),
        {name: (3 * value).astype(mx.bfloat16) for name, value in weights},
        metadata={"format": "mlx"},
    )
    return folder


@pytest.fixture(scope="session", params=["mistral", "qwen2", "phi3"])
def checkpoint(request, tmp_path_factory):
    """A tiny checkpoint of each of the paper's architectures."""
    return build_checkpoint(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture(scope="session")
def mistral(tmp_path_factory):
    """A tiny checkpoint where one architecture is enough."""
    return build_checkpoint(tmp_path_factory.mktemp("one") / "model", "mistral")


@pytest.fixture(scope="session")
def bbq():
    """Folder of real BBQ files."""
    if not BBQ.is_dir():
        pytest.skip("real BBQ files are not beside the project (../shared/bbq)")
    return BBQ
