"""The published analysis: one checkpoint a family, its numbers, and what cannot be counted."""

from cba_utils.chapters.published_analysis import Chapter
from cba_utils.measures import published_analysis
from cba_utils.measures.tests import adjust
from cba_utils.telling.numbers import percent
from cba_utils.telling.tables import table_html
from studies import study_of, without_probabilities

import numpy as np
import pandas as pd
import pytest


@pytest.fixture(scope="module")
def chapter():
    return Chapter(study_of(replicates=2))


def test_one_checkpoint_a_family_is_kept_under_its_name(chapter):
    assert set(chapter.samples["model"]) == set(chapter.pairs[0]["model"]) == {"simulated"}
    first = chapter.study.samples["replicate"] == 1
    assert chapter.samples["draws"].sum() == first.sum()
    main = published_analysis.main_table(chapter.study.samples[first]).set_index("precision")
    assert f"SRS changed by {percent(main.loc['q3', 'd_srs'])} from BF16 to Q3." in chapter.text(
        "rise"
    )
    assert "over 2 cells" in chapter.text("cells")
    assert "study simulated, 3 cells," in chapter.text("foot")


def test_tests_that_are_not_defined_are_not_counted(chapter):
    read = Chapter(chapter.study)
    read.tests = adjust(
        pd.DataFrame({"p": [0.001, 0.03, 0.04, np.nan], "cohens_h": [0.1, -0.2, 0.1, np.nan]})
    ).assign(p_templates=[0.01, 0.04, 0.2, 1.0], p_templates_holm=[0.04, 0.12, 0.4, 1.0])
    said = read.text("tests")
    assert said.startswith("Of 3 tests (4 comparisons") and "3 are below 5 %" in said
    assert "over templates, 2 of the 4 changes are below 5 %, and 1 after Holm" in said
    assert "of them 1," in said and "Hochberg 3." in said and "h = 0.20." in said


def test_what_is_not_defined_is_no_number():
    silent = without_probabilities(study_of("none"))
    silent.samples = silent.samples.assign(role="unknown")
    page = Chapter(silent)
    for kind in ("main", "tests", "filter", "odds"):
        assert "nan" not in table_html(*getattr(page, f"table_published_{kind}")())
    assert "not defined" in page.text("logit") and "keeps no item" in page.text("latent")
    assert "not in these records" in page.text("cells")
