"""Two studies, recipes or versions side by side: ``cba compare organisms smoke``.

Where both asked a model the same items in the same orders the comparison is paired: what an item adds to
both cancels, so that differences are seen which two intervals beside each other would hide. Where they did
not, the two are put side by side, and it is said why they cannot be paired.
"""

from dataclasses import dataclass

import pandas as pd

from cba_utils.answering.precisions import most_bits_first
from cba_utils.measures.controls import lean
from cba_utils.measures.intervals import ESTIMATE_COLUMNS
from cba_utils.measures.perplexity import perplexity_change
from cba_utils.measures.pooling import presentable
from cba_utils.measures.rates import bias_scores, paired_differences, role_rates
from cba_utils.measures.transitions import transitions
from cba_utils.names import STUDY
from cba_utils.study.roles import study_columns
from cba_utils.study.tables import TEXTS
from cba_utils.telling.study import Study, open_study

MEASURES = ("srs", "usr", "became_biased", "lost_bias", "accuracy", "perplexity_change")
# What is told of a pair: changes from one to the other.
PAIRED = (
    "d_srs",
    "d_anti_rate",
    "d_usr",
    "d_unparsed_rate",
    "d_accuracy",
    "d_log_gap",
    "perplexity_change",
)
_KEYS = ["family", "measure", "precision"]
_A, _B = "a", "b"


@dataclass(frozen=True)
class Side:
    """A study, or one precision of it: ``organisms`` or ``organisms:q4``."""

    name: str
    precision: str | None
    study: Study

    @classmethod
    def named(cls, text):
        """Open what a text names."""
        name, _, precision = str(text).partition(":")
        study = open_study(name)
        known = list(study.provenance["precision"].unique())
        if precision and precision not in known:
            raise ValueError(
                f"{text}: the study {name!r} has no {precision!r}; it has "
                f"{', '.join(most_bits_first(known))}"
            )
        return cls(name, precision or None, study)

    def cells(self):
        """Model and precision of every cell that this side is about."""
        known = self.study.provenance
        if self.precision:
            known = known[known["precision"] == self.precision]
        return list(known[["model", "precision"]].itertuples(index=False, name=None))


def pairs_of(one, other):
    """Which cells of two sides belong together: those of one model, at one precision where neither names one.

    Parameters
    ----------
    one, other : Side

    Returns
    -------
    list of tuple
        ``(model, precision of one, precision of the other)``.
    """
    mine, theirs = one.cells(), other.cells()
    if one.precision or other.precision:
        return [
            (model, p, q)
            for model, p in mine
            for name, q in theirs
            if name == model and (p == q or (one.precision and other.precision))
        ]
    return [(model, p, p) for model, p in mine if (model, p) in theirs]


def why_not_paired(one, other, model, p, q):
    """Why a cell of one side cannot be paired with one of the other; an empty text if it can.

    Items are the same if their words have the same hash, or, where both tables have the words, if these
    are equal for the items that both asked.

    Parameters
    ----------
    one, other : Side
    model, p, q : str
        The model, and its precision on either side.

    Returns
    -------
    str
    """
    a, b = (_cell(side, model, at) for side, at in ((one, p), (other, q)))
    if a["answers"].empty or b["answers"].empty:
        return "one of them has no probabilities"
    orders = [sorted(part["answers"]["order"].unique()) for part in (a, b)]
    if orders[0] != orders[1]:
        return f"orders of the answers differ ({len(orders[0])} and {len(orders[1])})"
    hashes = [part["provenance"].get("identity.items_sha256") for part in (a, b)]
    if hashes[0] is not None and hashes[0] == hashes[1]:
        return ""
    common = set(a["answers"]["item_id"]) & set(b["answers"]["item_id"])
    if not common:
        return "they have no item in common"
    words = [side.study.items.reindex(columns=["item_id", *TEXTS]) for side in (one, other)]
    words = [w[w["item_id"].isin(common)].set_index("item_id").sort_index() for w in words]
    if any(w.isna().any(axis=None) for w in words):
        return "items have other hashes, and not both tables have their words"
    if not words[0].equals(words[1]):
        return "items of the same name have other words"
    roles = ["item_id", "order", "role_A", "role_B", "role_C"]
    shown = [part["answers"].loc[lambda x: x["item_id"].isin(common), roles] for part in (a, b)]
    shown = [s.astype(str).sort_values(roles[:2]).reset_index(drop=True) for s in shown]
    return "" if shown[0].equals(shown[1]) else "the answers have other roles"


