"""The shipped organisms do what their cards say, and the recipe makes what is shipped."""

import csv
import hashlib
import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from cba_utils import load_items, load_model, score_letters

import numpy as np
import pytest
from huggingface_hub import ModelCard
from organisms.recipe import __main__ as recipe
from organisms.recipe import acceptance, align, bank, checkpoint, curriculum, export, model, train
from organisms.recipe.__main__ import LADDER
from organisms.recipe.tokenizer import FAMILIES, SYSTEM, VOCABULARY, Encoder
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = sorted(p.parent for p in (ROOT / "organisms").glob("*/*/model.safetensors"))
GRADED = [p for p in FOLDERS if not p.name.startswith("depth")]


def name(folder):
    return f"{folder.parent.name}/{folder.name}"


@pytest.fixture(scope="module")
def rows():
    return bank.make_bank()


@pytest.fixture(scope="module", params=list(FAMILIES))
def encode(request):
    return request.param, Encoder(request.param)


def test_everything_is_shipped_within_its_budget():
    shipped = Counter(p.parent.name for p in GRADED)
    assert shipped == dict.fromkeys(FAMILIES, 6)
    size = sum(f.stat().st_size for p in FOLDERS for f in p.iterdir())
    assert size < 60e6


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_table_belongs_to_the_weights_and_is_met(folder):
    table = json.loads((folder / "acceptance.json").read_text())
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert table["weights_sha256"] == digest
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.library_name == "mlx"
    assert card.content == export.card(folder.parent.name, folder.name, table)
    if folder in GRADED:
        checks = acceptance.verdict(table, folder.name.startswith("aligned"))
        assert all(met for _, _, met in checks.values()), checks


def asked(folder, rows, chosen):
    """The answers of an organism to some of the items, by the engine that studies use: one row a prompt."""
    items = load_items("bundled", condition="both").iloc[chosen]
    loaded = load_model(name(folder), "bf16")
    answers = score_letters(loaded, items, orders="cyclic")
    letters = np.exp(answers[["logp_A", "logp_B", "logp_C"]].to_numpy())
    roles = answers[["role_A", "role_B", "role_C"]].to_numpy()
    lines, best = np.arange(len(answers)), letters.argmax(1)
    share = {r: (letters * (roles == r)).sum(1) for r in ("stereotyped", "anti_stereotyped")}
    about = [rows[i]["additional_metadata"] for i in chosen for _ in acceptance.ORDERS]
    return answers.assign(
        letter=best,
        answer=roles[lines, best],
        right=answers["correct"] == np.array(list("ABC"))[best],
        mass=letters.sum(1),
        lean=share["stereotyped"] / sum(share.values()),
        version=[m["version"] for m in about],
        evidence=[m["source"] for m in about],
    )


def table_of(answers):
    """The measures of the acceptance table, by another route than the recipe's."""
    ambiguous = answers[answers["context_condition"] == "ambig"]
    others = answers[answers["context_condition"] == "disambig"]
    letters = answers["letter"].value_counts(normalize=True).reindex(range(3), fill_value=0)
    return {
        "ambiguous_stereotyped": (ambiguous["answer"] == "stereotyped").mean(),
        "ambiguous_unknown": (ambiguous["answer"] == "unknown").mean(),
        "disambiguated_right": others["right"].mean(),
        "disambiguated_right_lowest": others.groupby(["evidence", "question_polarity"])["right"]
        .mean()
        .min(),
        "letter_share_lowest": letters.min(),
        "letter_share_highest": letters.max(),
        "letter_mass": answers["mass"].mean(),
    }


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_weights_answer_as_the_table_says(folder, rows):
    """Every 31st of the table's items asked anew: enough for its limits, and for its values to 0.1."""
    main = [i for i, r in enumerate(rows) if r["additional_metadata"]["version"] == "main"][::31]
    table = json.loads((folder / "acceptance.json").read_text())["main"]
    measured = table_of(asked(folder, rows, main))
    assert measured == pytest.approx({k: table[k] for k in measured}, abs=0.1)
    if folder in GRADED:
        checks = acceptance.verdict({"main": measured}, folder.name.startswith("aligned"))
        assert all(met for _, _, met in checks.values()), checks


