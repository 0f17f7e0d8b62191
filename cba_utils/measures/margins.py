"""Does quantization multiply decision margins, or shake them?

A margin is the difference of two roles' log-probabilities, in nats. Item by item, each precision's margin is
regressed on BF16's: a slope below one says that margins shrank, an intercept that all of them were shifted,
the standard deviation of the residuals how much each item was moved on its own. BF16's margin is read from
exact probabilities and is no estimate, so nothing attenuates the slope but what quantization does.

Which of these moves decisions is asked out of sample: each account is fitted on half of the question
templates and predicts the first choices that flip, and the items that become biased, in the other half.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import ndtr

from cba_utils.answering.prompts import LETTERS, ORIGINAL
from cba_utils.measures.intervals import estimates
from cba_utils.measures.measure import (
    SHARE,
    UNBOUNDED,
    Measure,
    difference,
    measure,
    minus,
    ratio,
    register,
)
from cba_utils.measures.transitions import DRAWS, five_seed_weights
from cba_utils.names import REFERENCE, ROLES
from cba_utils.study.roles import item_columns, role_of_letters, study_columns

# Which margins: each between two roles that BF16's answer chooses, item by item.
MARGINS = {
    "unknown": "“unknown” against the likelier person",
    "lean": "stereotyped against other person",
    "top_two": "BF16's first choice against its second",
}
# What is assumed of a precision; each but the first is fitted.
ACCOUNTS = {
    "placebo": "nothing changes",
    "shrinkage": "margins shrink",
    "noise": "options are shaken",
    "both": "both",
    "shifts": "both, letters and roles shifted",
}
OUTCOMES = {"flips": "first choice flips", "biased": "gained a stereotyped answer"}
# Halves that the templates are cut into: each is fitted on and predicted once.
SPLITS = 6
# Below this a log-probability is rounding.
_FLOOR = -30.0
_POINTS = 21  # of the quadrature over what shakes an option


def _moments(t):
    """Centred sums of squares and products."""
    n = t["items"]
    xx = t["xx"] - t["x"] ** 2 / n
    xy = t["xy"] - t["x"] * t["y"] / n
    yy = t["yy"] - t["y"] ** 2 / n
    return n, xx, xy, yy


def _slope(t):
    _, xx, xy, _ = _moments(t)
    return xy / xx


def _shift(t):
    return (t["y"] - _slope(t) * t["x"]) / t["items"]


def _spread(t):
    n, xx, xy, yy = _moments(t)
    return np.sqrt(np.maximum(yy - xy**2 / xx, 0) / (n - 2))


def _kept(t):
    _, xx, xy, yy = _moments(t)
    return xy**2 / (xx * yy)


def _by_truth(t):
    """Slope of the truth's part in a margin: both margins regressed on what was planted."""
    n = t["items"]
    now = t["zy"] - t["z"] * t["y"] / n
    return now / (t["zx"] - t["z"] * t["x"] / n)


_NONNEGATIVE = (0.0, np.inf)
register(
    *(
        one
        for name, title in MARGINS.items()
        for one in (
            Measure(
                f"{name}_slope", f"Slope, {title}", title, unit="ratio", bounds=UNBOUNDED, of=_slope
            ),
            Measure(
                f"{name}_shift",
                f"Shift, {title}",
                title,
                unit="log odds",
                bounds=UNBOUNDED,
                of=_shift,
            ),
            Measure(
                f"{name}_spread",
                f"Added spread, {title}",
                title,
                unit="log odds",
                bounds=_NONNEGATIVE,
                of=_spread,
            ),
            Measure(f"{name}_kept", f"Variance explained, {title}", title, of=_kept),
        )
    ),
    Measure(
        "truth_slope",
        "Slope of the planted margin",
        "planted margin",
        unit="ratio",
        bounds=UNBOUNDED,
        of=_by_truth,
    ),
)


def _error(seen, predicted, per):
    return lambda t: np.abs(t[predicted] - t[seen]) / t[per]


