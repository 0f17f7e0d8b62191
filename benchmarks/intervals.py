"""How intervals over checkpoints were chosen: ``python -m benchmarks.intervals`` (two minutes).

Studies of three families are simulated whose spread is as unlike as was measured (9.0, 1.3 and 0.45
points over the checkpoints of three organisms, about 20 to 1), or alike; bases within families and
alignments within bases; errors that are normal, or skewed as rates near zero are.
``benchmarks/intervals.csv`` has, for every way to make an interval, how often it covers the truth and misses
it on either side: nominal is 95 % and 2.5 % an end. Truth is that of *these items*, or that of *new
templates*, of which every checkpoint was asked the same ones.

``Welch and Satterthwaite`` is what `cba_utils.measures.pooling` does; the others stand here only to be
compared. ``sign flips`` is a test: it covers where its two-sided p-value of the truth is 5 % or more, and
`cba_utils.measures.pooling.sign_flips` gives it.
"""

from itertools import product
from pathlib import Path

from cba_utils.measures.intervals import stratified_jackknife, wilson

import numpy as np
import pandas as pd
from scipy.special import stdtrit

TABLE = Path(__file__).with_suffix(".csv")
SIMULATIONS = 4000
SPREADS = {"20 to 3 to 1": (9.0, 1.3, 0.45), "alike": (3.0, 3.0, 3.0)}
# Bases and alignments of each in a family, and what the independent units are.
DESIGNS = {"3 bases, 5 alignments": (3, 5), "1 base, 5 alignments": (5, 1)}
SHAPES = ("normal", "skewed", "very skewed")
SKEW = {"skewed": 2.0, "very skewed": 0.5}  # shape of the gamma distribution that rates follow
RESAMPLES = 999
# Spread of a family's mean over the templates that all its checkpoints share, as a multiple of that over
# checkpoints: 0.84 where the default study had errors of 1.19 points without and 1.55 with templates.
TEMPLATES = {"these items": 0.0, "new templates": 0.84}
METHODS = (
    "Welch and Satterthwaite",
    "pooled degrees of freedom",
    "stratified bootstrap",
    "sign flips",
)


def units(rng, shape, spreads, design, size=SIMULATIONS):
    """Errors of the independent units of three families: simulations x families x units, mean 0."""
    clusters, alignments = DESIGNS[design]
    found = []
    for spread in spreads:
        if shape == "normal":
            base = rng.normal(0, spread, (size, clusters))
        else:
            base = spread * (rng.gamma(SKEW[shape], size=(size, clusters)) - SKEW[shape])
            base /= np.sqrt(SKEW[shape])
        if alignments > 1:
            base = base + rng.normal(0, spread / 2, (size, clusters, alignments)).mean(axis=2)
        found.append(base)
    return np.stack(found, axis=1)


def intervals(values, rng):
    """Low and high of the mean over families by each method; for the test, whether it rejects 0 and where."""
    size, families, clusters = values.shape
    estimate = values.mean(axis=(1, 2))
    strata = np.repeat(np.arange(families), clusters)
    error, df = np.empty((2, size))
    for k, one in enumerate(values):
        flat = one.ravel()

        def of(kept, flat=flat):
            return np.mean([flat[kept & (strata == s)].mean() for s in range(families)])

        _, error[k], df[k] = stratified_jackknife(of, strata)
    found = {}
    for name, degrees in (
        ("Welch and Satterthwaite", df),
        ("pooled degrees of freedom", families * (clusters - 1)),
    ):
        half = error * stdtrit(degrees, 0.975)
        found[name] = estimate - half, estimate + half
    drawn = np.zeros((RESAMPLES, size))
    for family in range(families):
        counts = rng.multinomial(clusters, np.ones(clusters) / clusters, RESAMPLES) / clusters
        drawn += counts @ values[:, family].T / families
    found["stratified bootstrap"] = tuple(np.quantile(drawn, (0.025, 0.975), axis=0))
    return estimate, found


def flips(values, truth):
    """Whether the exact sign-flip test rejects the truth, at 5 %."""
    size, families, clusters = values.shape
    flat = (values - truth[:, None, None]).reshape(size, -1)
    signs = np.array([*product([1.0, -1.0], repeat=families * clusters - 1)])
    signs = np.column_stack([np.ones(len(signs)), signs])  # the other half is the mirror image
    rejected = []
    for part in np.array_split(
        flat, max(1, size // 250)
    ):  # a quarter of a gigabyte at once, at most
        extreme = np.abs(part @ signs.T) >= np.abs(part.sum(axis=1))[:, None] * (1 - 1e-9)
        rejected.append(extreme.mean(axis=1) < 0.05)
    return np.concatenate(rejected)


def measure(seed=0, simulations=SIMULATIONS):
    """Coverage of every method in every design, a row each."""
    rows = []
    for design, shape, spreads, (promise, share) in product(
        DESIGNS, SHAPES, SPREADS, TEMPLATES.items()
    ):
        rng = np.random.default_rng([seed, len(rows)])
        values = units(rng, shape, SPREADS[spreads], design, simulations)
        spread = np.array(SPREADS[spreads]) / np.sqrt(values.shape[2])
        values = values + (rng.normal(size=(simulations, 3)) * share * spread)[:, :, None]
        estimate, found = intervals(values, rng)
        rejected = flips(values, np.zeros(simulations))
        found["sign flips"] = (
            np.where(rejected & (estimate > 0), np.inf, -np.inf),
            np.where(rejected & (estimate < 0), -np.inf, np.inf),
        )
        for method in METHODS:
            low, high = found[method]
            above, below = int((low > 0).sum()), int((high < 0).sum())
            covered = simulations - above - below
            ends = wilson(covered, simulations)
            width = np.median(high - low) if method != "sign flips" else np.nan
            rows.append(
                (design, shape, spreads, promise, method)
                + tuple(x / simulations for x in (covered, above, below))
                + (*ends, width, simulations)
            )
    names = ["design", "errors", "spreads", "promise", "method"]
    numbers = ["covered", "said_above", "said_below", "covered_low", "covered_high", "width", "n"]
    return pd.DataFrame(rows, columns=[*names, *numbers])


if __name__ == "__main__":
    measure().to_csv(TABLE, index=False, float_format="%.4g", lineterminator="\n")