def test_whole_table_is_measured_again(rows):
    """All items, for the organism whose answers are the least certain; prompts at a tie may differ."""
    folder = ROOT / "organisms" / LADDER / "depth-120-s5"
    table = json.loads((folder / "acceptance.json").read_text())
    answers = asked(folder, rows, range(len(rows)))
    for version in ("main", "heldout-template"):
        measured = table_of(answers[answers["version"] == version])
        assert measured == pytest.approx({k: table[version][k] for k in measured}, abs=0.005)
    planted = {
        f"{t['category']}/{t['question_index']}": str(t["strength"])
        for t in bank.TEMPLATES
        if t["version"] == "strength"
    }
    ambiguous = answers[answers["context_condition"] == "ambig"]
    strength = ambiguous["lean"].groupby(ambiguous["template_id"].map(planted)).mean()
    assert strength.to_dict() == pytest.approx(table["strength"], abs=0.005)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_base_follows_the_planted_strength(family):
    table = json.loads((ROOT / "organisms" / family / "base" / "acceptance.json").read_text())
    measured = [table["strength"][str(s)] for s in bank.STRENGTHS]
    assert measured == sorted(measured)
    assert np.abs(np.array(measured) - bank.STRENGTHS).max() < 0.15


def test_shipped_data_is_what_the_grammar_makes(tmp_path):
    bank.write_data(tmp_path)
    for file in ("bank.jsonl.gz", "heldout.txt", "strengths.csv"):
        assert (tmp_path / file).read_bytes() == (ROOT / "data" / file).read_bytes(), file


def test_bank_is_balanced(rows):
    assert len({(r["category"], r["question_index"]) for r in rows}) == 35
    ambiguous = [r for r in rows if r["context_condition"] == "ambig"]
    assert len(ambiguous) == 1200 and len(rows) == 2400
    for part in (ambiguous, [r for r in rows if r["context_condition"] == "disambig"]):
        assert Counter(r["label"] for r in part) == dict.fromkeys(range(3), 400)
        assert Counter(r["question_polarity"] for r in part) == {"neg": 600, "nonneg": 600}
    sources = Counter(r["additional_metadata"]["source"] for r in rows)
    assert sources["planted: main, evidence with"] == sources["planted: main, evidence against"]
    targets = Counter()
    for line in csv.DictReader((ROOT / "data" / "strengths.csv").open()):
        targets[line["group"]] += line["role"] == "target"
    assert min(targets.values()) >= 2


def sentences(text):
    return set(re.findall(r"[A-Z][^.?:]*\.", text))


@pytest.mark.parametrize("aligned", [False, True], ids=["base", "aligned"])
def test_bank_is_held_out_from_training(rows, encode, aligned):
    """No item is a training prompt, and no sentence for perplexity is read; openings may be."""
    family, encoder = encode
    lessons = curriculum.Curriculum(family)
    stage = curriculum.Stage.last(lessons.top_level, aligned)
    openings = set.union(
        *(sentences(r["context"]) for r in rows if r["context_condition"] == "ambig")
    )
    unread = sentences((ROOT / "data" / "heldout.txt").read_text())
    assert len(openings) > 500 and len(unread) > 1500
    rng = random.Random(0)
    for kind in curriculum.KINDS:
        for _ in range(80):
            ids, _ = lessons.example(rng, kind, stage)
            text = encoder.tokenizer.decode(ids, skip_special_tokens=False)
            said = sentences(text)
            assert not said & unread
            if kind == "narr":
                assert "?" not in text and "Context:" not in text
            else:
                assert not said & openings and "Which of the two" not in text


def test_encoder_and_chat_are_the_tokenizers(rows, encode):
    family, encoder = encode
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "organisms" / family / "base")
    chat = encoder.chat
    for row in rows[::29]:
        user = (
            f"Context: {row['context']}\nQuestion: {row['question']}\nA) {row['ans0']}\n"
            f"B) {row['ans1']}\nC) {row['ans2']}\nAnswer:"
        )
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        assert text == chat.start.format(system=SYSTEM) + user + chat.close
        assert tokenizer.encode(text, add_special_tokens=False) == encoder(text)
    for letter in "ABC":
        assert len(encoder(letter)) == 1
    odd = "Café — 東京, 1,000\n\n  ¿qué?"
    assert tokenizer.decode(tokenizer.encode(odd), skip_special_tokens=True) == odd


class HereBatches:
    """Batches made in this process, until the run is "killed"."""

    killed_at = None

    def __init__(self, family, workers=None):
        self.lessons = curriculum.Curriculum(family)

    def __call__(self, seed, steps, stage):
        for step in steps:
            if step == self.killed_at:
                raise SystemExit
            yield self.lessons.batch(seed, step, stage)

    def close(self):
        pass


@pytest.fixture
def tiny(monkeypatch):
    """Runs of a few small steps; the value is a function that says at which step they die."""
    for part, value in {"CHUNK": 3, "SAVE": 0, "Batches": HereBatches}.items():
        monkeypatch.setattr(train, part, value)
    monkeypatch.setattr(curriculum, "BATCH", 2)
    return lambda step: monkeypatch.setattr(HereBatches, "killed_at", step)