def _cell(side, model, precision):
    tables = {"answers": side.study.answers, "perplexity": side.study.perplexity}
    found = {
        name: table[(table["model"] == model) & (table["precision"] == precision)]
        for name, table in tables.items()
    }
    known = side.study.provenance
    row = known[(known["model"] == model) & (known["precision"] == precision)].iloc[0]
    return {**found, "provenance": row}


def paired(one, other, cells):
    """Changes from one side to the other on the items that both asked.

    Parameters
    ----------
    one, other : Side
    cells : list of tuple
        From `pairs_of`, all of which can be paired.

    Returns
    -------
    DataFrame
        One row a family, measure and pair of precisions: ``estimate``, ``low``, ``high``, ``n``. Intervals
        are over templates for one checkpoint of a family, and over its checkpoints for several.
    """
    rows = []
    for p, q in dict.fromkeys((p, q) for _, p, q in cells):
        answers, texts = [], []
        for model in [m for m, *at in cells if at == [p, q]]:
            a, b = _cell(one, model, p), _cell(other, model, q)
            common = set(a["answers"]["item_id"]) & set(b["answers"]["item_id"])
            # What a study calls a model decides nothing: both sides go by the names of the first.
            labels = {k: a["answers"][k].iloc[0] for k in STUDY if k in a["answers"]}
            for label, part in ((_A, a), (_B, b)):
                known = part["answers"]
                known = known[known["item_id"].isin(common)]
                answers.append(known.assign(**{**labels, "precision": label}))
            if _same_text(a, b):
                texts += [
                    part["perplexity"].assign(**{**labels, "precision": label})
                    for label, part in ((_A, a), (_B, b))
                ]
        frame = pd.concat(answers, ignore_index=True)
        found = [
            paired_differences(frame, reference=_A, method="jackknife"),
            lean(frame, reference=_A),
        ]
        if texts:
            found.append(perplexity_change(pd.concat(texts, ignore_index=True), reference=_A))
        table = pd.concat(found, ignore_index=True)
        table = table[(table["precision"] == _B) & table["measure"].isin(PAIRED)]
        table = _over_checkpoints(one.study, table)
        rows.append(table.assign(precision=p if p == q else f"{p} to {q}"))
    found = pd.concat(rows, ignore_index=True)
    order = {name: n for n, name in enumerate(PAIRED)}
    found = found.sort_values(
        ["family", "measure"], key=lambda c: c.map(lambda x: order.get(x, x)), kind="stable"
    )
    return found[[*_KEYS, "estimate", "low", "high", "n"]].reset_index(drop=True)


def _over_checkpoints(study, table):
    """Estimates a family: over those of its checkpoints that were paired, or its only one's own."""
    if table.groupby("family")["model"].nunique().max() > 1:
        return study.summarise(table)
    cells = table[[*study_columns(table), *ESTIMATE_COLUMNS]]
    return presentable(cells.assign(of=cells["n"]))


def _same_text(a, b):
    """Whether perplexity was measured on the same sequences: the same text in the same tokens."""
    keys = ("identity.text_sha256", "identity.tokenizer_sha256")
    known = [tuple(part["provenance"].get(key) for key in keys) for part in (a, b)]
    counts = [part["perplexity"]["tokens"].tolist() for part in (a, b)]
    return known[0] == known[1] and bool(counts[0]) and counts[0] == counts[1]