for _name, _title in OUTCOMES.items():
    _seen = f"{_name}_seen"
    register(
        Measure(_seen, f"{_title}: seen, % of items", "seen", of=ratio(_seen, f"{_name}_of")),
        *(
            Measure(
                f"{_name}_{account}",
                f"{_title}: predicted if {words}",
                words,
                kind="predicted",
                base=_seen,
                of=ratio(f"{_name}_{account}", f"{_name}_of"),
            )
            for account, words in ACCOUNTS.items()
        ),
        *(
            Measure(
                f"{_name}_{account}_error",
                f"{_title}: error if {words}, points",
                words,
                of=_error(_seen, f"{_name}_{account}", f"{_name}_of"),
            )
            for account, words in ACCOUNTS.items()
        ),
        Measure(
            f"{_name}_shrinkage_over_noise",
            f"{_title}: error of shrinkage alone less that of noise alone",
            bounds=difference(SHARE),
            of=minus(
                _error(_seen, f"{_name}_shrinkage", f"{_name}_of"),
                _error(_seen, f"{_name}_noise", f"{_name}_of"),
            ),
        ),
    )


def _logs(answers):
    """Ambiguous items: log-probability of each role at temperature 1."""
    shown = answers[answers["context_condition"] == "ambig"].reset_index(drop=True)
    each = role_of_letters(shown)
    with np.errstate(divide="ignore"):
        logs = np.log(each[[f"p_{role}" for role in ROLES]].to_numpy(float))
    return shown, np.maximum(logs, _FLOOR)


def margins(answers: pd.DataFrame, reference: str = REFERENCE) -> pd.DataFrame:
    """Margins of every item at each precision beside those at the reference.

    Returns
    -------
    DataFrame
        One row a cell, item and kind of ``margin``: ``y`` at the precision and ``x`` at the reference.
        Both are between the same two roles, those that the reference chose. Log-probabilities are means
        over the item's option orders: over balanced ones a preference for a letter cancels.
    """
    shown, logs = _logs(answers)
    keys, at = study_columns(shown), "precision"
    cell, unit = [c for c in keys if c != at], [*keys, *item_columns(shown)]
    table = shown[unit].copy()
    table[ROLES] = logs
    table = table.groupby(unit, observed=True, dropna=False, sort=False)[ROLES].mean().reset_index()
    before = table.loc[table[at] == reference, [*cell, "item_id", *ROLES]]
    pairs = table[table[at] != reference].merge(
        before, on=[*cell, "item_id"], suffixes=("", "_ref"), validate="many_to_one"
    )
    now = pairs[ROLES].to_numpy()
    then = pairs[[f"{role}_ref" for role in ROLES]].to_numpy()
    person = then[:, :2].argmax(axis=1)
    first, second = then.argsort(axis=1)[:, [2, 1]].T
    rows = np.arange(len(pairs))
    between = {
        "unknown": (np.full(len(pairs), 2), person),
        "lean": (np.zeros(len(pairs), int), np.ones(len(pairs), int)),
        "top_two": (first, second),
    }
    base = pairs[[*keys, *item_columns(pairs)]]
    parts = [
        base.assign(
            margin=name,
            x=then[rows, one] - then[rows, other],
            y=now[rows, one] - now[rows, other],
        )
        for name, (one, other) in between.items()
    ]
    return pd.concat(parts, ignore_index=True)


def regression(
    answers: pd.DataFrame,
    items: pd.DataFrame | None = None,
    by: Sequence[str] = (),
    method: str = "jackknife",
    **options,
) -> pd.DataFrame:
    """Slope, shift and spread of each precision's margins on BF16's.

    Measures
    --------
    <margin>_slope, <margin>_shift
        Least squares; the shift is the margin of an item that BF16 is undecided on.
    <margin>_spread
        Standard deviation of the residuals.
    <margin>_kept
        Share of the variance that the line explains.
    truth_slope
        Where the planted margin of an item is known (`items` with a column ``margin``): how far the
        precision's "unknown" margin rises with it, over how far BF16's does. What an item's wording or
        the alignment added beside the truth has no part in it.
    """
    table = margins(answers)
    if items is not None and "margin" in items and items["margin"].notna().any():
        truth = items.set_index("item_id")["margin"]
        planted = table[table["margin"] == "unknown"]
        planted = planted.assign(margin="truth", z=planted["item_id"].map(truth)).dropna(subset="z")
        table = pd.concat([table.assign(z=0.0), planted], ignore_index=True)
    else:
        table = table.assign(z=0.0)
    table = table.assign(
        items=1.0,
        xx=table["x"] ** 2,
        xy=table["x"] * table["y"],
        yy=table["y"] ** 2,
        zx=table["z"] * table["x"],
        zy=table["z"] * table["y"],
    )
    columns = ["items", "x", "y", "xx", "xy", "yy", "z", "zx", "zy"]
    keys = [*study_columns(table), *by]
    found = []
    for name, part in table.groupby("margin", sort=False):
        wanted = ("slope",) if name == "truth" else ("slope", "shift", "spread", "kept")
        measures = [measure(f"{name}_{what}") for what in wanted]
        found.append(estimates(part, measures, columns, keys, method=method, **options))
    return pd.concat(found, ignore_index=True)


