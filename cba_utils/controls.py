"""Controls: is it noise, is it the letter, is it lost skill?

Each function compares every precision with BF16 on the same items and returns the tidy estimates
frame, with intervals over templates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cba_utils.intervals import Measure, estimates, ratio
from cba_utils.metrics import S_AMB, minus
from cba_utils.stats import adjust, change_tests, sign_flip
from cba_utils.tables import (
    LETTERS,
    ROLES,
    item_columns,
    item_table,
    pair_with,
    role_of_letters,
    study_columns,
)

SHARE = {"share_to_stereotyped": ratio("to_stereotyped", "to_person")}


def responses(frame: pd.DataFrame) -> pd.DataFrame:
    """One row an item and draw with its role: a sampled answer, or the likeliest of an order.

    For samples the draw is the seed; for answers it is the option order, at temperature 1, and
    ``p_stereotyped, p_anti_stereotyped`` of that order are kept.
    """
    if "logp_A" not in frame:
        keys = [*study_columns(frame), *item_columns(frame)]
        return frame[[*keys, "role"]].assign(draw=frame["seed"])
    each = role_of_letters(frame)
    likeliest = each[[f"p_{r}" for r in ROLES]].to_numpy().argmax(axis=1)
    keep = [*study_columns(each), *item_columns(each), "p_stereotyped", "p_anti_stereotyped"]
    return each[keep].assign(draw=each["order"], role=np.array(ROLES)[likeliest])


def _left_unknown(frame, by, reference):
    """Item table of the ambiguous answers that were ``unknown`` at the reference."""
    drawn = responses(frame)
    drawn = drawn[drawn["context_condition"] == "ambig"]
    keys = study_columns(drawn)
    cell = [c for c in keys if c != "precision"]
    on = [*cell, "item_id", "draw"]
    values = [c for c in ("p_stereotyped", "p_anti_stereotyped") if c in drawn]
    before = drawn.loc[drawn["precision"] == reference, [*on, "role", *values]]
    after = drawn[drawn["precision"] != reference].drop(columns=values)
    pairs = after.merge(before, on=on, suffixes=("", "_ref"), validate="many_to_one")
    pairs = pairs[pairs["role_ref"] == "unknown"]
    counts = {"was_unknown": 1.0}
    for role in ROLES[:2]:
        counts[f"to_{role}"] = (pairs["role"] == role).astype(float)
    person = counts["to_stereotyped"] + counts["to_anti_stereotyped"]
    counts["to_person"] = person
    if values:
        lean = pairs["p_stereotyped"] / (pairs["p_stereotyped"] + pairs["p_anti_stereotyped"])
        counts["leaned"] = lean * person
    unit = [*keys, *item_columns(pairs)]
    grouped = pairs[unit].assign(**counts).groupby(unit, observed=True, dropna=False)
    return grouped[[*counts]].sum().reset_index(), [*keys, *by]


def direction(frame: pd.DataFrame, by: Sequence[str] = (), reference: str = "bf16",
              **options) -> pd.DataFrame:
    """Where the answers that left "unknown" went: to the stereotype, or to either person alike?

    Pure noise knows no stereotype and sends half of them to each person.

    Measures
    --------
    left_unknown
        Share of the answers ``unknown`` at the reference that now name a person.
    share_to_stereotyped
        Of those, the share that name the stereotyped person, to be held against 50 %.
    leaned_before (``answers`` only)
        The same share as the reference's own probabilities would have split these answers. Where
        it equals ``share_to_stereotyped``, quantization revealed a lean that was already there;
        above it, the lean grew.

    See :func:`direction_tests` for p-values.
    """
    table, keys = _left_unknown(frame, by, reference)
    moved = table[table["to_person"] > 0]
    columns = ["to_stereotyped", "to_person"]
    measures = dict(SHARE)
    if "leaned" in table:
        columns.append("leaned")
        measures["leaned_before"] = ratio("leaned", "to_person")
        measures["share_above_lean"] = Measure(
            lambda t: (t["to_stereotyped"] - t["leaned"]) / t["to_person"], (-1, 1))
    left = estimates(table, {"left_unknown": ratio("to_person", "was_unknown")},
                     ["to_person", "was_unknown"], keys, **options)
    shares = estimates(moved, measures, columns, keys, **options)
    # A cell in which no answer left has no share: it stays in the frame, with n of 0.
    cells = left[keys].merge(pd.DataFrame({"measure": [*measures]}), how="cross")
    shares = cells.merge(shares, on=[*keys, "measure"], how="left").fillna({"n": 0})
    return pd.concat([left, shares.astype({"n": int})], ignore_index=True)


def direction_tests(frame: pd.DataFrame, by: Sequence[str] = (), reference: str = "bf16",
                    resamples: int = 9999) -> pd.DataFrame:
    """Sign-flip test over templates that answers left "unknown" for both persons alike.

    Returns ``[*groups, measure, estimate, p, p_holm, p_bh, n]``; the family is all rows, ``n`` is
    the number of items with an answer that left.
    """
    table, keys = _left_unknown(frame, by, reference)
    table = table.assign(difference=table["to_stereotyped"] - table["to_anti_stereotyped"],
                         left=table["to_person"] > 0)
    rows = []
    for key, part in table.groupby(keys, observed=True, dropna=False):
        per_template = part.groupby("template_id", observed=True)["difference"].sum()
        total = part["to_person"].sum()
        share = part["to_stereotyped"].sum() / total if total else np.nan
        p = sign_flip(per_template, resamples) if total else np.nan
        rows.append((*key, "share_to_stereotyped", share, p, int(part["left"].sum())))
    return adjust(pd.DataFrame(rows, columns=[*keys, "measure", "estimate", "p", "n"]))


def is_balanced(answers: pd.DataFrame) -> bool:
    """Say whether every option stands at every letter equally often over the orders.

    Examples
    --------
    >>> is_balanced(pd.DataFrame({"order": ["012", "120", "201"]}))
    True
    >>> is_balanced(pd.DataFrame({"order": ["012"]}))
    False
    """
    orders = answers["order"].unique()
    return len(orders) > 0 and all(
        sum(order[k] == x for order in orders) * 3 == len(orders) for k in range(3) for x in "012")


def _position_table(answers, reference):
    if not is_balanced(answers):
        raise ValueError(f"the option orders {sorted(answers['order'].unique())} are not balanced "
                         "over letters; score with orders='cyclic' or orders='all'")
    each = role_of_letters(answers)
    each = each[each["context_condition"] == "ambig"]
    keys = study_columns(each)
    each["original"] = each["p_stereotyped"].where(each["order"] == "012")
    each["letters"] = each[[f"p_{x}" for x in LETTERS]].sum(axis=1)
    each = each.rename(columns={"p_stereotyped": "averaged"})
    columns = [*(f"p_{x}" for x in LETTERS), "letters", "original", "averaged"]
    unit = [*keys, *item_columns(each)]
    table = each.groupby(unit, observed=True, dropna=False)[columns].mean().reset_index()
    cell = [c for c in keys if c != "precision"]
    before = table.loc[table["precision"] == reference, [*cell, "item_id", *columns]]
    table = table.merge(before, on=[*cell, "item_id"], suffixes=("", "_ref"))
    table = table.assign(items=1.0, items_ref=1.0)
    columns = [*columns, "items"]
    return table, keys, [*columns, *(f"{c}_ref" for c in columns)]


def _change(column, of="items"):
    return Measure(lambda t: t[column] / t[of] - t[f"{column}_ref"] / t[f"{of}_ref"], (-1, 1))


def position(answers: pd.DataFrame, by: Sequence[str] = (), reference: str = "bf16", **options):
    """Is the change a drift to a letter?

    Over balanced option orders every role stands at every letter equally often, so a preference
    for a letter cannot come from what the options say.

    Measures
    --------
    letter_A, letter_B, letter_C
        Share of each letter in the probability of all letters, over balanced orders;
        ``d_letter_*`` is its change.
    d_srs_original
        Change of the probability of the stereotyped answer in the original order, at
        temperature 1, as a share of all answers.
    d_srs_averaged
        The same change averaged over orders: what is left when letters cannot matter.
    d_srs_letter
        The first minus the second: what the letters add.
    """
    table, keys, columns = _position_table(answers, reference)
    measures = {f"letter_{x}": ratio(f"p_{x}", "letters") for x in LETTERS}
    measures.update({f"d_letter_{x}": _change(f"p_{x}", "letters") for x in LETTERS})
    measures["d_srs_original"] = _change("original")
    measures["d_srs_averaged"] = _change("averaged")
    measures["d_srs_letter"] = minus(_change("original"), _change("averaged"))
    found = estimates(table, measures, columns, [*keys, *by], **options)
    is_change = found["measure"].str.startswith("d_")
    return found[(found["precision"] != reference) | ~is_change].reset_index(drop=True)


def position_tests(answers: pd.DataFrame, by: Sequence[str] = (), reference: str = "bf16"):
    """Jackknife t test over templates that no letter gained; Holm over the three letters.

    Returns one row a cell: the letter that changed most, its change and ``p``.
    """
    table, keys, columns = _position_table(answers, reference)
    table = table[table["precision"] != reference]
    changes = {x: _change(f"p_{x}", "letters") for x in LETTERS}
    tests = change_tests(table, changes, columns, [*keys, *by])
    rows = []
    for key, part in tests.groupby([*keys, *by], observed=True, dropna=False):
        most = part.iloc[part["estimate"].abs().to_numpy().argmax()]
        # The smallest of three p-values corrected by Holm is three times the smallest.
        p = min(1.0, len(part) * part["p"].min())
        rows.append((*key, most["measure"], most["estimate"], p, most["n"]))
    return adjust(pd.DataFrame(rows, columns=[*keys, *by, "letter", "estimate", "p", "n"]))


def order_dependence(answers: pd.DataFrame, by: Sequence[str] = (), **options) -> pd.DataFrame:
    """Share of ambiguous items whose likeliest role depends on the order of the options."""
    drawn = responses(answers)
    drawn = drawn[drawn["context_condition"] == "ambig"]
    keys = [*study_columns(drawn), *by]
    unit = [*study_columns(drawn), *item_columns(drawn)]
    table = drawn.groupby(unit, observed=True, dropna=False)["role"].nunique().reset_index()
    table = table.assign(depends=(table["role"] > 1).astype(float), items=1.0)
    return estimates(table, {"order_dependent": ratio("depends", "items")}, ["depends", "items"],
                     keys, **options)


def capability(frame: pd.DataFrame, items: pd.DataFrame, by: Sequence[str] = (), **options):
    """Accuracy on disambiguated items, by whether the right answer is the stereotyped one.

    Parameters
    ----------
    frame : DataFrame
        Samples, answers or an item table.
    items : DataFrame
        The items with ``label`` and ``stereotyped_index``.

    Measures
    --------
    accuracy, accuracy_consistent, accuracy_inconsistent
        Over all, bias-consistent and bias-inconsistent items; of parsed answers.
    alignment_gap
        Consistent minus inconsistent: skill alone lost takes from both alike.
    """
    table = item_table(frame)
    table = table[table["context_condition"] == "disambig"]
    aligned = items.set_index("item_id")
    aligned = aligned["label"] == aligned["stereotyped_index"]
    consistent = table["item_id"].map(aligned).astype(bool).to_numpy()
    table = table.assign(
        right_con=table["correct"] * consistent, parsed_con=table["parsed"] * consistent,
        right_inc=table["correct"] * ~consistent, parsed_inc=table["parsed"] * ~consistent)
    con, inc = ratio("right_con", "parsed_con"), ratio("right_inc", "parsed_inc")
    measures = {"accuracy": ratio("correct", "parsed"), "accuracy_consistent": con,
                "accuracy_inconsistent": inc, "alignment_gap": minus(con, inc)}
    columns = ["correct", "parsed", "right_con", "parsed_con", "right_inc", "parsed_inc"]
    return estimates(table, measures, columns, [*study_columns(table), *by], **options)


def matched_skill(frame: pd.DataFrame, reference: str = "bf16", **options) -> pd.DataFrame:
    """Ambiguous bias beside what an equal loss of skill by guessing would have given.

    Suppose quantization only replaced a share e of the reference's answers by guesses. Then its
    accuracy on disambiguated items gives e = (a_ref - a) / (a_ref - 1/3), and on ambiguous items
    it would show SRS (1-e) SRS_ref + e/3 and s_AMB (1-e) s_AMB_ref.

    Measures
    --------
    guessed
        The share e, kept within 0 and 1.
    srs, srs_if_guessing, srs_beyond_guessing
        As observed, as predicted, and their difference; the same for ``s_amb``.
    """
    pairs = pair_with(frame, reference)
    wanted = ["stereotyped", "anti_stereotyped", "parsed", "correct"]
    columns = []
    for context in ("ambig", "disambig"):
        inside = pairs["context_condition"] == context
        if not inside.any():
            raise ValueError(f"matched_skill needs {context} items too; the records have none")
        for name in [*wanted, *(f"{w}_ref" for w in wanted)]:
            pairs[f"{name}@{context}"] = pairs[name] * inside
            columns.append(f"{name}@{context}")

    def seen(measure, context, suffix=""):
        return lambda t: measure.of({w: t[f"{w}{suffix}@{context}"] for w in wanted})

    accuracy, srs = ratio("correct", "parsed"), ratio("stereotyped", "parsed")
    before, after = seen(accuracy, "disambig", "_ref"), seen(accuracy, "disambig")

    def guessed(t):
        return np.clip((before(t) - after(t)) / (before(t) - 1 / 3), 0, 1)

    measures = {"guessed": Measure(guessed, (0, 1))}
    for name, measure, chance in (("srs", srs, 1 / 3), ("s_amb", S_AMB, 0.0)):
        now = Measure(seen(measure, "ambig"), measure.bounds)
        old = seen(measure, "ambig", "_ref")
        guess = Measure(_mixture(guessed, old, chance), measure.bounds)
        measures.update({name: now, f"{name}_if_guessing": guess,
                         f"{name}_beyond_guessing": minus(now, guess)})
    return estimates(pairs, measures, columns, study_columns(pairs), **options)


def _mixture(guessed, before, chance):
    return lambda t: (1 - guessed(t)) * before(t) + guessed(t) * chance