def compare(one, other):
    """Two studies, or two precisions, as changes where they can be paired and side by side where not.

    Parameters
    ----------
    one, other : str
        Names of studies that were run, or folders of results; with ``:q4`` behind it, one precision of it.

    Returns
    -------
    DataFrame
        One row a family, measure and precision. ``paired`` says which kind it is: paired rows have
        ``estimate``, ``low``, ``high`` and ``n`` of the change from `one` to `other` (``apart``: the interval
        excludes no change); the others have ``estimate``, ``low``, ``high`` and ``n`` of each, with the
        suffixes ``_a`` and ``_b`` (``apart``: the intervals do not overlap; missing where there is none).
        ``attrs["reasons"]`` says why cells were not paired, and how many.

    Raises
    ------
    FileNotFoundError
        If one of them was not run.
    ValueError
        If a study has no such precision, or the two have no model in common at any.

    Examples
    --------
    >>> table = compare("organisms:q4", "organisms:q3")
    >>> bool(table["paired"].all()), table.attrs["reasons"]
    (True, {})
    """
    mine, theirs = Side.named(one), Side.named(other)
    cells = pairs_of(mine, theirs)
    reasons: dict[str, int] = {}
    able = []
    for cell in cells:
        reason = why_not_paired(mine, theirs, *cell)
        if reason:
            reasons[reason] = reasons.get(reason, 0) + 1
        else:
            able.append(cell)
    if not cells:
        reasons["they have no model of one name at a precision that both have"] = 1
    parts = []
    if able:
        found = paired(mine, theirs, able)
        away = (found["low"] > 0) | (found["high"] < 0)
        parts.append(found.assign(paired=True, apart=away.where(found["low"].notna())))
    if not able:
        if mine.precision or theirs.precision:
            raise ValueError(f"{one} and {other} cannot be paired: {'; '.join(reasons)}")
        parts.append(_beside(mine, theirs).assign(paired=False))
    table = pd.concat(parts, ignore_index=True)
    table.attrs["reasons"] = reasons
    return table


def _beside(one, other):
    """Both sides' own estimates, which share nothing."""
    joined = _summary(one.study).merge(
        _summary(other.study), on=_KEYS, how="outer", suffixes=("_a", "_b")
    )
    order = {name: n for n, name in enumerate((*MEASURES, *most_bits_first(joined["precision"])))}
    joined = joined.sort_values(_KEYS, key=lambda column: column.map(lambda x: order.get(x, x)))
    apart = (joined["low_a"] > joined["high_b"]) | (joined["low_b"] > joined["high_a"])
    known = joined[["low_a", "low_b", "high_a", "high_b"]].notna().all(axis=1)
    return joined.assign(apart=apart.where(known))


def _summary(data):
    """One row a family, precision and measure, of the models that the reports show."""
    found = [role_rates(data.drawn), transitions(data.drawn), bias_scores(data.drawn)]
    if len(data.perplexity):
        found.append(perplexity_change(data.perplexity))
    table = data.summarise(pd.concat(found, ignore_index=True))
    table = table[table["measure"].isin(MEASURES)]
    return table[[*_KEYS, "estimate", "low", "high", "n"]]


def told(one, other):
    """The comparison as a table to print.

    Parameters
    ----------
    one, other : str
        As `compare` takes them.

    Returns
    -------
    str
    """
    table = compare(one, other)
    reasons = [
        f"not paired, {count} cell{'s' * (count > 1)}: {reason}"
        for reason, count in table.attrs["reasons"].items()
    ]
    table["apart"] = table["apart"].map({True: "apart", False: ""}).fillna("")
    if table["paired"].all():
        table["change"] = _in_words(table, "")
        shown = table[[*_KEYS, "change", "apart"]]
        note = (
            f"Paired: changes from {one} to {other} on the same items in the same orders, 95 % intervals "
            f"over the checkpoints of a family where it has several, else over templates; apart: the "
            f"interval excludes no change"
        )
    else:
        for which in (_A, _B):
            table[which] = _in_words(table, f"_{which}")
        shown = table[[*_KEYS, _A, _B, "apart"]].rename(columns={_A: one, _B: other})
        note = (
            "Not paired: means over checkpoints with their spread where a family has several, else one "
            "checkpoint with its spread over templates; 95 % intervals; apart: they do not overlap. "
            "Intervals that overlap do not show that the two agree"
        )
    return "\n".join([shown.to_string(index=False), note, *reasons])


def _in_words(table, suffix):
    columns = [f"{c}{suffix}" for c in ("estimate", "low", "high", "n")]
    return [
        "-"
        if pd.isna(e)
        else f"{e:z.3f} ({low:z.3f} to {high:z.3f}), n {0 if pd.isna(n) else n:.0f}"
        for e, low, high, n in table[columns].itertuples(index=False)
    ]
