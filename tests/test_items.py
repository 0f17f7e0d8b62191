import json
import re

from cba_utils.answering import benchmarks as registry
from cba_utils.answering.benchmarks.bbq import group_of, roles_of, roles_of_file
from cba_utils.answering.benchmarks.null import make_rows
from cba_utils.answering.items import load_items
from conftest import ROOT

import pandas as pd
import pytest

ROW = {
    "example_id": 0,
    "question_index": "1",
    "question_polarity": "neg",
    "context_condition": "ambig",
    "category": "Test",
    "answer_info": {"ans0": ["X", "old"], "ans1": ["Y", "nonOld"], "ans2": ["?", "unknown"]},
    "additional_metadata": {"stereotyped_groups": ["old"]},
    "context": "X met Y.",
    "question": "Who left?",
    "ans0": "X",
    "ans1": "Y",
    "ans2": "Unknown",
    "label": 2,
}


def write(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "Test.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_roles_of_all_real_rows_agree_with_a_reading_of_the_raw_files(bbq):
    """Independent route: pandas over the raw JSON, group by group, no code of the package."""
    items = load_items(bbq, condition="both").set_index("item_id")
    assert len(items) == 4880 and items.attrs["undefined_targets"] == []
    raw = pd.concat(pd.read_json(bbq / f"{c}.jsonl", lines=True) for c in ("Age", "Religion"))
    for row in raw.to_dict("records"):
        groups = [row["answer_info"][f"ans{k}"][1] for k in range(3)]
        known = row["additional_metadata"]["stereotyped_groups"]
        biased = [
            k
            for k in range(3)
            if (groups[k] in known) == (row["question_polarity"] == "neg")
            and groups[k] != "unknown"
        ]
        item = items.loc[f"{row['category']}/{row['example_id']}"]
        assert [item["stereotyped_index"]] == biased
        assert groups[item["unknown_index"]] == "unknown"
        assert {
            item["stereotyped_index"],
            item["anti_stereotyped_index"],
            item["unknown_index"],
        } == {0, 1, 2}


def authors_target(row):
    """The target of the authors' metadata script, group by group, written apart from the package."""
    known = row["additional_metadata"]["stereotyped_groups"]
    same = {"man": "M", "boy": "M", "woman": "F", "girl": "F"}

    def hit(text, group):
        if row["category"] == "Nationality":
            return any(country in text for country in known)
        if row["category"] == "Gender_identity":
            group = "trans" if group.startswith("trans") else same.get(group, group)
        if row["category"] == "SES":
            return group == "lowSES"
        return re.sub("^[FM]-", "", group) in known

    people = [k for k in range(3) if row["answer_info"][f"ans{k}"][1] != "unknown"]
    hits = [hit(*row["answer_info"][f"ans{k}"]) for k in people]
    if hits[0] == hits[1]:
        return None
    return people[hits.index(row["question_polarity"] == "neg")]


@pytest.mark.parametrize("folder", ["bbq-paper", "bbq-other"])
def test_roles_are_those_of_the_authors_in_every_row(bbq, folder):
    folder = bbq.parent / folder
    if not folder.is_dir():
        pytest.skip(f"../shared/{folder} is not beside the project")
    items = load_items(folder, condition="both")
    found = items.set_index("item_id")["stereotyped_index"].to_dict()
    rows = [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.open()]
    named = {f"{row['category']}/{row['example_id']}": authors_target(row) for row in rows}
    assert {name: int(target) for name, target in found.items()} == {
        name: target for name, target in named.items() if target is not None
    }
    assert items.attrs["undefined_targets"] == [n for n, target in named.items() if target is None]
    if folder.name == "bbq-paper":
        asked = load_items(folder)
        assert len(asked) + len(asked.attrs["undefined_targets"]) == 12_148
        templates = items[items["category"] == "Gender_identity"]["question_index"]
        assert templates.isin([35, 36]).sum() == 400


@pytest.mark.parametrize("folder", ["bbq-paper", "bbq-other"])
def test_the_target_group_is_the_known_group_that_an_answer_names(bbq, folder):
    """By the authors' target, the group lists of the rows and the polarity, apart from the package."""
    folder = bbq.parent / folder
    if not folder.is_dir():
        pytest.skip(f"../shared/{folder} is not beside the project")
    items = load_items(folder, condition="both").set_index("item_id")
    same = {"man": "M", "boy": "M", "woman": "F", "girl": "F"}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.open():
            row = json.loads(line)
            biased, name = authors_target(row), f"{row['category']}/{row['example_id']}"
            if biased is None:
                assert name not in items.index
                continue
            known = row["additional_metadata"]["stereotyped_groups"]
            people = [k for k in range(3) if row["answer_info"][f"ans{k}"][1] != "unknown"]
            if row["question_polarity"] == "nonneg":
                biased = next(k for k in people if k != biased)
            text, group = row["answer_info"][f"ans{biased}"]
            item = items.loc[name]
            if row["category"] == "Nationality":
                assert item["target_group"] in known and item["target_group"] in text
            else:
                written = re.sub("^[FM]-", "", group)
                assert item["target_group"] == same.get(written, written)
                allowed = {g.replace(" ", "") for g in known} | {g for g in known}
                assert item["target_group"].split("_")[0] in allowed
            assert item["other_group"] != item["target_group"]


def test_persons_of_two_groups_keep_both_in_the_name():
    row = crossed("Race_x_SES", "lowSES-M-Black", "highSES-F-White")
    assert [group_of(row, f"ans{k}") for k in (0, 1)] == ["lowSES-M-Black", "highSES-F-White"]


def crossed(category, first, second, groups=("Black", "African American"), question_index="1"):
    return {
        "category": category,
        "question_polarity": "neg",
        "question_index": question_index,
        "answer_info": {"ans0": ["x", first], "ans1": ["y", second], "ans2": ["?", "unknown"]},
        "additional_metadata": {"stereotyped_groups": list(groups)},
    }


@pytest.mark.parametrize(
    ("category", "target", "others"),
    [
        ("Race_x_SES", "lowSES-Black", ("highSES-Black", "lowSES-White", "highSES-White")),
        (
            "Race_x_SES",
            "lowSES-M-African American",
            ("highSES-F-African American", "highSES-M-White"),
        ),
        ("Race_x_gender", "F-Black", ("M-Black", "F-White", "M-White")),
    ],
)
def test_persons_of_two_groups_are_told_apart_by_both(category, target, others):
    for other in others:
        assert roles_of(crossed(category, target, other)) == (0, 1, 2)
        swapped = crossed(category, other, target)
        assert roles_of(swapped) == (1, 0, 2)
        assert roles_of({**swapped, "question_polarity": "nonneg"}) == (0, 1, 2)
    assert roles_of(crossed(category, target, target)) == (None, None, 2)


def test_the_gender_of_a_template_is_told_by_its_other_rows():
    """A stereotype about men of a race, and one whose rows contradict each other."""
    men = [
        crossed("Race_x_gender", "M-Black", "M-White"),
        crossed("Race_x_gender", "M-Black", "F-Black"),
    ]
    assert roles_of_file(men) == [(0, 1, 2)] * 2
    women = crossed("Race_x_gender", "F-Black", "M-Black", question_index="2")
    assert roles_of_file([*men, women])[2] == (0, 1, 2)
    mixed = [*men, crossed("Race_x_gender", "F-Black", "F-White")]
    assert roles_of_file(mixed) == [(0, 1, 2), (None, None, 2), (0, 1, 2)]


def test_another_benchmark_is_one_more_file(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "another.py").write_text(
        "from cba_utils.answering.benchmarks import Benchmark\n"
        "from cba_utils.answering.benchmarks.bbq import roles_of_file\n"
        "def adapt(raw):\n"
        "    return {**raw, 'category': raw['categoria'], 'answer_info': raw['info']}\n"
        "BENCHMARK = Benchmark('Another', lambda raw: 'categoria' in raw, adapt, roles_of_file,\n"
        "                      lambda row, answer: row['answer_info'][answer][0].lower(),\n"
        "                      {'Edad': 1})\n"
    )
    monkeypatch.setattr(registry, "__path__", [*registry.__path__, str(tmp_path / "code")])
    registry.benchmarks.cache_clear()
    row = {
        ("categoria" if k == "category" else "info" if k == "answer_info" else k): v
        for k, v in ROW.items()
    } | {"categoria": "Edad"}
    (tmp_path / "Edad.jsonl").write_text(json.dumps(row) + "\n")
    try:
        items = load_items(tmp_path)
        assert items["item_id"].tolist() == ["Edad/0"] and items["stereotyped_index"].tolist() == [
            0
        ]
        assert items[["target_group", "other_group"]].to_numpy().tolist() == [["x", "y"]]
        (tmp_path / "Edad.jsonl").write_text(2 * (json.dumps(row) + "\n"))
        with pytest.raises(ValueError, match=r"Edad\.jsonl:2: example_id is 0, 1 was due"):
            load_items(tmp_path)
        row["example_id"] = 1
        with (tmp_path / "Edad.jsonl").open("w") as file:
            file.writelines(json.dumps({**row, "example_id": n}) + "\n" for n in (0, 1))
        with pytest.raises(ValueError, match=r"2 lines, and Another's release has 1 of Edad"):
            load_items(tmp_path)
    finally:
        registry.benchmarks.cache_clear()


def test_bias_scores_of_unifiedqa_on_religion(bbq):
    """The package's roles and scores against the published formula worked out on the raw file."""
    from cba_utils.measures.rates import bias_scores

    raw = pd.read_json(bbq / "unifiedqa_preds_Religion.jsonl", lines=True)

    def clean(text):
        return re.sub(r"[^a-z ]", "", text.lower()).strip()

    predicted = raw["unifiedqa-t5-11b_pred_race"].map(clean)
    answers = [raw[f"ans{k}"].map(clean) for k in range(3)]
    index = sum(k * (predicted == answers[k]) for k in range(3)).where(
        sum(predicted == answer for answer in answers) == 1
    )

    def formula(rows):
        """s of the BBQ paper, straight from the groups of the raw rows."""
        group = [
            rows["answer_info"].iloc[n][f"ans{int(k)}"][1] for n, k in enumerate(index[rows.index])
        ]
        hit = [
            g in m["stereotyped_groups"]
            for g, m in zip(group, rows["additional_metadata"], strict=True)
        ]
        biased = [h == (p == "neg") for h, p in zip(hit, rows["question_polarity"], strict=True)]
        person = [g != "unknown" for g in group]
        s = 2 * sum(b and p for b, p in zip(biased, person, strict=True)) / sum(person) - 1
        accuracy = (index[rows.index] == rows["label"]).mean()
        return 100 * s, 100 * (1 - accuracy) * s

    answered = raw[index.notna()]
    s_dis, _ = formula(answered[answered["context_condition"] == "disambig"])
    _, s_amb = formula(answered[answered["context_condition"] == "ambig"])

    items = load_items(bbq, ["Religion"], condition="both")
    items["answer"] = items["item_id"].map(
        dict(zip("Religion/" + raw["example_id"].astype(str), index, strict=True))
    )
    items = items[items["answer"].notna()]
    roles = items.apply(
        lambda r: next(
            role
            for role in ("stereotyped", "anti_stereotyped", "unknown")
            if r[f"{role}_index"] == r["answer"]
        ),
        axis=1,
    )
    samples = items.assign(
        role=roles,
        seed=0,
        correct=items["answer"] == items["label"],
        template_id=items["question_index"].astype(str),
        model="unifiedqa",
        precision="bf16",
    )
    scores = bias_scores(samples).set_index("measure")["estimate"]
    assert scores["s_amb"] == pytest.approx(s_amb)
    assert scores["s_dis"] == pytest.approx(s_dis)


@pytest.mark.parametrize(
    ("category", "group", "text", "known", "member"),
    [
        ("Age", "nonOld", "a grandson", ["old"], False),
        ("Gender_identity", "woman", "the woman", ["F"], True),
        ("Gender_identity", "boy", "the boy", ["girl"], False),
        ("Race_x_gender", "F-Black", "Donna Jones", ["Black", "African American"], True),
        ("Race_ethnicity", "African", "an African man", ["African American"], False),
        ("Nationality", "MiddleEast", "the Yemeni man", ["Yemen"], True),
        ("Nationality", "Africa", "the Nigerian man", ["Niger"], False),
        ("SES", "lowSES", "the truck driver", ["low SES"], True),
    ],
)
def test_names_of_groups_match_whole(category, group, text, known, member):
    row = {
        "category": category,
        "question_polarity": "neg",
        "answer_info": {
            "ans0": [text, group],
            "ans1": ["someone", "none of these"],
            "ans2": ["?", "unknown"],
        },
        "additional_metadata": {"stereotyped_groups": known},
    }
    assert roles_of(row) == ((0, 1, 2) if member else (None, None, 2))


def test_undefined_targets_are_left_out_by_name(tmp_path):
    both = {
        **ROW,
        "example_id": 1,
        "additional_metadata": {"stereotyped_groups": ["old", "nonOld"]},
    }
    items = load_items(write(tmp_path, ROW, both))
    assert items["item_id"].tolist() == ["Test/0"]
    assert items.attrs["undefined_targets"] == ["Test/1"]


def test_hub_data_set_brings_its_own_targets(tmp_path, monkeypatch):
    rows = [
        {**ROW, "example_id": n, "answer_label": 2, "target_label": target}
        for n, target in enumerate((0, 1, -1))
    ]
    pd.DataFrame(rows).drop(columns="label").to_parquet(tmp_path / "test.parquet")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(tmp_path))
    items = load_items("Someone/BBQ")
    assert items["stereotyped_index"].tolist() == [0, 1]
    assert items["anti_stereotyped_index"].tolist() == [1, 0]
    assert items[["target_group", "other_group"]].to_numpy().tolist() == [
        ["old", "nonOld"],
        ["nonOld", "old"],
    ]
    assert items.attrs["undefined_targets"] == ["Test/2"]


