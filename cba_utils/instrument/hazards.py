"""What is known to shake the published run, as numbers: ``python -m cba_utils.instrument.hazards``.

Five tables go to ``results/hazards``. None is about a model that people use: checkpoints are tiny and
random, answers are simulated, templates are rendered. They say what a rule does, not how much it did.

- ``rope_factors.csv``: a Phi-3 network with two sets of rope factors, for texts below and above 4,096
  tokens. The pinned mlx-lm uses the long ones at every length; other releases used the short ones below
  it. One row a checkpoint and item: ``checkpoint``, ``item_id``, ``tokens``, ``letter_long`` and
  ``letter_short`` (the likeliest letter under each), ``nats`` (largest difference of a letter's
  log-probability) and ``agreement`` (the same difference between mlx-lm and the NumPy network of this
  module with mlx-lm's factors: what the comparison itself errs by).
- ``undefined_targets.csv``: items whose target is -1, which the published code reads as the last
  answer, letter C. One row a truth of the simulated respondents, share of such ``items`` and measure:
  ``left_out`` and ``letter_c``, the rate either way, at BF16 and at Q3.
- ``seeds.csv`` and ``seed_draws.csv``: five seeds that are set before every answer are five numbers. By
  seed: ``uniform``, the number that decides the first token, and the share of each letter over items
  whose letters are equally likely on average. By concentration of those probabilities: the share of
  ``items`` whose five answers are all alike, how many of them are ``unbiased``, and how many of these
  are counted as *became biased* by a second run of the same probabilities, with the published seeds
  and with independent ones.
- ``system_role.csv``: where two generations of Mistral v0.3's chat template put what the system says.
  One row a template: ``written``, where it stands, and ``rendered``, a whole prompt.
"""

import argparse
import json
import math
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from cba_utils.answering.items import load_items
from cba_utils.answering.prompts import LETTERS, chat_ids, named, user_text
from cba_utils.instrument.respondents import draw_samples, simulate_respondents
from cba_utils.measures.rates import role_rates
from cba_utils.measures.transitions import transitions
from cba_utils.names import HELD_OUT_TEXT, RESULTS
from cba_utils.study.files import write_whole

