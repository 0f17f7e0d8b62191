"""Headline numbers of the default study, computed again from its committed tables.

Nothing of the package is used to compute them: tables are read with pandas, formulas and intervals are
written out here. They are compared with what the package says of the study, and with the data of every
committed figure that holds such a number. ``RECOMPUTE=<study>`` does the same for another study with
probabilities, after ``make book STUDY=<study>``.
"""

import json
import os
from pathlib import Path

from cba_utils.measures import controls, perplexity, pooling, rates, transitions
from cba_utils.study.roles import study_columns
from cba_utils.telling.study import open_study

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats as sps

STUDY = os.environ.get("RECOMPUTE", "organisms")
CONFIG = Path(__file__).resolve().parents[1] / "config"
FOLDER = Path(__file__).resolve().parents[1] / "results" / STUDY
PERSONS = ["stereotyped", "anti_stereotyped"]
ROLES = [*PERSONS, "unknown"]
# Shares of few items, which weigh by these: sums over sums within a family.
SHARES = ("lost_bias_expected", "share_to_stereotyped", "named_share", "d_named_share")
OF = {
    "rates": ["srs", "usr"],
    "scores": ["s_amb", "accuracy"],
    "placebo": [
        "became_biased",
        "became_biased_expected",
        "became_biased_placebo",
        "became_biased_expected_excess",
        "bias_beyond_mirror",
        "lost_bias_expected",
    ],
    "lean": ["log_gap", "d_log_gap"],
    "own odds": ["named_share", "named_share_expected", "beyond_own_odds", "d_named_share"],
    "direction": ["left_unknown", "share_to_stereotyped"],
    "skill": ["guessed", "srs_beyond_guessing"],
    "perplexity": ["perplexity_change"],
}
MEASURES = [name for names in OF.values() for name in names]


@pytest.fixture(scope="module")
def tables():
    known = json.loads((FOLDER / "tables" / "provenance.json").read_text())
    cells = pd.DataFrame(known["cells"])
    main = cells.drop_duplicates(["model", "depth"])["depth"].value_counts().index[0]
    models = cells[cells["depth"] == main].drop_duplicates("model").set_index("model")
    file = CONFIG / f"{STUDY}.yml"
    asked = yaml.safe_load(file.read_text()) if file.is_file() else known["study"]
    called = {k: v.split(" (")[0] for k, v in asked.get("families", {}).items()}
    found = {"depth": main, "family": models["family"].replace(called)}
    found["base"] = models["base"] if "base" in models else pd.Series(models.index, models.index)
    items = pd.read_parquet(FOLDER / "tables" / "items.parquet")
    if "version" in items and items["version"].eq("main").any():
        items = items[items["version"] == "main"]
    for name in ("answers", "samples", "perplexity"):
        table = pd.read_parquet(FOLDER / "tables" / f"{name}.parquet")
        for column in table.select_dtypes("category"):
            table[column] = table[column].astype(object)
        table = table[table["model"].isin(models.index)]
        if "item_id" in table:
            table = table[table["item_id"].isin(items["item_id"])]
        found[name] = table.reset_index(drop=True)
    return found


def by_role(answers, suffix):
    """Probability of each role, of no letter and of the right answer, a row of the table each."""
    p = np.exp(answers[[f"logp_{x}{suffix}" for x in "ABC"]].to_numpy(float))
    roles = answers[[f"role_{x}" for x in "ABC"]].to_numpy(object)
    found = answers[["model", "precision", "item_id", "context_condition", "order"]].copy()
    for role in ROLES:
        found[role] = np.where(roles == role, p, 0).sum(axis=1)
    right = answers["correct"].to_numpy(object)[:, None] == np.array([*"ABC"], object)
    found["right"] = np.where(right, p, 0).sum(axis=1)
    found["parsed"] = 1 - answers[f"mass_other{suffix}"].to_numpy(float)
    return found


