"""What rounding does to an alignment: in the weights, and to answers when it is taken apart.

Let B be the weights before alignment, A those after, and Q(.) the rounding to a precision. Then
A - B is the alignment, and Q(A) - A the rounding error. `errors` says how much of the alignment is
left in Q(A) and how large the rest of the error is beside it; `variants` are models from which one
part of the error was removed or replaced, so that its effect on answers can be measured.
"""

import hashlib
import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import mlx.core as mx
import numpy as np
import pandas as pd
from mlx.utils import tree_flatten, tree_unflatten

import cba_utils
from cba_utils.answering.likelihood import load_texts, perplexity, token_ids
from cba_utils.answering.precisions import stored_bits
from cba_utils.names import RESULTS
from cba_utils.study.cell import select_items
from cba_utils.study.files import compact, read_json, write_table, write_text
from cba_utils.study.protocol import cells, rounding_parameters
from cba_utils.study.provenance import cell_identity, surroundings
from cba_utils.study.roles import role_probabilities

TABLES = ("errors", "variants", "variant_perplexity")
PROVENANCE = "rounding.json"
PARTS = ("attention", "MLP", "embeddings")
ROUNDED = "as rounded"  # the variant that is no other model than its precision says
# Probabilities are kept to so many decimals: most are 0 or 1, and a file of them stays small.
_DECIMALS = 6


def errors(base, aligned, precisions, adapter=None):
    """Rounding error of every tensor of an aligned model, split along and across its alignment.

    Parameters
    ----------
    base, aligned : str
        Models before and after alignment, see `cba_utils.load_model`.
    precisions : sequence of str
    adapter : str, optional
        With which the aligned model is its source, see `cba_utils.load_model`.

    Returns
    -------
    DataFrame
        One row a tensor and precision: ``precision``, ``tensor``, ``part`` (attention, MLP or
        embeddings; norms and biases, which are not rounded, with the part they belong to),
        ``weights`` (count), ``rounded`` (whether it was), and the sums of squares ``alignment2`` of
        A - B, ``error2`` of Q(A) - A, and the product ``along`` of the two.

    Raises
    ------
    ValueError
        If the two models have different tensors.

    Examples
    --------
    >>> found = errors("toy-mistral/b1", "toy-mistral/b1", ["q8", "q4"], "toy-mistral/b1-a1")
    >>> bool(alignment_left(found[found["precision"] == "q8"])["left"] > 0.99)
    True
    """
    before, after = _tensors(_dense(base)), _tensors(_dense(aligned, adapter=adapter))
    if {k: v.shape for k, v in before.items()} != {k: v.shape for k, v in after.items()}:
        raise ValueError(
            f"base: {base!r} and {aligned!r} have different tensors; "
            f"name the checkpoint that {aligned!r} was aligned from"
        )
    rows = []
    for precision in precisions:
        for name, rounded in _tensors(_dense(aligned, precision, adapter)).items():
            alignment, error = after[name] - before[name], rounded - after[name]
            rows.append(
                {
                    "precision": precision,
                    "tensor": name,
                    "part": _part(name),
                    "weights": error.size,
                    "rounded": bool((error != 0).any()),
                    "alignment2": (alignment**2).sum(),
                    "error2": (error**2).sum(),
                    "along": (alignment * error).sum(),
                }
            )
    return pd.DataFrame(rows)


def alignment_left(found):
    """Share of an alignment that rounding left, and the size of the noise beside it.

    Parameters
    ----------
    found : DataFrame
        From `errors`, at one precision; the tensors count as one long vector.

    Returns
    -------
    dict
        ``left``: the projection of Q(A) - B on A - B, over the length of A - B; ``noise``: the
        length of the part of the error that is orthogonal to A - B, over the same.
    """
    alignment2, error2, along = found[["alignment2", "error2", "along"]].sum()
    across = max(error2 - along**2 / alignment2, 0)
    return {"left": 1 + along / alignment2, "noise": np.sqrt(across / alignment2)}


