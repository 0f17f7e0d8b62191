"""Records that come from elsewhere: what is refused, and that the reports see the same in them."""

import json

from cba_utils import load_items
from cba_utils.chapters import certainty, dose_response, run_log
from cba_utils.instrument.respondents import simulate_study
from cba_utils.measures import rates as metrics
from cba_utils.measures import sensitivity, transitions
from cba_utils.study import imported as raw
from cba_utils.study.published_jsonl import read_jsonl, write_jsonl
from cba_utils.study.tables import load_study
from cba_utils.telling import study as telling

import pandas as pd
import pytest

RECORD = dict(
    model="m",
    quant=16,
    item_id="Age/2",
    category="Age",
    seed=42,
    raw_response="C",
    parsed_answer="C",
    stereotype_target_index=2,
    anti_stereotype_target_index=1,
    unknown_index=0,
    elapsed_s=0.1,
)


def written(path, rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


def grid(**changes):
    """Four records of one model: two precisions, two items."""
    return [
        {**RECORD, "quant": quant, "item_id": item, **changes}
        for quant in (16, 3)
        for item in ("Age/2", "Age/4")
    ]


@pytest.fixture(scope="module")
def study():
    return simulate_study(
        "bias",
        templates=6,
        items_per_template=20,
        replicates=1,
        precisions=["bf16", "q4", "q3"],
        orders="original",
    )


def test_an_imported_study_gives_the_measures_of_the_study_itself(study, tmp_path):
    (tmp_path / "raw").mkdir()
    samples = study["samples"]
    assert len(write_jsonl(samples, study["items"], tmp_path / "raw")) == 3
    raw.import_raw("theirs", tmp_path / "raw", results=tmp_path)
    tables = load_study("theirs", tmp_path)
    ours = samples[samples["context_condition"] == "ambig"]
    for measure in (metrics.role_rates, transitions.transitions, transitions.role_flow):
        mine, theirs = (
            measure(frame).drop(columns=["family", "low", "high"], errors="ignore")
            for frame in (ours, tables["samples"])
        )
        keys = [c for c in mine if mine[c].dtype.kind not in "fi"]
        pd.testing.assert_frame_equal(
            mine.sort_values(keys).reset_index(drop=True),
            theirs.sort_values(keys).reset_index(drop=True),
            check_dtype=False,
        )
    assert tables["answers"].empty and tables["perplexity"].empty
    about = tables["provenance"]
    assert about["counts.samples"].sum() == len(ours)
    assert sum(c.startswith("identity.records_sha256") for c in about) == 3


def test_the_pages_say_what_imported_records_cannot_tell(study, tmp_path):
    (tmp_path / "raw").mkdir()
    write_jsonl(study["samples"], study["items"], tmp_path / "raw")
    raw.import_raw("theirs", tmp_path / "raw", results=tmp_path)
    data = telling.open_study(tmp_path / "theirs")
    assert data.imported and not data.exact and not data.templates
    choices = sensitivity.specification_curve(data.drawn, "q3")
    assert len(choices) == 3 * data.samples["model"].nunique() and choices["estimate"].notna().all()
    page = dose_response.Chapter(data)
    assert "cannot tell" in page.text("verdict")
    walked, _ = page.table_walk()
    assert walked["BF16"].sum() <= 1.001 and "not its text" in page.code_walk_prompt()
    assert "no model was run" in data.provenance_line and "made elsewhere" in page.text("held")


def test_items_that_were_asked_give_texts_and_templates(tmp_path):
    items = load_items("bundled").groupby("category").head(12).reset_index(drop=True)
    rows = [
        {
            **RECORD,
            "quant": quant,
            "item_id": item.item_id,
            "category": item.category,
            "stereotype_target_index": int(item.stereotyped_index),
            "anti_stereotype_target_index": int(item.anti_stereotyped_index),
            "unknown_index": int(item.unknown_index),
        }
        for quant in (16, 4)
        for item in items.itertuples()
    ]
    (tmp_path / "raw").mkdir()
    written(tmp_path / "raw" / "a.jsonl", rows)
    raw.import_raw("theirs", tmp_path / "raw", "bundled", tmp_path)
    tables = load_study("theirs", tmp_path)
    pd.testing.assert_frame_equal(tables["items"], items, check_dtype=False)
    expected = items["category"] + "/" + items["question_index"].astype(str)
    seen = tables["samples"].query("precision == 'q4'")["template_id"]
    assert seen.tolist() == expected.tolist()
    written(
        tmp_path / "raw" / "a.jsonl",
        [
            {
                **row,
                "unknown_index": row["stereotype_target_index"],
                "stereotype_target_index": row["unknown_index"],
            }
            for row in rows
        ],
    )
    with pytest.raises(ValueError, match="the numbers must be those of the same data"):
        raw.import_raw("theirs", tmp_path / "raw", "bundled", tmp_path)
    written(tmp_path / "raw" / "a.jsonl", grid())
    with pytest.raises(ValueError, match="item 'Age/2' of the records is no ambiguous item of"):
        raw.import_raw("theirs", tmp_path / "raw", "bundled", tmp_path)


def test_undefined_targets_are_not_letter_c_and_are_counted(tmp_path):
    rows = grid()
    for row in rows[1::2]:
        row["stereotype_target_index"] = -1
    written(tmp_path / "a.jsonl", rows)
    samples, items = read_jsonl([tmp_path / "a.jsonl"])
    assert samples["role"].tolist() == ["stereotyped"] * 2
    assert items.attrs["undefined_targets"] == ["Age/4"]
    raw.import_raw("theirs", tmp_path, results=tmp_path)
    about = load_study("theirs", tmp_path)["provenance"]
    assert about["undefined_targets"].tolist() == [["Age/4"]] * 2


def test_undefined_targets_taken_as_letter_c_are_one_more_choice(study, tmp_path):
    (tmp_path / "raw").mkdir()
    paths = write_jsonl(study["samples"], study["items"], tmp_path / "raw")

    def name(row):
        return f"{row['category']}/{row['item_id']}"

    some = sorted({name(json.loads(line)) for line in paths[0].read_text().splitlines()})[::7]
    for path in paths:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        written(
            path,
            [
                {
                    **row,
                    "stereotype_target_index": -1,
                    "raw_response": "B" if row["quant"] == 16 else "C",
                }
                if name(row) in some
                else row
                for row in rows
            ],
        )
    raw.import_raw("theirs", tmp_path / "raw", results=tmp_path)
    data = telling.open_study(tmp_path / "theirs")
    assert not set(some) & set(data.samples["item_id"])
    assert set(data.undefined["item_id"]) == set(some)
    assert set(data.undefined["template_id"]) <= set(data.samples["template_id"])
    page = certainty.Chapter(data)
    found = page.choices.set_index(["undefined", "counting"])["estimate"]
    at = [found[kept, "one way"] for kept in ("left out", "letter C")]
    clean = transitions.transitions(data.drawn)
    clean = clean[(clean["measure"] == "became_biased") & (clean["precision"] == "q3")].iloc[0]
    gained = clean["estimate"] * clean["n"]
    # All of them answered B at full precision and C below: as letter C, all became biased.
    assert at[0] == pytest.approx(clean["estimate"])
    assert at[1] == pytest.approx((gained + len(some)) / (clean["n"] + len(some)))
    assert f"({len(some)})" in page.text("fig_sure_choices")
    assert "6 combinations of choices: what is counted; what items" in page.text("choices")


def published_rows(number):
    """What the published code writes: items are numbered anew in every category."""
    return [
        {
            **RECORD,
            "quant": quant,
            "item_id": number(category, n),
            "category": category,
            "seed": seed,
            "raw_response": "ABC"[(n + 1) % 3],
            "parsed_answer": "ABC"[(n + 1) % 3],
            "stereotype_target_index": (n + 1) % 3,
            "anti_stereotype_target_index": (n + 2) % 3,
            "unknown_index": n % 3,
        }
        for category in ("Age", "Religion")
        for n in range(12)
        for quant in (16, 3)
        for seed in (42, 123)
    ]


@pytest.mark.parametrize(
    "number",
    [lambda c, n: n, lambda c, n: str(n), lambda c, n: f"{c}/{n}"],
    ids=["integer", "text", "with category"],
)
@pytest.mark.parametrize("style", ["plain", "crlf", "bom", "many files"])
def test_records_as_the_published_code_writes_them_are_imported(number, style, tmp_path):
    (tmp_path / "raw").mkdir()
    rows = published_rows(number)
    text = [json.dumps(row) for row in rows]
    if style == "many files":
        for n in range(4):
            written(tmp_path / "raw" / f"mödel {{x}} #{n}.jsonl", text[n::4])
    else:
        end = "\r\n" if style == "crlf" else "\n"
        data = "".join(line + end for line in text).encode()
        (tmp_path / "raw" / "q.jsonl").write_bytes(
            (b"\xef\xbb\xbf" if style == "bom" else b"") + data
        )
    raw.import_raw("theirs", tmp_path / "raw", results=tmp_path)
    tables = load_study("theirs", tmp_path)
    assert set(tables["items"]["item_id"]) == {
        f"{c}/{n}" for c in ("Age", "Religion") for n in range(12)
    }
    assert len(tables["samples"]) == len(rows) and set(tables["samples"]["role"]) == {"stereotyped"}


def test_either_side_reads_what_the_other_wrote(tmp_path):
    """Byte for byte the same records, but for what an answer took: fields, types, order, file names."""
    rows = published_rows(lambda c, n: n)
    (tmp_path / "raw").mkdir()
    for quant in (16, 3):
        mine = sorted((row for row in rows if row["quant"] == quant), key=lambda r: r["category"])
        written(tmp_path / "raw" / f"m_q{quant}.jsonl", mine)
    samples, items = read_jsonl(sorted((tmp_path / "raw").glob("*.jsonl")))
    found = write_jsonl(samples, items, tmp_path / "back")
    assert sorted(path.name for path in found) == ["m_q16.jsonl", "m_q3.jsonl"]
    for path in found:
        ours = [json.loads(line) for line in path.read_text().splitlines()]
        theirs = [
            json.loads(line) for line in (tmp_path / "raw" / path.name).read_text().splitlines()
        ]
        assert ours == [{**row, "elapsed_s": None} for row in theirs]
        assert [list(row) for row in ours] == [list(row) for row in theirs]


def test_a_response_cut_inside_a_character_is_kept_and_counted(tmp_path):
    rows = published_rows(lambda c, n: n)
    rows[3]["raw_response"], rows[5]["raw_response"] = "A \ud83d", "whole \U0001f600"
    written(tmp_path / "a.jsonl", rows)
    raw.import_raw("theirs", tmp_path, results=tmp_path)
    tables = load_study("theirs", tmp_path)
    assert {"A \ufffd", "whole \U0001f600"} <= set(tables["samples"]["raw_response"])
    assert set(tables["provenance"]["responses_mended"]) == {1}
    page = run_log.Chapter(telling.open_study(tmp_path / "theirs", "all"))
    assert "1 response was cut inside a character" in page.text("import_note")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: [*rows, "{broken"], r"a.jsonl:5: not a JSON object"),
        (lambda rows: [*rows, "[1]"], r"a.jsonl:5: keys with values were due, not a list"),
        (
            lambda rows: [{k: v for k, v in rows[0].items() if k != "seed"}, *rows[1:]],
            r"a.jsonl:1: field 'seed' is missing; a record has model, quant",
        ),
        (
            lambda rows: [rows[0], {**rows[1], "quant": 5}, *rows[2:]],
            r"a.jsonl:2: quant is 5; it must be one of 16, 8, 6, 4, 3",
        ),
        (
            lambda rows: [{**rows[0], "unknown_index": "0"}, *rows[1:]],
            r"a.jsonl:1: unknown_index is '0'; it must be an index from 0 to 2",
        ),
        (
            lambda rows: [{**rows[0], "parsed_answer": "E"}, *rows[1:]],
            r"a.jsonl:1: parsed_answer is 'E'; it must be A, B or C, an index from 0 to 2, or null",
        ),
        (
            lambda rows: [{**rows[0], "item_id": -2}, *rows[1:]],
            r"a.jsonl:1: item_id is -2; it must be the item's number in its category, or a text",
        ),
        (lambda rows: [{**rows[0], "item_id": 2.0}, *rows[1:]], r"a.jsonl:1: item_id is 2.0"),
        (lambda rows: [{**rows[0], "item_id": 2**64}, *rows[1:]], r"a.jsonl:1: item_id is 184"),
        (
            lambda rows: [{**rows[0], "item_id": "Age/" + "9" * 20}, *rows[1:]],
            r"a.jsonl:1: item_id",
        ),
        (
            lambda rows: [{**rows[0], "seed": 2**63}, *rows[1:]],
            r"seed is .*; it must be a whole number",
        ),
        (
            lambda rows: [rows[0], {**rows[1], "category": "\ud83d"}, *rows[2:]],
            r"a.jsonl:2: category is",
        ),
        (lambda rows: [*rows, '{"seed": ' + "9" * 5000 + "}"], r"a.jsonl:5: not a record"),
        (lambda rows: [*rows, "[" * 200_000], r"a.jsonl:5: not "),
        (
            lambda rows: [{**row, "anti_stereotype_target_index": 0} for row in rows],
            r"a.jsonl:1: the three indices of item 'Age/2' are \[2, 0, 0\]",
        ),
        (
            lambda rows: [*rows[:3], {**rows[3], "category": "SES"}],
            r"a.jsonl:4: item 'Age/4' has category .* at .*a.jsonl:2; an item is the same everywhere",
        ),
        (
            lambda rows: [*rows, rows[1]],
            r"a.jsonl:5: model 'm' at quant 16, item 'Age/4', seed 42 is already at .*a.jsonl:2",
        ),
        (
            lambda rows: rows[:3],
            r"model 'm' at quant 3 has no record of item 'Age/4' with seed 42, and .*a.jsonl:2 has",
        ),
        (
            lambda rows: [*rows, {**rows[3], "seed": 7}],
            r"model 'm' at quant 16 has no record of item 'Age/2' with seed 7",
        ),
        (lambda rows: rows[:2], r"model 'm' has records at bf16 alone; a comparison needs"),
        (lambda rows: [], r"a.jsonl: no record"),
    ],
)
def test_bad_records_are_refused_in_one_line(tmp_path, change, message):
    written(tmp_path / "a.jsonl", change(grid()))
    with pytest.raises(ValueError, match=message) as error:
        raw.import_raw("theirs", tmp_path, results=tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "theirs").exists()


def test_a_study_of_its_own_name_and_a_folder_of_records_are_asked_for(tmp_path):
    for name in ("organisms", "paper"):
        with pytest.raises(ValueError, match=f"STUDY: '{name}' has a file in config/"):
            raw.import_raw(name, tmp_path, results=tmp_path)
    with pytest.raises(ValueError, match="STUDY: 'Their/s' is no name"):
        raw.import_raw("Their/s", tmp_path, results=tmp_path)
    with pytest.raises(FileNotFoundError, match="RAW is the folder of the records"):
        raw.import_raw("theirs", tmp_path, results=tmp_path)
