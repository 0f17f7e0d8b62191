"""Other temperatures out of recorded probabilities, against the model itself and closed forms."""

from cba_utils import load_items, load_model, score_letters
from cba_utils.answering.prompts import LETTERS
from cba_utils.chapters import temperature as chapter
from cba_utils.chapters.temperature import Chapter
from cba_utils.instrument.respondents import simulate_respondents
from cba_utils.measures.rates import role_rates
from cba_utils.measures.temperature import at_temperature, by_temperature
from cba_utils.measures.transitions import placebo
from studies import study_of, without_probabilities

import numpy as np
import pandas as pd
import pytest

SHOWN = [*(f"logp_{x}_t" for x in LETTERS), "mass_other_t"]


def test_at_the_recorded_temperatures_it_is_what_was_recorded():
    answers = simulate_respondents("mixed", templates=6, items_per_template=8, temperature=0.3)
    for temperature, suffix in ((0.3, "_t"), (1.0, "")):
        found = at_temperature(answers, temperature, 0.3)
        for name in SHOWN:
            recorded = answers[name.removesuffix("_t") + suffix]
            np.testing.assert_allclose(found[name], recorded, atol=2e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.2, 0.5, 0.8])
def test_single_tokens_follow_the_softmax_exactly(temperature):
    """Four outcomes with a logit each, as simulated ones are: the softmax of the logits over T."""
    answers = simulate_respondents("mixed", templates=6, items_per_template=8, temperature=0.3)
    logits = np.column_stack(
        [answers[f"logp_{x}"] for x in LETTERS] + [np.log(answers["mass_other"])]
    )
    wanted = np.exp(logits / temperature)
    wanted /= wanted.sum(axis=1, keepdims=True)
    found = at_temperature(answers, temperature, 0.3)[SHOWN].to_numpy(float)
    np.testing.assert_allclose(
        np.column_stack([np.exp(found[:, :3]), found[:, 3]]), wanted, atol=1e-4
    )


def test_many_tokens_that_share_no_letter_fade_as_they_should():
    """No letter as a thousand equal tokens: exact at both recorded temperatures, near between."""

    def recorded(temperature):
        logits = np.r_[2.0, 1.0, 0.5, np.full(1000, -4.0)] / temperature
        p = np.exp(logits) / np.exp(logits).sum()
        return [*np.log(p[:3]), p[3:].sum()]

    names = [f"logp_{x}" for x in LETTERS] + ["mass_other"]
    row = dict(zip(names, recorded(1.0), strict=True)) | dict(
        zip([f"{n}_t" for n in names], recorded(0.3), strict=True)
    )
    answers = pd.DataFrame([row])
    for temperature in (0.3, 0.4, 0.6, 0.8, 1.0):
        found = at_temperature(answers, temperature, 0.3)[SHOWN].to_numpy(float)[0]
        wanted = recorded(temperature)
        assert found[3] == pytest.approx(wanted[3], abs=1e-6)  # equal tokens: a line as well
        assert np.exp(found[:3]) == pytest.approx(np.exp(wanted[:3]), abs=1e-6)
    # A single token's mass of this size would hardly have faded.
    assert recorded(0.3)[3] < row["mass_other"] ** (1 / 0.3) * 10


def test_at_zero_the_likeliest_answer_has_it_all():
    answers = simulate_respondents("noise", templates=6, items_per_template=8, temperature=0.3)
    found = at_temperature(answers, 0.0, 0.3)
    p = np.exp(found[[f"logp_{x}_t" for x in LETTERS]].to_numpy(float))
    assert (p.max(axis=1) == 1).all()
    best = answers[[f"logp_{x}" for x in LETTERS]].to_numpy().argmax(axis=1)
    assert (p.argmax(axis=1) == best).all()
    cold = by_temperature(answers, 0.3, [0.0]).set_index(["precision", "measure"])["estimate"]
    assert cold["q3", "became_biased_placebo"] == 0


def test_it_is_what_the_model_itself_says_at_other_temperatures(mistral):
    """Asked at 1 and 0.3, and again at others: the whole vocabulary decides there."""
    loaded, items = load_model(str(mistral)), load_items("bundled").head(24)
    answers = score_letters(loaded, items, "cyclic", temperature=0.3)
    for temperature, bound in ((0.1, 0.02), (0.2, 0.01), (0.5, 0.01), (0.7, 0.01)):
        wanted = score_letters(loaded, items, "cyclic", temperature=temperature)
        found = at_temperature(answers, temperature, 0.3)
        for name in SHOWN:
            p = [f[name] if name == "mass_other_t" else np.exp(f[name]) for f in (found, wanted)]
            assert np.abs(p[0] - p[1]).max() < bound, (temperature, name)


@pytest.mark.parametrize("orders", ["original", "cyclic"])
def test_at_the_study_s_temperature_the_numbers_are_those_of_the_other_pages(orders):
    """Rates and placebo as every other page computes them, table by table."""
    options = {"precisions": ["bf16", "q4", "q3"], "replicates": 2, "orders": orders}
    answers = simulate_respondents("mixed", templates=9, items_per_template=8, **options)
    found = by_temperature(answers, 0.3, [0.3, 1.0], method="jackknife").query("temperature == 0.3")
    on = ["model", "precision", "measure"]
    for theirs in (role_rates(answers, method="jackknife"), placebo(answers, method="jackknife")):
        both = found.merge(theirs, on=on, suffixes=("", "_theirs"))
        assert both.groupby("measure").size().isin([4, 6]).all() and len(both) >= 12
        for name in ("estimate", "low", "high"):
            np.testing.assert_allclose(both[name], both[f"{name}_theirs"], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1.5, 0.3), "temperature: 1.5 is not between 0 and 1"), ((0.5, 1.0), "recorded: 1.0")],
)
def test_bad_temperatures_are_named(arguments, message):
    answers = simulate_respondents("none", templates=2, items_per_template=4)
    with pytest.raises(ValueError, match=message):
        at_temperature(answers, *arguments)


@pytest.fixture
def real(monkeypatch):
    study = study_of("none", templates=8)
    monkeypatch.setattr(chapter, "records", lambda: type("Records", (), {"study": study}))


def test_a_rise_is_read_at_every_temperature_and_noise_is_not_a_rise_at_zero(real):
    page = Chapter(study_of("bias", templates=30, effect=2.0))
    assert "read alike at every temperature" in page.text("answer")
    assert all(one["above"] == [f"{t:g}" for t in page.temperatures] for one in page.changed)
    figure, alt, data = page.figure_heat()
    assert (
        len(figure.axes) == 3
        and len(alt) == 3
        and set(data["temperature"]) == set(page.temperatures)
    )
    still = Chapter(study_of("none", templates=30))
    assert all(one["zero"]["estimate"] == 0 and not one["above"] for one in still.changed)


def test_every_page_says_at_which_temperature_it_stands(real):
    page = Chapter(study_of("none", templates=6))
    assert "placebos at 0.3, that of the study" in page.text("foot")
    draws = Chapter(without_probabilities(study_of("none", templates=6)))
    assert "that at which the answers were drawn" in draws.text("foot")
    assert "not the temperature they were recorded at" in draws.text("answer")