OUT = RESULTS / "hazards"
# A network in Phi-3.5's shape, small: heads and their keys, width of a head, layers, inner width.
_HEADS, _KEYS, _HEAD, _LAYERS, _INNER, _EPS = 4, 2, 32, 2, 384, 1e-5
_WIDTH, _LONGEST, SHORT_TEXTS = _HEADS * _HEAD, 131072, 4096
# Growing with wavelength, and far more for long texts than for short ones, as such factors do.
SHORT_FACTORS = [1 + 1.8 * (k / 15) for k in range(_HEAD // 2)]
LONG_FACTORS = [1.08 + 63 * (k / 15) ** 2 for k in range(_HEAD // 2)]
_PLAIN = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "<|assistant|>"
)
# How the template behaved at first, and how it does since: written anew, not copied.
MISTRAL_TEMPLATES = {
    "first": "{% if messages[0]['role'] != 'user' %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}{{ bos_token }}[INST] {{ messages[0]['content'] }}[/INST]",
    "later": "{% set said = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' "
    "%}{{ bos_token }}[INST] {{ said }}{{ messages[-1]['content'] }}[/INST]",
}


def tiny_phi3(folder, seed=0):
    """A random checkpoint in Phi-3.5's shape, with its tokenizer.

    Parameters
    ----------
    folder : Path
    seed : int

    Returns
    -------
    Path
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models import phi3

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    settings = {
        "model_type": "phi3",
        "hidden_size": _WIDTH,
        "num_hidden_layers": _LAYERS,
        "intermediate_size": _INNER,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KEYS,
        "rms_norm_eps": _EPS,
        "vocab_size": 640,
        "rope_theta": 10000.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
        "max_position_embeddings": _LONGEST,
        "original_max_position_embeddings": SHORT_TEXTS,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": SHORT_FACTORS,
            "long_factor": LONG_FACTORS,
        },
    }
    (folder / "config.json").write_text(json.dumps(settings))
    mx.random.seed(seed)
    network = phi3.Model(phi3.ModelArgs.from_dict(settings))
    # Wide weights: answers of a random model should differ from item to item.
    mx.save_safetensors(
        str(folder / "model.safetensors"),
        {
            name: (3 * value).astype(mx.bfloat16)
            for name, value in tree_flatten(network.parameters())
        },
        metadata={"format": "mlx"},
    )
    return folder


def tiny_tokenizer(template=_PLAIN):
    """A tokenizer of a few hundred tokens, learnt from the held-out text.

    Parameters
    ----------
    template : str
        Its chat template.

    Returns
    -------
    transformers.PreTrainedTokenizerFast
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [HELD_OUT_TEXT.read_text(encoding="utf-8")[:40000]],
        trainers.BpeTrainer(
            vocab_size=600,
            show_progress=False,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = template
    return wrapped


def phi3_log_probabilities(weights, ids, factors):
    """Log-probabilities of the next token by a Phi-3 network in plain NumPy, in double precision.

    Parameters
    ----------
    weights : dict of str to array
        As in the checkpoint.
    ids : list of int
    factors : list of float
        By which the wavelengths of the rotary embedding are stretched.

    Returns
    -------
    numpy array, shape (vocabulary,)
    """
    half, count = _HEAD // 2, len(ids)
    angles = np.arange(count)[:, None] / (np.array(factors) * 10000.0 ** (np.arange(half) / half))
    scale = math.sqrt(1 + math.log(_LONGEST / SHORT_TEXTS) / math.log(SHORT_TEXTS))
    cos, sin = scale * np.cos(angles), scale * np.sin(angles)

    def rotated(x):
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def normed(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + _EPS) * weights[name]

    def heads(x):
        return x.reshape(count, -1, _HEAD).transpose(1, 0, 2)

    x = weights["model.embed_tokens.weight"][ids]
    hidden = np.triu(np.ones((count, count), bool), 1)
    for layer in range(_LAYERS):
        at = f"model.layers.{layer}."
        qkv = normed(x, f"{at}input_layernorm.weight") @ weights[f"{at}self_attn.qkv_proj.weight"].T
        q, k, v = map(heads, np.split(qkv, [_WIDTH, _WIDTH + _KEYS * _HEAD], axis=1))
        q, k = rotated(q), np.repeat(rotated(k), _HEADS // _KEYS, axis=0)
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(_HEAD)
        scores = np.where(hidden, -np.inf, scores)
        chances = np.exp(scores - scores.max(-1, keepdims=True))
        chances /= chances.sum(-1, keepdims=True)
        seen = (chances @ np.repeat(v, _HEADS // _KEYS, axis=0)).transpose(1, 0, 2)
        x = x + seen.reshape(count, _WIDTH) @ weights[f"{at}self_attn.o_proj.weight"].T
        gate, up = np.split(
            normed(x, f"{at}post_attention_layernorm.weight")
            @ weights[f"{at}mlp.gate_up_proj.weight"].T,
            2,
            axis=1,
        )
        x = x + gate / (1 + np.exp(-gate)) * up @ weights[f"{at}mlp.down_proj.weight"].T
    logits = normed(x[-1], "model.norm.weight") @ weights["lm_head.weight"].T
    return logits - np.logaddexp.reduce(logits)


def rope_factors(checkpoints=8, items=24):
    """Answers with the long factors, as the pinned mlx-lm gives them, and with the short ones.

    Parameters
    ----------
    checkpoints, items : int
        How many of each; items come evenly from the bundled bank.

    Returns
    -------
    DataFrame
        See ``rope_factors.csv`` above.
    """
    import mlx.core as mx

    from cba_utils.answering.checkpoints import load_model
    from cba_utils.answering.scoring import score_letters

    bank = load_items("bundled")
    asked = bank.iloc[np.linspace(0, len(bank) - 1, items).astype(int)].reset_index(drop=True)
    texts = [user_text(item, prompt="published") for item in asked.to_dict("records")]
    frames = []
    for seed in range(checkpoints):
        with tempfile.TemporaryDirectory() as scratch:
            folder = tiny_phi3(scratch, seed)
            loaded = load_model(folder)
            weights = {
                name: np.array(value.astype(mx.float32), np.float64)
                for name, value in mx.load(str(folder / "model.safetensors")).items()
            }
        scored = score_letters(loaded, asked, prompt="published")
        library = scored[[f"logp_{x}" for x in LETTERS]].to_numpy()
        prompts, _ = chat_ids(loaded.hf_tokenizer, texts, "published")
        by = {
            name: np.array(
                [
                    [np.logaddexp.reduce(found[ids]) for ids in loaded.letters]
                    for found in (phi3_log_probabilities(weights, ids, factors) for ids in prompts)
                ]
            )
            for name, factors in (("long", LONG_FACTORS), ("short", SHORT_FACTORS))
        }
        frames.append(
            pd.DataFrame(
                {
                    "checkpoint": seed,
                    "item_id": asked["item_id"],
                    "tokens": list(map(len, prompts)),
                    **{
                        f"letter_{name}": np.array(list(LETTERS))[found.argmax(axis=1)]
                        for name, found in by.items()
                    },
                    "nats": np.abs(by["long"] - by["short"]).max(axis=1).round(4),
                    "agreement": np.abs(library - by["long"]).max(axis=1).round(6),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def undefined_targets(truths=("none", "bias", "letter"), shares=(0.002, 0.01, 0.05)):
    """Rates without the items that have no target, and with letter C as their stereotyped answer.

    Parameters
    ----------
    truths : list of str
        What quantization does to the respondents, see `cba_utils.instrument.respondents`.
    shares : list of float
        Of all items, those without a target.

    Returns
    -------
    DataFrame
        See ``undefined_targets.csv`` above.
    """
    rows = []
    for truth in truths:
        answers = simulate_respondents(truth, 40, 100, ("bf16", "q3"), orders="original")
        samples = draw_samples(answers[answers["context_condition"] == "ambig"])
        names = samples["item_id"].drop_duplicates().to_numpy()
        mixed = np.random.default_rng(0).permutation(len(names))
        for share in shares:
            open_ = samples["item_id"].isin(names[mixed[: round(share * len(names))]])
            # The unknown answer stays what it is, unless it is the last one.
            role = np.where(
                samples["parsed_answer"] == "C",
                "stereotyped",
                np.where(samples["role"] == "unknown", "unknown", "anti_stereotyped"),
            )
            kept = samples.assign(role=samples["role"].where(~open_, role))
            for measure, at, found in _headline(samples[~open_]):
                counted = next(
                    value
                    for name, where, value in _headline(kept)
                    if (name, where) == (measure, at)
                )
                rows.append(
                    (truth, share, measure, at, len(names), round(found, 6), round(counted, 6))
                )
    return pd.DataFrame(
        rows, columns=["truth", "share", "measure", "precision", "items", "left_out", "letter_c"]
    )


def _headline(samples):
    """The stereotyped rate at both precisions, and how many items became biased."""
    rates = role_rates(samples, method="jackknife")
    moves = transitions(samples)
    for row in rates[rates["measure"] == "srs"].itertuples():
        yield "srs", str(row.precision), row.estimate
    for row in moves[moves["measure"] == "became_biased"].itertuples():
        yield "became_biased", str(row.precision), row.estimate


def seed_letters(items=100_000, concentration=1.0):
    """The number that each published seed is, and the letters that it draws.

    Parameters
    ----------
    items : int
        Simulated items; their letters have random probabilities, equal on average, and nothing else
        is likely.
    concentration : float
        Of these probabilities (Dirichlet): small for a model that is sure of its answers.

    Returns
    -------
    DataFrame
        See ``seeds.csv`` above.
    """
    uniforms = _published_uniforms()
    drawn = _letters(_chances(items, concentration), np.array(list(uniforms.values())))
    return pd.DataFrame(
        {
            "seed": list(uniforms),
            "uniform": np.round(list(uniforms.values()), 6),
            "items": items,
            **{f"share_{x}": (drawn == k).mean(axis=0).round(4) for k, x in enumerate(LETTERS)},
        }
    )


def seed_draws(items=100_000, concentrations=(0.1, 0.3, 1.0, 3.0)):
    """What five fixed numbers do to five answers, beside five independent draws.

    Parameters
    ----------
    items : int
    concentrations : list of float

    Returns
    -------
    DataFrame
        See ``seed_draws.csv`` above.
    """
    published = np.array(list(_published_uniforms().values()))
    rows = []
    for concentration in concentrations:
        chances = _chances(items, concentration)
        rng = np.random.default_rng(1)
        for name, uniforms in (
            ("published", lambda: published),
            ("independent", partial(rng.random, (items, len(published)))),
        ):
            first, second = (_letters(chances, uniforms()) for _ in range(2))
            # The first letter stands for the stereotyped answer: roles are shuffled over letters.
            unbiased = (first != 0).all(axis=1)
            rows.append(
                (
                    concentration,
                    name,
                    items,
                    (first == first[:, :1]).all(axis=1).mean(),
                    unbiased.sum(),
                    (unbiased & (second == 0).any(axis=1)).sum() / unbiased.sum(),
                )
            )
    return pd.DataFrame(
        rows,
        columns=[
            "concentration",
            "seeds",
            "items",
            "all_alike",
            "unbiased",
            "became_biased_by_chance",
        ],
    ).round(5)


def _published_uniforms():
    from cba_utils.answering.scoring import PAPER_SEEDS, seed_uniforms

    return {seed: numbers[0] for seed, numbers in seed_uniforms(PAPER_SEEDS, 1).items()}


def _chances(items, concentration):
    return np.random.default_rng(0).dirichlet([concentration] * len(LETTERS), items)


def _letters(chances, uniforms):
    """Letter drawn by each uniform number: tokens of A, B and C follow one another in a vocabulary."""
    cumulative = chances.cumsum(axis=1)[:, None, :2]
    return (cumulative <= np.atleast_2d(uniforms)[..., None]).sum(axis=-1)


def system_role():
    """Where each template of `MISTRAL_TEMPLATES` has what the system says.

    Returns
    -------
    DataFrame
        See ``system_role.csv`` above.

    Examples
    --------
    >>> system_role()["written"].unique().tolist()
    ["at the head of the user's turn"]
    """
    item = dict(context="X met Y.", question="Who left?", ans0="X", ans1="Y", ans2="Unknown")
    system, text, rows = named("published").system, user_text(item, prompt="published"), []
    for name, template in MISTRAL_TEMPLATES.items():
        tokenizer = tiny_tokenizer(template)
        (ids,), folded = chat_ids(tokenizer, [text], "published")
        rendered = tokenizer.decode(ids)
        turn = rendered.partition("[INST]")[2].strip()
        where = (
            "at the head of the user's turn"
            if turn.startswith(f"{system}\n\n{text}")
            else "in a turn of its own"
            if system in rendered
            else "nowhere"
        )
        rows.append(
            (
                name,
                "refused by the template" if folded else "taken by the template",
                where,
                rendered,
            )
        )
    return pd.DataFrame(rows, columns=["template", "system_role", "written", "rendered"])


TABLES = {
    "rope_factors": rope_factors,
    "undefined_targets": undefined_targets,
    "seeds": seed_letters,
    "seed_draws": seed_draws,
    "system_role": system_role,
}


def main(arguments=None):
    """Write all tables, or those that are named."""
    parser = argparse.ArgumentParser(
        prog="python -m cba_utils.instrument.hazards", description=__doc__.splitlines()[0]
    )
    parser.add_argument("tables", nargs="*", help=f"of {', '.join(TABLES)}; all by default")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    strange = set(options.tables) - set(TABLES)
    if strange:
        parser.error(f"there is no table {min(strange)!r}; there are {', '.join(TABLES)}")
    for name in options.tables or TABLES:
        table = TABLES[name]()
        write_whole(
            options.out / f"{name}.csv",
            lambda scratch, table=table: table.to_csv(scratch, index=False),
        )
        print(f"{name}: {len(table)} rows")


if __name__ == "__main__":
    main()