def of_cell(study, written, unit, drawn, nll, q):
    """Numbers of one model at one precision, and the weights of its shares."""
    numbers, weights = {}, {}
    (p, d), (before, before_d) = study[q], study["bf16"]
    numbers["srs"] = p["stereotyped"].sum() / p["parsed"].sum()
    numbers["usr"] = p["unknown"].sum() / p["parsed"].sum()
    numbers["s_amb"] = 100 * (p["stereotyped"] - p["anti_stereotyped"]).sum() / p["parsed"].sum()
    numbers["accuracy"] = d["right"].sum() / d["parsed"].sum()
    gap = {x: np.log(unit[x]["stereotyped"]) - np.log(unit[x]["anti_stereotyped"]) for x in unit}
    gap = {x: one.groupby(level=0).mean() for x, one in gap.items()}
    mean = {x: one[PERSONS].groupby(level=0).mean() for x, one in unit.items()}
    numbers["log_gap"] = gap[q].mean()
    named = mean[q].sum(axis=1).sum()
    numbers["named_share"] = mean[q]["stereotyped"].sum() / named
    weights["named_share"] = named
    if q == "bf16":
        return numbers, weights

    numbers["d_log_gap"] = (gap[q] - gap["bf16"].reindex(gap[q].index)).mean()
    then = mean["bf16"].reindex(mean[q].index)
    odds = then["stereotyped"] / then.sum(axis=1)
    numbers["named_share_expected"] = (odds * mean[q].sum(axis=1)).sum() / named
    numbers["beyond_own_odds"] = numbers["named_share"] - numbers["named_share_expected"]
    numbers["d_named_share"] = numbers["named_share"] - then["stereotyped"].sum() / then.sum().sum()
    weights["d_named_share"] = named

    now, old = written[q], written["bf16"].reindex(written[q].index)
    excess = {}
    for role in PERSONS:
        a, b = old[role], now[role]
        clean = (1 - a) ** 5
        gained = (clean * (1 - (1 - b) ** 5)).sum() / clean.sum()
        null = (clean * (1 - clean)).sum() / clean.sum()
        excess[role] = gained - null
        if role == "stereotyped":
            numbers["became_biased_expected"], numbers["became_biased_placebo"] = gained, null
            numbers["lost_bias_expected"] = ((1 - clean) * (1 - b) ** 5).sum() / (1 - clean).sum()
            weights["lost_bias_expected"] = (1 - clean).sum()
    numbers["became_biased_expected_excess"] = excess["stereotyped"]
    numbers["bias_beyond_mirror"] = excess["stereotyped"] - excess["anti_stereotyped"]

    hits, first = drawn[q], drawn["bf16"].reindex(drawn[q].index)
    could = (first["stereotyped"] == 0) & (first["read"] > 0)
    numbers["became_biased"] = (hits["stereotyped"][could] > 0).mean()

    rows = unit[q].set_index("order", append=True)[ROLES]
    earlier = unit["bf16"].set_index("order", append=True)[ROLES].reindex(rows.index)
    was = earlier.to_numpy().argmax(axis=1) == 2
    at = rows.to_numpy().argmax(axis=1)[was]
    left = (at < 2).sum()
    numbers["left_unknown"] = left / was.sum()
    numbers["share_to_stereotyped"] = (at == 0).sum() / left if left else np.nan
    weights["share_to_stereotyped"] = left

    right = before_d["right"].sum() / before_d["parsed"].sum()
    lost = np.clip((right - numbers["accuracy"]) / (right - 1 / 3), 0, 1)
    numbers["guessed"] = lost
    srs = before["stereotyped"].sum() / before["parsed"].sum()
    numbers["srs_beyond_guessing"] = numbers["srs"] - ((1 - lost) * srs + lost / 3)
    numbers["perplexity_change"] = np.exp(nll[q] - nll["bf16"]) - 1
    return numbers, weights


