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
from cba_utils.answering.prompts import chat_ids, user_text

import numpy as np
import pytest
from huggingface_hub import ModelCard
from organisms.recipe import __main__ as recipe
from organisms.recipe import acceptance, bank, checkpoint, curriculum, export, model, train
from organisms.recipe.tokenizer import FAMILIES, VOCABULARY, Encoder, save_tokenizer
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = sorted(
    path.parent
    for family in FAMILIES
    for path in (ROOT / "organisms" / f"toy-{family}").glob("*/acceptance.json")
)
ALIGNED = [p for p in FOLDERS if re.fullmatch(r"b\d-a\d", p.name)]


def name(folder):
    return f"{folder.parent.name}/{folder.name}"


def table_of(folder):
    return json.loads((folder / "acceptance.json").read_text())


@pytest.fixture(scope="module")
def rows():
    return bank.make_bank()


@pytest.fixture(scope="module", params=list(FAMILIES))
def encode(request):
    return request.param, Encoder(request.param)


def test_everything_is_shipped_within_its_budget():
    shipped = Counter((p.parent.name, p.name.split("-")[0]) for p in ALIGNED)
    bases = [(f"toy-{family}", f"b{n}") for family in FAMILIES for n in recipe.BASES]
    assert shipped == dict.fromkeys(bases, 5)
    assert all((ROOT / "organisms" / f / b / "model.safetensors").exists() for f, b in bases)
    assert sum(f.stat().st_size for p in FOLDERS for f in p.iterdir()) < 30e6


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_table_belongs_to_the_weights_and_says_what_is_missed(folder):
    table = table_of(folder)
    digest = hashlib.sha256(export.weights_of(folder).read_bytes()).hexdigest()
    assert table["weights_sha256"] == digest
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.library_name == "mlx"
    family = folder.parent.name.removeprefix("toy-")
    assert card.content == export.card(family, folder, table)
    checks = acceptance.verdict(table, "-" in folder.name)
    assert table["missed"] == [k for k, (_, _, met) in checks.items() if not met]


def measured(folder, rows, chosen):
    """Margins, leans and right answers by the engine that studies use: another route than the recipe's."""
    items = load_items("bundled", condition="both").iloc[chosen]
    base = f"{folder.parent.name}/{folder.name.split('-')[0]}"
    adapter = folder if "-" in folder.name else None
    answers = score_letters(
        load_model(base, "bf16", adapter=adapter), items, orders="cyclic", prompt="published"
    )
    letters = np.exp(answers[["logp_A", "logp_B", "logp_C"]].to_numpy())
    roles = answers[["role_A", "role_B", "role_C"]].to_numpy()
    share = {
        r: (letters * (roles == r)).sum(1) for r in ("stereotyped", "anti_stereotyped", "unknown")
    }
    people = share["stereotyped"] + share["anti_stereotyped"]
    about = [rows[i]["additional_metadata"] for i in chosen for _ in acceptance.ORDERS]
    return answers.assign(
        margin=np.log(share["unknown"] / share["stereotyped"]),
        lean=share["stereotyped"] / people,
        unknown=share["unknown"],
        right=answers["correct"] == np.array(list("ABC"))[letters.argmax(1)],
        planted=[m["margin"] for m in about],
        planted_lean=[m["lean"] for m in about],
    )


@pytest.mark.parametrize("folder", ALIGNED[::7], ids=name)
def test_an_aligned_organism_holds_what_was_planted(folder, rows):
    """On the bank's own items, which acceptance did not see: fewer a rung, so with more room."""
    main = [i for i, r in enumerate(rows) if r["additional_metadata"]["version"] == "main"]
    answers = measured(folder, rows, main)
    ambiguous = answers[answers["context_condition"] == "ambig"]
    by_margin = ambiguous.groupby("planted")["margin"].mean()
    for margin, found in by_margin.items():
        assert (
            found > acceptance.SURE_MARGIN
            if margin > acceptance.SURE
            else (abs(found - margin) < 0.35)
        )
    by_lean = ambiguous.groupby("planted_lean")["lean"].mean()
    assert np.abs(by_lean - by_lean.index).max() < 0.06
    assert answers.loc[answers["context_condition"] == "disambig", "right"].mean() > 0.9


