"""Stand-ins for the repositories that a study takes from the hub: same files, random weights."""

import contextlib
import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

import cba_utils  # noqa: F401  (binds the fast BLAS before MLX is imported)
from cba_utils.answering.benchmarks.bbq import roles_of_file
from cba_utils.answering.precisions import parse_precision
from cba_utils.answering.prompts import letter_tokens
from cba_utils.answering.quantizers import quantizers
from cba_utils.answering.sources import at_precision, local_folder
from cba_utils.names import BUNDLED_BANK, HELD_OUT_TEXT
from cba_utils.study.protocol import cells
from cba_utils.study.rehearsal import tokenizers

# A letter's logit is this many times as wide as another token's, so that most answers are letters
# and some are not; behind a letter the end of the text has about so large a logit. Larger ones would
# be rounded too coarsely in bf16.
_LETTER_GAIN, _END_LOGIT = 8.0, 40.0
_ATTENTION_GAIN = 3.0
# What adds to the stream of layers; scaled by their number, as trained models start.
_WRITES = ("o_proj.weight", "down_proj.weight")
_GROUP = 64


@dataclass(frozen=True, eq=False)
class Base:
    """A published base model: its configuration, and what lies in its repository.

    Attributes
    ----------
    source : str
        Its hub id.
    config, generation : dict
        ``config.json`` and ``generation_config.json``.
    shards : int
        Number of its weight files.
    beside : tuple of str
        Files of the repository that no study reads.
    tokenizer : callable
        From `cba_utils.study.rehearsal.tokenizers`.
    """

    source: str
    config: dict
    generation: dict
    shards: int
    beside: tuple
    tokenizer: Callable

    @property
    def family(self):
        """The architecture's name in mlx-lm."""
        return self.config["model_type"]


def _rope_factors(last):
    # Their number, first and last are the published ones, what lies between rises evenly.
    return [round(float(x), 4) for x in np.geomspace(1.0, last, 48)]


_COMMON = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
BASES = (
    Base(
        source="Qwen/Qwen2.5-7B-Instruct",
        config={
            **_COMMON,
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "max_position_embeddings": 32768,
            "max_window_layers": 28,
            "num_attention_heads": 28,
            "num_hidden_layers": 28,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "sliding_window": 131072,
            "use_sliding_window": False,
            "vocab_size": 152064,
            "transformers_version": "4.43.1",
        },
        generation={
            "bos_token_id": 151643,
            "pad_token_id": 151643,
            "do_sample": True,
            "eos_token_id": [151645, 151643],
            "repetition_penalty": 1.05,
            "temperature": 0.7,
            "top_p": 0.8,
            "top_k": 20,
        },
        shards=4,
        beside=("LICENSE",),
        tokenizer=tokenizers.qwen2,
    ),
    Base(
        source="mistralai/Mistral-7B-Instruct-v0.3",
        config={
            **_COMMON,
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "vocab_size": 32768,
            "transformers_version": "4.42.0.dev0",
        },
        generation={"bos_token_id": 1, "eos_token_id": 2},
        shards=3,
        # All weights once more in one file, in Mistral's own format.
        beside=("consolidated.safetensors", "params.json", "tokenizer.model.v3"),
        tokenizer=tokenizers.mistral,
    ),
    Base(
        source="microsoft/Phi-3.5-mini-instruct",
        config={
            **_COMMON,
            "architectures": ["Phi3ForCausalLM"],
            "model_type": "phi3",
            "attention_bias": False,
            "auto_map": {
                "AutoConfig": "configuration_phi3.Phi3Config",
                "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
            },
            "bos_token_id": 1,
            "eos_token_id": 32000,
            "pad_token_id": 32000,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "sliding_window": 262144,
            "vocab_size": 32064,
            "transformers_version": "4.43.3",
            "rope_scaling": {
                "type": "longrope",
                "short_factor": _rope_factors(2.8),
                "long_factor": _rope_factors(64.8),
            },
        },
        generation={
            "bos_token_id": 1,
            "eos_token_id": [32007, 32001, 32000],
            "pad_token_id": 32000,
        },
        shards=2,
        beside=("configuration_phi3.py", "modeling_phi3.py", "sample_finetune.py", "LICENSE"),
        tokenizer=tokenizers.phi3,
    ),
)


def base_of(model):
    """The published base that a model of a study is, or was made from.

    Parameters
    ----------
    model : dict
        An entry of a study's ``models``.

    Returns
    -------
    Base

    Raises
    ------
    ValueError
        If it is of none of their families.
    """
    for base in BASES:
        if model["source"] == base.source or model["family"] == base.family:
            return base
    known = ", ".join(f"{base.family} ({base.source})" for base in BASES)
    raise ValueError(
        f"{model['name']}: a rehearsal knows the families {known}; family "
        f"{model['family']!r} is none of them"
    )


