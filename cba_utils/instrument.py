"""The instrument validated on simulated respondents whose truth is known.

``python -m cba_utils.instrument`` runs every control on many simulated studies and writes
``results/instrument/rejections.csv``, which the report reads. It takes some minutes; nothing in it
depends on a study.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from cba_utils.controls import direction, direction_tests, matched_skill, position_tests
from cba_utils.intervals import wilson
from cba_utils.metrics import placebo
from cba_utils.respondents import TRUTHS, draw_samples, simulate_respondents
from cba_utils.stats import difference_tests, equivalence

LEVEL = 0.05
SIMULATIONS = 500
FEWER = 200  # for weaker effects, where power is read off a curve
EFFECTS = (0.1, 0.2, 0.4)
T = {"method": "jackknife"}
RESULT = Path("results") / "instrument" / "rejections.csv"
# Which truths a control should answer "yes" to. It should say "no" to every other.
SHOULD_SAY_YES = {
    "change": {"noise", "bias", "letter", "mixed"},
    "excess over placebo": {"noise", "bias", "letter", "mixed"},
    "direction": {"bias", "mixed"},
    "direction, five draws": {"bias", "mixed"},
    "direction, above lean": {"bias", "mixed"},
    "letter drift": {"letter", "mixed"},
    "bias beyond guessing": {"bias", "mixed"},
    "no change (TOST)": {"none"},
}
MARGIN = 0.02


def _beyond_zero(frame, measure):
    found = frame[frame["measure"] == measure].set_index("model")
    return (found["low"] > 0) | (found["high"] < 0)


def verdicts(truth: str, effect: float = 1.0, simulations: int = 100, seed: int = 0,
             templates: int = 24, items_per_template: int = 20) -> pd.DataFrame:
    """One row a simulated study, one column a control: True where it says "yes" at the 5 % level.

    Every study compares BF16 with one low precision.

    Examples
    --------
    >>> verdicts("bias", simulations=2)["direction"].tolist()
    [True, True]
    """
    answers = simulate_respondents(
        truth, templates, items_per_template, ("bf16", "q3"), replicates=simulations,
        effect=effect, seed=seed)
    samples = draw_samples(answers, seed=seed)
    changes = difference_tests(samples)
    changes = changes[changes["measure"] == "d_srs"].set_index("model")
    said = {
        "change": changes["p"] < LEVEL,
        "excess over placebo": _beyond_zero(placebo(answers, samples, **T), "became_biased_excess"),
        "direction": direction_tests(answers).set_index("model")["p"] < LEVEL,
        "direction, five draws": direction_tests(samples).set_index("model")["p"] < LEVEL,
        "direction, above lean": _beyond_zero(direction(answers, **T), "share_above_lean"),
        "letter drift": position_tests(answers).set_index("model")["p"] < LEVEL,
        "bias beyond guessing": _beyond_zero(matched_skill(answers, **T), "s_amb_beyond_guessing"),
        "no change (TOST)": equivalence(samples, MARGIN).set_index("model")["equivalent"],
    }
    # A control without a case to judge, no answer having left "unknown", says no.
    return pd.DataFrame(said).reindex(changes.index).astype("boolean").fillna(False).astype(bool)


def rejections(simulations: int = SIMULATIONS, batch: int = 100, templates: int = 24,
               items_per_template: int = 20, truths=TRUTHS, effects=EFFECTS) -> pd.DataFrame:
    """How often every control says "yes" to every truth, and to weaker effects.

    Returns
    -------
    DataFrame
        ``truth, effect, control, should`` ("yes" or "no"), and ``measure, estimate, low, high,
        n``: the share of studies with Wilson's interval, since simulations are independent.
    """
    plan = [(truth, 1.0, simulations) for truth in truths]
    plan += [(truth, effect, min(FEWER, simulations))
             for truth in ("noise", "bias", "letter") if truth in truths for effect in effects]
    rows = []
    for truth, effect, wanted in plan:
        parts = [verdicts(truth, effect, min(batch, wanted - k), seed=k + 1,
                          templates=templates, items_per_template=items_per_template)
                 for k in range(0, wanted, batch)]
        said = pd.concat(parts)
        for control in said:
            yes, n = int(said[control].sum()), len(said)
            should = "yes" if truth in SHOULD_SAY_YES[control] else "no"
            rows.append((truth, effect, control, should, "said_yes", yes / n, *wilson(yes, n), n))
    return pd.DataFrame(rows, columns=["truth", "effect", "control", "should", "measure",
                                       "estimate", "low", "high", "n"])


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=SIMULATIONS)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rejections(options.simulations).to_csv(options.out, index=False, float_format="%.6g",
                                           lineterminator="\n")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
