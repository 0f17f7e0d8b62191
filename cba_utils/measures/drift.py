"""What a cheap check would have seen: how far answers drifted, whatever they say.

None of these needs roles, draws or labels. The question is which of them puts precisions, and
checkpoints at one precision, in the order in which items became biased beyond the placebo.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats as sps
from scipy.special import entr

from cba_utils.answering.prompts import LETTERS, ORIGINAL
from cba_utils.measures.intervals import estimates
from cba_utils.measures.measure import Measure, difference, measure, minus, ratio, register
from cba_utils.measures.perplexity import perplexity_change
from cba_utils.names import DRIFT, REFERENCE
from cba_utils.study.roles import item_columns, study_columns

_NONNEGATIVE = (0.0, np.inf)
_FEWEST = 1e-12  # a probability below this is rounding
_OUTCOMES = (*LETTERS, "other")
_ENTROPY = (0.0, np.log2(len(_OUTCOMES)))

register(
    Measure(
        "letters_kl",
        "Divergence over letters, nats",
        "divergence over letters",
        unit="log odds",
        bounds=_NONNEGATIVE,
        of=ratio("kl", "items"),
    ),
    Measure(
        "letters_tv",
        "Total variation over letters, %",
        "total variation over letters",
        of=ratio("tv", "items"),
    ),
    Measure(
        "all_flips",
        "First choice flips, % of all items",
        "flips, all items",
        of=ratio("flip", "all_items"),
    ),
    Measure(
        "concentration_change",
        "Collision probability, change in points",
        "concentration",
        bounds=difference((0.0, 1.0)),
        of=minus(ratio("collision", "items"), ratio("collision_ref", "items")),
    ),
    Measure(
        "entropy_change",
        "Entropy of the answer, change in bits",
        "entropy",
        unit="bits",
        bounds=difference(_ENTROPY),
        of=minus(ratio("entropy", "items"), ratio("entropy_ref", "items")),
    ),
    Measure(
        "vocab_kl",
        "Divergence over the vocabulary, nats",
        "divergence over the vocabulary",
        unit="log odds",
        bounds=_NONNEGATIVE,
        of=ratio("vocab_kl", "items"),
    ),
    Measure(
        "vocab_flip",
        "Likeliest token changes, % of items",
        "likeliest token",
        of=ratio("vocab_flip", "items"),
    ),
    Measure(
        "text_kl",
        "Divergence on held-out text, nats a token",
        "divergence on text",
        unit="log odds",
        bounds=_NONNEGATIVE,
        counts="sequences",
        of=ratio("vocab_kl", "tokens"),
    ),
    Measure(
        "text_flips",
        "Likeliest token changes on text, %",
        "flips on text",
        counts="sequences",
        of=ratio("vocab_flip", "tokens"),
    ),
    Measure(
        "agreement",
        "Answers that are the likeliest letter, %",
        "seen",
        counts="answers",
        of=ratio("agree", "draws"),
        per="draws",
    ),
    Measure(
        "agreement_expected",
        "The same, by the letters' probabilities",
        "expected",
        kind="expected",
        base="agreement",
        counts="answers",
        of=ratio("expected", "draws"),
        per="draws",
    ),
    Measure(
        "agreement_excess",
        "The likeliest letter, seen less expected, %",
        kind="excess",
        base="agreement",
        bounds=difference((0.0, 1.0)),
        counts="answers",
        of=minus(ratio("agree", "draws"), ratio("expected", "draws")),
        per="draws",
    ),
)
# The checks, from what needs the least to what needs the most.
SCREENS = (
    "perplexity_change",
    "text_kl",
    "text_flips",
    "vocab_kl",
    "letters_kl",
    "letters_tv",
    "entropy_change",
    "concentration_change",
    "all_flips",
)
# They count nearly the outcome itself: an unbiased item that becomes biased is likely one that flips.
PARTLY_CIRCULAR = ("all_flips",)


def _distributions(answers):
    p = np.exp(answers[[f"logp_{x}" for x in LETTERS]].to_numpy(float))
    return np.column_stack([p, answers["mass_other"].to_numpy(float)])


def distances(answers: pd.DataFrame, reference: str = REFERENCE) -> pd.DataFrame:
    """One row an item and option order at each other precision, with its distances from the reference.

    ``kl`` (nats) and ``tv`` between the distributions over {A, B, C, other} at temperature 1; ``flip``
    says that the likeliest letter differs; ``entropy`` (bits) and ``collision`` (the probability that
    two draws agree) are those of each, the reference's with the suffix ``_ref``. Where the records have
    them, ``vocab_kl``, ``vocab_tv`` and ``vocab_flip`` are those over the whole vocabulary.
    """
    p = _distributions(answers)
    p = p / p.sum(axis=1, keepdims=True)
    table = answers[[*study_columns(answers), *item_columns(answers), "order"]].reset_index(
        drop=True
    )
    table = table.assign(
        row=np.arange(len(table)),
        entropy=entr(p).sum(axis=1) / np.log(2),
        collision=(p**2).sum(axis=1),
        first=p[:, : len(LETTERS)].argmax(axis=1),
        **{name: answers[name].to_numpy(float) for name in DRIFT if name in answers},
    )
    cell = [c for c in study_columns(table) if c != "precision"]
    on = [*cell, "item_id", "order"]
    before = table.loc[
        table["precision"] == reference, [*on, "row", "entropy", "collision", "first"]
    ]
    pairs = table[table["precision"] != reference].merge(
        before, on=on, suffixes=("", "_ref"), validate="many_to_one"
    )
    was, now = (np.maximum(p[pairs[c]], _FEWEST) for c in ("row_ref", "row"))
    return pairs.drop(columns=["row", "row_ref"]).assign(
        kl=(was * np.log(was / now)).sum(axis=1).clip(0),
        tv=np.abs(was - now).sum(axis=1) / 2,
        flip=(pairs["first"] != pairs["first_ref"]).astype(float),
    )


def drifts(
    answers: pd.DataFrame,
    perplexity: pd.DataFrame | None = None,
    by: Sequence[str] = (),
    reference: str = REFERENCE,
    **options,
) -> pd.DataFrame:
    """Every check of a cell that its records allow, see `SCREENS`.

    Those over letters and over the vocabulary are means over ambiguous items (their distances in
    several option orders are averaged); flips count all items. Those on text are means over its tokens,
    with an interval over its sequences.
    """
    each = distances(answers, reference)
    keys = [*study_columns(each), *by]
    unit = [*study_columns(each), *item_columns(each)]
    values = ["kl", "tv", "flip", "entropy", "collision", "entropy_ref", "collision_ref"]
    values += [name for name in DRIFT if name in each]
    table = each.groupby(unit, observed=True, dropna=False, sort=False)[values].mean().reset_index()
    table = table.assign(items=1.0, all_items=1.0)
    ambiguous = table[table["context_condition"] == "ambig"]
    names = ["letters_kl", "letters_tv", "entropy_change", "concentration_change"]
    columns = [*values[:7], "items"]
    found = [
        estimates(ambiguous, [measure(name) for name in names], columns, keys, **options),
        estimates(table, [measure("all_flips")], ["flip", "all_items"], keys, **options),
    ]
    compared = ambiguous.dropna(subset="vocab_kl") if "vocab_kl" in ambiguous else ambiguous[:0]
    if len(compared):
        names = ["vocab_kl", "vocab_flip"]
        found.append(
            estimates(compared, [measure(n) for n in names], [*names, "items"], keys, **options)
        )
    if perplexity is not None and len(perplexity):
        found.append(perplexity_change(perplexity, reference)[found[0].columns])
        known = perplexity[perplexity["precision"] != reference]
        known = known.dropna(subset="vocab_kl") if "vocab_kl" in known else known[:0]
        if len(known):
            names, columns = ["text_kl", "text_flips"], ["vocab_kl", "vocab_flip", "tokens"]
            keys = study_columns(known)
            found.append(
                estimates(known, [measure(n) for n in names], columns, keys, "sequence", **options)
            )
    return pd.concat(found, ignore_index=True)


def ranks(
    checks: pd.DataFrame,
    outcome: pd.DataFrame,
    of: str = "became_biased_expected_excess",
    by: Sequence[str] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Does a check put cells in the order in which items became biased? Spearman's rank correlation.

    Parameters
    ----------
    checks, outcome : DataFrame
        Estimates of every cell, from `drifts` and from :func:`cba_utils.measures.transitions.placebo`.
    of : str
        The outcome's measure.
    by : sequence of str
        Columns such as ``["family"]`` within which cells are ranked.

    Returns
    -------
    DataFrame
        ``[*by, precision, check, estimate, low, high, n, clusters]``: over all cells of a precision,
        which says whether checkpoints are put in order, and over all cells (precision ``"all"``), where
        precisions are too. The interval resamples bases (models of one base share its training) and is
        missing with fewer than five; it is a percentile interval of few clusters, and rather too
        narrow.
    """
    keys = study_columns(outcome)
    wide = checks.pivot_table("estimate", keys, "measure", observed=True, dropna=False)
    wide = wide[[name for name in SCREENS if name in wide]].dropna(how="all")
    seen = outcome[outcome["measure"] == of].set_index(keys)["estimate"].rename("seen")
    cells = wide.join(seen, how="inner").reset_index()
    unit = "base" if "base" in cells and cells["base"].notna().all() else "model"
    rows = []
    groups = cells.groupby(list(by), observed=True, sort=False) if by else [((), cells)]
    for key, group in groups:
        for precision in ["all", *group["precision"].unique()]:
            part = group if precision == "all" else group[group["precision"] == precision]
            for check in wide.columns:
                known = part.dropna(subset=[check, "seen"])
                found = _spearman(known[check], known["seen"], known[unit], resamples, seed)
                rows.append((*key, precision, check, *found))
    head = [*by, "precision", "check", "estimate", "low", "high", "n", "clusters"]
    return pd.DataFrame(rows, columns=head)


