"""The workflow runs again what an edit touches, and nothing else; a run that is stopped leaves nothing."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from cba_utils.names import PROJECT, RESULTS
from cba_utils.study import workflow
from cba_utils.study.files import remove_scratch, scratch_for
from cba_utils.study.protocol import cells, narrow, read_study
from cba_utils.study.workflow import sources_of

import psutil
import pytest
import yaml

REPORTS = sorted((PROJECT / "notebooks").glob("[2-9]*.ipynb"))
NEVER = (
    "cli",
    "study/doctor",
    "study/estimate",
    "study/workflow",
    "study/notebooks",
    "telling/pdf",
    "telling/compare",
    "telling/card",
)


def study_named(name, items=12):
    """A study file of two cells in the project's results."""
    study = narrow(
        read_study(PROJECT / "config" / "smoke.yml"),
        name,
        ["toy-mistral/b1"],
        ["bf16", "q4"],
        items,
    )
    path = RESULTS / name / "study.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(study))
    return study, path


@pytest.fixture
def made():
    names = []
    yield lambda name, *more: (names.append(name), study_named(name, *more))[1]
    for name in names:
        shutil.rmtree(RESULTS / name)


@pytest.mark.parametrize("report", REPORTS, ids=lambda p: p.stem)
def test_a_report_needs_what_it_imports_and_no_tools(report):
    found = sources_of(report)
    assert not {f"cba_utils/{name}.py" for name in NEVER} & set(found)
    named = {
        Path(file).stem
        for file in found
        if file.startswith("cba_utils/chapters/") and file.endswith(".py")
    }
    assert len(named - {"__init__"}) <= 3, "other chapters are other pages'"


def asked_again(name, *touched):
    """Rules that Snakemake would run after an edit of files: a number of jobs each."""
    before = {PROJECT / file: (PROJECT / file).stat() for file in touched}
    now = (
        time.time()
    )  # later than the outputs; a time to come would disturb whoever runs a study just now
    for path in before:
        os.utime(path, (now, now))
    try:
        done = snakemake(name, "--dry-run")
    finally:
        for path, was in before.items():
            os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    found = re.findall(r"^(\w[\w-]*) +(\d+)$", done.stdout, re.M)
    return {rule: int(jobs) for rule, jobs in found}


def snakemake(name, *more):
    command = [
        Path(sys.executable).with_name("snakemake"),
        "-s",
        "workflow/Snakefile",
        "--cores",
        "1",
        "--nolock",
        "--configfile",
        f"results/{name}/workflow.yml",
        *more,
    ]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_an_edit_runs_again_what_depends_on_it_and_nothing_else(made):
    study, path = made("test-layers")
    base = RESULTS / "test-layers"
    (base / "workflow.yml").write_text(yaml.safe_dump({"study": str(path.relative_to(PROJECT))}))
    outputs = [base / cell.folder / "10_evaluate.ipynb" for cell in cells(study)]
    outputs += [
        base / "reports" / "collected.done",
        base / "book" / "_build" / "html" / "index.html",
    ]
    outputs += [base / "reports" / f"{report.stem}.done" for report in REPORTS]
    for output in outputs:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.touch()
    snakemake("test-layers", "--touch")
    assert not asked_again("test-layers", "cba_utils/study/doctor.py", "cba_utils/cli.py")
    # A chapter is one page's, what decides an answer everybody's.
    assert asked_again("test-layers", "cba_utils/chapters/skill.py") == {
        "report": 1,
        "book": 1,
        "all": 1,
        "total": 3,
    }
    again = asked_again("test-layers", "cba_utils/answering/engine.py")
    assert again["report"] == len(REPORTS) and any(rule.startswith("evaluate") for rule in again)