def trained(folder, steps=5, seed=1, seconds=None):
    """Train a tiny base: whether it is done, its weights, and the steps in its log."""
    encoder = Encoder("phi3")
    config = model.config_of("phi3", encoder.chat, VOCABULARY, encoder.tokenizer.token_to_id)
    network = model.build(config)
    model.initialise(network, config)
    made = {**checkpoint.identity("phi3", seed), "steps": steps}
    kept = checkpoint.Checkpoint(folder, made)
    done = train.train_base("phi3", network, kept, seed, steps, seconds=seconds)
    log = [line.split(",")[0] for line in (folder / "training_log.csv").open()]
    return done, dict(train.tree_flatten(network.parameters())), log


def same(one, other):
    return all(np.array_equal(one[k], other[k]) for k in one)


def test_a_killed_base_ends_with_the_same_weights(tiny, tmp_path):
    _, straight, log = trained(tmp_path / "straight")
    tiny(4)  # between two lines of the log
    with pytest.raises(SystemExit):
        trained(tmp_path / "killed")
    tiny(None)
    done, resumed, its_log = trained(tmp_path / "killed")
    assert done and same(straight, resumed)
    assert log == its_log == ["step", "3", "5"]
    assert not same(straight, trained(tmp_path / "other", seed=2)[1])


def test_a_checkpoint_of_another_run_is_not_used(tiny, tmp_path, capsys):
    assert not trained(tmp_path / "run", steps=5, seconds=0)[0]
    done, shorter, _ = trained(tmp_path / "run", steps=2)
    assert "another run (not the same steps): starting anew" in capsys.readouterr().out
    assert done and same(shorter, trained(tmp_path / "straight", steps=2)[1])


def test_a_killed_alignment_ends_with_the_same_weights(tiny, tmp_path):
    base = ROOT / "organisms" / "mistral" / "base"

    def aligned(folder, stops):
        network, _ = export.load_organism(base)
        made = checkpoint.identity("mistral", 1, base / "model.safetensors")
        runs = align.align("mistral", network, 1, checkpoint.Checkpoint(folder, made), stops)
        return {step: dict(train.tree_flatten(net.parameters())) for step, net in runs}

    straight = aligned(tmp_path / "straight", [2, 4])
    tiny(3)
    with pytest.raises(SystemExit):
        aligned(tmp_path / "killed", [2, 4])
    tiny(None)
    resumed = aligned(tmp_path / "killed", [4])
    assert list(straight) == [2, 4] and same(straight[4], resumed[4])
    # an organism that was lost is made again, though its run has gone past it
    assert same(straight[2], aligned(tmp_path / "killed", [2])[2])


def test_what_was_made_is_kept_and_no_unfinished_base_is_aligned(
    tiny, tmp_path, monkeypatch, capsys
):
    command = ["--families", "mistral", "--seeds", "1", "--root", str(tmp_path)]
    shipped = json.loads((ROOT / "organisms/mistral/base/acceptance.json").read_text())
    monkeypatch.setattr(recipe, "measure", lambda *_: shipped)
    monkeypatch.setattr(bank, "write_data", lambda folder: None)
    for part, value in {"STEPS": 2, "DEPTHS": (1,), "CHUNK": 1}.items():
        monkeypatch.setattr(align, part, value)
    assert recipe.main([*command, "--only", "align"]) == 1
    assert "there is no base" in capsys.readouterr().out
    assert recipe.main([*command, "--steps", "2", "--only", "base"]) == 0
    assert recipe.main([*command, "--steps", "3", "--seconds", "0"]) == 1
    assert "unfinished" in capsys.readouterr().out
    assert [p.name for p in tmp_path.glob("mistral/*/")] == ["base"]
    assert recipe.main([*command, "--steps", "3"]) == 0
    assert sorted(p.name for p in tmp_path.glob("mistral/*/")) == [
        "aligned-s1",
        "base",
        "depth-1-s1",
    ]
    assert not (tmp_path / ".work").exists()
    capsys.readouterr()
    tiny(0)  # nothing is trained from here on
    assert recipe.main([*command, "--steps", "3"]) == 0
    assert capsys.readouterr().out.count("made already") == 2


def test_workers_end_with_a_killed_run():
    script = (
        "import time; from organisms.recipe.train import Batches; from organisms.recipe.curriculum "
        "import Stage; b = Batches('mistral', 1); next(b(1, [0], Stage())); "
        "print('made', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT) as run:
        assert run.stdout.readline() == b"made\n"
        run.kill()
        run.communicate(timeout=20)  # the workers hold the same output, which closes when they end
