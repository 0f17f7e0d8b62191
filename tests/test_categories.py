"""Tables on disk hold words as categories, and parts of them categories that do not occur in the part."""

from cba_utils.measures import certainty, controls, drift, groups, margins, rates, transitions
from cba_utils.measures.temperature import by_temperature
from cba_utils.measures.unknown import margin_changes
from moved import moved, shaken
from studies import as_categories

import pandas as pd
import pytest

MEASURES = {
    "by temperature": lambda answers: by_temperature(answers, 0.3, method="jackknife"),
    "category leans": controls.category_leans,
    "changes": rates.paired_differences,
    "direction": controls.direction,
    "direction by category": lambda answers: controls.direction(answers, ["category"]),
    "direction tests": controls.direction_tests,
    "distances": drift.distances,
    "flips": certainty.flip_rates,
    "group leans": lambda answers: groups.group_leans(answers, ["q4"], ["category"]),
    "group sizes": lambda answers: groups.group_sizes(answers, ["category"]),
    "lean by category": lambda answers: controls.lean(answers, ["category"]),
    "margins": margins.regression,
    "own odds": controls.own_odds,
    "placebo": transitions.placebo,
    "ranks by family": lambda answers: drift.ranks(
        drift.drifts(answers, method="jackknife"), transitions.placebo(answers), by=["family"]
    ),
    "rates": rates.role_rates,
    "role flow": transitions.role_flow,
    "unknown": margin_changes,
}


@pytest.fixture(scope="module")
def answers():
    return moved(shaken, models=6, templates=8, items=6, bases=3)


def as_words(table):
    return table.astype(
        {name: "str" for name in table if isinstance(table[name].dtype, pd.CategoricalDtype)}
    )


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_of_categories_is_that_of_words(answers, name):
    wanted = MEASURES[name](answers)
    found = MEASURES[name](as_categories(answers))
    pd.testing.assert_frame_equal(
        as_words(found), wanted, check_dtype=False, check_column_type=False
    )
