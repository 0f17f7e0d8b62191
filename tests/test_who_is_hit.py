"""Who is hit? finds one group up and one down, a category alone, and nothing where nothing is."""

from dataclasses import replace

from cba_utils.answering.prompts import LETTERS
from cba_utils.chapters import who_is_hit
from cba_utils.chapters.who_is_hit import Chapter
from cba_utils.instrument.respondents import simulate_respondents
from cba_utils.measures import controls
from cba_utils.measures.groups import group_leans, group_sizes
from studies import study_of, without_probabilities

import numpy as np
import pandas as pd
import pytest
from scipy import stats

GROUPS = ("zorb", "velk", "quarn", "drusk")


def grouped(frame, templates=None):
    """The frame with a target group a template: each category's templates are dealt to four groups."""
    number = frame["question_index"].to_numpy(int)
    group = np.array(GROUPS, object)[(number - 1) // 3 % 4]
    if templates is not None:  # one group has few
        group = np.where((group == "drusk") & (number > 3 * templates), "quarn", group)
    return frame.assign(target_group=frame["category"] + " " + group)


def leaning(answers, rises):
    """Answers in which the stereotyped person gains some log odds at Q4 and Q3, by target group."""
    answers = answers.copy()
    rise = answers["target_group"].map(rises).fillna(0.0).to_numpy()
    rise = np.where(answers["precision"] == "bf16", 0.0, rise)
    for suffix, heat in (("", 1.0), ("_t", 0.3)):
        names = [f"logp_{x}{suffix}" for x in LETTERS]
        logp = answers[names].to_numpy(float)
        roles = answers[[f"role_{x}" for x in LETTERS]].to_numpy(str)
        logp = logp + (roles == "stereotyped") * rise[:, None] / heat
        whole = np.exp(logp).sum(axis=1) + answers[f"mass_other{suffix}"].to_numpy(float)
        answers[names] = logp - np.log(whole)[:, None]
        answers[f"mass_other{suffix}"] /= whole
    return answers


def asked(rises=None, truth="noise", seed=0, **options):
    options = {
        "templates": 96,
        "items_per_template": 8,
        "precisions": ["bf16", "q4", "q3"],
        **options,
    }
    answers = simulate_respondents(truth, effect=0.5, seed=seed, orders="original", **options)
    return leaning(grouped(answers), rises or {})


def readings(found):
    return {
        group: set(part["reading"]) for group, part in found.groupby("target_group") if len(part)
    }


def test_one_group_up_and_one_down_are_found_under_a_flat_mean():
    answers = asked({"Age zorb": 2.0, "Age velk": -2.0})
    whole = controls.lean(answers).query("measure == 'd_log_gap' and precision == 'q3'").iloc[0]
    assert whole["low"] < 0 < whole["high"]
    found = readings(group_leans(answers, ["q4", "q3"]))
    assert found.pop("Age zorb") == {"grew"} and found.pop("Age velk") == {"turned"}
    assert set.union(*found.values()) == {"not told apart"} and len(found) == 10


def test_one_category_alone_is_found():
    rises = {f"SES {group}": 2.0 for group in GROUPS}
    found = group_leans(asked(rises), ["q4", "q3"])
    grew = found[found["reading"] == "grew"]
    assert set(grew["category"]) == {"SES"} and len(grew) == 8
    assert not found["reading"].isin(["turned", "shrank"]).any()


def test_nothing_is_found_where_there_is_nothing():
    """Noise alone: at most 5 % of studies say anything of any of their groups."""
    said = 0
    few = {"templates": 48, "items_per_template": 4, "precisions": ["bf16", "q3"]}
    for seed in range(25):
        found = group_leans(asked(seed=seed, categories=["One"], **few), ["q3"])
        assert (found["templates"] == 12).all() and len(found) == 4
        said += found["reading"].isin(["grew", "turned", "shrank"]).any()
    assert stats.binomtest(int(said), 25, 0.05, "greater").pvalue > 0.01


def test_a_lean_that_gets_flatter_is_not_a_group_that_is_spared():
    """Margins shrunk to a third: every lean comes nearer to none, and none is said to have turned."""
    answers = asked(
        {f"Age {group}": 0.0 for group in GROUPS}, truth="none", precisions=["bf16", "q3"]
    )
    before = {f"{c} zorb": 1.5 for c in ("Age", "SES", "Religion")}
    answers = leaning(answers.assign(precision="q3"), before).assign(precision=answers["precision"])
    flat = answers["precision"] == "q3"
    names = [f"logp_{x}" for x in LETTERS]
    flatter = answers.loc[flat, names] / 3
    answers.loc[flat, names] = flatter.sub(np.log(np.exp(flatter).sum(axis=1)), axis=0)
    found = readings(group_leans(answers, ["q3"]))
    assert all(found[group] == {"shrank"} for group in before)
    assert set.union(*found.values()) <= {"shrank", "not told apart"}


def test_a_group_with_few_templates_is_shown_and_not_tested():
    answers = simulate_respondents("none", templates=72, items_per_template=4, orders="original")
    answers = leaning(grouped(answers, templates=5), {"Age drusk": 3.0})
    found = group_leans(answers, ["q4", "q3"]).set_index(["target_group", "precision"])
    row = found.loc[("Age drusk", "q3")]
    assert row["reading"] == "too few templates" and np.isnan(row["p"]) and row["estimate"] > 1


def test_p_values_are_those_of_a_t_test_over_templates():
    """By scipy on the items' leans, template by template, corrected by hand."""
    answers = asked({"Age zorb": 0.5})
    found = group_leans(answers, ["q4", "q3"])
    p = {}
    for (group, precision), part in answers.groupby(["target_group", "precision"]):
        gap = sum(
            part[f"logp_{x}"]
            * (
                (part[f"role_{x}"] == "stereotyped") * 1.0
                - (part[f"role_{x}"] == "anti_stereotyped")
            )
            for x in LETTERS
        )
        gap = gap[part["context_condition"] == "ambig"]
        p[group, precision] = gap.groupby(part["template_id"]).mean()
    for row in found.itertuples():
        change = p[row.target_group, row.precision] - p[row.target_group, "bf16"]
        assert row.estimate == pytest.approx(change.mean(), abs=1e-4)
        assert row.p == pytest.approx(stats.ttest_1samp(change, 0).pvalue, abs=1e-4)
    holm = np.sort(found["p"]) * np.arange(len(found), 0, -1)
    assert np.sort(found["p_holm"]) == pytest.approx(np.minimum(np.maximum.accumulate(holm), 1))


def test_bases_are_the_units_where_families_have_several():
    parts = []
    for family in ("a", "b"):
        for base in range(3):
            one = asked(
                {"Age zorb": 1.0}, seed=base, templates=24, replicates=2, family=f"{family}{base}"
            )
            parts.append(one.assign(family=family, base=f"{family}{base}"))
    found = group_leans(pd.concat(parts), ["q4", "q3"])
    assert readings(found)["Age zorb"] == {"grew"}
    assert "model" not in found and (found["n"] == 12).all() and found["p"].notna().all()


@pytest.fixture
def real(monkeypatch):
    """A simulated study in the place of the real model's records."""
    study = with_groups(study_of("none", templates=24))
    monkeypatch.setattr(who_is_hit, "records", lambda: type("Records", (), {"study": study}))
    return study


def with_groups(study, rises=None):
    study.items = grouped(study.items)
    study.samples = grouped(study.samples)
    study.answers = leaning(grouped(study.answers), rises or {})
    return study


def test_the_page_says_who(real):
    study = study_of("noise", templates=96, items_per_template=8, orders="original", effect=0.3)
    page = Chapter(with_groups(study, {"Age zorb": 1.5, "SES quarn": -1.5}))
    text = page.text("answer")
    assert "grew in items about Age zorb (Q4 and Q3), and the lean turned" in text
    assert "other person in items about SES quarn (Q4 and Q3)." in text
    assert "Groups go both ways" in page.text("flat")
    frame, formats = page.table_who_groups()
    sizes = group_sizes(study.items)
    assert (
        frame["items"].sum()
        == sizes["items"].sum()
        == (study.items["context_condition"] == "ambig").sum()
    )
    assert set(formats) <= set(frame)
    figure, alt, data = page.figure_who_lean()
    assert alt.startswith("Told apart from no change: Age zorb Q4") or "Age zorb" in alt
    assert len(figure.axes[0].get_yticks()) == 12 + 3 and len(data) == 24
    assert "none shows a lean that grew" in page.text("real")
    assert "real" not in page.text("answer").lower().split()


def test_models_that_stand_for_themselves_are_told_one_by_one(real):
    """The published design: a single checkpoint a family."""
    study = with_groups(study_of("noise", templates=24))
    apart = {"model": "other", "family": "other", "base": "other"}
    names = ("samples", "answers", "perplexity", "provenance")
    tables = {name: getattr(study, name) for name in names}
    study = replace(
        study, **{name: pd.concat([t, t.assign(**apart)]) for name, t in tables.items()}
    )
    page = Chapter(study)
    (first,) = set(study.answers["model"]) - {"other"}
    frame, _ = page.table_who_groups()
    alike = frame.set_index("group")
    group = study.answers["target_group"].iloc[0]
    assert {f"{group}, {first}", f"{group}, other"} <= set(alike.index)
    assert len(frame) == 2 * study.answers.groupby(["category", "target_group"]).ngroups
    assert alike.loc[f"{group}, other", "odds at BF16"] == pytest.approx(
        alike.loc[f"{group}, {first}", "odds at BF16"]
    )
    asked_by = page.table_who_polarity()[0]["study"]
    assert {first, "other"} <= set(asked_by)
    for block in ("answer", "flat"):
        assert page.text(block)
    assert page.figure_who_lean()[2]["label"].nunique() == len(frame)


def test_a_study_without_groups_says_so(real):
    page = Chapter(study_of(templates=6))
    for name in ("answer", "who_lean", "who_groups", "flat"):
        assert "do not say which group" in page.text(name)
    assert "none shows" in page.text("real")
    assert "do not say" in Chapter(without_probabilities(with_groups(study_of(templates=6)))).text(
        "answer"
    )
