"""The project from `git archive`, unpacked where git knows nothing, or another project."""

import os
import shutil
import subprocess
import sys

from conftest import ROOT

import pytest

ASKED = """
import json
from cba_utils.names import PROJECT
from cba_utils.study.deposit import source_files
from cba_utils.study.provenance import code_version
print(json.dumps([str(PROJECT), code_version(), source_files()]))
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The tracked files, in a folder of another repository that has a commit of its own."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("no git here to make a source archive with")
    outer = tmp_path_factory.mktemp("outer")
    inner = outer / "source"
    inner.mkdir()
    packed = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x"], cwd=inner, input=packed.stdout, check=True)
    # What is not committed yet is tested as well.
    shutil.copytree(ROOT / "cba_utils", inner / "cba_utils", dirs_exist_ok=True)
    name = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "init", "-q"], cwd=outer, check=True)
    subprocess.run(
        ["git", *name, "commit", "-q", "--allow-empty", "-m", "x"], cwd=outer, check=True
    )
    return inner


def ask(unpacked, *command):
    known = {**os.environ, "PYTHONPATH": str(unpacked), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=unpacked, env=known, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_says_that_no_commit_is_known(unpacked):
    told = ask(unpacked, "-m", "cba_utils.cli", "--version")
    assert told.startswith("cba ") and told.endswith(", no commit known\n")


def test_it_knows_its_own_files_and_no_others_commit(unpacked):
    import json

    project, code, found = json.loads(ask(unpacked, "-c", ASKED))
    assert project == str(unpacked) and code == {"git_commit": None, "git_dirty": False}
    packed = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", "-z", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    committed = set(packed.stdout.strip("\0").split("\0"))
    assert {path for path in found if not path.startswith("cba_utils/")} == {
        path for path in committed if not path.startswith("cba_utils/")
    }