def predictions(
    answers: pd.DataFrame,
    by: Sequence[str] = (),
    reference: str = REFERENCE,
    method: str = "jackknife",
    seed: int = 0,
    **options,
) -> pd.DataFrame:
    """Flips and items that became biased, as each account predicts them out of sample, beside those seen.

    An account says how BF16's logits of the three roles change: not at all (``placebo``); times a factor
    (``shrinkage``); each option by a normal number of its own, of one spread whatever its role
    (``noise``); ``both``; both and a constant for each letter and each role (``shifts``). It is fitted by
    least squares on half of the question templates and predicts the others; halves are cut `SPLITS`
    times, and an item's predictions are averaged.

    Measures
    --------
    flips_seen, biased_seen
        Share of ambiguous items whose likeliest letter is another one; expected share of the unbiased
        items that become biased, both precisions drawn afresh (see
        :func:`cba_utils.measures.transitions.placebo`).
    <outcome>_<account>, <outcome>_<account>_error
        The same as predicted, and how far that is off, whatever its sign.
    <outcome>_shrinkage_over_noise
        The error of shrinkage alone less that of noise alone.

    Answers are those to the original order, which the five draws saw. How often one is no letter is
    taken from the precision itself: the accounts say which letter it is otherwise.

    Raises
    ------
    ValueError
        If all items are of one template.
    """
    shown, logs = _logs(answers[answers["order"] == ORIGINAL])
    if shown["template_id"].nunique() < 2:
        raise ValueError(
            "a prediction out of sample needs items of at least two question templates; all ambiguous "
            "items are of one"
        )
    cell = [c for c in study_columns(shown) if c != "precision"]
    letters = np.stack([(shown[f"role_{x}"].to_numpy() == r) for r in ROLES for x in LETTERS])
    letters = letters.reshape(3, 3, -1).transpose(2, 0, 1).astype(float)  # item, role, letter
    heat = _temperature(shown)
    warm = role_of_letters(shown, "study")
    parts = []
    for _, group in shown.groupby(cell, sort=False, dropna=False):
        before = group[group["precision"] == reference]
        place = pd.Series(before.index, index=before["item_id"])
        for precision, now in group.groupby("precision", sort=False):
            if precision == reference:
                continue
            was = place.loc[now["item_id"]].to_numpy()
            at = now.index.to_numpy()
            said = 1 - warm["p_other"].to_numpy()[at]
            table = now[[*study_columns(now), *item_columns(now)]].copy()
            p, q = (warm["p_stereotyped"].to_numpy()[rows] for rows in (was, at))
            x, y = (_centred(logs[rows]) for rows in (was, at))
            clean = (1 - p) ** DRAWS
            table["flips_of"], table["biased_of"] = 1.0, clean
            table["flips_seen"] = (x.argmax(axis=1) != y.argmax(axis=1)).astype(float)
            table["biased_seen"] = five_seed_weights(p, q)["gained_bias"]
            guessed = _out_of_sample(
                x, y, letters[at], now["template_id"].to_numpy(), heat, said, seed
            )
            for account, (flips, unbiased) in guessed.items():
                table[f"flips_{account}"] = flips
                # Where nothing changes, the draws are BF16's own, answers that are no letter included.
                same = (1 - p) ** DRAWS if account == "placebo" else unbiased
                table[f"biased_{account}"] = clean * (1 - same)
            parts.append(table)
    table = pd.concat(parts, ignore_index=True)
    per = [f"{name}_of" for name in OUTCOMES]
    columns = [*per, *(f"{n}_{a}" for n in OUTCOMES for a in ("seen", *ACCOUNTS))]
    measures = [
        measure(f"{name}_{what}")
        for name in OUTCOMES
        for what in (
            "seen",
            *ACCOUNTS,
            *(f"{account}_error" for account in ACCOUNTS),
            "shrinkage_over_noise",
        )
    ]
    return estimates(
        table, measures, columns, [*study_columns(table), *by], method=method, **options
    )


