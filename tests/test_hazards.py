"""The tables of known hazards: they are what the code gives, and their comparisons hold."""

from cba_utils.instrument import hazards

import mlx.core as mx
import numpy as np
import pandas as pd
import pytest


def test_the_numpy_network_is_mlx_lms_with_its_own_factors():
    """With the same factors the two agree, so what differs with others is the factors' doing."""
    found = hazards.rope_factors(checkpoints=1, items=4)
    assert len(found) == 4 and (found["agreement"] < 5e-3).all()
    assert (found["nats"] > 0.1).all()
    shipped = pd.read_csv(hazards.OUT / "rope_factors.csv")
    assert (shipped["agreement"] < 5e-3).all()
    assert set(shipped.columns) == set(found.columns)


@pytest.mark.parametrize("name", ["seeds", "seed_draws", "system_role"])
def test_shipped_tables_are_what_the_code_gives(name):
    pd.testing.assert_frame_equal(
        pd.read_csv(hazards.OUT / f"{name}.csv"), hazards.TABLES[name](), check_dtype=False
    )


def test_five_seeds_are_five_numbers_whatever_the_item():
    """Independent route: mlx's own sampler after the seed, on letters of known probability."""
    chances = hazards._chances(20, 1.0)
    for seed, uniform in hazards._published_uniforms().items():
        ours = hazards._letters(chances, np.array([uniform]))[:, 0]
        for row, letter in zip(chances, ours, strict=True):
            mx.random.seed(seed)
            assert mx.random.categorical(mx.log(mx.array(row[None]))).item() == letter


def test_items_without_a_target_move_the_rates_by_their_letters():
    found = hazards.undefined_targets(truths=["letter"], shares=[0.05]).set_index(
        ["measure", "precision"]
    )
    answers = hazards.simulate_respondents("letter", 40, 100, ("bf16", "q3"), orders="original")
    samples = hazards.draw_samples(answers[answers["context_condition"] == "ambig"])
    names = samples["item_id"].drop_duplicates().to_numpy()
    some = set(names[np.random.default_rng(0).permutation(len(names))[: round(0.05 * len(names))]])
    for precision, part in samples.groupby("precision"):
        hit = np.where(
            part["item_id"].isin(some), part["parsed_answer"] == "C", part["role"] == "stereotyped"
        )
        assert found.loc[("srs", precision), "letter_c"] == pytest.approx(hit.mean(), abs=1e-5)
        rest = part[~part["item_id"].isin(some)]
        assert found.loc[("srs", precision), "left_out"] == pytest.approx(
            (rest["role"] == "stereotyped").mean(), abs=1e-5
        )


def test_all_tables_are_written_by_one_command(tmp_path, monkeypatch):
    made = {name: (lambda name=name: pd.DataFrame({"of": [name]})) for name in hazards.TABLES}
    monkeypatch.setattr(hazards, "TABLES", made)
    hazards.main(["--out", str(tmp_path)])
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(made)