def bits_per_weight(found, precision, kept=()):
    """Bits that a weight takes on average, scales and offsets of the groups included.

    Parameters
    ----------
    found : DataFrame
        From `errors`.
    precision : str
    kept : sequence of str
        Parts that are left in 16 bits.

    Examples
    --------
    >>> bits_per_weight(pd.DataFrame({"part": ["MLP"], "weights": [640], "rounded": True}), "q2")
    2.5
    """
    bits = np.where(found["rounded"] & ~found["part"].isin(kept), stored_bits(precision), 16)
    return float((bits * found["weights"]).sum() / found["weights"].sum())


def variants(base, aligned, precision, finer, adapter=None):
    """Models that differ from the rounded one in one respect.

    Parameters
    ----------
    base, aligned, precision : str
        As for `errors`.
    finer : sequence of str
        Other precisions to load the aligned model at, for comparison.
    adapter : str, optional
        As for `errors`.

    Yields
    ------
    str, str, LoadedModel
        The precision, the name of the variant, and the model. At `precision`: ``error shuffled``:
        A with the rounding error of each tensor in a random order, so that its size is kept and
        its direction is not; ``alignment exact``: Q(B) + (A - B), the alignment added without
        rounding to the rounded base; ``noise removed``: B plus what is left of A - B in each
        tensor of Q(A); ``attention in BF16`` and the like: Q(A) with that part of A. At the
        precisions of `finer`: `ROUNDED`. Two of them must not be used at the same time: they share
        their memory.
    """
    before, after = _tensors(_dense(base)), _tensors(_dense(aligned, adapter=adapter))
    loaded = _dense(aligned, precision, adapter)
    rounded, rounded_base = _tensors(loaded), _tensors(_dense(base, precision))

    def shuffled(name):
        # A stream a model and tensor: the order of a network's tensors must not decide, and draws
        # shared by all models would be a luck that no interval over models shows.
        shuffle = np.random.default_rng(list(f"{adapter or aligned}/{name}".encode()))
        error = (rounded[name] - after[name]).ravel()
        return after[name] + shuffle.permutation(error).reshape(after[name].shape)

    def exact(name):
        return rounded_base[name] + (after[name] - before[name])

    def quiet(name):
        alignment = after[name] - before[name]
        along, length2 = (alignment * (rounded[name] - after[name])).sum(), (alignment**2).sum()
        return after[name] + alignment * (along / length2 if length2 else 0)

    kinds = {"error shuffled": shuffled, "alignment exact": exact, "noise removed": quiet}

    def kept(part):
        return lambda name: (after if _part(name) == part else rounded)[name]

    kinds |= {f"{part} in BF16": kept(part) for part in PARTS}
    for kind, weight in kinds.items():
        loaded.model.update(
            tree_unflatten([(name, mx.array(weight(name).astype(np.float32))) for name in after])
        )
        yield precision, kind, replace(loaded)
    for other in finer:
        yield other, ROUNDED, _dense(aligned, other, adapter)


def _dense(model, precision="bf16", adapter=None):
    # By the package's name, which imports mlx-lm only now: reports read tables and need none.
    return cba_utils.load_model(model, precision, compute="dense", adapter=adapter)


def _tensors(loaded):
    """Weights by name, in double precision where products are summed up."""
    flat = dict(tree_flatten(loaded.model.parameters()))
    return {
        name: np.array(value.astype(mx.float32)).astype(np.float64) for name, value in flat.items()
    }


def _part(name):
    if "self_attn" in name:
        return "attention"
    return "MLP" if "mlp" in name else "embeddings"


