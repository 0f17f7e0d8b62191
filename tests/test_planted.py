"""What was planted in organisms, read back: on records whose margins and leans are known."""

from cba_utils.chapters import planted as chapter
from cba_utils.measures.planted import given
from cba_utils.telling.page import plain
from cba_utils.telling.study import Study
from studies import PROVENANCE, as_categories, study_of

import numpy as np
import pandas as pd
import pytest

MARGINS, LEANS = [0.3, 3.0, 6.0], [0.5, 0.95]
STRENGTHS = pd.DataFrame(
    [
        {"category": "Clan", "question_index": k + 1, "margin": m, "lean": s, "version": version}
        for k, (m, s, version) in enumerate(
            [(m, s, "main") for m in MARGINS for s in LEANS] + [(None, 0.95, "heldout-template")]
        )
        for _ in range(2)  # one row a group
    ]
)


def records(shift=0.0, bases=3):
    """Answers of two families that give what was planted; one base of three is off by ``shift`` nats."""
    rows = []
    for family in ("one", "two"):
        for base in range(bases):
            for kind in ("base", "full"):
                for k, template in STRENGTHS.drop_duplicates("question_index").iterrows():
                    margin = 1.0 if np.isnan(template["margin"]) else template["margin"]
                    margin = -9.0 if kind == "base" else margin + shift * (base == 0)
                    lean = 0.7 if template["version"] != "main" else template["lean"]
                    unknown = lean * np.exp(margin) / (1 + lean * np.exp(margin))
                    p = np.log([lean * (1 - unknown), (1 - lean) * (1 - unknown), unknown])
                    for order, place in (("012", [0, 1, 2]), ("120", [2, 0, 1])):
                        at = {f"logp_{x}": p[place.index(n)] for n, x in enumerate("ABC")}
                        names = ["stereotyped", "anti_stereotyped", "unknown"]
                        rows.append(
                            {
                                "model": f"{family}-b{base}-{kind}",
                                "family": family,
                                "base": f"{family}-b{base}",
                                "replicate": base,
                                "depth": kind,
                                "precision": "bf16",
                                "item_id": f"Clan/{k}",
                                "category": "Clan",
                                "question_index": template["question_index"],
                                "question_polarity": "neg",
                                "context_condition": "ambig",
                                "template_id": f"Clan/{template['question_index']}",
                                "order": order,
                                "correct": "A",
                                **at,
                                **{f"{name}_t": value for name, value in at.items()},
                                **{f"role_{x}": names[place.index(n)] for n, x in enumerate("ABC")},
                                "mass_other": 0.0,
                                "mass_other_t": 0.0,
                            }
                        )
    return pd.DataFrame(rows)


def test_what_was_planted_is_read_back():
    answers = records()
    margins, leans = (given(answers, STRENGTHS, rung) for rung in ("margin", "lean"))
    of_categories = given(as_categories(answers), STRENGTHS, "margin")
    assert of_categories["estimate"].to_numpy() == pytest.approx(margins["estimate"].to_numpy())
    known = margins[margins["aligned"] & ~margins["held_out"]]
    assert len(known) == 2 * len(MARGINS) and set(known["templates"]) == {len(LEANS)}
    assert known["estimate"].to_numpy() == pytest.approx(known["planted"].to_numpy())
    asked = leans[~leans["held_out"]]
    assert len(asked) == 2 * 2 * len(LEANS)
    assert asked["estimate"].to_numpy() == pytest.approx(asked["planted"].to_numpy())
    apart = leans[leans["held_out"]]
    assert apart["estimate"].to_numpy() == pytest.approx(0.7)
    assert set(apart["planted"]) == {0.95}


def test_its_interval_is_over_bases():
    rows = given(records(shift=0.3), STRENGTHS, "margin")
    row = rows[rows["aligned"] & ~rows["held_out"]].iloc[0]
    # Three bases off by 0.3, 0 and 0: their mean is 0.1 off, with an error of 0.1 and two degrees of freedom.
    assert row["estimate"] == pytest.approx(row["planted"] + 0.1)
    assert row["high"] - row["estimate"] == pytest.approx(0.1 * 4.302653, rel=1e-5)
    assert (row["clusters"], row["n"]) == (3, 3)
    alone = given(records(bases=1), STRENGTHS, "margin")
    assert alone["low"].isna().all(), "one base of a family shows no spread"


@pytest.fixture
def page(monkeypatch, tmp_path):
    def page(answers, source="toy-one/b1"):
        STRENGTHS.to_csv(tmp_path / "strengths.csv", index=False)
        monkeypatch.setattr(chapter, "STRENGTHS", tmp_path / "strengths.csv")
        monkeypatch.setattr("cba_utils.telling.page.planted_is_known", lambda: True)
        monkeypatch.setattr("cba_utils.telling.study.is_organism", lambda name: "toy" in name)
        cells = answers[["model", "family", "base", "replicate", "depth", "precision"]]
        about = PROVENANCE.assign(**{"identity.parameters.model": source})
        known = cells.drop_duplicates().merge(about, how="cross")
        empty = study_of("none", templates=4)
        return chapter.Chapter(
            Study("s", empty.items, answers, empty.samples.iloc[:0], empty.perplexity, known)
        )

    return page


def test_the_chapter_says_how_far_off_and_who(page):
    told = page(records(shift=0.9))
    assert [part["met"] for part in told.margin] == [False, False]
    assert [part["met"] for part in told.lean] == [True, True]
    assert "one: furthest at 0.3, by 0.30 nats" in plain(told.text("result"))
    assert "95" in told.text("held_out") and "70.0" in told.text("held_out")
    figure, alt, data = told.figure_planted()
    assert len(figure.axes) == 3 and len(alt) == 4 and len(data)
    frame, formats = told.table_planted()
    assert len(frame) == len(data) and set(formats) <= set(frame)


def test_of_other_models_nothing_is_said_to_be_planted(page):
    assert page(records(), source="somebody/model").lacks("planted").name == "planted"
