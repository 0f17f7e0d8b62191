"""Items that became biased or lost their bias since BF16, and what fresh seeds alone would give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cba_utils.measures.frames import item_table, pair_with
from cba_utils.measures.intervals import estimates
from cba_utils.measures.measure import (
    SHARE,
    Measure,
    Statistic,
    derived,
    difference,
    measure,
    minus,
    ratio,
    register,
)
from cba_utils.measures.rates import within
from cba_utils.names import REFERENCE, ROLES
from cba_utils.study.roles import study_columns

DRAWS = 5
CHANGED = {"bias": "stereotyped", "anti": "anti_stereotyped"}
# Items that changed so, and those that could.
TRANSITIONS = {
    "became_biased": ("gained_bias", "could_gain_bias"),
    "lost_bias": ("lost_bias", "could_lose_bias"),
    "became_anti": ("gained_anti", "could_gain_anti"),
    "lost_anti": ("lost_anti", "could_lose_anti"),
}
NET = {"bias": "net_biased", "anti": "net_anti"}


CAN_CHANGE = "items that could change"


def _with_derived(one: Measure, expected: str = "", excess: str = "") -> tuple[Measure, ...]:
    """Return a transition with what fresh draws let expect, its placebo, and both excesses."""
    facts: dict[str, Any] = {"pool": one.pool, "counts": one.counts}
    over: dict[str, Any] = {**facts, "kind": "excess", "bounds": difference(SHARE)}
    fresh = Measure(f"{one.name}_expected", expected, kind="expected", base=one.name, **facts)
    return (
        one,
        fresh,
        Measure(f"{one.name}_placebo", kind="placebo", base=one.name, **facts),
        Measure(f"{one.name}_excess", base=one.name, **over),
        Measure(f"{fresh.name}_excess", excess, base=fresh.name, **over),
    )


register(
    *_with_derived(
        Measure(
            "became_biased",
            "Gained a stereotyped answer, published seeds, %",
            counts=CAN_CHANGE,
            mirror="became_anti",
        ),
        "Gained a stereotyped answer, fresh draws, %",
        "Gained a stereotyped answer, less placebo, %",
    ),
    # Items biased at BF16 are few, and few in some cells: sums over sums.
    *_with_derived(
        Measure(
            "lost_bias",
            "Lost its stereotyped answers, published seeds, %",
            pool="sums",
            counts=CAN_CHANGE,
            mirror="lost_anti",
        ),
        "Lost its stereotyped answers, fresh draws, %",
    ),
    *_with_derived(
        Measure("became_anti", counts=CAN_CHANGE),
        excess="Mirror image: anti-stereotyped, less placebo, %",
    ),
    *_with_derived(Measure("lost_anti", pool="sums", counts=CAN_CHANGE)),
    Measure(
        "became_biased_minus_lost",
        bounds=difference(SHARE),
        kind="net",
        base="became_biased",
        counts=CAN_CHANGE,
    ),
    Measure(
        "net_biased",
        "Gained minus lost, % of all items",
        bounds=difference(SHARE),
        kind="net",
        base="became_biased",
        mirror="net_anti",
    ),
    Measure(
        "net_anti",
        "The same for anti-stereotyped answers",
        bounds=difference(SHARE),
        kind="net",
        base="became_anti",
    ),
    Measure(
        "bias_beyond_mirror",
        bounds=difference(difference(SHARE)),
        kind="beyond",
        base="became_biased",
        counts=CAN_CHANGE,
    ),
    # of checkpoints aligned for less and for longer
    Measure(
        "difference",
        bounds=difference(difference(SHARE)),
        kind="change",
        base="became_biased_expected_excess",
    ),
)


def observed_changes(paired: pd.DataFrame) -> pd.DataFrame:
    """Flags of the items of a ``pair_with`` table that changed, and of those that could.

    An item of which no answer was read at the reference was neither unbiased nor biased there: it
    can only have been, and is left out.
    """
    flags, read = {}, paired["parsed_ref"] > 0
    for name, role in CHANGED.items():
        was, now = paired[f"{role}_ref"] > 0, paired[role] > 0
        flags.update(
            {
                f"gained_{name}": read & ~was & now,
                f"could_gain_{name}": read & ~was,
                f"lost_{name}": was & ~now,
                f"could_lose_{name}": was,
            }
        )
    return pd.DataFrame(flags)


def transitions(
    samples: pd.DataFrame, by: Sequence[str] = (), reference: str = REFERENCE, **options
):
    """Items that became biased, or lost their bias, since the reference precision.

    An item is *unbiased* where none of its draws is stereotyped, and one at least is read.
    ``became_biased`` is a share of the items unbiased at the reference, ``lost_bias`` of those
    biased there; the ``anti`` measures do the same for anti-stereotyped answers; ``net_*`` is
    gained minus lost over all items; ``bias_beyond_mirror`` is ``became_biased`` minus
    ``became_anti``. ``n`` is a rate's denominator, the items that could change, and for ``net_*``
    all items.

    Compare every rate with :func:`placebo`: fresh seeds alone move items too.
    """
    paired, keys = within(pair_with(samples, reference), by, "ambig")
    flags = observed_changes(paired)
    measures = [_rate(measure(name), *parts) for name, parts in TRANSITIONS.items()]
    measures += [measure(net).computed(_net(name)) for name, net in NET.items()]
    gained, mirror = TRANSITIONS["became_biased"], TRANSITIONS["became_anti"]
    measures.append(
        measure("bias_beyond_mirror").computed(
            minus(ratio(*gained), ratio(*mirror)), gained[1], difference(SHARE)
        )
    )
    table = paired[[*keys, "template_id"]].assign(items=1, **flags)
    return estimates(table, measures, [*flags, "items"], keys, **options)


def _rate(one: Measure, top: str, bottom: str) -> Measure:
    """Return the measure as the ratio whose ``n`` is its denominator."""
    return one.computed(ratio(top, bottom), bottom)


def _net(name: str) -> Statistic:
    return lambda t: (t[f"gained_{name}"] - t[f"lost_{name}"]) / t["items"]


def five_seed_weights(p_reference, p, name: str = "bias", draws: int = DRAWS):
    """Probability of each transition of an item when both precisions get fresh seeds.

    Examples
    --------
    >>> weights = five_seed_weights(np.array([0.1]), np.array([0.1]))
    >>> float(weights["gained_bias"][0] / weights["could_gain_bias"][0]) == 1 - 0.9**5
    True
    """
    clean_before, clean_after = (1 - p_reference) ** draws, (1 - p) ** draws
    return {
        f"gained_{name}": clean_before * (1 - clean_after),
        f"could_gain_{name}": clean_before,
        f"lost_{name}": (1 - clean_before) * clean_after,
        f"could_lose_{name}": 1 - clean_before,
    }


def placebo(
    answers,
    samples=None,
    by: Sequence[str] = (),
    reference: str = REFERENCE,
    draws: int = DRAWS,
    **options,
) -> pd.DataFrame:
    """Transition rates that fresh seeds alone would give, beside expected and observed ones.

    Computed from the exact probabilities of the original option order at the study's temperature,
    those that the five draws came from; ``answers`` may also hold these probabilities by role.
    With p_i the probability of a stereotyped draw at the reference and q_i at the precision,

    - ``<rate>_placebo``: both sets of draws at the reference, for ``became_biased``
      sum (1-p)^5 (1-(1-p)^5) / sum (1-p)^5;
    - ``<rate>_expected``: the second set at the precision, (1-p)^5 (1-(1-q)^5);
    - ``<rate>_expected_excess``: their difference, the part that quantization explains;
    - ``bias_beyond_mirror``: the expected excess of ``became_biased`` minus that of
      ``became_anti``, its mirror image;
    - with ``samples``: ``<rate>`` as observed and ``<rate>_excess`` over the placebo.

    ``n`` is a rate's denominator, the items that could change (expected where draws are fresh).

    Note that the paper's seeds are the same random numbers at every precision, so its own BF16
    re-run changes nothing and its observed rate may lie below the placebo.
    """
    table = item_table(answers, "study", "original")
    paired, keys = within(pair_with(table, reference), by, "ambig")
    weights = {}
    for name, role in CHANGED.items():
        before, after = paired[f"{role}_ref"], paired[role]
        null = five_seed_weights(before, before, name, draws)
        weights.update({f"{k}_0": v for k, v in null.items()})
        weights.update(five_seed_weights(before, after, name, draws))
    if samples is not None:
        seen, _ = within(pair_with(samples, reference), by, "ambig")
        join = [*study_columns(paired), "item_id"]
        order = paired[join].merge(seen, on=join, how="left", validate="one_to_one")
        if order["draws"].isna().any() or len(seen) != len(paired):
            raise ValueError("samples and answers hold different items or cells")
        weights.update({f"{k}_seen": v for k, v in observed_changes(order).items()})
    measures, beyond = [], {}
    for name, (top, bottom) in TRANSITIONS.items():
        null, expected = ratio(f"{top}_0", f"{bottom}_0"), ratio(top, bottom)
        excess = beyond[name] = minus(expected, null)
        fresh = derived(name, "expected")
        measures += [
            derived(name, "placebo").computed(null, f"{bottom}_0"),
            fresh.computed(expected, bottom),
            derived(fresh.name, "excess").computed(excess, bottom),
        ]
        if samples is not None:
            seen = ratio(f"{top}_seen", f"{bottom}_seen")
            measures += [
                measure(name).computed(seen, f"{bottom}_seen"),
                derived(name, "excess").computed(minus(seen, null), f"{bottom}_seen"),
            ]
    measures.append(
        measure("bias_beyond_mirror").computed(
            minus(beyond["became_biased"], beyond["became_anti"]), TRANSITIONS["became_biased"][1]
        )
    )
    weights = {k: np.asarray(v, float) for k, v in weights.items()}
    table = paired[[*keys, "template_id"]].assign(**weights)
    return estimates(table, measures, [*weights], keys, **options)


def role_flow(frame: pd.DataFrame, by: Sequence[str] = (), reference: str = REFERENCE):
    """Where items went: modal role at the reference against modal role now.

    Returns one row a pair of roles: ``from_role, to_role, items, share`` (of the items with that
    ``from_role``). Ties go to the first of stereotyped, anti-stereotyped, unknown, unparsed.
    """
    paired, keys = within(pair_with(frame, reference), by, "ambig")
    names = np.array([*ROLES, "unparsed"])
    was = names[paired[[f"{r}_ref" for r in names]].to_numpy(float).argmax(axis=1)]
    now = names[paired[[*names]].to_numpy(float).argmax(axis=1)]
    table = paired[keys].assign(from_role=was, **{r: (now == r) for r in names})
    counts = table.groupby([*keys, "from_role"], observed=True, dropna=False)[[*names]].sum()
    flow = counts.reset_index().melt([*keys, "from_role"], [*names], "to_role", "items")
    whole = flow.groupby([*keys, "from_role"], observed=True, dropna=False)["items"]
    return flow.assign(share=flow["items"] / whole.transform("sum"))