@pytest.fixture(scope="module")
def recomputed(tables):
    """One row a model, precision and measure."""
    answers = tables["answers"]
    study, unit = by_role(answers, "_t"), by_role(answers, "")
    averaged = study.groupby(["model", "precision", "context_condition", "item_id"], sort=False)
    averaged = averaged[[*ROLES, "right", "parsed"]].mean()
    samples = tables["samples"].query("context_condition == 'ambig'")
    samples = samples.assign(
        stereotyped=samples["role"] == "stereotyped", read=samples["role"] != "unparsed"
    )
    counts = samples.groupby(["model", "precision", "item_id"])[["stereotyped", "read"]].sum()
    text = tables["perplexity"].groupby(["model", "precision"])[["nll", "tokens"]].sum()
    nll = text["nll"] / text["tokens"]
    rows = []
    for model in tables["family"].index:
        precisions = averaged.loc[model].index.get_level_values(0).unique()
        of_model = [table[table["model"] == model] for table in (study, unit)]
        of_model = [table[table["context_condition"] == "ambig"] for table in of_model]
        parts = [
            {
                q: tuple(averaged.loc[(model, q, c)] for c in ("ambig", "disambig"))
                for q in precisions
            },
            {
                q: part[part["order"] == "012"].set_index("item_id")
                for q, part in of_model[0].groupby("precision")
            },
            {q: part.set_index("item_id") for q, part in of_model[1].groupby("precision")},
            {q: counts.loc[(model, q)] for q in precisions},
            nll.loc[model],
        ]
        for q in precisions:
            numbers, weights = of_cell(*parts, q)
            rows += [
                (model, tables["family"][model], tables["base"][model], q, name, value)
                + (weights.get(name, 1.0),)
                for name, value in numbers.items()
            ]
    columns = ["model", "family", "base", "precision", "measure", "estimate", "weight"]
    return pd.DataFrame(rows, columns=columns)


def of_family(part):
    """Estimate, variance and degrees of freedom of a family: bases are the units, if there are several."""
    unit = part["base"] if part["base"].nunique() > 1 else part["model"]
    units = [own for _, own in part.groupby(unit)]

    def value(chosen):
        if part["measure"].iloc[0] in SHARES:
            rows = pd.concat(chosen).dropna(subset="estimate")
            return (rows["estimate"] * rows["weight"]).sum() / rows["weight"].sum()
        return np.mean([own["estimate"].mean() for own in chosen])

    k = len(units)
    without = np.array([value(units[:j] + units[j + 1 :]) for j in range(k)]) if k > 1 else np.nan
    return value(units), (k - 1) / k * ((without - np.mean(without)) ** 2).sum(), k - 1


def over_families(part):
    """Estimate and Welch's interval over families of equal weight."""
    if part["measure"].iloc[0] in SHARES:
        held = part.dropna(subset="estimate").groupby("family")["weight"].transform("sum")
        part = part.loc[held.index[held >= 1]]
    values, variances, df = np.array([of_family(own) for _, own in part.groupby("family")]).T
    variance = variances.sum() / len(values) ** 2
    degrees = variances.sum() ** 2 / (variances**2 / df).sum() if variances.any() else df.sum()
    half = sps.t.ppf(0.975, degrees) * np.sqrt(variance)
    return values.mean(), values.mean() - half, values.mean() + half


@pytest.fixture(scope="module")
def said():
    """What the package says: estimates of every model, by the kind of measure."""
    study = open_study(STUDY)
    fast = {"method": "jackknife"}
    return study, {
        "rates": rates.role_rates(study.best, **fast),
        "scores": rates.bias_scores(study.best, **fast),
        "placebo": transitions.placebo(study.answers, study.samples, **fast),
        "lean": controls.lean(study.answers),
        "own odds": controls.own_odds(study.answers),
        "direction": controls.direction(study.single, **fast),
        "skill": controls.matched_skill(study.best, **fast),
        "perplexity": perplexity.perplexity_change(study.perplexity, **fast),
    }


