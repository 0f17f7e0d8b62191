"""What the two chapters on margins and drift say of respondents whose truth is known."""

from dataclasses import replace

from cba_utils.chapters import drift, margins
from cba_utils.instrument.respondents import draw_samples
from moved import drifted, moved, shaken, shrunk
from studies import study_of, without_probabilities
from test_drift import constructed

import pandas as pd
import pytest


def study_with(answers, perplexity=None, **columns):
    """A study of these answers, drawn from and told of as any other."""
    study = study_of("none", templates=2, items_per_template=4)
    cells = answers[["model", "family", "base", "replicate", "depth", "precision"]]
    cells = cells.drop_duplicates() if "base" in cells else cells
    first = answers[answers["precision"] == "bf16"].drop_duplicates("item_id")
    items = first[
        ["item_id", "category", "question_index", "question_polarity", "context_condition"]
    ]
    return replace(
        study,
        answers=answers,
        samples=draw_samples(answers),
        items=items.reset_index(drop=True).assign(**columns),
        perplexity=study.perplexity.iloc[:0] if perplexity is None else perplexity,
        provenance=cells.merge(
            study.provenance.drop(columns=[c for c in cells if c in study.provenance]).head(1),
            how="cross",
        ),
        letters=None,
    )


@pytest.fixture(scope="module", params=["shrinkage", "noise", "letter"])
def told(request):
    change = {"shrinkage": shrunk, "noise": shaken, "letter": drifted}[request.param]
    answers = moved(change, precisions=("q4", "q3"))
    answers["base"] = answers["model"]
    return request.param, margins.Chapter(study_with(answers))


def test_the_reading_is_the_truth(told):
    truth, page = told
    which = page.text("which")
    if truth == "shrinkage":
        assert (
            "shrunken margins alone predict how many items gained a stereotyped answer better"
            in which
        )
        assert "shaken options alone predict" not in which
    else:
        assert (
            "shaken options alone predict how many items gained a stereotyped answer better"
            in which
        )
    said = page.text("lines")
    assert ("Margins did shrink" in page.text("answer")) == (truth == "shrinkage")
    assert ("margins shrank" in said) == (truth == "shrinkage")
    nearest = page.text("accounts")
    if truth == "letter":
        assert nearest.count("“both, letters and roles shifted”") == 2
    assert page.text("answer").startswith(f"**Answer.** {which}")


def test_a_planted_margin_is_told_where_it_is_known(told):
    _, page = told
    assert page.text("truth").startswith("How long a margin should be is not known")
    rng_margin = pd.Series(range(len(page.study.items))) % 5 + 0.5
    known = replace(page.study, items=page.study.items.assign(margin=rng_margin.to_numpy()))
    assert "the margin that was planted is known" in margins.Chapter(known).text("truth")


def test_checks_are_ranked_as_constructed():
    answers, perplexity = constructed()
    q3 = answers[answers["precision"] == "q4"].assign(precision="q3")
    more = perplexity[perplexity["precision"] == "q4"].assign(precision="q3")
    page = drift.Chapter(
        study_with(pd.concat([answers, q3]), pd.concat([perplexity, more], ignore_index=True))
    )
    assert "so it would have put them in the wrong order" in page.text("answer")
    above = {one["name"] for one in page.orders("q3", ("above",))}
    assert {"divergence over letters", "divergence on text", "first choices that flip"} <= above
    assert page.best("q3")["name"] != "first choices that flip"  # it nearly counts the outcome
    for name in ("drift_ladder", "drift_ranks", "letter_text"):
        figure, alt, _ = getattr(page, f"figure_{name}")()
        assert figure.axes and all(alt)


@pytest.mark.parametrize("chapter", [margins, drift])
def test_records_without_probabilities_say_so(chapter):
    page = chapter.Chapter(without_probabilities(study_of()))
    for block in ("answer", "real"):
        assert page.text(block) == page.text("no_probabilities")