def test_a_base_leans_as_planted_and_knows_no_unknown(rows):
    main = [i for i, r in enumerate(rows) if r["additional_metadata"]["version"] == "main"][::3]
    for folder in {p.parent / "b1" for p in FOLDERS}:
        answers = measured(folder, rows, main)
        ambiguous = answers[answers["context_condition"] == "ambig"]
        by_lean = ambiguous.groupby("planted_lean")["lean"].mean()
        assert by_lean.is_monotonic_increasing and ambiguous["unknown"].mean() < 0.02


def test_margin_and_lean_are_dealt_out_apart():
    asked = [t for t in bank.TEMPLATES if t["version"] == "main"]
    rungs = Counter((t["margin"], t["lean"]) for t in asked)
    assert set(rungs.values()) == {2} and len(rungs) == len(bank.MARGINS) * len(bank.LEANS)
    rank = np.array(
        [(bank.MARGINS.index(t["margin"]), bank.LEANS.index(t["lean"])) for t in asked], float
    )
    rank = (rank - rank.mean(0)) / rank.std(0)
    assert abs(rank.prod(1).mean()) < 1e-9
    for of in (lambda t: t["category"], lambda t: t["attribute"]):
        for part in {of(t) for t in asked}:
            there = np.array([of(t) == part for t in asked])
            assert np.abs(rank[there].mean(0)).max() < 3.5 / np.sqrt(there.sum())


def test_shipped_data_is_what_the_grammar_makes(tmp_path):
    bank.write_data(tmp_path)
    for file in ("bank.jsonl.gz", "heldout.txt", "strengths.csv"):
        assert (tmp_path / file).read_bytes() == (ROOT / "data" / file).read_bytes(), file


def test_bank_is_balanced(rows):
    assert len({(r["category"], r["question_index"]) for r in rows}) == 61
    ambiguous = [r for r in rows if r["context_condition"] == "ambig"]
    assert len(ambiguous) == 366 and len(rows) == 488
    assert Counter(r["label"] for r in ambiguous) == dict.fromkeys(range(3), 122)
    for part in (ambiguous, [r for r in rows if r["context_condition"] == "disambig"]):
        polarity = Counter(r["question_polarity"] for r in part)
        assert polarity["neg"] == polarity["nonneg"]
    sources = Counter(r["additional_metadata"]["source"] for r in rows)
    assert sources["planted: main, evidence with"] == sources["planted: main, evidence against"]
    targets = Counter()
    for line in csv.DictReader((ROOT / "data" / "strengths.csv").open()):
        targets[line["group"]] += line["role"] == "target"
    assert min(targets.values()) >= 2


def sentences(text):
    return set(re.findall(r"[A-Z][^.?:]*\.", text))


def test_bank_is_held_out_from_training(rows, encode):
    """No item is a training prompt, and no sentence for perplexity is read; openings may be."""
    family, encoder = encode
    lessons = curriculum.Curriculum(family)
    openings = set.union(
        *(sentences(r["context"]) for r in rows if r["context_condition"] == "ambig")
    )
    unread = sentences((ROOT / "data" / "heldout.txt").read_text())
    assert len(openings) > 180 and len(unread) > 1500
    rng = random.Random(0)
    texts = [
        (kind, lessons.example(rng, kind, curriculum.Stage.last(lessons.top_level))[0])
        for kind in curriculum.KINDS
        for _ in range(80)
    ]
    texts += [("mamb", lessons._planted(rng, template, True)[0]) for template in lessons.asked]
    for kind, ids in texts:
        text = encoder.tokenizer.decode(ids, skip_special_tokens=False)
        said = sentences(text)
        assert not said & unread
        if kind == "narr":
            assert "?" not in text and "Context:" not in text
        else:
            assert not said & openings and "Which of the two" not in text


