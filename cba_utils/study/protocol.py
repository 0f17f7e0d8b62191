"""Read and check a study file; the list of its cells; what running them would take.

``python -m cba_utils.study.protocol config/paper.yml`` prints the cells and the estimate; with ``--models``,
``--precisions``, ``--items`` and ``--write`` it makes another study of it.
"""

import argparse
import copy
import json
import os
import re
import sys
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path

import jsonschema
import yaml

from cba_utils.names import BUNDLED_BANK, CONFIG, HELD_OUT_TEXT, PROJECT, RESULTS
from cba_utils.answering.precisions import parse_precision
from cba_utils.answering.prompts import DATE
from cba_utils.answering.sources import at_precision, local_folder, nearest_organisms, of_a_family

SCHEMA = Path(__file__).with_name("study_schema.json")
SHIPPED = "organisms"
# Files of a checkpoint that decide what it answers.
_OF_CHECKPOINT = ("config.json", "*.safetensors", "tokenizer.json", "tokenizer_config.json",
                  "tokenizer.model", "*.jinja")
# Folders in results/ that are no study's.
_NO_STUDIES = ("cells", "hazards", "instrument")


def book_folder(name):
    """Where a study's book is built: the project itself for the shipped study.

    Examples
    --------
    >>> book_folder("smoke").relative_to(RESULTS).as_posix()
    'smoke/book'
    """
    return PROJECT if name == SHIPPED else RESULTS / name / "book"


@dataclass(frozen=True)
class Cell:
    """One model at one precision on one item set: one execution of the run notebook.

    Attributes mirror the parameters of ``notebooks/10_evaluate.ipynb``; ``family``, ``replicate``
    and ``depth`` only label the cell in the study's tables, and ``base`` names the model before
    alignment, which the rounding notebook compares with.
    """

    name: str
    model: str
    precision: str
    items: str
    categories: tuple | None
    condition: str
    limit: int | None
    orders: str
    prompt: str
    date: str
    compute: str | None
    seeds: tuple
    temperature: float
    max_tokens: int
    parser: str
    text: str
    sequences: int
    sequence_length: int
    text_seed: int
    perplexity_method: str
    family: str
    replicate: int
    depth: str
    base: str | None

    @property
    def folder(self):
        """Where the cell's records go, below the study's results."""
        return f"{self.name}/{self.precision}"

    def parameters(self):
        """Parameters of the run notebook, as plain YAML values."""
        labels = ("name", "family", "replicate", "depth", "base")
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if key not in labels
        }


def read_study(path):
    """Read a study file and check it against the schema.

    Parameters
    ----------
    path : str or Path
        A YAML file, see ``config/``. ``$NAME`` in it is replaced from the environment.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        Naming the file, the key, what was wrong and what would be right.

    Examples
    --------
    >>> read_study(PROJECT / "config" / "smoke.yml")["name"]
    'smoke'
    """
    path = Path(path)
    if not path.is_file():
        have = ", ".join(sorted(p.stem for p in CONFIG.glob("*.yml")))
        raise ValueError(f"{path}: no such study; there are {have}")
    # A variable that is empty is as good as none: make exports those that were not given.
    text = re.sub(r"\$\{?(\w+)\}?", lambda name: os.environ.get(name[1]) or name[0],
                  path.read_text(encoding="utf-8"))
    try:
        study = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from None
    study = _checked(study, path)
    if study["name"] != study_name(path):
        raise ValueError(f"{path}: name is {study['name']!r}; it must be {study_name(path)!r}, as the "
                         f"file says, because results and book are found by it")
    return study


def study_name(path):
    """Name of a study by its file, ``<name>.yml`` or ``<name>/study.yml``.

    Examples
    --------
    >>> study_name("config/smoke.yml"), study_name("results/mine/study.yml")
    ('smoke', 'mine')
    """
    path = Path(path)
    return path.parent.name if path.name == "study.yml" else path.stem


def _checked(study, where):
    """The study, if it fits the schema and what the schema cannot say."""
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    problem = jsonschema.exceptions.best_match(validator.iter_errors(study))
    if problem:
        raise ValueError(f"{where}: {_explain(problem)}")
    if str(study["items"]["source"]).startswith("$"):
        variable = study["items"]["source"].lstrip("${").rstrip("}")
        raise ValueError(
            f"{where}: items.source needs the environment variable {variable}: the folder of BBQ's "
            f"JSONL files (make book STUDY={study['name']} {variable}=<folder>)"
        )
    names = [model["name"] for model in study["models"]]
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: two models have the same name; names are folders of results")
    for model in study["models"]:
        for source in filter(None, (model["source"], model.get("base"))):
            if local_folder(source) is None and of_a_family(source):
                raise ValueError(f"{where}: {model['name']}: there is no organism {source!r} (nearest: "
                                 f"{nearest_organisms(source)})")
        for precision in _precisions(study, model):
            try:
                parse_precision(precision)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        if "bf16" not in _precisions(study, model):
            raise ValueError(
                f"{where}: precisions of {model['name']}: bf16 is missing, and every change is "
                f"measured since it"
            )
    return study


