"""Simulated studies: each truth does what its name says, and is judged as the pages judge."""

from cba_utils.instrument import verdicts
from cba_utils.instrument.truths import AMBIGUOUS, TRUTHS, simulate, simulated
from cba_utils.measures import controls, rates
from cba_utils.measures.pooling import over_models, over_replicates
from cba_utils.measures.tests import equivalence
from cba_utils.measures.transitions import placebo, transitions
from cba_utils.study.roles import role_probabilities

import numpy as np
import pandas as pd
import pytest


def quiet(truth, **options):
    """Studies that rounding does nothing to but what the truth says."""
    return simulate(truth, True, "single", 3, templates=20, shaken=False, **options)


def log_odds(p, one, other):
    return np.log(p[..., one] / p[..., other])


@pytest.mark.parametrize("factor", ["0.86", "0.33"])
def test_shrunk_margins_are_the_old_ones_times_the_factor(factor):
    s = quiet(f"margins × {factor}")
    for pair in ((2, 0), (0, 1)):
        assert log_odds(s.p, *pair) == pytest.approx(
            float(factor) * log_odds(s.p_ref, *pair), abs=1e-5
        )


def test_unknown_lost_takes_as_much_from_both_persons_side():
    s = quiet("unknown lost")
    assert log_odds(s.p, 0, 1) == pytest.approx(log_odds(s.p_ref, 0, 1), abs=1e-5)
    assert log_odds(s.p, 2, 0) == pytest.approx(log_odds(s.p_ref, 2, 0) - 1, abs=1e-5)


def test_guessing_mixes_answers_with_an_even_choice_of_letters():
    s = quiet("guessing")
    letters = s.p_ref[..., :3].sum(-1, keepdims=True)
    mixed = 0.8 * s.p_ref[..., :3] + 0.2 * letters / 3
    assert s.p[..., :3] == pytest.approx(mixed, abs=1e-6)


def test_a_letter_that_drifts_moves_the_roles_that_stand_there():
    s = quiet("letter drift")
    moved = np.log(s.p[..., :3]) - np.log(s.p_ref[..., :3])
    at_c = s.letter[:, None] == 2
    gain = (moved * at_c).sum(-1) - (moved * ~at_c).sum(-1) / 2
    assert gain == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("by", [0.3, 0.8])
def test_a_rise_raises_the_odds_of_the_stereotyped_person_alone(by):
    s = simulate(f"rise {by}", design="single", studies=40, shaken=False)
    assert log_odds(s.p, 2, 1) == pytest.approx(log_odds(s.p_ref, 2, 1), abs=1e-5)
    risen = log_odds(s.p, 0, 1) - log_odds(s.p_ref, 0, 1)
    assert np.ptp(risen, axis=(3, 4)).max() < 1e-5, "a template's effect is one of its items"
    assert risen.mean() == pytest.approx(by, rel=0.05)


def test_one_category_rises_and_no_other():
    s = quiet("one category + 1")
    risen = (log_odds(s.p, 0, 1) - log_odds(s.p_ref, 0, 1)).mean(axis=(0, 1, 3, 4))
    assert risen == pytest.approx(1.0 * (s.category == 0), abs=1e-5)


def test_halves_move_against_each_other_and_keep_what_their_name_says():
    odds = quiet("halves, odds flat")
    risen = (log_odds(odds.p, 0, 1) - log_odds(odds.p_ref, 0, 1)).mean(axis=(0, 1, 3, 4))
    assert risen == pytest.approx(np.where(odds.group % 2, 0.5, -0.5), abs=1e-5)
    rate = quiet("halves, rate flat")
    srs = [t[..., :AMBIGUOUS, :, 0].mean(axis=(1, 2, 3, 4)) for t in (rate.t_ref, rate.t)]
    # Letters are liked a little, which the rate is kept without.
    assert srs[1] == pytest.approx(srs[0], rel=0.15)
    moved = (log_odds(rate.p, 0, 1) - log_odds(rate.p_ref, 0, 1)).mean(axis=(0, 1, 3, 4))
    assert (moved[rate.group % 2 == 0] < -0.9).all() and (moved[rate.group % 2 == 1] > 0).all()