def shrunk(config, layers, parts):
    """A configuration with fewer layers, and a part of the heads and of the inner width.

    Heads keep their width and the vocabulary its size.

    Parameters
    ----------
    config : dict
    layers, parts : int
        ``parts=1`` keeps the widths.

    Returns
    -------
    dict

    Examples
    --------
    >>> small = shrunk(BASES[1].config, layers=1, parts=8)
    >>> small["hidden_size"], small["num_attention_heads"], small["vocab_size"]
    (512, 4, 32768)
    """
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    width = config["hidden_size"] // heads
    fewer = max(2, heads // parts)
    inner = math.ceil(config["intermediate_size"] / parts / _GROUP) * _GROUP
    return config | {
        "num_hidden_layers": min(layers, config["num_hidden_layers"]),
        "num_attention_heads": fewer,
        "num_key_value_heads": fewer if groups == heads else max(1, groups // parts),
        "hidden_size": fewer * width,
        "intermediate_size": inner,
    }


def weight_counts(config):
    """Weights of a decoder's layers, and of its embedding and head.

    Parameters
    ----------
    config : dict

    Returns
    -------
    tuple of (int, int)

    Examples
    --------
    >>> sum(weight_counts(BASES[1].config)) / 1e9
    7.247757312
    """
    width, inner = config["hidden_size"], config["intermediate_size"]
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]
    layer = width * (2 * width + 2 * keys) + 3 * width * inner
    return config["num_hidden_layers"] * layer, 2 * config["vocab_size"] * width


def build(study, root, size, packaged, bbq=None):
    """Make every repository that a study takes from the hub.

    Parameters
    ----------
    study : dict
    root : Path
        See `cba_utils.study.rehearsal.hub.Hub`.
    size : tuple of (int, int)
        Layers and parts, see `shrunk`.
    packaged : bool
        Whether the packages with the true tokenizers are there.
    bbq : Path, optional
        Folder of BBQ's JSONL files; without one the items are those of the project's bank.

    Returns
    -------
    list of str
        What every part was made of, for people.
    """
    told = []
    bases = {model["name"]: base_of(model) for model in study["models"]}
    for base in dict.fromkeys(bases.values()):
        told.append(f"{base.source}: {build_base(base, root, size, packaged)}")
    for cell in cells(study):
        source = at_precision(cell.model, cell.precision)
        base = bases[cell.name]
        target = root / "models" / source
        if local_folder(source) is None and not target.exists():
            _convert(root / "models" / base.source, target, cell.precision)
    items = study["items"]
    if _of_hub(items["source"]):
        told.append(_build_items(root / "datasets" / items["source"], items, bbq))
    text = study["perplexity"]
    if _of_hub(text["text"]):
        _build_conversations(
            root / "datasets" / text["text"], text["sequences"] * text["sequence_length"]
        )
        told.append(f"{text['text']}: conversations of lines of the project's held-out text")
    return told


def _of_hub(source):
    return source.count("/") == 1 and not Path(source).exists()


def build_base(base, root, size, packaged):
    """The repository of a base model; returns where its tokenizer comes from."""
    folder = root / "models" / base.source
    folder.mkdir(parents=True)
    config = shrunk(base.config, *size)
    files = base.tokenizer(packaged)
    files.write(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text(json.dumps(base.generation, indent=2))
    for name in (*base.beside, "README.md", ".gitattributes"):
        (folder / name).write_text("Stands here for a file that no study reads.\n")
    _write_shards(_random_weights(config, folder), base.shards, folder)
    return files.origin


def _random_weights(config, folder):
    # Here, because it takes seconds that other steps need not spend.
    from transformers import AutoTokenizer

    kind, arguments = _get_classes(config)
    weights = dict(tree_flatten(kind(arguments.from_dict(config)).parameters()))
    keys = mx.random.split(mx.random.key(config["vocab_size"]), len(weights))
    for key, name in zip(keys, sorted(weights), strict=True):
        shape = weights[name].shape
        if len(shape) == 2:
            scale = 1.0 if "embed" in name else shape[1] ** -0.5
            # Attention is sharp and weighs more than the last token, which is the same in all prompts:
            # in the first layer alone, for sharp layers one after the other blow rounding up to noise.
            first = ".layers.0." in name
            if first and "self_attn" in name:
                scale *= _ATTENTION_GAIN
            if not first and name.endswith(_WRITES):
                scale *= (2 * config["num_hidden_layers"]) ** -0.5
            weights[name] = mx.random.normal(shape, mx.bfloat16, scale=scale, key=key)
        elif name.endswith("bias"):
            weights[name] = mx.random.normal(shape, mx.bfloat16, scale=0.1, key=key)
        else:
            weights[name] = weights[name].astype(mx.bfloat16)
    letters = mx.array(sum(letter_tokens(AutoTokenizer.from_pretrained(folder)), []))
    embedding = next(value for name, value in weights.items() if "embed_tokens" in name)
    head = weights["lm_head.weight"]
    head[letters] = _LETTER_GAIN * head[letters]
    # The embedding of the last token is still in what reaches the head.
    head[config["eos_token_id"]] = (
        _END_LOGIT / config["hidden_size"] * embedding[letters].sum(axis=0)
    )
    weights["lm_head.weight"] = head
    return weights


def _write_shards(weights, count, folder):
    index, shards = {}, [{} for _ in range(count)]
    for number, (name, value) in enumerate(sorted(weights.items())):
        shard = number * count // len(weights)
        shards[shard][name] = value
        index[name] = f"model-{shard + 1:05}-of-{count:05}.safetensors"
    for number, shard in enumerate(shards, 1):
        file = folder / f"model-{number:05}-of-{count:05}.safetensors"
        mx.save_safetensors(str(file), shard, metadata={"format": "pt"})
    size = sum(value.nbytes for value in weights.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": index}, indent=2)
    )


def _convert(source, target, precision):
    """An artifact as ``mlx_lm.convert`` writes it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    asked = parse_precision(precision).weights
    if asked.method:
        quantizers()[asked.method].make(source, asked, target)
    else:
        with contextlib.redirect_stdout(sys.stderr):
            mlx_lm.convert(str(source), mlx_path=str(target), dtype="bfloat16")


def _build_items(folder, items, bbq):
    """A data set in the published schema; returns what it was made of."""
    (folder / "data").mkdir(parents=True)
    wanted = items.get("categories")
    if bbq:
        rows = {
            path.stem: _lines(path.read_text(encoding="utf-8"))
            for path in sorted(bbq.glob("*.jsonl"))
        }
        origin = f"the files in {bbq.name}/, in the data set's schema"
    else:
        import gzip

        bank = {}
        for row in _lines(gzip.decompress(BUNDLED_BANK.read_bytes()).decode()):
            bank.setdefault(row["category"], []).append(row)
        names = wanted or list(bank)
        rows = {
            name: [{**row, "category": name} for row in found]
            for name, found in zip(names, bank.values(), strict=False)
        }
        origin = (
            "items of the project's own bank under the categories' names, in the data set's schema"
        )
    # A split that the study does not ask for: it must not be fetched.
    rows.setdefault(
        "Nationality", [{**row, "category": "Nationality"} for row in next(iter(rows.values()))[:2]]
    )
    for category, found in rows.items():
        table = pa.Table.from_pylist(list(_published_rows(found)))
        pq.write_table(table, folder / "data" / f"{category.lower()}-00000-of-00001.parquet")
    splits = "".join(
        f"  - split: {name.lower()}\n    path: data/{name.lower()}-*\n" for name in rows
    )
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n"
    )
    return f"{items['source']}: {origin}"


def _lines(text):
    return [row for row in map(json.loads, text.splitlines()) if "answer_info" in row]


def _published_rows(rows):
    for row, (target, _, _) in zip(rows, roles_of_file(rows), strict=True):
        kept = {key: value for key, value in row.items() if key != "label"}
        yield {
            **kept,
            "answer_label": row["label"],
            "target_label": -1 if target is None else target,
        }


def _build_conversations(folder, tokens):
    """Conversations enough for a number of tokens, over several files as the published ones are."""
    (folder / "data").mkdir(parents=True)
    lines = HELD_OUT_TEXT.read_text(encoding="utf-8").splitlines()
    # Two lines have about a hundred tokens; twice as many as needed, since a sample is drawn.
    count = max(len(lines), tokens // 40)
    random = np.random.default_rng(0)
    rows = [
        {
            "id": f"rehearsal_{i}",
            "source": "rehearsal",
            "messages": [
                {"role": "user", "content": lines[a]},
                {"role": "assistant", "content": lines[b]},
            ],
        }
        for i, (a, b) in enumerate(random.integers(0, len(lines), (count, 2)))
    ]
    for part in range(2):
        table = pa.Table.from_pylist(rows[part::2])
        pq.write_table(table, folder / "data" / f"train-{part:05}-of-00002.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - split: train\n    path: data/train-*\n---\n"
    )


def remove(root):
    """Take away what `build` made."""
    shutil.rmtree(root, ignore_errors=True)
