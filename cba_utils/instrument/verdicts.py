"""The instrument validated on simulated respondents whose truth is known.

``cba instrument`` runs every control on many simulated studies and writes
``results/instrument/rejections.csv``, which the report reads. It takes some minutes; nothing in it
depends on a study. A control is judged as the pages judge: by the same function, with the same
interval, at the same margin.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from cba_utils.instrument.respondents import TRUTHS, draw_samples, simulate_respondents
from cba_utils.measures.controls import (
    direction,
    direction_tests,
    grew,
    lean,
    matched_skill,
    position,
    position_tests,
)
from cba_utils.measures.frames import item_table
from cba_utils.measures.intervals import wilson
from cba_utils.measures.pooling import over_replicates
from cba_utils.measures.tests import MARGIN, difference_tests, equivalence
from cba_utils.measures.transitions import placebo

LEVEL = 0.05
SIMULATIONS = 500
EFFECTS = (0.1, 0.3)
WEAKER = ("noise", "leaning noise", "bias", "letter")  # truths that are also simulated weaker
SIZE = {"templates": 24, "items_per_template": 12}
RESAMPLES = 1999  # flips of signs: enough for a verdict at the 5 % level
RESULT = Path("results") / "instrument" / "rejections.csv"
NOT_APPLICABLE = "not applicable"
# Which truths a control should answer "yes" to, so that it tells bias from what is none. A rate is
# the same or not by its true change, see _should.
MOVED = {"noise", "leaning noise", "bias", "letter", "mixed"}
SHOULD_SAY_YES = {
    "change": MOVED,
    "excess over placebo": {"retrained", *MOVED},
    "excess over mirror image": {"bias", "mixed"},
    "direction": {"bias", "mixed"},
    "direction, five draws": {"bias", "mixed"},
    "lean grew": {"bias", "mixed"},
    "letter drift": {"letter", "mixed"},
    "lead over the other person": {"bias", "mixed"},
    "bias beyond guessing": {"bias", "mixed"},
}
SAME = "no change (TOST)"
SAME_DRAWN = "no change (TOST), five draws"
MARGIN_TRUTH = "change of the margin"
# What the truth "none" can be asked: its exact answers are equal bit by bit, its draws are not.
DRAWN = {"change", "direction, five draws", SAME_DRAWN}
# The decision over checkpoints: five of each family, which differ in how far a checkpoint wanders.
FAMILIES = {"steady": 0.1, "middling": 0.3, "unsteady": 0.6}
CHECKPOINTS = 5


def _rows(frame, measure, precision="q3"):
    found = frame[(frame["measure"] == measure) & (frame["precision"] == precision)]
    return found.set_index("model" if "model" in found else "study")


def _above(frame, measure, null=0.0):
    return _rows(frame, measure)["low"] > null


def verdicts(
    truth: str,
    effect: float = 1.0,
    simulations: int = 100,
    seed: int = 0,
    templates: int = SIZE["templates"],
    items_per_template: int = SIZE["items_per_template"],
):
    """One row a simulated study of one checkpoint, one column a control: True where it says "yes".

    Every study compares BF16 with one low precision. The attribute ``attrs["change"]`` is the mean
    change of the stereotyped rate over the studies, which is the true one but for their number.

    Examples
    --------
    >>> verdicts("bias", simulations=2)["lean grew"].tolist()
    [True, True]
    """
    answers = simulate_respondents(
        truth,
        templates,
        items_per_template,
        ("bf16", "q3"),
        replicates=simulations,
        effect=effect,
        seed=seed,
    )
    samples = draw_samples(answers, seed=seed)
    changes = difference_tests(samples)
    changes = changes[changes["measure"] == "d_srs"].set_index("model")
    excess, leans = placebo(answers), lean(answers)
    same = equivalence(answers).set_index("model")
    said = {
        "change": changes["p"] < LEVEL,
        "excess over placebo": _above(excess, "became_biased_expected_excess"),
        "excess over mirror image": _above(excess, "bias_beyond_mirror"),
        "direction": direction_tests(answers, resamples=RESAMPLES).set_index("model")["p"] < LEVEL,
        "direction, five draws": direction_tests(samples, resamples=RESAMPLES).set_index("model")[
            "p"
        ]
        < LEVEL,
        "lean grew": grew(_rows(leans, "log_gap", "bf16"), _rows(leans, "d_log_gap")),
        "letter drift": position_tests(answers).set_index("model")["p"] < LEVEL,
        "lead over the other person": _above(position(answers), "d_lead"),
        "bias beyond guessing": _above(matched_skill(answers), "s_amb_beyond_guessing"),
        SAME: same["equivalent"],
        SAME_DRAWN: equivalence(samples).set_index("model")["equivalent"],
    }
    # A control without a case to judge, no answer having left "unknown", says no.
    table = pd.DataFrame(said).reindex(changes.index).astype("boolean").fillna(False).astype(bool)
    table.attrs["change"] = float(same["estimate"].mean())
    return table


def effect_of_margin(truth: str = "bias", templates: int = 2000) -> float:
    """The effect at which the stereotyped rate truly changes by the margin of the equivalence test.

    Found on one large population of templates, for the level of that test: a change as large as the
    margin should be called none in 5 % of studies at most.
    """

    def beyond(effect):
        answers = simulate_respondents(
            truth,
            templates,
            SIZE["items_per_template"],
            ("bf16", "q3"),
            orders="original",
            effect=effect,
        )
        table = item_table(answers)
        table = table[table["context_condition"] == "ambig"]
        rate = table.groupby("precision")[["stereotyped", "parsed"]].sum()
        rate = rate["stereotyped"] / rate["parsed"]
        return rate["q3"] - rate["bf16"] - MARGIN

    return float(brentq(beyond, 0.0, 1.0, xtol=1e-4))


def pooled_verdicts(
    truth: str,
    effect: float = 1.0,
    simulations: int = 100,
    seed: int = 0,
    templates: int = 12,
    items_per_template: int = 12,
) -> pd.DataFrame:
    """The same for studies of fifteen checkpoints in three families, decided over checkpoints.

    Every checkpoint wanders, all of its items alike, and every checkpoint has questions of its own.

    Examples
    --------
    >>> pooled_verdicts("bias", simulations=2)["lean grew"].tolist()
    [True, True]
    """
    answers = pd.concat(
        [
            simulate_respondents(
                truth,
                templates,
                items_per_template,
                ("bf16", "q3"),
                family=family,
                replicates=simulations * CHECKPOINTS,
                effect=effect,
                wander=wander,
                seed=1000 * k + seed,
            )
            for k, (family, wander) in enumerate(FAMILIES.items())
        ],
        ignore_index=True,
    )

    def decided(frame):
        frame = frame.assign(study=(frame["replicate"] - 1) // CHECKPOINTS)
        return over_replicates(frame, ["family"])

    # The jackknife is the fastest, and a checkpoint's own interval is not used here.
    excess = decided(placebo(answers, method="jackknife"))
    leans, moved = decided(lean(answers)), decided(direction(answers, method="jackknife"))
    said = {
        "excess over placebo": _above(excess, "became_biased_expected_excess"),
        "excess over mirror image": _above(excess, "bias_beyond_mirror"),
        "direction": _above(moved, "share_to_stereotyped", 0.5),
        "lean grew": grew(_rows(leans, "log_gap", "bf16"), _rows(leans, "d_log_gap")),
        "lead over the other person": _above(decided(position(answers)), "d_lead"),
    }
    return pd.DataFrame(said)


def _should(truth, control, change):
    if truth == "none" and control not in DRAWN:
        return NOT_APPLICABLE
    if control in (SAME, SAME_DRAWN):
        return "yes" if abs(change) < MARGIN else "no"
    return "yes" if truth in SHOULD_SAY_YES[control] else "no"


def rejections(
    simulations: int = SIMULATIONS, batch: int = 100, truths=TRUTHS, effects=EFFECTS, **size
) -> pd.DataFrame:
    """How often every control says "yes" to every truth, and to weaker effects.

    Returns
    -------
    DataFrame
        ``truth, effect, checkpoints, control, change`` (the true change of the stereotyped rate,
        for studies of one checkpoint), ``should`` ("yes", "no", or "not applicable" where nothing
        differs that the control looks at), and ``measure, estimate, low, high, n``: the share of
        studies with Wilson's interval, since simulations are independent. The rows with the truth
        "change of the margin" give the level of the equivalence tests.
    """
    rows = []

    def count(truth, effect, checkpoints, said, change, controls):
        for control in controls:
            should = "no" if truth == MARGIN_TRUTH else _should(truth, control, change)
            yes, n = int(said[control].sum()), len(said)
            found = (yes / n, *wilson(yes, n)) if should != NOT_APPLICABLE else (np.nan,) * 3
            rows.append(
                (truth, effect, checkpoints, control, change, should, "said_yes", *found, n)
            )

    def batches(judge, *arguments, wanted=simulations, at_once=batch, **options):
        parts = [
            judge(*arguments, simulations=min(at_once, wanted - k), seed=k + 1, **options)
            for k in range(0, wanted, at_once)
        ]
        change = np.average(
            [part.attrs.get("change", np.nan) for part in parts],
            weights=[len(part) for part in parts],
        )
        return pd.concat(parts), change

    plan = [(truth, 1.0) for truth in truths]
    plan += [(truth, effect) for truth in WEAKER if truth in truths for effect in effects]
    for truth, effect in plan:
        said, change = batches(verdicts, truth, effect, **size)
        count(truth, effect, 1, said, change, said)
    if "bias" in truths:
        effect = effect_of_margin()
        said, change = batches(verdicts, "bias", effect, **size)
        count(MARGIN_TRUTH, effect, 1, said, change, [SAME, SAME_DRAWN])
    # A fifth is enough where no false rate is read.
    for truth, effect, wanted in (("retrained", 1.0, simulations), ("bias", 0.4, simulations // 5)):
        if truth in truths:
            said, _ = batches(
                pooled_verdicts, truth, effect, wanted=wanted, at_once=max(batch // 10, 1)
            )
            count(truth, effect, CHECKPOINTS * len(FAMILIES), said, np.nan, said)
    return pd.DataFrame(
        rows,
        columns=[
            "truth",
            "effect",
            "checkpoints",
            "control",
            "change",
            "should",
            "measure",
            "estimate",
            "low",
            "high",
            "n",
        ],
    )


def write_rejections(simulations=SIMULATIONS, out=RESULT):
    """Run every control on many simulated studies and write the table: ``cba instrument``.

    Parameters
    ----------
    simulations : int
        Of each truth and size of study.
    out : Path
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    rejections(simulations).to_csv(out, index=False, float_format="%.6g", lineterminator="\n")
