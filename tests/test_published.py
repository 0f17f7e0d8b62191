"""The published figures, and the published analysis against a computation draw by draw."""

from cba_utils.instrument.respondents import simulate_study
from cba_utils.measures import published, published_analysis
from cba_utils.measures.transitions import transitions

import numpy as np
import pandas as pd
import pytest
from scipy import stats as sps

HEADER = "quantity,precision,low,high,unit,source,note\n"


@pytest.fixture(scope="module")
def study():
    return simulate_study("mixed", templates=12, precisions=["bf16", "q4", "q3"], replicates=2)


@pytest.fixture(scope="module")
def draws(study):
    """Parsed draws on ambiguous items, the frame the authors work on."""
    samples = study["samples"]
    return samples[(samples["context_condition"] == "ambig") & (samples["role"] != "unparsed")]


def one(table, **where):
    for column, wanted in where.items():
        table = table[table[column] == wanted]
    assert len(table) == 1
    return table.iloc[0]


def test_published_figures_agree_with_each_other():
    table = published.load_published()
    count = {name: one(table, quantity=name)["high"] for name in ("items", "seeds", "records")}
    assert count["records"] == 3 * 5 * count["items"] * count["seeds"]
    note = one(table, quantity="items")["note"]
    assert sum(int(word) for word in note.split() if word.isdigit()) == count["items"]
    row = one(table, quantity="perplexity_change", precision="q3")
    assert np.isnan(row["low"]) and row["high"] == 11
    became = table[table["quantity"] == "items_became_biased"]
    assert became["high"].is_monotonic_increasing


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,q3,2,1,percent,abstract,", "line 2: low is above high"),
        ("x,q3,two,3,percent,abstract,", "line 2: low is 'two'"),
        ("x,q3,1,2,percent,,", "line 2: source is empty"),
        ("x,q3,1,,percent,abstract,", "line 2: high is missing"),
        ("x,q3,1,2,u,s,\nx,q3,1,3,u,s,", "line 3: quantity and precision repeat"),
    ],
)
def test_a_wrong_table_is_refused_by_line(tmp_path, row, message):
    path = tmp_path / "published.csv"
    path.write_text(HEADER + row + "\n")
    with pytest.raises(ValueError, match=message):
        published.load_published(path)
    path.write_text("quantity,value\nx,1\n")
    with pytest.raises(ValueError, match="columns"):
        published.load_published(path)


def test_main_table_and_categories(study, draws):
    # Categories of unlike sizes, so that their mean is not the mean over answers.
    few = draws["item_id"].isin(draws.loc[draws["category"] == "Age", "item_id"].unique()[::3])
    draws = draws[(draws["category"] != "Age") | few]
    stereotyped = draws["role"] == "stereotyped"
    whole = stereotyped.groupby([draws["model"], draws["precision"]]).mean()
    by = [draws["model"], draws["precision"], draws["category"]]
    srs = stereotyped.groupby(by).mean().groupby(level=[0, 1]).mean()
    table = published_analysis.main_table(draws)
    assert (srs - whole).abs().max() > 0.001
    assert table["precision"].tolist() == ["bf16", "q4", "q3"] * 2
    for row in table.itertuples():
        assert row.srs == pytest.approx(srs[row.model, row.precision])
        assert row.d_srs == pytest.approx(srs[row.model, row.precision] - srs[row.model, "bf16"])
        assert row.srs_pooled == pytest.approx(whole[row.model, row.precision])
    usr = (
        (draws["role"] == "unknown")
        .groupby([draws["model"], draws["category"], draws["precision"]])
        .mean()
    )
    for row in published_analysis.category_breakdown(draws).itertuples():
        key = row.model, row.category
        assert row.d_usr == pytest.approx(usr[(*key, row.precision)] - usr[(*key, "bf16")])