def _rank_correlation(x, y):
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    return float(np.corrcoef(sps.rankdata(x), sps.rankdata(y))[0, 1])


def _spearman(x, y, unit, resamples, seed):
    x, y = x.to_numpy(float), y.to_numpy(float)
    codes, labels = pd.factorize(unit)
    estimate = _rank_correlation(x, y)
    if len(labels) < 5 or np.isnan(estimate):
        return estimate, np.nan, np.nan, len(x), len(labels)
    rows = [np.flatnonzero(codes == k) for k in range(len(labels))]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        chosen = np.concatenate([rows[k] for k in rng.integers(len(labels), size=len(labels))])
        drawn.append(_rank_correlation(x[chosen], y[chosen]))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return estimate, low, high, len(x), len(labels)


def letter_or_text(
    answers: pd.DataFrame, samples: pd.DataFrame, by: Sequence[str] = (), **options
) -> pd.DataFrame:
    """How often a sampled answer, as parsed, is the likeliest letter of the same cell, order and item.

    Sampling alone makes some answers other letters: ``agreement_expected`` is the probability of the
    likeliest letter at the study's temperature, so that ``agreement_excess`` is what reading the text
    does beyond it. An answer that is no letter agrees with none. The seeds of the published protocol
    are the same for all items, so a part of the difference is theirs.

    Measures
    --------
    agreement, agreement_expected, agreement_excess
        Of ambiguous items; ``n`` counts answers.
    """
    shown = answers[(answers["order"] == ORIGINAL) & (answers["context_condition"] == "ambig")]
    warm = np.exp(shown[[f"logp_{x}_t" for x in LETTERS]].to_numpy(float))
    cell = study_columns(shown)
    likeliest = shown[[*cell, "item_id"]].assign(
        letter=np.array([*LETTERS], object)[warm.argmax(axis=1)], expected=warm.max(axis=1)
    )
    drawn = samples[samples["context_condition"] == "ambig"]
    drawn = drawn.merge(likeliest, on=[*cell, "item_id"], validate="many_to_one")
    agree = (drawn["parsed_answer"].astype(object) == drawn["letter"]).astype(float)
    unit = [*cell, *item_columns(drawn)]
    table = drawn[[*unit, "expected"]].assign(agree=agree, draws=1.0)
    table = table.groupby(unit, observed=True, dropna=False)[["agree", "expected", "draws"]].sum()
    measures = [measure(f"agreement{end}") for end in ("", "_expected", "_excess")]
    return estimates(
        table.reset_index(), measures, ["agree", "expected", "draws"], [*cell, *by], **options
    )