def examine(parameters, folder):
    """Take the rounding of one aligned model apart, or reuse what is there.

    Parameters
    ----------
    parameters : dict
        Those of ``notebooks/12_rounding.ipynb``.
    folder : str or Path
        Where the tables go; they are reused if all that decides them is the same.

    Returns
    -------
    dict of str to DataFrame
        ``errors`` (see `errors`, one row a tensor and precision), ``variants`` (probability of
        each role for every item, as `cba_utils.study.roles.role_probabilities` gives it) and
        ``variant_perplexity``, with the columns ``precision`` and ``variant``.
    """
    # Here, because reports read what was examined, and load no model library.
    from cba_utils.answering.checkpoint_files import weights_hash
    from cba_utils.answering.scoring import score_letters

    folder = Path(folder)
    items = select_items(parameters)
    loaded = _dense(parameters["model"], adapter=parameters["adapter"])
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    identity = {
        **cell_identity(parameters, items, loaded),
        "rounding_sha256": code,
        "base_sha256": weights_hash(_dense(parameters["base"]).source_path),
    }
    known = read_json(folder / PROVENANCE)
    if known and known.get("identity") == identity:
        return {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES}
    (folder / PROVENANCE).unlink(missing_ok=True)
    started, clock = datetime.now(UTC), time.perf_counter()
    precisions = parameters["precisions"]
    base, aligned, lowest = parameters["base"], parameters["model"], precisions[-1]
    adapter = parameters["adapter"]
    found = errors(base, aligned, precisions, adapter)
    finer = [f"{p}-g32" for p in precisions[-2:][::-1] if "-g" not in p and p.startswith("q")]
    length, answers, nll = parameters["sequence_length"], [], []
    needed = parameters["sequences"] * length
    texts = load_texts(
        parameters["text"], loaded, needed, parameters["text_seed"], parameters["date"]
    )
    ids = token_ids(texts, loaded, needed)
    for precision, name, model in variants(base, aligned, lowest, finer, adapter):
        kind = {"precision": precision, "variant": name}
        scored = score_letters(
            model,
            items,
            temperature=parameters["temperature"],
            prompt=parameters["prompt"],
            date=parameters["date"],
        )
        roles = role_probabilities(scored, "study").round(_DECIMALS)
        answers.append(roles.assign(**kind))
        nll.append(perplexity(model, [ids], length).assign(**kind))
    tables = dict(zip(TABLES, (found, *map(pd.concat, (answers, nll))), strict=True))
    for name, table in tables.items():
        write_table(table.reset_index(drop=True), folder / f"{name}.parquet")
    provenance = {
        "identity": identity,
        "counts": {name: len(table) for name, table in tables.items()},
        **surroundings(),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 1),
    }
    write_text(json.dumps(provenance, indent=1) + "\n", folder / PROVENANCE)
    return tables


def collect_rounding(study, results=RESULTS):
    """Join the tables of all models of a study that were taken apart, and where each comes from.

    Parameters
    ----------
    study : dict
    results : Path
    """
    base = Path(results) / study["name"]
    models = {}
    all_cells = cells(study)
    for model, group in groupby(all_cells, lambda cell: cell.name):
        cell = next(group)
        if rounding_parameters(all_cells, model):
            models[model] = {
                "model": model,
                "family": cell.family,
                "base": cell.base or cell.name,
                "replicate": cell.replicate,
                "depth": cell.depth,
            }
    if not models:
        for name in (*(f"{name}.parquet" for name in TABLES), PROVENANCE):
            (base / "tables" / name).unlink(missing_ok=True)
        return
    for name in TABLES:
        parts = []
        for model, labels in models.items():
            table = pd.read_parquet(base / model / f"{name}.parquet")
            parts.append(table.drop(columns=[c for c in labels if c in table]).assign(**labels))
        write_table(
            compact(pd.concat(parts, ignore_index=True)), base / "tables" / f"{name}.parquet"
        )
    known = [{**labels, **read_json(base / model / PROVENANCE)} for model, labels in models.items()]
    write_text(json.dumps(known, indent=1) + "\n", base / "tables" / PROVENANCE)


def read_rounding(study, results=RESULTS):
    """The tables of a study, or None if none of its models names a base.

    Parameters
    ----------
    study : str
    results : Path

    Returns
    -------
    dict of str to DataFrame, or None
        ``errors``, ``variants``, ``variant_perplexity``, and ``provenance`` with one row a model.

    Examples
    --------
    >>> sorted(read_rounding("organisms"))
    ['errors', 'provenance', 'variant_perplexity', 'variants']
    """
    paths = {name: Path(results) / study / "tables" / f"{name}.parquet" for name in TABLES}
    if not all(path.exists() for path in paths.values()):
        return None
    tables = {name: pd.read_parquet(path) for name, path in paths.items()}
    for table in tables.values():
        for column in table.select_dtypes("category").columns:
            table[column] = table[column].astype(object)
    known = read_json(Path(results) / study / "tables" / PROVENANCE) or []
    return {**tables, "provenance": pd.json_normalize(known, sep=".", max_level=2)}