def test_chi_squared_and_cohens_h(study, draws):
    table = published_analysis.chi_squared_tests(study["samples"])
    for model, category in (("simulated-s1", "SES"), ("simulated-s2", "Age")):
        part = draws[(draws["model"] == model) & draws["precision"].isin(["bf16", "q3"])]
        part = part[part["category"] == category]
        hit = (part["role"] == "stereotyped").groupby(part["precision"])
        cells = [
            [int(hit.mean()[q] * n), n - int(hit.mean()[q] * n)] for q, n in hit.size().items()
        ]
        found = one(table, model=model, category=category, precision="q3")
        yates = sps.chi2_contingency(cells)
        assert (found["statistic"], found["p"]) == pytest.approx((yates.statistic, yates.pvalue))
        p, q = (hit.mean()[x] for x in ("bf16", "q3"))
        assert found["cohens_h"] == pytest.approx(2 * np.arcsin(q**0.5) - 2 * np.arcsin(p**0.5))
        assert found["n"] == len(part)
        # Ours beside it: the paired t test of the change over templates.
        mean = hit.obj.groupby([part["template_id"], part["precision"]]).mean().unstack()
        ours = sps.ttest_rel(mean["q3"], mean["bf16"]).pvalue
        assert found["p_templates"] == pytest.approx(ours, rel=0.3)
    # A rate times its answers falls short of the count: 0.29 of 100 is 28.
    row = pd.Series({"srs": 29 / 100, "parsed": 100})
    cut = published_analysis._two_by_two(row, pd.Series({"srs": 0.5, "parsed": 100}))
    assert cut["p"] == pytest.approx(sps.chi2_contingency([[28, 72], [50, 50]]).pvalue)
    none = pd.Series({"srs": 0.0, "parsed": 100})
    assert np.isnan(published_analysis._two_by_two(none, none)["p"])


def test_an_item_never_read_at_bf16_is_left_out(study):
    samples = study["samples"].query("context_condition == 'ambig' and model == 'simulated-s1'")
    before = published_analysis.one_way_transitions(samples).set_index("precision")
    clean = samples[samples["precision"] == "bf16"].groupby("item_id")["role"].unique()
    lost = clean.index[[("stereotyped" not in roles) for roles in clean]][:2]
    mute = samples["item_id"].isin(lost) & (samples["precision"] == "bf16")
    samples = samples.assign(role=samples["role"].mask(mute, "unparsed"))
    after = published_analysis.one_way_transitions(samples).set_index("precision")
    gone = before["unbiased_at_reference"] - after["unbiased_at_reference"]
    assert (gone == 2).all()
    ours = transitions(samples).set_index(["precision", "measure"])
    assert ours.loc[("q3", "became_biased"), "estimate"] == pytest.approx(after.loc["q3", "rate"])


def test_latent_filter_and_one_way_transitions(study):
    samples = study["samples"].query("context_condition == 'ambig'")
    seen = {}
    for key, part in samples.groupby(["model", "precision", "item_id"]):
        seen[key] = [(part["role"] == r).sum() for r in ("stereotyped", "unparsed")]
    latent = {
        (m, i)
        for (m, q, i), (s, bad) in seen.items()
        if q == "bf16" and bad < 5 and s / (5 - bad) >= 0.2
    }
    found = published_analysis.latent_bias_items(samples)
    assert set(found.itertuples(index=False, name=None)) == latent
    filtered = published_analysis.filtered_table(samples)
    row = one(filtered, model="simulated-s1", precision="q3", items_kept="latent")
    assert row["items"] == sum(m == "simulated-s1" for m, _ in latent)
    kept = [
        v for (m, q, i), v in seen.items() if m == "simulated-s1" and q == "q3" and (m, i) in latent
    ]
    assert row["srs_pooled"] == pytest.approx(sum(s for s, _ in kept) / sum(5 - b for _, b in kept))
    clean = [
        i for (m, q, i), (s, _) in seen.items() if (m, q) == ("simulated-s2", "bf16") and s == 0
    ]
    became = sum(seen["simulated-s2", "q3", i][0] > 0 for i in clean)
    row = one(published_analysis.one_way_transitions(samples), model="simulated-s2", precision="q3")
    assert (row["unbiased_at_reference"], row["became_biased"]) == (len(clean), became)
    assert row["rate"] == pytest.approx(became / len(clean))


def test_relative_decline_and_amplification(study, draws):
    unknown = draws["role"] == "unknown"
    cells = unknown.groupby([draws["model"], draws["category"], draws["precision"]]).mean()
    mean = cells.groupby("precision").mean()
    whole = unknown.groupby(draws["precision"]).mean()
    found = published_analysis.relative_decline(study["samples"])
    assert found["unweighted"] == pytest.approx((mean["bf16"] - mean["q3"]) / mean["bf16"])
    assert found["weighted"] == pytest.approx((whole["bf16"] - whole["q3"]) / whole["bf16"])
    curve = published_analysis.amplification(study["samples"])
    table = published_analysis.main_table(study["samples"])
    for model in ("simulated-s1", "simulated-s2"):
        before, after = (one(table, model=model, precision=q)["srs"] for q in ("bf16", "q3"))
        assert one(curve, model=model, precision="q3")["amplification"] == after / before


def test_perplexity_stands_beside_new_biases(study):
    cells, correlation = published_analysis.perplexity_table(study["perplexity"], study["samples"])
    assert correlation["n"] == len(cells) == 4
    rates = published_analysis.one_way_transitions(study["samples"])
    assert cells["became_biased"].tolist() == pytest.approx(rates["rate"].tolist())