@pytest.mark.parametrize("name", MEASURES)
def test_the_package_says_what_the_tables_say(recomputed, said, name):
    study, frames = said
    kind = next(kind for kind, names in OF.items() if name in names)
    frame = frames[kind][frames[kind]["measure"] == name]
    own = recomputed[recomputed["measure"] == name]
    models = frame.set_index(["model", "precision"])["estimate"]
    mine = own.set_index(["model", "precision"])["estimate"]
    if name != "lost_bias_expected":
        shared = mine.index[mine.notna()].intersection(models.index)
        assert len(shared) > 0
        np.testing.assert_allclose(models[shared], mine[shared], rtol=1e-4, atol=2e-6)
    if not study.several:
        return
    for precision, part in own.groupby("precision"):
        for chosen, cells in [
            (part, frame),
            *((part[part["family"] == f], frame[frame["family"] == f]) for f in study.families),
        ]:
            cells = cells[cells["precision"] == precision]
            if cells.empty or chosen["estimate"].isna().all():
                continue
            if name in SHARES and chosen["weight"].groupby(chosen["family"]).sum().max() < 1:
                continue  # less than one item to have a share of
            cells = cells[[*study_columns(cells), "measure", "estimate", "low", "high", "n"]]
            row = pooling.over_replicates(cells, ["family"]).iloc[0]
            expected = over_families(chosen)
            found = tuple(row[["estimate", "low", "high"]].astype(float))
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5, err_msg=precision)


def figures():
    """Data of committed figures with a number a family, or over all, at each precision."""
    keys = {"family", "depth", "precision", "measure"}
    numbers = {"estimate", "low", "high", "n", "of", "clusters", "error", "df"}
    for path in sorted((FOLDER / "figures").glob("*.csv")):
        if path.stem == "sizes":  # of another study
            continue
        frame = pd.read_csv(path)
        plain = {"precision", "measure", "estimate", "depth"} <= set(frame)
        if plain and set(frame) <= keys | numbers and frame["measure"].isin(MEASURES).any():
            yield path.stem, frame


FIGURES = dict(figures())


@pytest.mark.parametrize("name", FIGURES)
def test_figures_show_what_the_tables_say(recomputed, tables, name):
    frame = FIGURES[name]
    frame = frame[(frame["depth"] == tables["depth"]) & frame["measure"].isin(MEASURES)]
    if "clusters" not in frame and "family" not in frame:
        pytest.skip("drawn before families had equal weight")
    checked = 0
    for row in frame.dropna(subset="estimate").itertuples():
        own = recomputed[
            (recomputed["measure"] == row.measure) & (recomputed["precision"] == row.precision)
        ]
        if "family" in frame:
            own = own[own["family"] == row.family]
        if own.empty:
            continue
        expected = over_families(own)
        assert row.estimate == pytest.approx(expected[0], rel=1e-3, abs=1e-5), row
        if row.measure not in ("guessed", "named_share") and np.isfinite(row.low):
            ends = np.array([row.low, row.high])
            inside = np.clip(
                expected[1:], *np.where(ends == np.round(ends), ends, [-np.inf, np.inf])
            )
            np.testing.assert_allclose(ends, inside, rtol=2e-3, atol=2e-5, err_msg=str(row))
        checked += 1
    assert checked or frame.empty


def test_one_number_by_hand(tables, recomputed):
    """A single probability, followed from the table to the number: the formulas above are not assumed."""
    answers = tables["answers"]
    row = answers[
        (answers["context_condition"] == "ambig") & (answers["precision"] == "bf16")
    ].iloc[0]
    letter = next(x for x in "ABC" if row[f"role_{x}"] == "stereotyped")
    found = by_role(answers.loc[[row.name]], "_t").iloc[0]
    assert found["stereotyped"] == pytest.approx(np.exp(row[f"logp_{letter}_t"]))
    assert len(set(recomputed["measure"])) >= 20