def test_retrained_and_noise_move_answers_and_nothing_on_average():
    for truth in ("retrained", "noise", "uneven families"):
        s = simulate(truth, True, "bases", 8)
        moved = log_odds(s.p, 0, 1) - log_odds(s.p_ref, 0, 1)
        assert moved.std() > 0.2
        by_base = moved.mean(axis=(2, 3, 4)).reshape(8, 9, 5).mean(-1)
        assert abs(by_base.mean()) < 4 * by_base.std() / np.sqrt(by_base.size), truth
    spread = by_base.reshape(8, 3, 3).std(axis=(0, 2))
    assert spread[0] > 3 * spread[1] and spread[0] > 5 * spread[2]


def test_families_share_what_is_special_about_a_template():
    s = simulate("nothing", studies=200, design="single", templates=10)
    gap = log_odds(s.p_ref, 0, 1)[..., :AMBIGUOUS, :].mean(axis=(-1, -2))
    gap = gap - gap.mean(axis=2, keepdims=True)
    together = np.mean(
        [
            np.corrcoef(gap[:, a].ravel(), gap[:, b].ravel())[0, 1]
            for a, b in ((0, 1), (0, 2), (1, 2))
        ]
    )
    # 0.6 of the templates' and the items' own, a training's own and what is named first apart.
    assert 0.4 < together < 0.6
    same = simulated(TRUTHS["noise"], False, (3, 1, 1), 2, seed=4)
    again = simulated(TRUTHS["noise"], False, (3, 2, 1), 2, seed=4)
    assert (same.letter == again.letter).all(), "further trainings are asked the same items"


# The same as the pages


@pytest.fixture(scope="module")
def study():
    s = simulate("margins × 0.33", True, "single", 1, templates=10)
    return s, s.answers(0)


def test_records_of_a_study_hold_its_probabilities(study):
    s, answers = study
    found = role_probabilities(answers[answers["precision"] == "q3"])
    mine = s.p[0].mean(axis=-2).reshape(-1, 4)
    names = ["p_stereotyped", "p_anti_stereotyped", "p_unknown", "p_other"]
    assert found[names].to_numpy() == pytest.approx(mine, abs=1e-5)
    right = found["p_correct"].to_numpy()
    assert right == pytest.approx(mine[np.arange(len(mine)), np.tile(s.right, 30)], abs=1e-5)


def pages(answers):
    """What the pages' own functions give each checkpoint."""
    leans = controls.lean(answers)
    return {
        "lean": leans[(leans["measure"] == "log_gap") & (leans["precision"] == "bf16")],
        "d_log_gap": leans,
        "excess": placebo(answers),
        "mirror": placebo(answers),
        "expected_share": controls.own_odds(answers),
        "own_odds": controls.own_odds(answers),
        "direction": controls.direction(answers),
        "beyond_guessing": controls.matched_skill(answers),
        "d_letter_B": controls.position(answers),
        "d_lead": controls.position(answers),
        "d_s_dis": rates.paired_differences(answers),
    }


