"""A study as one archive for a repository of research data: ``cba deposit organisms``.

The archive is an RO-Crate in the profiles Workflow Run and Process Run: the project's files, the study's
records and its book, and ``ro-crate-metadata.json``, which says how each came to be. From a figure it leads
to the page's run that drew it, from there to the tables, to the runs of the cells whose rows these are, and
to the weights and items that a cell had, each with its hash. Unpacked, it is the project again, without git.
"""

import hashlib
import json
import os
import re
import zipfile
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pandas as pd
import yaml
from pathspec import GitIgnoreSpec

from cba_utils.answering.checkpoint_files import weight_files
from cba_utils.answering.sources import ADAPTER_FILES, adapter_folder, at_precision, local_folder
from cba_utils.names import BUNDLED_BANK, HELD_OUT_TEXT, PROJECT, RESULTS
from cba_utils.study.files import read_json, write_whole
from cba_utils.study.notebooks import ROUNDING_NOTEBOOK, RUN_NOTEBOOK
from cba_utils.study.protocol import SHIPPED, book_folder
from cba_utils.study.provenance import git, version
from cba_utils.study.tables import TEXTS

METADATA = "ro-crate-metadata.json"
SPECIFICATION = "https://w3id.org/ro/crate/1.1"
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
# RO-Crate 1.1 has no word for a file's hash; the profiles of runs have.
CONTEXT = [f"{SPECIFICATION}/context", {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"}]
WORKFLOW = "workflow/Snakefile"
# What the file LICENSE says, by the addresses of the two.
LICENCES = {
    "https://spdx.org/licenses/MIT": "MIT License: the code",
    "https://spdx.org/licenses/CC-BY-4.0": "Creative Commons Attribution 4.0: text, data, tables, figures",
}
_FORMATS = {
    ".csv": "text/csv",
    ".gz": "application/gzip",
    ".html": "text/html",
    ".ipynb": "application/x-ipynb+json",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown",
    ".parquet": "application/vnd.apache.parquet",
    ".safetensors": "application/vnd.safetensors",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".yml": "application/yaml",
}


def archive_of(study, asked=None):
    """Where a study's archive goes.

    Parameters
    ----------
    study : str
    asked : str or Path, optional
        A ``*.zip``, by default ``results/<study>/deposit.zip``.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        If it has another ending.
    """
    target = Path(asked) if asked else RESULTS / study / "deposit.zip"
    if target.suffix != ".zip":
        raise ValueError(f"ARCHIVE: {str(target)!r} must end in .zip")
    return target


def deposit(study, target):
    """Write a study's archive, whole or not at all; the same files give the same bytes.

    Parameters
    ----------
    study : str
        The name of a study that was run and whose book was built.
    target : Path
        From `archive_of`.

    Raises
    ------
    FileNotFoundError
        If the study has no tables, or no book.
    ValueError
        If the tables hold words of items that others wrote.
    """
    paths = [path for path in files_of(study) if PROJECT / path != target.absolute()]
    crate = describe(study, paths)
    day = datetime.fromisoformat(crate["@graph"][1]["datePublished"])

    def write(scratch):
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as packed:
            text = json.dumps(crate, indent=1, ensure_ascii=False) + "\n"
            packed.writestr(_entry(METADATA, day), text)
            for path in paths:
                executable = (PROJECT / path).stat().st_mode & 0o100
                packed.writestr(_entry(path, day, executable), (PROJECT / path).read_bytes())

    write_whole(target, write)


def _entry(path, day, executable=0):
    entry = zipfile.ZipInfo(path, (day.year, day.month, day.day, 0, 0, 0))
    entry.external_attr = (0o100755 if executable else 0o100644) << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def files_of(study):
    """What a study's archive holds: the project's files, the study's records, and its book.

    Of a study whose items are not this project's own, the records of single cells, the executed
    notebooks and the book stay out: they quote the items.

    Parameters
    ----------
    study : str

    Returns
    -------
    list of str
        Below the project's folder, in order.
    """
    base = RESULTS / study
    if not (base / "tables" / "provenance.json").is_file():
        raise FileNotFoundError(f"STUDY: {study!r} was not run; 'make book STUDY={study}' runs it")
    found = {path for path in source_files() if (PROJECT / path).is_file()}
    found |= _below(base / "tables") | _below(base / "figures") | _below(base, "study.yml")
    if _own_items(base):
        cells = (path.parent for path in base.glob("*/*/provenance.json"))
        found |= set().union(*(_below(cell, "*.*") for cell in cells))
        found |= _below(base, "*/12_rounding.ipynb")
        book = book_folder(study)
        if not (book / "_build" / "html" / "index.html").is_file():
            command = "make pages" if study == SHIPPED else f"make book STUDY={study}"
            raise FileNotFoundError(f"STUDY: {study!r} has no book yet; {command!r} builds it")
        found |= _below(book / "_build" / "html") | _below(book / "notebooks", "*.ipynb")
    return sorted(found - {METADATA})


def _below(folder, pattern="**/*"):
    """Files below a folder, without hidden ones."""
    return {
        path.relative_to(PROJECT).as_posix()
        for path in folder.glob(pattern)
        if path.is_file() and not path.name.startswith(".")
    }


def _own_items(base):
    """Whether a study's items are this project's; if they are others', tables must be without words."""
    cells = read_json(base / "tables" / "provenance.json")["cells"]
    sources = {str(cell["identity"]["parameters"]["items"]) for cell in cells}
    if all(s == "bundled" or PROJECT / "data" in Path(PROJECT, s).parents for s in sources):
        return True
    items = pd.read_parquet(base / "tables" / "items.parquet")
    if any(items[name].notna().any() for name in TEXTS if name in items):
        raise ValueError(
            f"STUDY: the tables of {base.name!r} hold words of items that are not this project's; "
            f"'cba collect {base.name} --small' makes them without"
        )
    return False


def source_files():
    """The project's own files: those that git knows or, without git, all that it would not ignore.

    Returns
    -------
    list of str
        Below the project's folder.

    Examples
    --------
    >>> found = source_files()
    >>> "README.md" in found, any(path.startswith((".venv/", "_build/")) for path in found)
    (True, False)
    """
    listed = git("ls-files", "-z")
    if listed is not None:
        return listed.strip("\0").split("\0")
    lines = (PROJECT / ".gitignore").read_text(encoding="utf-8").splitlines()
    for more in PROJECT.glob("*/.gitignore"):
        own = [
            line
            for line in more.read_text(encoding="utf-8").splitlines()
            if line[:1] not in ("", "#")
        ]
        lines += [f"{more.parent.name}/**/{line}" for line in own]
    ignored = GitIgnoreSpec.from_lines(lines)
    return sorted(ignored.match_tree_files(PROJECT, negate=True))


def describe(study, paths):
    """What an archive's files are and how they came to be, as JSON-LD.

    Parameters
    ----------
    study : str
    paths : list of str
        From `files_of`.

    Returns
    -------
    dict
    """
    base = f"results/{study}"
    known = read_json(RESULTS / study / "tables" / "provenance.json")
    graph = _Graph(paths)
    pages = _pages(study, graph)
    for name in sorted({study, *(name for page in pages for name in page["studies"])}):
        told = read_json(RESULTS / name / "tables" / "provenance.json")["cells"]
        for cell in told:
            graph.cell(name, cell)
        for taken_apart in read_json(RESULTS / name / "tables" / "rounding.json") or []:
            graph.cell(name, taken_apart)
    for page in pages:
        graph.page(page)
    started = min(cell["started"] for cell in known["cells"])
    ended = max(map(_end, known["cells"]))
    config = f"config/{study}.yml" if f"config/{study}.yml" in paths else f"{base}/study.yml"
    books = [path for path in paths if path.endswith("_build/html/index.html")]
    graph.action(
        "#run",
        f"Run of the study {study}",
        f"All cells, tables, pages and the book of: {known['study']['title']}",
        graph.workflow(),
        graph.files([config]),
        graph.files([*graph.tables(study), *books]),
        started,
        ended,
    )
    return {"@context": CONTEXT, "@graph": graph.finished(study, known["study"], ended[:10])}


def _lean(entity):
    """An entity as the specification recommends it: one thing is no list."""
    return {
        key: value[0] if isinstance(value, list) and len(value) == 1 else value
        for key, value in entity.items()
        if value != []
    }


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


def _end(cell):
    """When a cell ended; an import says when it was made alone."""
    started = datetime.fromisoformat(cell["started"])
    return (started + timedelta(seconds=cell.get("seconds", 0))).isoformat(timespec="seconds")


def _pages(study, graph):
    """The executed report notebooks of an archive: their figures, and the studies that they read."""
    folder = f"results/{study}/book/notebooks" if study != SHIPPED else "notebooks"
    have = {path.split("/")[1] for path in graph.paths if path.endswith("/tables/provenance.json")}
    found = []
    for path in graph.paths:
        if not re.fullmatch(rf"{re.escape(folder)}/[2-9]\d_\w+\.ipynb", path):
            continue
        cells = json.loads((PROJECT / path).read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        facts = [output.get("metadata", {}).get("cba", {}) for output in outputs]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        for chapter in re.findall(r'open_page\("(\w+)"', text):
            text += (PROJECT / "cba_utils" / "chapters" / f"{chapter}.py").read_text("utf-8")
        named = {name for name in have if re.search(rf"""["']{re.escape(name)}["']""", text)}
        found.append(
            {
                "notebook": path,
                "title": "".join(cells[0]["source"]).partition("\n")[0].lstrip("# "),
                "figures": [fact["name"] for fact in facts if fact.get("kind") == "figure"],
                "studies": named | {study} if folder != "notebooks" else named,
                "drawn": f"results/{study}/figures",
                "html": path.replace("notebooks/", "_build/html/notebooks/").replace(
                    ".ipynb", ".html"
                ),
            }
        )
    return found


class _Graph:
    """The entities of a crate, each once, in the order in which they were named."""

    def __init__(self, paths):
        self.paths = paths
        self.known = set(paths)
        self.entities = {}
        self.version = version()

    def add(self, name, kind, /, **facts):
        """Name an entity, unless it is known, and refer to it."""
        self.entities.setdefault(name, {"@id": name, "@type": kind, **facts})
        return {"@id": name}

    def files(self, paths):
        """Refer to those of some files that the archive holds."""
        return [self.file(path) for path in paths if path in self.known]

    def file(self, path, kind="File", **facts):
        """A file with its hash."""
        if path in self.entities:
            return {"@id": path}
        content = (PROJECT / path).read_bytes()
        return self.add(
            path,
            kind,
            name=path,
            encodingFormat=_FORMATS.get(Path(path).suffix, "application/octet-stream"),
            contentSize=str(len(content)),
            sha256=_sha256(content),
            **facts,
        )

    def tables(self, study):
        """The tables of a study, in the archive."""
        return [path for path in self.paths if path.startswith(f"results/{study}/tables/")]

    def workflow(self):
        """What runs a study from its file to its book."""
        language = self.add(
            "#snakemake",
            "ComputerLanguage",
            name="Snakemake",
            identifier="https://w3id.org/workflowhub/workflow-ro-crate#snakemake",
            url="https://snakemake.github.io",
        )
        return self.file(
            WORKFLOW,
            ["File", "SoftwareSourceCode", "ComputationalWorkflow"],
            programmingLanguage=language,
            version=self.version,
        )

    def notebook(self, path, packages=None):
        """A notebook as the program that it is, with the packages that it ran on."""
        needs = [
            self.add(
                f"https://pypi.org/project/{name}/{number}/",
                "SoftwareApplication",
                name=name,
                softwareVersion=number,
                url=f"https://pypi.org/project/{name}/{number}/",
            )
            for name, number in sorted((packages or {}).items())
        ]
        self.file(path)
        self.entities[path] |= {"@type": ["File", "SoftwareSourceCode"], "version": self.version}
        if needs:
            self.entities[path].setdefault("softwareRequirements", needs)
        return {"@id": path}

    def collection(self, name, about, digest, paths):
        """Files that count as one thing, and the hash by which a cell knows it."""
        parts = self.files(paths)
        facts = {"hasPart": parts, "mainEntity": parts[-1]} if parts else {}
        kind = "Collection" if parts else "CreativeWork"
        return self.add(f"#{name}/{digest}", kind, name=about, sha256=digest, **facts)

    def cell(self, study, cell):
        """The run of a cell, or of taking a model's rounding apart."""
        identity = cell["identity"]
        asked = identity["parameters"]
        part = cell.get("precision", "rounding")
        objects = [
            self.collection(name, about, identity[f"{name}_sha256"], _read(name, asked))
            for name, about in (
                ("weights", f"Weights of {asked['model']}: config.json, then its weight files"),
                ("adapter", f"Adapter {asked.get('adapter')} on {asked['model']}"),
                ("items", f"Items asked: {asked['items']}, {asked['condition']}; the rows as JSON"),
                ("text", f"Text for perplexity: {asked.get('text')}"),
            )
            if identity.get(f"{name}_sha256")
        ]
        for key, value in [*asked.items(), *identity.items()]:
            if value is None or key in ("parameters", "packages"):
                continue
            told = value if isinstance(value, str) else json.dumps(value)
            called = (
                f"#{key}={quote(told)}" if len(told) < 80 else f"#{key}/{_sha256(told.encode())}"
            )
            objects.append(self.add(called, "PropertyValue", name=key, value=told))
        folder = f"results/{study}/{cell['model']}/{cell.get('precision', '')}".rstrip("/")
        own = [path for path in self.paths if Path(path).parent.as_posix() == folder]
        run = RUN_NOTEBOOK if "precision" in cell else ROUNDING_NOTEBOOK
        self.action(
            f"#cell/{study}/{cell['model']}/{part}",
            f"{cell['model']} at {part}" if "precision" in cell else f"Rounding of {cell['model']}",
            f"Code of commit {cell.get('git_commit') or 'unknown'}, on {cell.get('platform', 'unknown')}. "
            f"In the tables: the rows whose model and precision have these names.",
            self.notebook(run.relative_to(PROJECT).as_posix(), identity.get("packages")),
            objects,
            self.files([*own, *self.tables(study)]),
            cell["started"],
            _end(cell),
        )

    def page(self, page):
        """The run of a report notebook, which reads tables and draws figures."""
        drawn = [
            f"{page['drawn']}/{name}.{kind}" for name in page["figures"] for kind in ("svg", "csv")
        ]
        tables = [path for name in sorted(page["studies"]) for path in self.tables(name)]
        stem = Path(page["notebook"]).stem
        self.action(
            f"#page/{stem}",
            f"Page: {page['title']}",
            "Reads the tables, and writes the page's sentences, tables and figures.",
            self.notebook(f"notebooks/{stem}.ipynb"),
            self.files(tables),
            self.files(dict.fromkeys([*drawn, page["notebook"], page["html"]])),
        )

    def action(self, name, title, words, instrument, objects, results, start=None, end=None):
        """Something that was run, what it was given and what came of it."""
        times = {"startTime": start, "endTime": end} if start else {}
        self.add(
            name,
            "CreateAction",
            name=title,
            description=words,
            instrument=instrument,
            agent={"@id": "#authors"},
            object=objects,
            result=results,
            actionStatus="http://schema.org/CompletedActionStatus",
            **times,
        )

    def finished(self, study, about, day):
        """All entities, after the description of the crate and its root."""
        said = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
        author = self.add("#authors", "Organization", name=said["authors"][0]["name"])
        licences = [
            self.add(url, "CreativeWork", name=words, url=url) for url, words in LICENCES.items()
        ]
        for folder in sorted({path.split("/")[0] for path in self.paths if "/" in path}):
            self.add(f"{folder}/", "Dataset", name=folder)
        for path in self.paths:
            if "/" not in path:
                self.file(path)
        self.entities["README.md"]["about"] = {"@id": "./"}
        profiles = [
            self.add(url, "CreativeWork", name=words, version=url.rpartition("/")[2])
            for url, words in PROFILES.items()
        ]
        kinds = {name: entity["@type"] for name, entity in self.entities.items()}
        parts = [name for name, kind in kinds.items() if kind == "Dataset" or "File" in kind]
        runs = [name for name, kind in kinds.items() if kind in ("CreateAction", "Collection")]
        descriptor = {
            "@id": METADATA,
            "@type": "CreativeWork",
            "conformsTo": [{"@id": SPECIFICATION}, profiles[-1]],
            "about": {"@id": "./"},
        }
        root = {
            "@id": "./",
            "@type": "Dataset",
            "name": about["title"],
            "description": f"Study {study} of: {said['title']}. {' '.join(said['abstract'].split())} "
            f"Version {self.version}.",
            "datePublished": day,
            "license": licences,
            "author": author,
            "conformsTo": profiles,
            "mainEntity": {"@id": WORKFLOW},
            "hasPart": [{"@id": name} for name in parts],
            "mentions": [{"@id": name} for name in runs],
        }
        return [_lean(entity) for entity in (descriptor, root, *self.entities.values())]


def _read(name, asked):
    """The files of this project that a cell read, by what its provenance calls their hash."""
    if name == "items":
        files = [BUNDLED_BANK if asked["items"] == "bundled" else Path(PROJECT, asked["items"])]
    elif name == "text":
        files = [HELD_OUT_TEXT if asked["text"] == "bundled" else Path(PROJECT, asked["text"])]
    elif name == "adapter":
        folder = adapter_folder(asked["adapter"])
        files = [folder / one for one in ADAPTER_FILES] if folder else []
    else:
        folder = local_folder(at_precision(asked["model"], asked.get("precision", "bf16")))
        files = [folder / "config.json", *weight_files(folder)] if folder else []
    # Folders of the project may be links to where there is room: what counts is how they are called here.
    each = (Path(os.path.abspath(path)) for path in files)
    inside = [path for path in each if PROJECT in path.parents]
    inside = [
        one for path in inside for one in (sorted(path.glob("*")) if path.is_dir() else [path])
    ]
    return [path.relative_to(PROJECT).as_posix() for path in inside]
