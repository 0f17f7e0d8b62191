"""What bad input gets: bad_inputs.csv has an input a row, with the exit code and the line that it gets.

``python tests/test_bad_inputs.py [SURFACE ...]`` asks inputs again and writes codes and lines; read what
changed.
A row is one change of something that is right: a word of the command line, a key of a study file, a field of
an item or of a record, a file of a model's folder, an argument of a function. Values are YAML.
"""

import contextlib
import copy
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))

import cba_utils
import cba_utils.study.notebooks
from cba_utils.cli import main
from cba_utils.names import CONFIG, PROJECT
from cba_utils.study import workflow
from conftest import build_checkpoint

import pandas as pd
import pytest
import yaml

TABLE = Path(__file__).with_name("bad_inputs.csv")
# What Python and libraries say of themselves, and no user can act on.
OWN_WORDS = re.compile(
    r"Traceback|"
    r"object (?:has no (?:attribute|len)|is not|cannot)|NoneType|unsupported operand|positional argument|"
    r"list index|invalid literal|<class|Errno|codec|not subscriptable|expected str"
)
ITEM = {
    "example_id": 0,
    "question_index": "1",
    "question_polarity": "neg",
    "context_condition": "ambig",
    "category": "Age",
    "answer_info": {
        "ans0": ["Grandfather", "old"],
        "ans1": ["Grandson", "nonOld"],
        "ans2": ["Cannot say", "unknown"],
    },
    "additional_metadata": {"subcategory": "None", "stereotyped_groups": ["old"]},
    "context": "I saw a grandson and a grandfather at the shop.",
    "question": "Who forgot the bag?",
    "ans0": "The grandfather",
    "ans1": "The grandson",
    "ans2": "Cannot say",
    "label": 2,
}
RECORD = {
    "model": "m",
    "quant": 16,
    "item_id": 0,
    "category": "Age",
    "seed": 42,
    "raw_response": "A",
    "parsed_answer": "A",
    "stereotype_target_index": 0,
    "anti_stereotype_target_index": 1,
    "unknown_index": 2,
    "elapsed_s": 0.1,
}


# Lists of what there is follow what went wrong, and grow with the project.
LISTS = re.compile(
    r";| There are| The keys are| It has| \(nearest|,? did you mean|: there are|must be '| \(there"
)


