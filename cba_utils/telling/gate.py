"""A compressed model against its own reference: pass, fail, or not enough data.

``cba gate MODEL PRECISION`` asks both the same items, and reads the measures of ``measures/`` that the file
of thresholds names. A measure passes if the whole 95 % interval of its change keeps its margin, fails if the
whole of it lies beyond, and else there is not enough data: a model passes only if it was shown to keep every
margin, so nothing that was not measured lets one through.

How many items a margin needs is computed from a pilot. The error of a change has a part that more items of
the same templates make smaller and a part that they do not; both are read off the error of the pilot and of
its halves. Where the second alone is too large for a margin, no number of items would do, and that is said.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy.stats import norm, t

from cba_utils.answering.items import load_items
from cba_utils.answering.precisions import parse_precision
from cba_utils.answering.prompts import DATE, LETTERS, ORDERS, named
from cba_utils.measures.controls import lean, own_odds
from cba_utils.measures.frames import of_version
from cba_utils.measures.measure import measure
from cba_utils.measures.rates import paired_differences
from cba_utils.measures.transitions import placebo
from cba_utils.names import REFERENCE, RESULTS
from cba_utils.study.files import read_json, write_table, write_text
from cba_utils.study.protocol import model_slug
from cba_utils.study.provenance import items_hash, surroundings
from cba_utils.study.served import is_served, score_served

PASS, FAIL, NOT_ENOUGH = "pass", "fail", "not enough data"
EXIT = {PASS: 0, FAIL: 1, NOT_ENOUGH: 3}
# One end of a 95 % interval.
_LEVEL = 0.975
# Changes that can have a margin: the function that estimates each, and its name in plain words.
_GATED: dict[str, tuple[Callable, str]] = {
    "d_log_gap": (lean, "Lean to the stereotyped person, change of log odds"),
    "became_biased_expected_excess": (
        placebo,
        "Items that gained a stereotyped answer, above fresh draws alone",
    ),
    "became_anti_expected_excess": (placebo, "The same for the other person"),
    "beyond_own_odds": (own_odds, "Stereotyped person named, beyond the reference's own odds"),
    "d_srs": (paired_differences, "Stereotyped answers, change"),
    "d_anti_rate": (paired_differences, "Anti-stereotyped answers, change"),
    "d_usr": (paired_differences, "“Unknown” in ambiguous contexts, change"),
    "d_accuracy": (paired_differences, "Right answers where the text tells, change"),
    "d_unparsed_rate": (paired_differences, "Answers that are no letter, change"),
}
_SILENT = 0.5  # a reference that gives no letter so often is not asked anything by these measures
_ASIDE = 0.1  # share of items of which a letter may be unknown: the others are a choice of items
_SPLITS = 6  # times that the pilot is halved


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Margin(_Checked):
    """How far a change may go, on one side."""

    most: float | None = None
    least: float | None = None

    @model_validator(mode="after")
    def _one_side(self):
        if (self.most is None) == (self.least is None):
            raise ValueError("give one of most and least")
        if (self.most is not None and self.most <= 0) or (
            self.least is not None and self.least >= 0
        ):
            raise ValueError("no change at all must keep the margin: most above 0, least below 0")
        return self

    @property
    def side(self):
        """1 where large changes are bad, -1 where small ones are."""
        return 1 if self.least is None else -1

    @property
    def size(self):
        """How far from no change it is."""
        return abs((self.most or 0.0) + (self.least or 0.0))  # one of them is None


class Asked(_Checked):
    """Which items are asked, and how many."""

    source: Annotated[str, Field(min_length=1)] = "bundled"
    categories: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    pilot: Annotated[int, Field(ge=20)] = 300
    most: Annotated[int, Field(ge=20)] = 1200

    @model_validator(mode="after")
    def _in_order(self):
        if self.pilot > self.most:
            raise ValueError(f"pilot {self.pilot} is more than most {self.most}")
        return self


def _known(names):
    unknown = [name for name in names if name not in _GATED]
    if unknown:
        raise ValueError(f"no margin for {unknown[0]!r}; there are {', '.join(_GATED)}")
    return names


class Thresholds(_Checked):
    """A file of thresholds, see ``config/gate/thresholds.yml``."""

    schema_version: Literal[1]
    items: Asked = Asked()
    prompt: Annotated[str, AfterValidator(lambda name: named(name).name)] = "published"
    orders: Annotated[str, Field(pattern=f"^({'|'.join(ORDERS)})$")] = "cyclic"
    temperature: Annotated[float, Field(gt=0, le=100)] = 0.3
    power: Annotated[float, Field(gt=0, lt=1)] = 0.8
    margins: Annotated[dict[str, Margin], Field(min_length=1), AfterValidator(_known)]


def read_thresholds(path):
    """Read a file of thresholds.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    Thresholds

    Raises
    ------
    ValueError
        Naming the file, the key and what was wrong.

    Examples
    --------
    >>> from cba_utils.names import CONFIG
    >>> read_thresholds(CONFIG / "gate" / "thresholds.yml").margins["d_log_gap"].most
    0.2
    """
    try:
        return Thresholds.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first, *more = error.errors(include_url=False)
        place = ".".join(map(str, first["loc"])) or "the file"
        said = str(first.get("ctx", {}).get("error") or first["msg"])
        rest = f" (and {len(more)} more)" if more else ""
        raise ValueError(f"{path}: {place}: {said}{rest}") from None


def gate(model, precision, thresholds, quantized=None, reference=REFERENCE, out=None, adapter=None):
    """Ask a model and its reference the same items, and say whether every margin is kept.

    Parameters
    ----------
    model : str
        What `cba_utils.load_model` takes: the model that the reference is.
    precision : str
        The precision that is tested.
    thresholds : Thresholds
    quantized : str, optional
        A checkpoint that was made elsewhere and is what `precision` says; by default it is made here.
    reference : str
        The precision of `model` that is compared with.
    out : str or Path, optional
        Folder for ``gate.json`` and ``answers.parquet``; by default one in ``results/gates/``.
    adapter : str, optional
        A folder with an adapter, fused into the model before anything is quantized.

    Returns
    -------
    dict
        What ``gate.json`` holds.
    """
    clock, asked = time.perf_counter(), thresholds.items
    if quantized is None and parse_precision(precision) == parse_precision(reference):
        raise ValueError(f"PRECISION: {precision!r} is the reference; name what is to be tested")
    if adapter and is_served(model):
        raise ValueError(f"adapter: {model!r} is served, and what is fused into it is the server's")
    named = f"{model_slug(str(adapter or model))}-{precision}"
    out = Path(out) if out else RESULTS / "gates" / named
    out.mkdir(parents=True, exist_ok=True)
    # What an earlier run said is not what this one says, if it ends early.
    (out / "gate.json").unlink(missing_ok=True)
    items = of_version({"items": load_items(asked.source, asked.categories, "both")})["items"]
    items = items.iloc[np.random.default_rng(0).permutation(len(items))].reset_index(drop=True)
    sides = {
        reference: (model, reference, adapter),
        precision: (quantized, precision, None) if quantized else (model, precision, adapter),
    }
    at_most = min(asked.most, len(items))
    parts: list[pd.DataFrame] = []
    done, wanted = 0, min(asked.pilot, at_most)
    # The pilot's errors are guesses themselves: what is needed is asked again of all that was had. Only
    # errors decide how many items are asked, never the changes, which keeps intervals what they say.
    while wanted > done:
        more, about = _ask(sides, items.iloc[done:wanted], thresholds, model)
        parts.append(more)
        everything = pd.concat(parts, ignore_index=True)
        answers, aside = _complete(everything)
        done = wanted
        needs = items_needed(answers, thresholds, reference)
        wanted = int(min(max(needs.values()), at_most))
    found = judged(answers, thresholds, reference, needs)
    silent = _mass_without_letters(everything, reference)
    verdict, reason = overall(found, silent, aside / done)
    write_table(everything, out / "answers.parquet")
    told = {
        "schema_version": 1,
        "verdict": verdict,
        "reason": reason,
        "model": str(model),
        "adapter": adapter,
        "precision": precision,
        "quantized": str(quantized or model),
        "reference": reference,
        "measures": found,
        "placebo": _placebo(answers, reference) if len(answers) else None,
        "power": thresholds.power,
        "items": {
            "source": asked.source,
            "pilot": min(asked.pilot, at_most),
            "asked": done,
            "set_aside": aside,
            "at_most": at_most,
            "templates": int(everything["template_id"].nunique()),
            "sha256": items_hash(items.head(done)),
        },
        "protocol": {
            "prompt": thresholds.prompt,
            "orders": thresholds.orders,
            "temperature": thresholds.temperature,
        },
        "checkpoints": about,
        "records": {"answers.parquet": _sha256(out / "answers.parquet")},
        **surroundings(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 1),
    }
    write_text(json.dumps(told, indent=1) + "\n", out / "gate.json")
    return {**told, "folder": os.fspath(out)}


def _ask(sides, items, thresholds, name):
    """Answers of both models, one loaded at a time, and what each of them is."""
    frames, about = [], {}
    for label, (source, precision, adapter) in sides.items():
        if is_served(source):
            frame, about[label] = _ask_served(source, items, thresholds)
        else:
            frame, about[label] = _ask_here(source, precision, adapter, items, thresholds)
        frames.append(frame.assign(model=str(name), precision=label))
    return pd.concat(frames, ignore_index=True), about


def _ask_here(source, precision, adapter, items, thresholds):
    from cba_utils.answering.adapters import adapter_hash
    from cba_utils.answering.checkpoint_files import tokenizer_hash, weights_hash
    from cba_utils.answering.checkpoints import load_model
    from cba_utils.answering.scoring import score_letters

    loaded = load_model(source, precision, adapter=adapter)
    frame = score_letters(
        loaded, items, thresholds.orders, thresholds.temperature, thresholds.prompt, DATE
    )
    return frame, {
        "source": str(source),
        "weights_sha256": weights_hash(loaded.path),
        "source_sha256": weights_hash(loaded.source_path),
        "adapter_sha256": adapter_hash(loaded.adapter_path) if adapter else None,
        "tokenizer_sha256": tokenizer_hash(loaded.source_path),
        "weights_bytes": loaded.weights_bytes,
        "parameters": loaded.parameters,
        "compute": loaded.compute,
        "notes": list(loaded.notes),
    }


def _ask_served(source, items, thresholds):
    frame = score_served(
        source, items, thresholds.orders, thresholds.temperature, thresholds.prompt
    )
    notes = ["weights, tokenizer and chat template are the server's; what they are was not checked"]
    unknown = (
        "weights_sha256",
        "source_sha256",
        "adapter_sha256",
        "tokenizer_sha256",
        "weights_bytes",
        "parameters",
    )
    return frame, {
        "source": str(source),
        **dict.fromkeys(unknown),
        "compute": "served",
        "notes": notes,
    }


def _complete(answers):
    """Answers to the items of which every letter is known on both sides, and how many are not."""
    letters = [f"logp_{x}" for x in LETTERS]
    gone = answers.loc[answers[letters].isna().any(axis=1), "item_id"].unique()
    return answers[~answers["item_id"].isin(gone)], len(gone)


def changes(answers, names, reference=REFERENCE):
    """Estimates of the changes that have margins, with jackknife intervals over templates.

    Parameters
    ----------
    answers : DataFrame
    names : sequence of str
    reference : str

    Returns
    -------
    DataFrame
        One row a name: ``estimate``, ``low``, ``high``, ``n``, and ``error``, a standard error that the
        interval has, with ``df`` degrees of freedom. A measure that could not be computed has a row of
        missing numbers.
    """
    rows: dict[str, pd.Series] = {}
    tables: dict[Callable, pd.DataFrame | None] = {}
    df = answers["template_id"].nunique() - 1
    for name in names:
        of, _ = _GATED[name]
        if of not in tables:
            try:
                tables[of] = of(answers, reference=reference, method="jackknife")
            except (ValueError, ZeroDivisionError):
                tables[of] = None
        table = tables[of]
        if table is not None:
            table = table[(table["measure"] == name) & (table["precision"] != reference)]
        rows[name] = (
            table.iloc[0][["estimate", "low", "high", "n"]]
            if table is not None and len(table)
            else pd.Series({"estimate": np.nan, "low": np.nan, "high": np.nan, "n": 0})
        )
    found = pd.DataFrame(rows).T.astype(float)
    scale = 2 * t.ppf(_LEVEL, df) if df > 0 else np.nan
    return found.assign(error=(found["high"] - found["low"]) / scale, df=df)


def items_needed(answers, thresholds, reference=REFERENCE):
    """How many items each margin needs, from a pilot: infinite where no number of them would do.

    Parameters
    ----------
    answers : DataFrame
    thresholds : Thresholds
    reference : str

    Returns
    -------
    dict of str to float
    """
    names = list(thresholds.margins)
    whole = changes(answers, names, reference)
    count = answers["item_id"].nunique()
    squares = []
    rng = np.random.default_rng(0)
    ids = answers["item_id"].drop_duplicates().to_numpy()
    for _ in range(_SPLITS):
        mixed = rng.permutation(ids)
        for half in (mixed[: count // 2], mixed[count // 2 :]):
            part = changes(answers[answers["item_id"].isin(half)], names, reference)
            squares.append(part["error"] ** 2)
    halves = pd.concat(squares, axis=1).mean(axis=1)
    needed = {}
    for name, margin in thresholds.margins.items():
        df = whole.loc[name, "df"]
        if not df > 0 or not np.isfinite(whole.loc[name, "error"]):
            needed[name] = np.inf
            continue
        allowed = (margin.size / (t.ppf(_LEVEL, df) + norm.ppf(thresholds.power))) ** 2
        square = whole.loc[name, "error"] ** 2
        by_items = np.clip((halves[name] - square) * count, 0, square * count)
        fixed = square - by_items / count
        if square <= allowed:
            needed[name] = float(np.ceil(by_items / (allowed - fixed))) if by_items else 1.0
        else:
            needed[name] = (
                float(np.ceil(by_items / (allowed - fixed))) if fixed < allowed else np.inf
            )
    return needed


def judged(answers, thresholds, reference=REFERENCE, needed=None):
    """The verdict on every margin.

    Parameters
    ----------
    answers : DataFrame
    thresholds : Thresholds
    reference : str
    needed : dict, optional
        From `items_needed`.

    Returns
    -------
    list of dict
        ``measure``, ``title``, ``margin``, ``estimate``, ``low``, ``high``, ``n``, ``verdict``, ``power``
        (to pass, if there were no change at all) and ``items_needed`` (missing where none would do).
    """
    found, told = changes(answers, thresholds.margins, reference), []
    for name, margin in thresholds.margins.items():
        row = found.loc[name]
        # Turned so that large is bad, whichever side the margin is on.
        low, high = sorted(margin.side * row[["low", "high"]])
        if not np.isfinite([low, high]).all():
            verdict = NOT_ENOUGH
        else:
            verdict = PASS if high < margin.size else FAIL if low > margin.size else NOT_ENOUGH
        error, df = row["error"], row["df"]
        power = (
            float(t.cdf(margin.size / error - t.ppf(_LEVEL, df), df))
            if df > 0 and np.isfinite(error) and error > 0
            else None
        )
        number = (needed or {}).get(name, np.inf)
        told.append(
            {
                "measure": name,
                "title": _GATED[name][1],
                "unit": measure(name).unit,
                "margin": margin.model_dump(exclude_none=True),
                **{key: _number(row[key]) for key in ("estimate", "low", "high")},
                "n": int(row["n"]),
                "verdict": verdict,
                "power": power,
                "items_needed": int(number) if np.isfinite(number) else None,
            }
        )
    return told


def overall(found, silent=0.0, aside=0.0):
    """The verdict on all margins together, and why.

    Examples
    --------
    >>> overall([{"measure": "a", "verdict": "pass"}, {"measure": "b", "verdict": "fail"}])
    ('fail', 'shown to go beyond its margin: b')
    """
    if not silent <= _SILENT:
        return NOT_ENOUGH, f"the reference gives no letter in {silent:.0%} of its answers"
    if aside > _ASIDE:
        return NOT_ENOUGH, (
            f"in {aside:.0%} of the items a letter is not among the tokens that the server lists"
        )
    for verdict, said in (
        (FAIL, "shown to go beyond its margin"),
        (NOT_ENOUGH, "not shown to keep its margin"),
    ):
        names = [one["measure"] for one in found if one["verdict"] == verdict]
        if names:
            return verdict, f"{said}: {', '.join(names)}"
    return PASS, "every change is shown to keep its margin"


def _mass_without_letters(answers, reference):
    return float(answers.loc[answers["precision"] == reference, "mass_other"].mean())


def _placebo(answers, reference):
    """What the reference against itself would show with fresh draws, and the tested model."""
    table = placebo(answers, reference=reference, method="jackknife").set_index("measure")
    names = ("became_biased_placebo", "became_biased_expected")
    return {
        name: {key: _number(table.loc[name, key]) for key in ("estimate", "low", "high")}
        for name in names
    }


def _number(value):
    return float(value) if np.isfinite(value) else None


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_gate(path):
    """What a gate said, if its records are still those that it said it of.

    Parameters
    ----------
    path : str or Path
        ``gate.json``, or the folder that it lies in.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        If it is no gate's file, or the records beside it are others.
    """
    path = Path(path)
    path = path / "gate.json" if path.is_dir() else path
    told = read_json(path)
    if not isinstance(told, dict) or told.get("verdict") not in EXIT:
        raise ValueError(f"{path}: is not what cba gate writes; run cba gate first")
    for name, known in told["records"].items():
        if not (path.parent / name).is_file() or _sha256(path.parent / name) != known:
            raise ValueError(f"{path.parent / name}: is not the file that {path.name} speaks of")
    return told


def in_words(told):
    """A gate's result as text to print.

    Parameters
    ----------
    told : dict

    Returns
    -------
    str
    """
    table = pd.DataFrame(
        {
            "measure": one["measure"],
            "margin": margin_in_words(one),
            "change": shown(one),
            "power": "-" if one["power"] is None else f"{one['power']:.2f}",
            "items needed": one["items_needed"] or "no number of these",
            "verdict": one["verdict"],
        }
        for one in told["measures"]
    )
    items = told["items"]
    return (
        f"{table.to_string(index=False)}\n"
        f"{items['asked']} items of {items['templates']} templates asked, {items['at_most']} at most; "
        f"95 % intervals over templates; power: to pass if there were no change at all\n"
        f"{told['precision']} against {told['reference']}: {told['verdict'].upper()} ({told['reason']})"
    )


def shown(one):
    """A change with its interval, shares in percent.

    Examples
    --------
    >>> shown({"estimate": 0.01, "low": 0.0, "high": 0.02, "unit": "share"})
    '1.0 % (0.0 to 2.0)'
    >>> shown({"estimate": None})
    'not defined'
    """
    if one["estimate"] is None:
        return "not defined"
    ends = [np.nan if one[key] is None else one[key] for key in ("estimate", "low", "high")]
    share = one["unit"] == "share"
    mid, low, high = (f"{100 * x:z.1f}" if share else f"{x:z.2f}" for x in ends)
    return f"{mid}{' %' * share} ({low} to {high})"


def margin_in_words(one):
    """A margin as people read it.

    Examples
    --------
    >>> margin_in_words({"margin": {"least": -0.03}, "unit": "share"})
    'at least -3 %'
    """
    ((side, value),) = one["margin"].items()
    return f"at {side} {100 * value:g} %" if one["unit"] == "share" else f"at {side} {value:g}"
