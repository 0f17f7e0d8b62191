"""The shipped organisms do what their cards say, and the recipe makes what is shipped."""

import csv
import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import cba_utils  # noqa: F401  (puts a fast BLAS in place before mlx.core is imported)
import numpy as np
import pytest
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

from organisms.recipe import acceptance, bank, curriculum, export, model, train
from organisms.recipe.tokenizer import FAMILIES, SYSTEM, VOCABULARY, Encoder

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
    if folder in GRADED:
        checks = acceptance.verdict(table, folder.name.startswith("aligned"))
        assert all(met for _, _, met in checks.values()), checks


@pytest.mark.parametrize("folder", GRADED, ids=name)
def test_weights_answer_as_the_table_says(folder, rows):
    """A few items asked anew: far from the limits on either side, so that 30 items decide."""
    main = [r for r in rows if r["additional_metadata"]["version"] == "main"][::61]
    network, _ = export.load_organism(folder)
    probabilities = acceptance.letter_probabilities(network, Encoder(folder.parent.name), main)
    chosen = [[order[i] for order, i in zip(acceptance.ORDERS, p.argmax(1))] for p in probabilities]
    right = np.array([[c == r["label"] for c in line] for r, line in zip(main, chosen)])
    ambiguous = np.array([r["context_condition"] == "ambig" for r in main])
    assert right[~ambiguous].mean() > 0.9
    assert probabilities.sum(2).mean() > 0.99
    if folder.name == "base":
        assert right[ambiguous].mean() < 0.1
    else:
        assert right[ambiguous].mean() > 0.9


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


def test_bank_is_held_out_from_training(rows, encode):
    family, encoder = encode
    lessons = curriculum.Curriculum(family)
    stage = curriculum.Stage.last(lessons.top_level)
    contexts = {r["context"].split(". ")[0].rstrip(".") for r in rows}
    rng = random.Random(0)
    for _ in range(400):
        ids, _ = lessons.example(rng, rng.choice(["mdis", "mamb", "odis", "oamb"]), stage)
        text = encoder.tokenizer.decode(ids, skip_special_tokens=False)
        assert text.split("Context: ")[1].split(".")[0] not in contexts
        assert "Which of the two" not in text


def test_encoder_and_chat_are_the_tokenizers(rows, encode):
    family, encoder = encode
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "organisms" / family / "base")
    chat = encoder.chat
    for row in rows[::29]:
        user = (f"Context: {row['context']}\nQuestion: {row['question']}\nA) {row['ans0']}\n"
                f"B) {row['ans1']}\nC) {row['ans2']}\nAnswer:")
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        assert text == chat.start.format(system=SYSTEM) + user + chat.close
        assert tokenizer.encode(text, add_special_tokens=False) == encoder(text)
    for letter in "ABC":
        assert len(encoder(letter)) == 1
    odd = "Café — 東京, 1,000\n\n  ¿qué?"
    assert tokenizer.decode(tokenizer.encode(odd), skip_special_tokens=True) == odd


class HereBatches:
    """Batches made in this process."""

    def __init__(self, family, workers=None):
        self.lessons = curriculum.Curriculum(family)

    def __call__(self, seed, steps, stage):
        return (self.lessons.batch(seed, s, stage) for s in steps)

    def close(self):
        pass


def test_training_resumes_with_the_same_weights(tmp_path, monkeypatch):
    for part, value in {"CHUNK": 1, "SAVE": 1, "Batches": HereBatches}.items():
        monkeypatch.setattr(train, part, value)
    monkeypatch.setattr(curriculum, "BATCH", 2)
    encoder = Encoder("phi3")
    config = model.config_of("phi3", encoder.chat, VOCABULARY, encoder.tokenizer.token_to_id)

    def run(folder, seconds):
        network = model.build(config)
        model.initialise(network, config)
        done = train.train_base("phi3", network, folder, steps=3, seconds=seconds)
        return done, dict(train.tree_flatten(network.parameters()))

    assert run(tmp_path / "once", None)[0]
    assert not run(tmp_path / "twice", 0)[0]
    done, resumed = run(tmp_path / "twice", None)
    assert done
    straight = run(tmp_path / "once", None)[1]  # reads the finished checkpoint back
    assert all(np.array_equal(straight[k], resumed[k]) for k in straight)
    log = (tmp_path / "twice" / "training_log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["step", "1", "2", "3"]