def cells(study):
    """All cells of a study, model by model, from the highest precision down.

    Parameters
    ----------
    study : dict
        From `read_study`.

    Returns
    -------
    list of Cell
    """
    if not study["models"]:  # imported records
        return []
    items, samples, text = study["items"], study["samples"], study["perplexity"]
    return [
        Cell(
            name=model["name"],
            model=model["source"],
            precision=precision,
            items=items["source"],
            categories=tuple(items["categories"]) if items.get("categories") else None,
            condition=items["condition"],
            limit=items.get("limit"),
            orders=model.get("orders", study["orders"]),
            prompt=study.get("prompt", "organisms"),
            date=study.get("date", DATE),
            compute=model.get("compute", study.get("compute")),
            seeds=tuple(samples["seeds"]),
            temperature=samples["temperature"],
            max_tokens=samples["max_tokens"],
            parser=samples["parser"],
            text=text["source"],
            sequences=text["sequences"],
            sequence_length=text["sequence_length"],
            text_seed=text["seed"],
            perplexity_method=text.get("method", "own"),
            family=model["family"],
            replicate=model.get("replicate", 1),
            depth=model.get("depth", "full"),
            base=model.get("base"),
        )
        for model in study["models"]
        for precision in _precisions(study, model)
    ]


def input_files(mine):
    """Files of this machine that decide what a model answers; what comes from a hub has none.

    Parameters
    ----------
    mine : list of Cell
        The cells of one model.

    Returns
    -------
    list of str

    Examples
    --------
    >>> found = input_files(cells(read_study(PROJECT / "config" / "smoke.yml")))
    >>> sorted({Path(file).name for file in found})[:3]
    ['bank.jsonl.gz', 'chat_template.jinja', 'config.json']
    """
    found = set()
    for cell in mine:
        for source in filter(None, (at_precision(cell.model, cell.precision), cell.base)):
            folder = local_folder(source)
            if folder:
                found |= {p for pattern in _OF_CHECKPOINT for p in folder.glob(pattern)}
            elif Path(source).is_file():  # a GGUF file
                found.add(Path(source))
        found |= {BUNDLED_BANK} if cell.items == "bundled" else set(Path(cell.items).glob("*.jsonl"))
        text = HELD_OUT_TEXT if cell.text == "bundled" else Path(cell.text)
        found |= {text} if text.is_file() else set()
    return sorted(map(str, found))


def rounding_parameters(mine):
    """Parameters of the rounding notebook for one model.

    Parameters
    ----------
    mine : list of Cell
        The cells of one model.

    Returns
    -------
    dict or None
        None if the model names no base, or is not quantized.

    Examples
    --------
    >>> study = read_study(PROJECT / "config" / "smoke.yml")
    >>> rounding_parameters(cells(study))["precisions"]
    ['q3']
    """
    precisions = [cell.precision for cell in mine if cell.precision != "bf16"]
    if not (mine[0].base and precisions):
        return None
    unused = ("precision", "orders", "compute", "seeds", "max_tokens", "parser", "perplexity_method")
    known = {k: v for k, v in mine[0].parameters().items() if k not in unused}
    return {**known, "base": mine[0].base, "precisions": precisions}


def narrow(study, name, models=None, precisions=None, items=None):
    """Another study on the same items with the same protocol.

    Parameters
    ----------
    study : dict
    name : str
        Of the new study, whose results go to ``results/<name>``.
    models : list of str, optional
        Names of the study's models, or what a model's ``source`` can be: a folder with safetensors,
        a hub id, an organism.
    precisions : list of str, optional
        For all of these models; the changes that reports show are since ``bf16``.
    items : int or str, optional
        At most so many, or another source of items.

    Returns
    -------
    dict
        Checked like one that was read.

    Raises
    ------
    ValueError
        Naming what was wrong and what would be right.

    Examples
    --------
    >>> study = read_study(PROJECT / "config" / "smoke.yml")
    >>> [cell.folder for cell in cells(narrow(study, "mine", ["qwen2/aligned-s2"], ["bf16", "q4"]))]
    ['qwen2-aligned-s2/bf16', 'qwen2-aligned-s2/q4']
    """
    new = copy.deepcopy(study) | {"name": name}
    if name in _NO_STUDIES or (CONFIG / f"{name}.yml").exists():
        shipped = "the shipped study" if name == SHIPPED else "taken"
        raise ValueError(f"NAME: {name!r} is {shipped}, and its results stay as they are; choose another")
    if models:
        known = {model["name"]: model for model in new["models"]}
        new["models"] = [known.get(model) or _model_entry(model, known) for model in models]
    if precisions:
        new["precisions"] = precisions
        for model in new["models"]:
            model.pop("precisions", None)
    if isinstance(items, int):
        new["items"]["limit"] = items
    elif items:
        new["items"] = {"source": items, "condition": study["items"]["condition"]}
    changed = {"models": models, "precisions": precisions, "items": items}
    told = "; ".join(f"{key} {' '.join(value) if isinstance(value, list) else value}"
                     for key, value in changed.items() if value)
    new["title"] = f"{study['title']}, changed: {told}"
    return _checked(new, "the study asked for")


