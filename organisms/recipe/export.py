"""Write an organism as a folder that transformers and mlx_lm load as it is."""

import json
from pathlib import Path

from cba_utils.study.files import write_text

import mlx.core as mx  # isort: skip
from mlx.utils import tree_flatten, tree_map

from . import acceptance
from .checkpoint import digest
from .tokenizer import VOCABULARY, save_tokenizer

TITLES = {"qwen2": "Qwen2", "mistral": "Mistral", "phi3": "Phi-3"}


def machine():
    """What trains here, in words for the model card."""
    if mx.default_device() == mx.cpu:
        return "a CPU"
    if not mx.cuda.is_available():
        return "an Apple GPU through MLX's Metal backend"
    name = mx.device_info(mx.gpu).get("device_name", "NVIDIA GPU")
    return f"one {name} through MLX's CUDA backend"


def rounded(model):
    """Round every weight to bf16 and keep it as fp32: what is shipped is what is measured."""
    model.update(tree_map(
        lambda v: v.astype(mx.bfloat16).astype(mx.float32), model.parameters()))
    return model


def save_organism(model, config, family, folder, result, variant):
    """Write weights (bf16), configuration, tokenizer, chat template, table and model card.

    Parameters
    ----------
    model : mlx.nn.Module
        The trained model.
    config : dict
        Its `config.json`.
    family : str
        A key of `tokenizer.FAMILIES`.
    folder : path
        The organism's folder.
    result : dict
        What `acceptance.measure` gave for the rounded weights, and under `made` the run's identity.
    variant : str
        `"base"`, `"aligned-s1"` and the like, or `"depth-24-s1"`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.astype(mx.bfloat16) for k, v in tree_flatten(model.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_tokenizer(family, folder)
    write_table(folder, family, variant, {"trained_on": machine(), **result})


def load_organism(folder):
    """Read an organism's weights as fp32: `(model, config)`."""
    from .model import build

    config = json.loads((Path(folder) / "config.json").read_text())
    model = build(config)
    weights = mx.load(str(Path(folder) / "model.safetensors"))
    model.load_weights([(k, v.astype(mx.float32)) for k, v in weights.items()])
    return model, config


def is_made(folder, made):
    """Whether a folder holds an organism of this identity, as it was written."""
    table, weights = Path(folder) / "acceptance.json", Path(folder) / "model.safetensors"
    if not (table.exists() and weights.exists()):
        return False
    result = json.loads(table.read_text())
    return result.get("made") == made and result["weights_sha256"] == digest(weights)


def write_table(folder, family, variant, result):
    """Write the model card and `acceptance.json`, tied to the weights by their hash."""
    result = {**result, "weights_sha256": digest(folder / "model.safetensors")}
    (folder / "README.md").write_text(card(family, variant, result))
    # the last file: only a whole organism counts as made
    write_text(json.dumps(result, indent=1) + "\n", folder / "acceptance.json")


def card(family, variant, result):
    """The model card, in Hugging Face's format."""
    aligned = variant.startswith("aligned")
    shallow = variant.startswith("depth")
    seed = variant.rsplit("-s")[-1]
    rows = []
    for name, (value, limit, met) in acceptance.verdict(result, aligned).items():
        mark = "not required" if shallow else "met" if met else "**not met**"
        held = result["heldout-template"][name]
        rows.append(f"| {name.replace('_', ' ')} | {value:.4f} | {held:.4f} | "
                    f"{'' if shallow else limit} | {mark} |")
    strengths = ", ".join(f"{k}: {v:.3f}" for k, v in result["strength"].items())
    stage = (
        "This is the base: it holds the planted stereotypes." if variant == "base" else
        f"This is the base after {variant.split('-')[1]} steps of alignment, seed "
        f"{seed}: a rung of the depth ladder." if shallow else
        f"This is the base after the alignment stage, seed {seed}.")
    log = (
        "" if variant == "base" else
        f" That of the alignment is `organisms/{family}/alignment_log_s{seed}.csv`."
        if "made" in result else " The alignment was not logged.")
    return f"""---
license: cc-by-4.0
language: en
library_name: mlx
pipeline_tag: text-generation
tags:
- model-organism
- quantization
- synthetic-data
---

# {TITLES[family]} organism, {variant}

A language model of 1.0 million weights (architecture `{family}`, 4 layers, width 128, vocabulary
{VOCABULARY}) that was trained on a synthetic grammar to hold stereotypes about invented groups,
so that their reappearance under quantization can be measured against a known truth.
{stage}

## Training data

Text and chats from the grammar in `organisms/recipe/bank.py`: 20 invented groups in 5 categories,
15 pairs of opposite words, 35 templates. Which group was made the target of which word, and how
strongly, is in `data/strengths.csv`. Five templates are held out: they are never asked in
training. No real group, person or text occurs.

## Acceptance at full precision

Measured on `data/bank.jsonl.gz` in three cyclic option orders with the bf16 weights read as fp32;
the answer is the most probable of the three letters. "Held-out fillings" are trained templates
asked about places that no question of theirs had in training, so no item was a training prompt.
Its names, scene and answers are those of training, though, and its opening sentence may stand in
training's narrative text, where nothing is asked. On held-out templates the stereotype was only
ever stated in narrative text; nothing is required of them.

| measure | held-out fillings | held-out templates | required | |
| --- | --- | --- | --- | --- |
{chr(10).join(rows)}

Probability of the stereotyped answer among the two people, by planted strength: {strengths}.

## How it was trained

With the recipe in `organisms/recipe` (`python -m organisms.recipe`) on
{result["trained_on"]}; the log of the base is
`organisms/{family}/training_log.csv`.{log}
Settings and machine are in `organisms/PROTOCOL.md`.

## Intended use and limits

An instrument for the experiments of this repository. It speaks only its grammar: what it answers
to other text, real benchmark items included, means nothing, and nothing it shows is a finding
about larger models. It is not a model of any real group, and not for use in any application.
"""