def test_a_verdict_is_read_from_what_the_pages_compute(study):
    s, answers = study
    # The resamples of a bootstrap are drawn in the order of the templates' names.
    order = np.argsort(answers["template_id"].unique())
    tables = {
        name: {k: v[..., order] for k, v in table.items()}
        for name, table in verdicts.totals(s).items()
    }
    judged = verdicts.Judged(s, "three", tables)
    for name, frame in pages(answers).items():
        one = verdicts.ESTIMATES[name].measure.name
        frame = frame[frame["measure"] == one].sort_values("replicate")
        estimate, n = judged.values(name)
        low, high = judged._over_templates(name, 0.95, None)
        for mine, column in ((estimate, "estimate"), (low, "low"), (high, "high")):
            # A resample that equals the estimate but for rounding counts on either side of it.
            near = pytest.approx(frame[column].to_numpy(), rel=0.02, abs=1e-3, nan_ok=True)
            assert mine[0] == near, name
        pooled, mine = over_models(frame).iloc[0], judged.rows(name)
        for column in ("estimate", "low", "high"):
            assert mine[column][0] == pytest.approx(
                pooled[column], rel=0.02, abs=1e-3, nan_ok=True
            ), name
    same = equivalence(answers).sort_values("replicate")
    low, high = judged._over_templates("d_srs", 0.9, None)
    assert [low[0], high[0]] == [
        pytest.approx(same[end].to_numpy(), abs=1e-6) for end in ("low", "high")
    ]
    sides = [
        judged._over_templates(x, 0.9, None)[0] for x in ("above_least_ratio", "below_most_ratio")
    ]
    assert ((np.array(sides) > 0).all(axis=0)[0] == same["equivalent_ratio"]).all()


def test_drawn_verdicts_are_read_from_what_the_pages_compute(study):
    s, answers = study
    rng = np.random.default_rng(5)
    t = np.stack([s.t_ref[0, 0, :, :AMBIGUOUS, 0], s.t[0, 0, :, :AMBIGUOUS, 0]])
    uniform = rng.random((*t.shape[:-1], 5))
    roles = (uniform[..., None] > t[..., None, :3].cumsum(-1)).sum(-1)
    one = answers[(answers["model"] == answers["model"].iloc[0]) & (answers["order"] == "012")]
    one = one[one["context_condition"] == "ambig"]
    names = np.array(["stereotyped", "anti_stereotyped", "unknown", "unparsed"])
    samples = pd.concat(
        [one.assign(seed=k, role=names[roles[..., k].ravel()], correct=False) for k in range(5)]
    ).drop(columns=[c for c in one if c.startswith(("logp_", "mass_", "role_"))])
    drawn = verdicts.totals_of_draws(roles[1][None, None], roles[0][None, None])
    order = np.argsort(answers["template_id"].unique())
    tables = {n: {k: v[..., order] for k, v in table.items()} for n, table in drawn.items()}
    judged = verdicts.Judged(s, "three", tables)
    odds, moves = controls.own_odds(samples), transitions(samples)
    for name, frame in {
        "share_before_drawn": odds[odds["precision"] == "bf16"],
        "share_drawn": odds,
        "expected_share_drawn": odds,
        "own_odds_drawn": odds,
        "direction_drawn": controls.direction(samples),
        "mirror_drawn": moves,
    }.items():
        row = frame[frame["measure"] == verdicts.ESTIMATES[name].measure.name].iloc[0]
        mine = judged.values(name)[0][0, 0], *np.ravel(judged._over_templates(name, 0.95, None))
        assert mine == pytest.approx(
            row[["estimate", "low", "high"]].tolist(), abs=1e-3, nan_ok=True
        ), name


def test_bases_are_pooled_as_the_pages_pool_them():
    s = simulate("retrained", True, "bases", 2)
    judged = verdicts.Judged(s, "bases", verdicts.totals(s))
    for name in ("d_log_gap", "direction"):
        estimate, n = judged.values(name)
        for k in range(2):
            frame = pd.DataFrame(
                {
                    "model": np.arange(45),
                    "family": s.family,
                    "base": s.base,
                    "replicate": 1,
                    "measure": verdicts.ESTIMATES[name].measure.name,
                    "estimate": estimate[k],
                    "low": np.nan,
                    "high": np.nan,
                    "n": n[k],
                }
            )
            for level in (0.95, 0.9):
                page = over_replicates(frame, ["family"], level).iloc[0]
                mine = judged.rows(name, level)
                for end in ("estimate", "low", "high"):
                    assert mine[end][k] == pytest.approx(page[end], abs=1e-5), name
