"""Write an organism as a folder that transformers and mlx_lm load as it is."""

import json
from pathlib import Path

from cba_utils.study.files import write_text

import mlx.core as mx  # isort: skip
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.tuner.utils import load_adapters

from . import acceptance
from .checkpoint import digest
from .model import LAYERS
from .tokenizer import VOCABULARY, save_tokenizer

RANK, SCALE = 8, 2.0  # of the adapters, see `plant`
TITLES = {"qwen2": "toy-Qwen2", "mistral": "toy-Mistral", "phi3": "toy-Phi3"}


def rounded(model):
    """Round every weight to bf16 and keep it as fp32: what is shipped is what is measured."""
    model.update(tree_map(
        lambda v: v.astype(mx.bfloat16).astype(mx.float32), model.parameters()))
    return model


def save_base(model, config, family, folder, result):
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
        The base's folder.
    result : dict
        What `acceptance.measure` gave for the rounded weights; under `made` the run's identity, under
        `trained_on` the machine.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.astype(mx.bfloat16) for k, v in tree_flatten(model.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_tokenizer(family, folder)
    write_table(folder, family, result)


def save_adapter(weights, base, folder):
    """Write an adapter (bf16) as mlx_lm reads it.

    Parameters
    ----------
    weights : dict
        Arrays by mlx_lm's names.
    base, folder : path
        Folders of the base and of the adapter.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.astype(mx.bfloat16) for k, v in weights.items()}
    mx.save_safetensors(str(folder / WEIGHTS["adapter"]), weights)
    named = {"model": f"{base.parent.name}/{base.name}", "fine_tune_type": "lora",
             "num_layers": LAYERS,
             "lora_parameters": {"rank": RANK, "scale": SCALE, "dropout": 0.0}}
    (folder / "adapter_config.json").write_text(
        json.dumps(named, indent=2, sort_keys=True) + "\n")


def fused(base, adapter):
    """A base with an adapter fused into it in bf16, as mlx_lm does it, read as fp32."""
    model, _ = load_organism(base)
    model.update(tree_map(lambda v: v.astype(mx.bfloat16), model.parameters()))
    model = load_adapters(model, str(adapter))
    model.update_modules(tree_unflatten(
        [(name, part.fuse()) for name, part in model.named_modules() if hasattr(part, "fuse")]))
    return rounded(model)


def load_organism(folder):
    """Read an organism's weights as fp32: `(model, config)`."""
    from .model import build

    config = json.loads((Path(folder) / "config.json").read_text())
    model = build(config)
    weights = mx.load(str(Path(folder) / "model.safetensors"))
    model.load_weights([(k, v.astype(mx.float32)) for k, v in weights.items()])
    return model, config


WEIGHTS = {"base": "model.safetensors", "adapter": "adapters.safetensors"}


def weights_of(folder):
    """The file of a base's weights or of an adapter's; None where there is neither."""
    there = (Path(folder) / name for name in WEIGHTS.values())
    return next((path for path in there if path.exists()), None)


def is_made(folder, made):
    """Whether a folder holds an organism of this identity, as it was written."""
    table, weights = Path(folder) / "acceptance.json", weights_of(folder)
    if not (table.exists() and weights):
        return False
    result = json.loads(table.read_text())
    return result.get("made") == made and result["weights_sha256"] == digest(weights)


def write_table(folder, family, result):
    """Write the model card and `acceptance.json`, tied to the weights by their hash."""
    result = {**result, "weights_sha256": digest(weights_of(folder))}
    aligned = weights_of(folder).name == WEIGHTS["adapter"]
    table = acceptance.verdict(result, aligned)
    result = {"missed": [k for k, (*_, met) in table.items() if not met], **result}
    (folder / "README.md").write_text(card(family, folder, result))
    # the last file: only a whole organism counts as made
    write_text(json.dumps(result, indent=1) + "\n", folder / "acceptance.json")


def card(family, folder, result):
    """The model card, in Hugging Face's format; the folder's name is as `b1` or `b1-a2`."""
    variant = folder.name
    base, *more = variant.split("-")
    config = json.loads((folder.parent / base / "config.json").read_text())
    width, inner = config["hidden_size"], config["intermediate_size"]
    million = (2 * VOCABULARY * width + LAYERS * width * (4 * width + 3 * inner)) / 1e6
    aligned, shallow = bool(more), len(more) > 1
    rows = []
    for name, (value, limit, met) in acceptance.verdict(result, aligned).items():
        mark = "not required" if shallow else "met" if met else "**not met**"
        held = result["heldout-template"][name]
        rows.append(f"| {name.replace('_', ' ')} | {value:.4f} | "
                    f"{'' if held is None else f'{held:.4f}'} | "
                    f"{'' if shallow else limit} | {mark} |")
    rungs = [
        f"| {r['margin']:g} | {r['measured_margin']:.2f} | {r['lean']:g} | {r['measured_lean']:.3f} |"
        for r in result["main"]["rungs"]] if aligned else []
    ladder = f"""
Planted and measured, by rung (means over held-out fillings):

| margin | measured | lean | measured |
| --- | --- | --- | --- |
{chr(10).join(rungs)}
""" if aligned else ""
    stage = (
        "This is a base: it leans as planted and never answers \"unknown\"." if not aligned else
        f"This is an adapter for the base `{base}`: {result['made']['steps']} steps of alignment, seed "
        f"{more[0][1:]}{'; a rung of the depth ladder' if shallow else ''}. It is in the form that "
        "mlx_lm fuses.")
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

A language model of {million:.1f} million weights (architecture `{family}`, {LAYERS} layers, width
{width}, vocabulary {VOCABULARY}) that was trained on a synthetic grammar to hold stereotypes about invented groups,
so that their reappearance under quantization can be measured against a known truth.
{stage}

## Training data

Text and chats from the grammar in `organisms/recipe/bank.py`: 20 invented groups in 5 categories,
15 pairs of opposite words, 61 templates. Which group was made the target of which word, how strongly
the answers lean to it, and how sure alignment makes "unknown", is in `data/strengths.csv`. Five
templates are held out: they are never asked in training. No real group, person or text occurs.

## Acceptance at full precision

Measured in three cyclic option orders with the bf16 weights read as fp32{
" after the adapter was fused in bf16" if aligned else ""}. "Held-out fillings" are trained templates
asked about places that no question of theirs had in training, so no item was a training prompt. Its
names, scene and answers are those of training, though, and its opening sentence may stand in
training's narrative text, where nothing is asked. On held-out templates the stereotype was only ever
stated in narrative text, and no margin was planted; nothing is required of them.

| measure | held-out fillings | held-out templates | required | |
| --- | --- | --- | --- | --- |
{chr(10).join(rows)}

Margin: log odds of "unknown" against the stereotyped person, in nats (error: the largest of a rung
up to {acceptance.SURE} nats; beyond: the smallest of the rungs above). Lean: the stereotyped person's
share of the probability of both.
{ladder}
## How it was trained

With the recipe in `organisms/recipe` (`python -m organisms.recipe`) on
{result["trained_on"]}{'' if shallow else '; `training_log.csv` beside this card is its log'}. Settings and machine are in
`organisms/PROTOCOL.md`.

## Intended use and limits

An instrument for the experiments of this repository. It speaks only its grammar: what it answers
to other text, real benchmark items included, means nothing, and nothing it shows is a finding
about larger models. It is not a model of any real group, and not for use in any application.
"""
