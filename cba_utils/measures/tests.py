"""Tests: of a change, of its direction, of no change, and how small a change would be seen.

Templates are the units throughout. A p-value here comes from one of two tests over templates: a
jackknife t test, for any measure that is a function of totals, or a sign-flip test, exact where
the null hypothesis is symmetric. Intervals are in :mod:`cba_utils.measures.intervals`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats as sps
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_effectsize

from cba_utils.measures.intervals import cluster_totals, jackknife, without_variation
from cba_utils.measures.measure import SHARE, Measure, suffixed
from cba_utils.measures.measure import measure as known_as
from cba_utils.measures.rates import change_measures
from cba_utils.measures.transitions import DRAWS
from cba_utils.names import REFERENCE

LEAST_RESAMPLES = 9999
# The least and the largest ratio of two rates that count as the same, as in bioequivalence.
RATIO = (0.8, 1.25)
MARGIN = 0.01  # the largest change of a rate that counts as none, wherever equivalence is tested


def _tests(table, measures, columns, by, of):
    rows = []
    for key, totals, n in cluster_totals(table, columns, by):
        for one in measures:
            estimate, error, df = jackknife(totals, one)
            rows.append((*key, one.name, estimate, error, df, *of(estimate, error, df), n))
    return rows


def change_tests(
    table: pd.DataFrame,
    measures: Sequence[Measure],
    columns: Sequence[str],
    by: Sequence[str] = (),
    null: float = 0.0,
) -> pd.DataFrame:
    """Two-sided jackknife t test over templates that each measure equals ``null``.

    Returns ``[*by, measure, estimate, error, df, p, n]``. A measure that is ``null`` in every
    template has no spread and p = 1.

    Examples
    --------
    >>> table = pd.DataFrame({"template_id": list("abcd"), "d": [1.0, 2.0, 3.0, 4.0], "n": 1.0})
    >>> from cba_utils.measures.measure import ratio
    >>> found = change_tests(table, [Measure("mean", of=ratio("d", "n"))], ["d", "n"])
    >>> round(float(found["p"].iloc[0]), 4)  # scipy.stats.ttest_1samp gives the same
    0.0305
    """

    def p_value(estimate, error, df):
        if np.isfinite(error) and error < 1e-12:
            return (float(abs(estimate - null) < 1e-12),)
        return (2 * sps.t.sf(abs(estimate - null) / error, df) if df else np.nan,)

    columns_out = [*by, "measure", "estimate", "error", "df", "p", "n"]
    return pd.DataFrame(_tests(table, measures, columns, by, p_value), columns=columns_out)


def sign_flip(differences, resamples: int = LEAST_RESAMPLES, seed: int = 0) -> float:
    """Two-sided p-value that templates' differences are symmetric about 0.

    Under symmetry every template's sign is as good as its opposite, so flipping signs gives the
    null distribution; with few templates all flips are tried and the test is exact.

    Examples
    --------
    >>> sign_flip([1.0, 2.0, 3.0, 4.0, 5.0])  # 2 of the 32 flips are as extreme
    0.0625
    """
    differences = np.asarray(differences, float)
    differences = differences[differences != 0]
    if len(differences) < 2:
        return 1.0
    return float(
        sps.permutation_test(
            (differences,),
            lambda x, axis: x.sum(axis=axis),
            permutation_type="samples",
            n_resamples=resamples,
            vectorized=True,
            rng=seed,
        ).pvalue
    )


def adjust(frame: pd.DataFrame, p: str = "p") -> pd.DataFrame:
    """Add Holm's and Benjamini and Hochberg's corrected p-values over all rows as one family.

    Examples
    --------
    >>> adjust(pd.DataFrame({"p": [0.01, 0.04]}))["p_holm"].tolist()
    [0.02, 0.04]
    """
    tested = frame[p].notna().to_numpy()
    result = frame.assign(p_holm=np.nan, p_bh=np.nan)
    if tested.any():
        values = frame.loc[tested, p].to_numpy(float)
        result.loc[tested, "p_holm"] = multipletests(values, method="holm")[1]
        result.loc[tested, "p_bh"] = sps.false_discovery_control(values)
    return result


def significant(tests: pd.DataFrame, p: str = "p_holm", level: float = 0.05) -> tuple[int, int]:
    """Count the tests whose p-value is below the level, and all that are defined.

    Examples
    --------
    >>> significant(pd.DataFrame({"p_holm": [0.01, 0.2, np.nan]}))
    (1, 2)
    """
    made = tests[p].dropna()
    return int((made < level).sum()), len(made)


def cohens_h(p, p_reference):
    """Cohen's h, the difference of two arcsine-transformed proportions.

    Examples
    --------
    >>> round(float(cohens_h(0.5, 0.25)), 4)
    0.5236
    """
    return proportion_effectsize(p, p_reference)


def chi_squared(counts: pd.DataFrame, correction: bool = False) -> dict[str, float]:
    """Pearson's chi-squared test of a table of counts, with Yates's correction if asked.

    It takes every draw as independent, which five draws of one item are not. It stands here
    because the published analysis uses it. Empty rows and columns are left out.

    Examples
    --------
    >>> found = chi_squared(pd.DataFrame([[10, 20], [20, 10]]))
    >>> round(found["statistic"], 3)
    6.667
    """
    table = counts.to_numpy(float)
    table = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]
    if min(table.shape, default=0) < 2:
        return {"statistic": np.nan, "p": np.nan}
    found = sps.chi2_contingency(table, correction=correction)
    return {"statistic": float(found.statistic), "p": float(found.pvalue)}


def difference_tests(frame: pd.DataFrame, by: Sequence[str] = (), reference: str = REFERENCE):
    """Jackknife t test of every paired change since the reference (see ``paired_differences``)."""
    parts = [
        change_tests(table, measures, columns, keys)
        for table, measures, columns, keys in change_measures(frame, by, reference)
    ]
    return pd.concat(parts, ignore_index=True)


def equivalence(
    frame: pd.DataFrame,
    margin: float = MARGIN,
    measure: str = "d_srs",
    by: Sequence[str] = (),
    reference: str = REFERENCE,
    level: float = 0.05,
):
    """Two one-sided tests (TOST) that a paired change lies within ``margin`` of zero.

    Parameters
    ----------
    frame : DataFrame
        Samples, answers or an item table. Probabilities say more than draws, in which a small
        change may not show at all.
    margin : float
        The largest change that counts as none, in the units of the measure.
    measure : str
        One of the measures of :func:`cba_utils.measures.rates.paired_differences`.

    Returns
    -------
    DataFrame
        ``estimate``, the 90 % interval ``low, high`` that belongs to the 5 % test, ``p``,
        ``equivalent``, ``margin`` and ``smallest_margin``, the smallest for which the test would
        have said yes. Where no template differs from another there is no error to test with: ``p``
        is NaN, and the interval is the one that so many templates without an event leave open.
        ``p_ratio`` and ``equivalent_ratio`` ask the same of the ratio of both rates, that it lies
        within ``RATIO``: a margin of one point calls a doubling of a rate of 0.4 % no change,
        and this does not. They are missing for what is no rate.
    """
    if not margin > 0:
        raise ValueError(f"margin must be a positive number, not {margin!r}")
    for part in change_measures(frame, by, reference):
        found = [one for one in part[1] if one.name == measure]
        if found:
            break
    else:
        raise ValueError(f"measure {measure!r} is none of the paired changes of these records")

    table, _, columns, keys = part

    def two_sided(estimate, error, df):
        if not df:
            return np.nan, np.nan, np.nan
        if error < 1e-12:
            return *without_variation(estimate, found[0].bounds, df + 1, 1 - 2 * level), np.nan
        half = error * sps.t.ppf(1 - level, df)
        return estimate - half, estimate + half, sps.t.sf((margin - abs(estimate)) / error, df)

    rows = _tests(table, found, columns, keys, two_sided)
    result = pd.DataFrame(
        rows, columns=[*keys, "measure", "estimate", "error", "df", "low", "high", "p", "n"]
    )
    reach = np.maximum(result["low"].abs(), result["high"].abs())
    p_ratio = _ratio_tests(table, found[0], columns, keys)
    return result.assign(
        equivalent=reach < margin,
        margin=margin,
        smallest_margin=reach,
        p_ratio=p_ratio,
        equivalent_ratio=np.array(p_ratio) < level,
    )


def _ratio_tests(table, change, columns, keys):
    """P-value of the two one-sided tests of the ratio: of the rate now less a multiple of that then."""
    rate = known_as(str(change.base))
    now = rate.statistic()
    then = suffixed(now, "_ref")
    sides = [
        lambda t: now(t) - RATIO[0] * then(t),
        lambda t: RATIO[1] * then(t) - now(t),
    ]
    p = []
    for _, totals, _ in cluster_totals(table, columns, keys):
        each = [jackknife(totals, Measure("side", of=side)) for side in sides]
        known = rate.bounds == SHARE and all(df and error > 1e-12 for _, error, df in each)
        p.append(
            max(float(sps.t.sf(value / error, df)) for value, error, df in each)
            if known
            else np.nan
        )
    return p


RISES = (0, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.045, 0.07, 0.1, 0.15, 0.25, 0.4)


def _power(totals_before, totals_after, draws, level):
    """Share of simulations in which the paired t test over templates rejects."""
    weight = draws.mean()
    change = (totals_after - totals_before) / weight
    mean = change.mean(axis=1)
    error = sps.sem(change, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * sps.t.sf(np.abs(mean / error), change.shape[1] - 1)
    return float(np.mean(p < level))


def minimum_detectable_effect(
    table: pd.DataFrame,
    power: float = 0.8,
    level: float = 0.05,
    spread: float = 1.0,
    draws: int = DRAWS,
    simulations: int = 300,
    seed: int = 0,
) -> pd.DataFrame:
    """Power against a rise of SRS on these items and templates, by simulation.

    Every item's probability of a stereotyped answer rises by an amount that varies over templates
    (a gamma distribution, so that it never falls); both precisions get ``draws`` fresh draws; and
    the rise is tested by the paired t test over templates.

    Parameters
    ----------
    table : DataFrame
        Item table of one cell at the reference (ambiguous items are used). Probabilities are taken
        as they are. From counts a probability is guessed, a little above zero where no draw was
        stereotyped, since five draws cannot tell a small probability from none.
    spread : float
        Standard deviation of the rise over templates, as a multiple of its mean.

    Returns
    -------
    DataFrame
        ``effect`` (true rise of SRS), ``power``, and in ``attrs`` ``mde``, the smallest rise seen
        with the wanted power (NaN where no simulated rise was), and ``baseline``, the SRS that it
        rises from.
    """
    table = table[table["context_condition"] == "ambig"]
    p = (table["stereotyped"] / table["draws"]).to_numpy(float)
    if "unbiased" in table:  # counts of draws
        p = (p * draws + 0.1) / (draws + 0.2)
    codes, labels = pd.factorize(table["template_id"])
    clusters = len(labels)
    if clusters < 2:
        raise ValueError("the minimum detectable effect needs items from at least two templates")
    rng = np.random.default_rng(seed)
    order = np.argsort(codes, kind="stable")
    p, codes = p[order], codes[order]
    starts = np.searchsorted(codes, np.arange(clusters))
    sizes = np.bincount(codes, minlength=clusters) * draws
    rows = []
    for rise in RISES:
        before, after, effect = [], [], 0.0
        for _ in range(simulations):
            each = rise * rng.gamma(spread**-2, spread**2, clusters)
            moved = np.minimum(p + each[codes], 1)
            before.append(np.add.reduceat(rng.binomial(draws, p), starts))
            after.append(np.add.reduceat(rng.binomial(draws, moved), starts))
            effect += (moved.mean() - p.mean()) / simulations
        rows.append((effect, _power(np.array(before), np.array(after), sizes, level)))
        if rows[-1][1] > 0.99:
            break
    curve = pd.DataFrame(rows, columns=["effect", "power"])
    curve.attrs.update(mde=np.nan, baseline=float(p.mean()))
    reached = curve["power"].ge(power)
    if reached.any():
        at = int(reached.to_numpy().argmax())
        near = curve.iloc[max(at - 1, 0) : at + 1]
        curve.attrs["mde"] = float(np.interp(power, near["power"], near["effect"]))
    return curve