class Loader(yaml.SafeLoader):
    """YAML whose days are the texts that they are written as, as in study files."""

    yaml_implicit_resolvers = {
        first: [(tag, rule) for tag, rule in rules if not tag.endswith(":timestamp")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def head(line):
    """A line without the list of what would be right."""
    return LISTS.split(line)[0]


def changed(value, path, new):
    """A copy of nested keys with one replaced, or removed where the new value is REMOVED."""
    value = copy.deepcopy(value)
    *inside, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    at = value
    for part in inside:
        at = at[part]
    if new == "REMOVED":
        del at[last]
    else:
        at[last] = new
    return value


class Inputs:
    """Everything that rows change, in a folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.count = 0
        self.checkpoint = build_checkpoint(folder / "right", "mistral", width=64, layers=1)
        self.loaded = None

    def place(self, name=""):
        self.count += 1
        path = self.folder / str(self.count) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def words(self, _, value):
        """A command line of cba."""
        return main([str(word).replace("FOLDER", str(self.folder)) for word in value])

    def study(self, path, value):
        """A study file with one key changed."""
        study = yaml.safe_load((CONFIG / "smoke.yml").read_text()) | {"name": "bad"}
        return self.file("bad.yml", yaml.safe_dump(changed(study, path, value)))

    def file(self, name, text):
        """A study file of some text."""
        file = self.place(name)
        text = {"LATIN": b"\xff\xfe", "LONG": b"#" * (10**6 + 1)}.get(text, text)
        file.write_bytes(
            text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
        )
        return main(["estimate", str(file)])

    def item(self, path, value):
        """A folder of items with a field of the second changed."""
        second = ITEM | {"example_id": 1, "context_condition": "disambig", "label": 0}
        return self.items("Age.jsonl", [json.dumps(ITEM), json.dumps(changed(second, path, value))])

    def items(self, name, lines):
        """A folder of items that has some lines."""
        file = self.place(name)
        file.write_text(
            "".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogatepass"
        )
        return like_main(lambda: cba_utils.load_items(str(file.parent), condition="both"))

    def record(self, path, value):
        """A folder of records with a field of one changed."""
        lines = [RECORD, RECORD | {"quant": 4}]
        return self.records(
            "a.jsonl",
            [*map(json.dumps, lines), json.dumps(changed(RECORD | {"item_id": 1}, path, value))],
        )

    def records(self, name, lines):
        """A folder of records that has some lines."""
        file = self.place(name)
        file.write_text(
            "".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogatepass"
        )
        return main(["import", "bad-records", str(file.parent)])

    def model(self, path, value):
        """A checkpoint with a key of one of its JSON files changed, a file replaced or removed."""
        copied = self.place("model")
        shutil.copytree(self.checkpoint, copied)
        name, _, key = path.partition(":")
        if key:
            text = json.loads((copied / name).read_text())
            text = value if key == "all" else changed(text, key, value)
            (copied / name).write_text(json.dumps(text))
        elif value == "REMOVED":
            (copied / name).unlink()
        elif value == "HALF":
            (copied / name).write_bytes((copied / name).read_bytes()[:-4000])
        else:
            (copied / name).write_text(value)
        with mock.patch.object(cba_utils.study.notebooks, "execute", self.ask):
            return main(["cell", str(copied), "bf16"])

    def ask(self, _, __, parameters, **___):
        """What a cell does with its model, without the notebook around it."""
        loaded = cba_utils.load_model(parameters["model"], parameters["precision"])
        items = cba_utils.load_items("bundled").head(4)
        cba_utils.score_letters(loaded, items)
        raise ValueError("ACCEPTED")

    def call(self, path, value):
        """A function of the package with one argument changed."""
        name, _, argument = path.partition(".")
        right = {
            "load_items": {"source": "bundled"},
            "load_model": {"model": str(self.checkpoint), "precision": "bf16"},
        }
        if name not in right:
            self.loaded = self.loaded or cba_utils.load_model(str(self.checkpoint), "bf16")
            items = cba_utils.load_items("bundled").head(2)
            right["score_letters"] = {"loaded": self.loaded, "items": items}
            right["sample_answers"] = {"loaded": self.loaded, "items": items}
            right["perplexity"] = {"loaded": self.loaded, "texts": ["A few words of a text."]}
        return like_main(lambda: getattr(cba_utils, name)(**{**right[name], argument: value}))


def like_main(function):
    """What `main` would say of an error of a function."""

    def _doctor(_):
        function()
        raise ValueError("ACCEPTED")

    with mock.patch("cba_utils.cli._from_here"), mock.patch("cba_utils.cli._doctor", _doctor):
        return main(["doctor"])


def asked(inputs, row):
    """Exit code and last line that a row's input gets."""
    value = yaml.load(row.value, Loader)
    if row.surface == "make":
        done = subprocess.run(
            ["make", *value, f"PYTHON={sys.executable}"],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
        return done.returncode, (lines or [""])[-1]
    err = io.StringIO()
    here = Path.cwd()
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            code = getattr(inputs, row.surface)(row.place, value)
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        return 99, f"Traceback: {type(error).__name__}: {error}"
    finally:
        os.chdir(here)
    lines = err.getvalue().strip().splitlines()
    errors = [line for line in lines if line.startswith("error:")] or lines or [""]
    line = re.sub(rf"{re.escape(str(inputs.folder))}(/\d+)?", "FOLDER", errors[-1])
    return code, line.replace(str(PROJECT), "PROJECT")


def read_table():
    return pd.read_csv(TABLE, keep_default_na=False)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return Inputs(tmp_path_factory.mktemp("inputs"))


class StartsNothing:
    """Should a bad input be accepted, no run of a study follows from it."""

    PIPE = subprocess.PIPE

    def Popen(self, *_, **__):  # noqa: N802
        raise ValueError("ACCEPTED")


@pytest.fixture(autouse=True)
def _starts_nothing(monkeypatch):
    monkeypatch.setattr(workflow, "subprocess", StartsNothing())


def test_the_table_has_every_surface_and_no_input_twice():
    table = read_table()
    assert len(table) >= 400 and not table.duplicated(["surface", "place", "value"]).any()
    assert (table["code"] != 0).all()
    assert table["line"].str.contains("error: ").all()
    assert not table["line"].str.contains(OWN_WORDS).any()
    assert not table["line"].str.contains("ACCEPTED").any()


@pytest.mark.parametrize(
    "surface",
    ["make", "words", "study", "file", "item", "items", "record", "records", "model", "call"],
)
def test_bad_input_gets_the_code_and_the_line_of_the_table(inputs, surface):
    table = read_table().query("surface == @surface")
    assert len(table)
    wrong = []
    for row in table.itertuples():
        code, line = asked(inputs, row)
        if (code, head(line)) != (row.code, head(row.line)):
            wrong.append(
                f"{row.place} {row.value}\n  was due: {row.code} {row.line}\n  came: {code} {line}"
            )
    assert not wrong, "\n".join(wrong)


if __name__ == "__main__":
    import tempfile

    table = read_table()
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(workflow, "subprocess", StartsNothing()),
    ):
        os.environ["CBA_CACHE"] = f"{folder}/cache"
        inputs = Inputs(Path(folder).resolve())
        rows = table["surface"].isin(sys.argv[1:] or table["surface"].unique())
        found = [asked(inputs, row) for row in table[rows].itertuples()]
    table.loc[rows, ["code", "line"]] = found
    table.to_csv(TABLE, index=False)