def test_hub_splits_in_lower_case_are_the_categories_of_bbq(tmp_path, monkeypatch):
    """The published study's data set: a parquet file a split, integer ids that start again in each."""
    (tmp_path / "data").mkdir()
    for split in ("age", "race_x_ses", "Religion"):
        rows = [
            {
                **ROW,
                "category": split,
                "example_id": n,
                "question_index": 3,
                "answer_label": 2,
                "target_label": n,
                "additional_metadata": {"subcategory": "None", "version": "a"},
            }
            for n in range(2)
        ]
        frame = pd.DataFrame(rows).drop(columns="label")
        frame.to_parquet(tmp_path / "data" / f"{split.lower()}-00000-of-00001.parquet")
    asked = {}
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, **more: asked.update(more) or str(tmp_path),
    )
    items = load_items("Someone/BBQ", ["Age", "Religion"])
    assert items["item_id"].tolist() == ["Age/0", "Age/1", "Religion/0", "Religion/1"]
    assert items["stereotyped_index"].tolist() == [0, 1] * 2
    assert set(load_items("Someone/BBQ")["category"]) == {"Age", "Race_x_SES", "Religion"}
    assert asked["allow_patterns"] == ["*.parquet"]
    frame.assign(target_label=2).to_parquet(tmp_path / "data" / "age-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="age-00000-of-00001.parquet, row 1: target_label is 2"):
        load_items("Someone/BBQ")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((ROW, "{not json"), r"Test\.jsonl:2: not a JSON object"),
        ((ROW, {**ROW, "example_id": 5}), r"Test\.jsonl:2: example_id is 5, 1 was due"),
        (({**ROW, "label": 0},), r"Test\.jsonl:1: label 0 is wrong"),
        (({**ROW, "label": 7},), r"Test\.jsonl:1: label is 7"),
        (({k: v for k, v in ROW.items() if k != "question"},), r"'question' is missing"),
        (({**ROW, "question_polarity": "bad"},), r"question_polarity is 'bad'"),
        (({**ROW, "question_index": "x"},), r"Test\.jsonl:1: question_index is 'x', not a number"),
        (
            ({**ROW, "answer_info": {**ROW["answer_info"], "ans0": 3}},),
            r"Test\.jsonl:1: answer_info",
        ),
        (({**ROW, "answer_info": [1]},), r"Test\.jsonl:1: answer_info"),
        (({**ROW, "answer_info": {**ROW["answer_info"], "ans0": ["X", 7]}},), r":1: answer_info"),
        (
            ({**ROW, "additional_metadata": ["old"]},),
            r"additional_metadata must give 'stereotyped_gr",
        ),
        (({**ROW, "additional_metadata": {"stereotyped_groups": "old"}},), r"a list of texts"),
        (({**ROW, "label": 2.0},), r"Test\.jsonl:1: label is 2.0; it must be an integer"),
        (
            (
                ROW,
                {**ROW, "category": 3},
            ),
            r"Test\.jsonl:2: 'category' must be a text",
        ),
        (
            ({**ROW, "context": "cut \ud83d"},),
            r"Test\.jsonl:1: 'context' holds half of a character",
        ),
        (
            (
                ROW,
                {"a": 1},
            ),
            r"Test\.jsonl:2: field 'example_id' is missing: no row of a benchmark that is known here .BBQ.",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        load_items(write(tmp_path, *rows))


def test_a_broken_file_of_the_release_is_named(tmp_path):
    path = tmp_path / "Religion.jsonl"
    path.write_text(json.dumps({**ROW, "category": "Religion"}) + "\n")
    with pytest.raises(ValueError, match=r"Religion\.jsonl: 1 lines, and BBQ's release has 1200"):
        load_items(tmp_path)
    path.write_text(json.dumps({**ROW, "category": "Religon"}) + "\n")
    with pytest.raises(
        ValueError, match=r"Religion\.jsonl:1: category 'Religon' in a file of Religion"
    ):
        load_items(tmp_path)
    path.write_bytes(b'{"category": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"Religion\.jsonl:1: not UTF-8 at byte 17"):
        load_items(tmp_path)


def test_bad_choices_are_named(tmp_path):
    with pytest.raises(ValueError, match="'Nope' is not in bundled; it has Clan"):
        load_items("bundled", ["Nope"])
    with pytest.raises(ValueError, match="condition"):
        load_items("bundled", condition="maybe")
    with pytest.raises(FileNotFoundError, match="no file <Category>.jsonl"):
        load_items(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither 'bundled'"):
        load_items("no_such_folder")


def test_the_null_benchmark_has_nothing_to_find():
    """Made by its rule; every group is as often a target as the coin says, and texts tie none to a deed."""
    folder = ROOT / "data" / "null"
    written = [json.loads(line) for line in (folder / "Null.jsonl").open()]
    assert written == make_rows()
    items = load_items(folder, condition="both")
    assert len(items) == len(written) and items.attrs["undefined_targets"] == []
    for row, item in zip(written, items.to_dict("records"), strict=True):
        groups = [group for _, group in row["options"]]
        negative = item["question_polarity"] == "neg"
        stereotyped, other = (
            groups[item["stereotyped_index"]],
            groups[item["anti_stereotyped_index"]],
        )
        assert (stereotyped in row["targets"], other in row["targets"]) == (negative, not negative)
        assert groups[item["unknown_index"]] == "unknown"
        assert item["target_group"] in row["targets"]
        if item["context_condition"] == "disambig":
            deed = item["question"].split(maxsplit=1 if "Who" in item["question"] else 2)[-1][:-1]
            assert f"{groups[item['label']]} {deed}" in item["context"]
    # The coin is fair: over draws of it, no share of the groups leans.
    hits = [row["targets"] for seed in range(40) for row in make_rows(scenes=1, clear=0, seed=seed)]
    counts = pd.Series(sum(hits, [])).value_counts()
    assert len(counts) == 20 and counts.between(0.8 * counts.mean(), 1.2 * counts.mean()).all()
