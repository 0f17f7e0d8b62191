"""Figures and words of the reports: deterministic, escaped, and right about what they say."""

from cba_utils.measures import rates
from cba_utils.telling import drawing as figures
from cba_utils.telling import study as telling
from studies import study_of

import numpy as np
import pandas as pd
import pytest

PRECISIONS = ["bf16", "q8", "q4", "q3"]
MEASURES = ["srs", "usr", "became_biased", "became_biased_expected", "became_biased_placebo",
            "lost_bias_expected", "lost_bias_placebo", "perplexity_change"]  # fmt: skip


@pytest.fixture
def estimates():
    rows = [
        (family, precision, measure, 0.1 * k, 0.1 * k - 0.02, 0.1 * k + 0.02, 5)
        for family in ("mistral", "phi3")
        for k, precision in enumerate(PRECISIONS)
        for measure in MEASURES
    ]
    columns = ["family", "precision", "measure", "estimate", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def test_the_same_figure_is_the_same_text_and_its_ids_are_its_own(estimates):
    texts = [figures.svg(figures.headline(estimates), "one") for _ in range(2)]
    assert texts[0] == texts[1]
    assert 'id="one-' in texts[0] and 'id="axes' not in texts[0] and "Matplotlib" not in texts[0]


def test_every_estimate_is_drawn_with_its_interval(estimates):
    (axes,) = figures.dose_response(estimates, ["srs"]).axes
    drawn = [line for line in axes.containers if line.has_yerr]
    assert len(drawn) == 2
    for container in drawn:
        bars = container.lines[2][0].get_segments()
        middles = [b[:, 1].mean() for b in bars]
        assert np.allclose(middles, np.asarray(container.lines[0].get_ydata(), float))
        assert np.allclose([np.ptp(b[:, 1]) for b in bars], 0.04)


def test_a_measure_that_is_not_there_is_named_with_those_that_are(estimates):
    with pytest.raises(ValueError, match="'s_amb'.*became_biased.*usr"):
        figures.dose_response(estimates, ["s_amb"])


def test_a_figure_needs_alt_text_and_carries_it_escaped(estimates, monkeypatch, tmp_path):
    shown = []
    monkeypatch.setattr(figures, "display", lambda data, **_: shown.append(data))
    figure = figures.transitions(estimates)
    with pytest.raises(ValueError, match="'moved' needs alt text"):
        figures.show(figure, "moved", " ")
    figures.show(figure, "moved", 'a "quoted" <b>', estimates, tmp_path)
    page = figures.figure_html(shown[0], "moved")
    assert 'aria-label="a &quot;quoted&quot; &lt;b&gt;"' in page
    assert figures.INK not in page and "currentColor" in page
    assert f"(CSV, {len(estimates)} rows)" in page
    read = pd.read_csv(tmp_path / "moved.csv")
    assert len(read) == len(estimates) and np.allclose(read["high"], estimates["high"])
    assert (tmp_path / "moved.svg").read_text().startswith("<svg")


def test_every_mark_of_the_gap_is_in_the_panel_of_its_precision():
    points = pd.DataFrame(
        {
            "family": ["mistral", "phi3"] * 3,
            "precision": ["q8", "q8", "q4", "q4", "q3", "q3"],
            "perplexity_change": [0.0, 0.001, -0.01, 0.02, 0.5, 2.0],
            "became_biased_expected": [0.0, 0.01, 0.02, 0.03, 0.2, 0.4],
        }
    )
    panels = [axes for axes in figures.perplexity_gap(points).axes if axes.axison]
    for axes, (precision, rows) in zip(
        panels, points.groupby("precision", sort=False), strict=True
    ):
        assert axes.get_title(loc="left") == precision.upper()
        marks = [line for line in axes.lines if line.get_linestyle() == "None"]
        drawn = sorted((*line.get_xdata(), *line.get_ydata()) for line in marks)
        pairs = rows[["perplexity_change", "became_biased_expected"]]
        assert drawn == sorted(pairs.itertuples(index=False, name=None))
        left, right = axes.get_xlim()
        assert (
            left < points["perplexity_change"].min() and points["perplexity_change"].max() < right
        )


def test_estimates_without_intervals_are_drawn_and_listed_without_bars(estimates):
    bare = estimates.assign(low=np.nan, high=np.nan)
    (axes,) = figures.dose_response(bare, ["srs"]).axes
    assert not axes.containers and len(axes.lines) == 2


def test_a_family_is_called_by_its_title_in_figures_and_without_the_bracket_in_sentences(
    monkeypatch,
):
    made = study_of(templates=4)
    about = {"name": "mine", "families": {"simulated": "toy-Sim (1M weights)"}}
    parts = {
        name: getattr(made, name)
        for name in ("items", "answers", "samples", "perplexity", "provenance")
    }
    for table in parts.values():
        table.attrs["study"] = about
    monkeypatch.setattr(telling, "load_study", lambda _: parts)
    study = telling.open_study("mine")
    assert set(study.answers["family"]) == {"toy-Sim"}
    with figures.families(study.families):
        drawn = figures.dose_response(study.summarise(rates.role_rates(study.answers)), ["srs"])
    assert [text.get_text() for text in drawn.legends[0].texts] == ["toy-Sim (1M weights)"]
    told = study.told(rates.role_rates(study.answers), "srs", "q3")
    assert told.names == told.above == ["toy-Sim"] and told.agreed == "above"