def test_what_a_killed_process_left_half_written_goes_and_a_living_ones_stays(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    writers = str(os.getpid()), str(dead.pid)
    kept = [
        scratch_for(tmp_path / "10_evaluate.ipynb"),
        tmp_path / f".10_evaluate.other-host.{dead.pid}.ipynb",
        tmp_path / "10_evaluate.ipynb",
        tmp_path / ".lock",
    ]
    gone = [
        tmp_path / "q4" / scratch_for(Path("10_evaluate.ipynb")).name.replace(*writers),
        tmp_path / scratch_for(Path("answers.parquet")).name.replace(*writers),
    ]
    for path in (*kept, *gone):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    remove_scratch(tmp_path)
    assert all(path.exists() for path in kept) and not any(path.exists() for path in gone)


def at_work(name):
    """Processes of a study's run, without those that are only the dead not yet buried."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or [])
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()) != PROJECT:  # another copy of the project is nobody's here
                continue
        if name in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(words)
    return found


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name
)
def test_a_make_that_is_stopped_ends_all_in_seconds_and_the_next_goes_on(made, number):
    name = f"test-stop-{number.name.lower()}"
    made(name, 240)
    command = ["make", "book", f"STUDY={name}", f"PYTHON={sys.executable}"]
    with subprocess.Popen(
        command,
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # a process of xdist ignores Ctrl-C, and what it starts would too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.time() + 120
        while not any(
            f"{name}" in words and "model" in words for words in at_work("toy-mistral-b1")
        ):
            assert process.poll() is None and time.time() < deadline
            time.sleep(0.2)
        process.send_signal(number)  # to make alone: a terminal would tell everybody
        stopped = time.time()
        process.wait(60)
        while at_work(name) and time.time() < stopped + 60:
            time.sleep(0.2)
    took = time.time() - stopped
    assert not at_work(name) and took < 15
    assert not list((RESULTS / name).rglob(".*.ipynb"))
    again = subprocess.run(
        [sys.executable, "-m", "cba_utils.cli", "model", name, "toy-mistral-b1"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr


def test_a_book_whose_build_was_stopped_is_built_from_nothing(monkeypatch, tmp_path):
    page, found, codes = tmp_path / "_build" / "html" / "page.html", [], iter([1, 0, 0])

    def build(*_, **__):
        found.append(page.exists())
        page.parent.mkdir(parents=True, exist_ok=True)
        page.touch()
        return subprocess.CompletedProcess([], next(codes))

    monkeypatch.setattr(workflow, "book_folder", lambda name: tmp_path)
    monkeypatch.setattr(workflow.subprocess, "run", build)
    with pytest.raises(RuntimeError, match="could not be built"):
        workflow.build_book("some")
    workflow.build_book("some")
    workflow.build_book("some")
    assert found == [False, False, True]


@pytest.mark.parametrize("folder", ["1e3", "2024_01 br{ace} $x 'q' \u6a21"])
def test_records_lie_in_a_folder_of_any_name(folder, tmp_path, made):
    made("test-raw")
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "a{b}.jsonl").touch()
    settings = {"study": "test-raw", "raw": str(tmp_path / folder)}
    (RESULTS / "test-raw" / "workflow.yml").write_text(yaml.safe_dump(settings))
    told = snakemake("test-raw", "--dry-run", "--printshellcmds").stdout
    assert re.search(r"^records +1$", told, re.M)


def make(*words):
    return subprocess.run(
        ["make", *words, f"PYTHON={sys.executable}"], cwd=PROJECT, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["estimate", "PRECISONS=q4"],
            "PRECISONS: 'make estimate' has no such variable, did you mean PRECISIONS?",
        ),
        (["book", "MODEL=x"], "MODEL: 'make book' has no such variable, did you mean MODELS?"),
        (["cell", "MODELS=x"], "MODELS: 'make cell' has no such variable, did you mean MODEL?"),
        (["help", "ACCEL=foo"], "ACCEL is neither cpu nor cuda"),
        (["organisms", "ALIGN=maybe"], "ALIGN is not 'only'"),
    ],
)
def test_a_variable_that_does_nothing_is_refused_by_name(words, told):
    done = make(*words)
    assert done.returncode == 2 and told in done.stderr


@pytest.mark.parametrize(
    "text",
    ["$(shell touch {0})", "$$(touch {0})", "`touch {0}`", '"; touch {0}; "', "'; touch {0}; '"],
)
def test_nothing_in_a_variable_is_a_command(text, tmp_path):
    """Through make's own parsing, with the recipe's program replaced by one that shows its words."""
    mark = tmp_path / "ran"
    text = text.format(mark)
    show = tmp_path / "cba"
    show.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:])\n")
    show.chmod(0o755)
    given = [f"{name}={text}" for name in ("MODELS", "PRECISIONS", "ITEMS", "NAME", "STUDY")]
    makefile = tmp_path / "Makefile"
    makefile.write_text(
        (PROJECT / "Makefile")
        .read_text()
        .replace("BIN := .venv/bin", f"BIN := {tmp_path}")
        .replace("estimate: setup", "estimate:")
    )
    done = subprocess.run(
        ["make", "-f", str(makefile), "estimate", *given],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert not mark.exists()
    assert done.stdout.count(repr(text)[1:-1]) == 5, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["estimate", "../x"], "STUDY: '../x' is no name"),
        (["estimate", "smok"], "STUDY: there is no 'smok', did you mean 'smoke'?"),
        (["estimate", "smoke", "--precisions", ","], "',' names nothing"),
        (["estimate", "smoke", "--items", " "], "ITEMS: ' ' is no number"),
        (["estimate", "smoke", "--name", "x"], "NAME names a study that differs"),
        (["run", "smoke", "--items", "9", "--name", "../evil"], "NAME: '../evil' is no name"),
        (["run", "theirs", "--raw", "/nowhere"], "RAW: '/nowhere' is no folder with *.jsonl"),
        (["compare", "smoke", "smoke"], "A and B are both 'smoke'"),
        (["rnu"], "'rnu' is no verb; did you mean 'run'?"),
    ],
)
def test_bad_words_are_refused_in_one_line(words, told, capsys):
    from cba_utils.cli import main

    try:
        code = main(words)
    except SystemExit as error:
        code = error.code
    lines = capsys.readouterr().err.strip().splitlines()
    assert (
        code in (1, 2) and len(lines) == 1 and lines[0].startswith("error: ") and told in lines[0]
    )