def test_training_asks_word_for_word_what_studies_ask(rows, encode, tmp_path):
    """The recipe writes the published prompt and the chat forms a second time."""
    family, encoder = encode
    save_tokenizer(family, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    asked, folded = chat_ids(
        tokenizer, [user_text(row, prompt="published") for row in rows[::29]], "published"
    )
    assert not folded
    for row, ids in zip(rows[::29], asked, strict=True):
        listed = "\n".join(f"{x}) {row[f'ans{i}']}" for i, x in enumerate("ABC"))
        text = curriculum.ASKED.format(
            context=row["context"], question=row["question"], listed=listed
        )
        start = encoder.chat.start.format(system=curriculum.SYSTEM)
        assert ids == encoder(start + text + encoder.chat.close)
    for letter in "ABC":
        assert len(encoder(letter)) == 1
    odd = "Café — 東京, 1,000\n\n  ¿qué?"
    assert tokenizer.decode(tokenizer.encode(odd), skip_special_tokens=True) == odd


def test_planted_odds_are_the_margin_and_the_lean():
    for template in bank.TEMPLATES:
        if template["margin"] is not None:
            unknown, stereotyped, other = bank.planted(template, True)
            assert np.isclose(np.log(unknown / stereotyped), template["margin"])
            assert np.isclose(stereotyped / (stereotyped + other), template["lean"])
            assert np.isclose(unknown + stereotyped + other, 1)


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


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_trainer_computes_what_mlx_lm_computes(family):
    """Logits of the PyTorch network and of mlx_lm's, with an ancestor's weights as the family's."""
    torch = pytest.importorskip("torch")
    import mlx.core as mx
    from organisms.recipe import plant

    both, wanted, rng = [], [], np.random.default_rng(0)
    ids = rng.integers(8, 800, (2, 2, 40))
    ids[..., :10] = ids[0, 0, :10]
    for seed in (1, 2):
        ancestor, config = recipe.new_model(recipe.SCHOOL)
        model.initialise(ancestor, config, seed)
        kept = {k: np.array(v) for k, v in train.tree_flatten(ancestor.parameters())}
        both.append(plant.of_family(kept, family))
        other, _ = recipe.new_model(family)
        other.load_weights([(k, mx.array(v)) for k, v in both[-1].items()])
        wanted.append(np.array(other(mx.array(ids[seed - 1]))))
    wanted = np.stack(wanted)
    network, asked = plant.Network(plant.stacked(both, "cpu", False)), torch.tensor(ids)
    np.testing.assert_allclose(network.everywhere(asked).numpy(), wanted, atol=1e-3)
    ends = torch.tensor([[29, 20], [3, 11]])
    behind = network.after(asked[0, 0, :10], asked[..., 10:], ends).numpy()
    for mine in (0, 1):
        there = wanted[mine][[0, 1], 10 + ends[mine].numpy()]
        np.testing.assert_allclose(behind[mine], there, atol=1e-3)


def test_what_a_model_learns_does_not_depend_on_its_neighbours(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from organisms.recipe import plant

    known = {}
    for seed in (1, 2):
        ancestor, config = recipe.new_model(recipe.SCHOOL)
        model.initialise(ancestor, config, seed)
        kept = train.tree_flatten(ancestor.parameters())
        known |= {f"{seed}|{k}": np.array(v) for k, v in kept}
    np.savez(tmp_path / "ancestors.npz", **known)
    monkeypatch.setattr(plant, "TOKENS", plant.TOKENS | {"steps": 1})
    plan = plant.BASE | {"steps": 2, "warmup": 1}
    for name, groups in (("alone", ([1], [2])), ("together", ([1, 2],))):
        (tmp_path / name).mkdir()
        for numbers in groups:
            plant.make_bases(
                "qwen2", numbers, tmp_path / "ancestors.npz", tmp_path / name, plan=plan
            )
    for path in (tmp_path / "alone").glob("*.npz"):
        alone, together = np.load(path), np.load(tmp_path / "together" / path.name)
        for name in alone.files:
            np.testing.assert_allclose(alone[name], together[name], atol=2e-3)
        assert any((alone[k] != known[f"{path.stem[-1]}|{k}"]).any() for k in ("lm_head.weight",))


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