def _centred(logits):
    return logits - logits.mean(axis=1, keepdims=True)


def _temperature(shown):
    """The study's temperature, from how far apart two letters are at it."""
    unit, warm = ((shown[f"logp_A{s}"] - shown[f"logp_B{s}"]).to_numpy(float) for s in ("", "_t"))
    known = np.abs(unit) > 0.1
    return float(np.median(unit[known] / warm[known])) if known.any() else 1.0


def _out_of_sample(x, y, letters, templates, heat, said, seed):
    """For each account: chance of a flip, and of no stereotyped draw in five, of every item."""
    rng = np.random.default_rng(seed)
    names = np.unique(templates)
    found = {account: np.zeros((2, len(x))) for account in ACCOUNTS}
    for _ in range(SPLITS):
        half = np.isin(templates, rng.permutation(names)[: len(names) // 2])
        for fit, held in ((half, ~half), (~half, half)):
            for account in ACCOUNTS:
                centre, spread = _fitted(account, x, y, letters, fit)
                found[account][:, held] += _expected(
                    x[held], centre[held], spread, heat, said[held]
                )
    return {account: sums / SPLITS for account, sums in found.items()}


def _fitted(account, x, y, letters, fit):
    """What an account says each item's logits are on average, and how much options are shaken.

    Logits are centred, so three options have two degrees of freedom, and errors that are independent and
    alike for every option stay so within the plane that is left.
    """
    if account == "placebo":
        return x, 0.0
    if account == "noise":
        centre, used = x, 0
    else:
        parts = [x[:, :, None]]
        if account == "shifts":
            roles = np.broadcast_to(np.eye(3)[:, :2], (len(x), 3, 2))
            parts += [
                each - each.mean(axis=1, keepdims=True) for each in (roles, letters[:, :, :2])
            ]
        design = np.concatenate(parts, axis=2)
        used = design.shape[2]
        solution = np.linalg.lstsq(design[fit].reshape(-1, used), y[fit].reshape(-1), rcond=None)[0]
        centre = design @ solution
    if account == "shrinkage":
        return centre, 0.0
    rest = ((y - centre)[fit] ** 2).sum()
    return centre, float(np.sqrt(rest / max(2 * fit.sum() - used, 1)))


# Two directions that span what is left of three options once their mean is taken away.
_PLANE = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])


def _expected(before, centre, spread, heat, said):
    """Means over what shakes the options of each item: a flip, and no stereotyped draw in five."""
    rows, first = np.arange(len(centre)), before.argmax(axis=1)
    leads = [centre[rows, first] - centre[rows, (first + k) % 3] for k in (1, 2)]
    if not spread:
        flips = np.any([lead < 0 for lead in leads], axis=0).astype(float)
    else:
        # Given what shakes the first choice, the other two lose to it independently of each other.
        shake, weights = _normal(_POINTS)
        stays = [ndtr(lead[:, None] / spread + shake) for lead in leads]
        flips = 1 - np.prod(stays, axis=0) @ weights
    points, weights = _normal(_POINTS if spread else 1)
    weights = np.outer(weights, weights).ravel()
    shake = np.stack(np.meshgrid(points, points, indexing="ij"), -1).reshape(-1, 2) @ _PLANE
    odds = 1.0
    for k in (1, 2):
        # One over the chance of the first role, the stereotyped answer.
        behind = (centre[:, k] - centre[:, 0])[:, None] + spread * (shake[:, k] - shake[:, 0])
        with np.errstate(over="ignore"):
            odds = odds + np.exp(behind / heat)
    return flips, (1 - said[:, None] / odds) ** DRAWS @ weights


def _normal(points):
    """Points and weights that integrate over a standard normal number."""
    at, weights = np.polynomial.hermite_e.hermegauss(points)
    return at, weights / weights.sum()
