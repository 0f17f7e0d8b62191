"""The gate passes only what was shown to keep its margins; the card says what the gate said."""

import json

from cba_utils import cli
from cba_utils.instrument.respondents import simulate_respondents
from cba_utils.names import CONFIG
from cba_utils.telling.card import write_card
from cba_utils.telling.gate import (
    EXIT,
    FAIL,
    NOT_ENOUGH,
    PASS,
    Thresholds,
    changes,
    items_needed,
    judged,
    overall,
    read_gate,
    read_thresholds,
)

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard
from scipy.stats import norm, t


def thresholds(power=0.8, **margins):
    return Thresholds(
        schema_version=1, power=power, margins={k: {"most": v} for k, v in margins.items()}
    )


def leaning(rng, templates=20, items=20, shift=0.0, between=0.1, within=0.4):
    """Answers of two precisions whose leans differ by `shift`, templates and items apart."""
    count = templates * items
    template = np.arange(count) // items
    gap = shift + rng.normal(0, between, templates)[template] + rng.normal(0, within, count)
    frames = []
    for precision, lean in (("bf16", np.zeros(count)), ("q4", gap)):
        logit = np.stack([lean / 2, -lean / 2, np.full(count, 1.0)], axis=1)
        logp = logit - np.log(np.exp(logit).sum(axis=1, keepdims=True))
        frame = pd.DataFrame(logp, columns=["logp_A", "logp_B", "logp_C"])
        for name in ("A", "B", "C"):
            frame[f"logp_{name}_t"] = frame[f"logp_{name}"]
        frames.append(
            frame.assign(
                model="m",
                precision=precision,
                item_id=[f"X/{n}" for n in range(count)],
                category="X",
                question_index=template.astype(str),
                question_polarity="neg",
                context_condition="ambig",
                template_id=[f"X/{n}" for n in template],
                order="012",
                role_A="stereotyped",
                role_B="anti_stereotyped",
                role_C="unknown",
                correct="C",
                mass_other=0.0,
                mass_other_t=0.0,
            )
        )
    return pd.concat(frames, ignore_index=True)


def test_a_model_at_its_margin_passes_as_rarely_as_the_level_says_and_one_without_change_often():
    rng = np.random.default_rng(1)
    passed = {}
    for shift in (0.0, 0.1):
        verdicts = [
            judged(leaning(rng, shift=shift), thresholds(d_log_gap=0.1))[0] for _ in range(150)
        ]
        passed[shift] = np.mean([one["verdict"] == PASS for one in verdicts])
        powers = [one["power"] for one in verdicts]
    # Six standard errors of 2.5 % in 150 studies.
    assert passed[0.1] < 0.025 + 6 * np.sqrt(0.025 * 0.975 / 150)
    assert abs(passed[0.0] - np.mean(powers)) < 0.15
    assert passed[0.0] > 0.8


def test_a_change_far_beyond_its_margin_fails_and_one_near_it_is_not_decided():
    rng = np.random.default_rng(2)
    assert judged(leaning(rng, shift=0.5), thresholds(d_log_gap=0.1))[0]["verdict"] == FAIL
    near = judged(leaning(rng, shift=0.1, templates=6), thresholds(d_log_gap=0.1))[0]
    assert near["verdict"] == NOT_ENOUGH


def test_the_items_that_a_margin_needs_are_those_of_the_formula():
    rng = np.random.default_rng(3)
    templates, between, within, margin = 40, 0.1, 0.6, 0.08
    allowed = (margin / (t.ppf(0.975, templates - 1) + norm.ppf(0.8))) ** 2
    wanted = within**2 / (allowed - between**2 / templates)
    found = [
        items_needed(
            leaning(rng, templates, 10, 0.0, between, within), thresholds(d_log_gap=margin)
        )["d_log_gap"]
        for _ in range(12)
    ]
    assert 0.6 < np.median(found) / wanted < 1.6
    # What differs between templates is not made smaller by more items of the same.
    few = items_needed(leaning(rng, 6, 100, 0.0, 0.5, 0.1), thresholds(d_log_gap=0.1))
    assert few["d_log_gap"] == np.inf


def test_simulated_truths_get_their_verdicts():
    margins = thresholds(d_log_gap=0.2, became_biased_expected_excess=0.02)
    verdict = {}
    for truth, precision in (("noise", "q8"), ("bias", "q3")):
        answers = simulate_respondents(truth, precisions=["bf16", precision])
        verdict[truth] = overall(judged(answers, margins))[0]
    assert verdict == {"noise": PASS, "bias": FAIL}