def _model_entry(source, known):
    from cba_utils.answering.sources import find_checkpoint

    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", source).strip("-.")
    entry = {"name": slug, "source": source, "family": slug}
    if source.count("/") == 1 and not Path(source).exists() and not of_a_family(source):
        return entry  # a hub id, looked up when it is loaded
    try:
        find_checkpoint(source)
    except FileNotFoundError as error:
        nearest = ", ".join(get_close_matches(source, known, 3, 0))
        raise ValueError(f"{error}; models of the study: {nearest}") from None
    return entry


def _precisions(study, model):
    return model.get("precisions", study["precisions"])


def _explain(problem):
    where = ".".join(str(part) for part in problem.absolute_path) or "the top level"
    if problem.validator == "additionalProperties":
        unknown = sorted(set(problem.instance) - set(problem.schema["properties"]))
        return (f"{where}: unknown key {unknown[0]!r}; the keys are "
                f"{', '.join(problem.schema['properties'])}")
    return f"{where}: {problem.message}"


def main(arguments=None):
    """Print the cells of a study and what they would take, or write a study made from it."""
    parser = argparse.ArgumentParser(prog="python -m cba_utils.study.protocol", description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--models", type=_listed, help="names in the study, or sources")
    parser.add_argument("--precisions", type=_listed, help="for all models, e.g. bf16,q4")
    parser.add_argument("--items", default="", help="at most so many, or where they come from")
    parser.add_argument("--write", type=Path, help="results/<name>/study.yml, and print nothing")
    options = parser.parse_args(arguments)
    # Here, because it needs this module.
    from cba_utils.study.estimate import duration, estimate

    try:
        study = read_study(options.study)
        if options.models or options.precisions or options.items:
            name = options.write.parent.name if options.write else "asked"
            study = narrow(study, name, options.models, options.precisions, parse_items(options.items))
        if options.write:
            write = yaml.safe_dump(study, sort_keys=False, allow_unicode=True)
            options.write.parent.mkdir(parents=True, exist_ok=True)
            options.write.write_text(write, encoding="utf-8")
            return
        expected = estimate(study)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{study['name']}: {study['title']}")
    grid = cells(study)
    for name in dict.fromkeys(cell.name for cell in grid):
        mine = [cell for cell in grid if cell.name == name]
        print(f"  {name:24} {mine[0].model:48} {' '.join(cell.precision for cell in mine)}")
    print(f"cells    {expected['cells']}")
    print(f"prompts  {expected['prompts']:,}")
    print(f"memory   about {expected['memory'] / 1e9:.1f} GB at the highest precision")
    print(f"disk     about {expected['disk'] / 1e9:.1f} GB of weights and records")
    print(f"time     about {duration(expected['seconds'])} here, at {expected['rate'] / 1e9:,.0f} "
          f"GFLOP/s (rough: half of a matrix product's rate)")
    print("nothing was downloaded")


def _listed(text):
    return [part for part in re.split(r"[,\s]+", text) if part]


def parse_items(text):
    """Items asked for on a command line: a number of them, or where they come from.

    Returns
    -------
    int, str or None

    Raises
    ------
    ValueError
        If it is neither a number, nor ``bundled``, nor a folder, nor the id of a hub data set.

    Examples
    --------
    >>> parse_items("200"), parse_items("bundled"), parse_items("")
    (200, 'bundled', None)
    """
    if text.isdecimal() and int(text) > 0:
        return int(text)
    if text in ("", "bundled") or Path(text).is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        return text or None
    raise ValueError(
        f"ITEMS: {text!r} is no number of items above 0, nor 'bundled', nor a folder of BBQ's JSONL "
        f"files, nor the id of a hub data set"
    )


if __name__ == "__main__":
    main()