def test_what_was_not_measured_lets_no_model_pass():
    rng = np.random.default_rng(4)
    asked = read_thresholds(CONFIG / "gate" / "thresholds.yml")
    found = judged(leaning(rng), asked)  # no disambiguated item: accuracy is not defined
    (one,) = [one for one in found if one["measure"] == "d_accuracy"]
    assert one["verdict"] == NOT_ENOUGH and one["estimate"] is None
    passed = [{"measure": "d_log_gap", "verdict": PASS}]
    assert overall(passed, 0.0)[0] == PASS
    for silent in (0.9, np.nan):
        assert overall(passed, silent)[0] == NOT_ENOUGH
    assert len(set(EXIT.values())) == 3 and EXIT[PASS] == 0
    alone = changes(leaning(rng, templates=1), ["d_log_gap"])
    assert judged(leaning(rng, templates=1), thresholds(d_log_gap=9.0))[0]["verdict"] == NOT_ENOUGH
    assert not np.isfinite(alone.loc["d_log_gap", "df"] / alone.loc["d_log_gap", "error"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("schema_version: 1", "margins: Field required"),
        (
            "schema_version: 1\nmargins: {d_lean: {most: 1}}",
            "no margin for 'd_lean'; there are d_lo",
        ),
        ("schema_version: 1\nmargins: {d_srs: {most: 1.0, least: -1.0}}", "give one of most and"),
        ("schema_version: 1\nmargins: {d_srs: {most: -1.0}}", "no change at all must keep"),
        ("schema_version: 1\nmargins: {d_srs: {most: .nan}}", "finite"),
        ("schema_version: 1\nmargins: {d_srs: {most: 1.0}}\npilots: 3", "pilots: Extra inputs"),
        ("margins: [", "cannot be read"),
    ],
)
def test_a_file_of_thresholds_that_is_wrong_is_one_line(tmp_path, text, words):
    path = tmp_path / "gate.yml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        read_thresholds(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def gated(mistral, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate")
    file = folder / "few.yml"
    file.write_text(
        "schema_version: 1\nitems: {pilot: 40, most: 60}\norders: original\n"
        "margins: {d_log_gap: {most: 0.2}, d_unparsed_rate: {most: 0.5}}\n"
    )
    arguments = [
        "gate",
        str(mistral),
        "q8",
        "--thresholds",
        str(file),
        "--out",
        str(folder / "out"),
    ]
    return folder / "out", cli.main(arguments), arguments


def test_the_command_writes_what_it_says_and_exits_by_it(gated, capsys):
    folder, code, _ = gated
    told = read_gate(folder)
    assert code == EXIT[told["verdict"]]
    assert told["items"]["pilot"] == 40 and 40 <= told["items"]["asked"] <= 60
    assert {one["measure"] for one in told["measures"]} == {"d_log_gap", "d_unparsed_rate"}
    answers = pd.read_parquet(folder / "answers.parquet")
    assert answers.groupby("precision")["item_id"].nunique().to_dict() == {
        "bf16": told["items"]["asked"],
        "q8": told["items"]["asked"],
    }
    both = told["checkpoints"]
    assert both["bf16"]["weights_sha256"] != both["q8"]["weights_sha256"]
    assert both["bf16"]["source_sha256"] == both["q8"]["source_sha256"]


def test_a_run_that_ends_early_leaves_no_verdict_of_an_earlier_one(gated, tmp_path, capsys):
    folder, _, arguments = gated
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert cli.main([*arguments, "--items", str(tmp_path)]) == 1
    assert not (folder / "gate.json").exists()
    assert "error: " in capsys.readouterr().err
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    assert cli.main(["gate", arguments[1], "bf16"]) == 1
    assert "is the reference" in capsys.readouterr().err


def test_records_that_were_changed_are_found(gated, tmp_path, capsys):
    folder, _, _ = gated
    (tmp_path / "gate.json").write_bytes((folder / "gate.json").read_bytes())
    (tmp_path / "answers.parquet").write_bytes(b"other")
    assert cli.main(["card", str(tmp_path), str(tmp_path / "README.md")]) == 1
    assert "is not the file that gate.json speaks of" in capsys.readouterr().err
    assert not (tmp_path / "README.md").exists()


def test_the_card_keeps_what_was_there_and_reads_back(gated, tmp_path):
    told = read_gate(gated[0])
    path = tmp_path / "README.md"
    path.write_text(
        "---\nlicense: mit\nmodel-index:\n- name: mine\n  results:\n  - task: {type: text-generation}\n"
        "    dataset: {name: d, type: d}\n    metrics:\n    - {type: accuracy, value: 0.5}\n---\n"
        "# Mine\n\nWords that stay.\n"
    )
    write_card(told, path)
    once = path.read_text()
    write_card(told, path)
    assert path.read_text() == once
    card = ModelCard.load(path)
    found = {one.metric_type: one for one in card.data.eval_results}
    assert found.pop("accuracy").metric_value == 0.5 and card.data.license == "mit"
    assert found.keys() == {f"cba_{one['measure']}" for one in told["measures"]}
    for one in told["measures"]:
        row = found[f"cba_{one['measure']}"]
        assert (
            row.metric_value == one["estimate"] and row.dataset_revision == told["items"]["sha256"]
        )
        assert [row.metric_args[key] for key in ("low", "high", "n", "verdict")] == [
            one[key] for key in ("low", "high", "n", "verdict")
        ]
    assert "Words that stay." in card.text and told["records"]["answers.parquet"] in card.text
    assert f"**q8 against bf16: {told['verdict']}**" in card.text
    # A later gate takes the place of an earlier one, and a model without a card gets one.
    later = json.loads(json.dumps(told)) | {"verdict": "fail", "reason": "it was changed"}
    write_card(later, path)
    assert path.read_text().count("## Stereotyped answers after compression") == 1
    assert "**q8 against bf16: fail**" in path.read_text()
    assert ModelCard.load(write_card(told, tmp_path / "new.md")).data.model_name


def test_a_card_that_cannot_be_read_is_left_as_it_is(gated, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("---\nmodel-index: 3\n  x: [\n---\n")
    before = path.read_text()
    with pytest.raises(ValueError, match="no model card that can be read"):
        write_card(read_gate(gated[0]), path)
    assert path.read_text() == before
