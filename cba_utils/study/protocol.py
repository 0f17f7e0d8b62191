"""A study file: its parameters with their bounds, the list of its cells, and studies made from it.

The models below are the one list of parameters. A study file is read by them, a cell's parameters
(those of ``notebooks/10_evaluate.ipynb``) are their fields, and the documentation and the JSON schema
are made from their descriptions. A parameter is added by one line in the section it belongs to.
"""

import copy
import hashlib
import os
import re
from dataclasses import replace
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from cba_utils.answering.precisions import parse_precision
from cba_utils.answering.prompts import DATE, ORDERS, PARSERS, PROMPTS
from cba_utils.answering.sources import (
    ADAPTER_FILES,
    PACKAGE,
    adapter_folder,
    at_precision,
    is_gguf,
    is_organism,
    local_folder,
    nearest_organisms,
    of_a_family,
)
from cba_utils.names import BUNDLED_BANK, CONFIG, HELD_OUT_TEXT, PROJECT, RESULTS

SHIPPED = "organisms"
# Files of a checkpoint that decide what it answers.
_OF_CHECKPOINT = (
    "config.json",
    "*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "*.jinja",
)
# What lies in results/ and is no study's, and what lies in a study's results and is no model's. File
# systems that ignore case would take one for the other, so names are compared without it.
_NO_STUDIES = ("cells", "gates", "hazards", "instrument")
_NO_MODELS = ("tables", "book", "reports", "figures", "cells")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
# Seeds, ids and counts are kept as 64-bit integers in the records.
_INT64 = 2**63 - 1


def _expanded(text):
    """A source with an environment variable at its beginning filled in."""
    match = re.match(r"\$\{?(\w+)\}?(?=/|$)", text)
    if not match:
        return text
    value = os.environ.get(match[1])
    if not value:  # make exports those that were not given, as empty
        raise ValueError(
            f"needs the environment variable {match[1]}, a folder or file "
            f"({match[1]}=<path> make book STUDY=<name>)"
        )
    return value + text[match.end() :]


def _day(text):
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError(f"{text!r} is no day; write it as {DATE}") from None


def _precision(name):
    parse_precision(name)
    return name


def _each_once(values):
    twice = [value for k, value in enumerate(values) if value in values[:k]]
    if twice:
        raise ValueError(f"{twice[0]!r} is there twice; give each once")
    return values


def _precisions(names):
    same = {}
    for name in names:
        # q4 and q4-g64, but not q4-e8 and q4-e16, whose facts differ by the name alone.
        key = re.sub(r"-g\d+", "", name), replace(parse_precision(name), name="")
        if key in same:
            raise ValueError(f"{same[key]!r} and {name!r} are the same precision; give each once")
        same[key] = name
    return names


def _model_name(name):
    if name.lower() in _NO_MODELS:
        raise ValueError(
            f"{name!r} is a folder of the study's results that is no model's; choose another name"
        )
    return name


def _study_name(name):
    if name in _NO_STUDIES:
        raise ValueError(
            f"{name!r} is a folder in results/ that is no study's; choose another name"
        )
    return name


def _adapter(folder):
    if adapter_folder(folder) is None:
        raise ValueError(
            f"{folder!r} is no folder with {' and '.join(ADAPTER_FILES)}, which is the form that "
            f"mlx_lm.lora writes"
        )
    return folder


Text = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"\S")]
Source = Annotated[Text, AfterValidator(_expanded)]
Adapter = Annotated[
    Source | None,
    Field(
        description="A folder with an adapter as `mlx_lm.lora` writes it (LoRA or full), fused into the "
        "model at full precision before anything is quantized."
    ),
]
Count = Annotated[int, Field(ge=1, le=_INT64)]
Orders = Annotated[
    Literal[tuple(ORDERS)],
    Field(
        description="In which orders the three answers are shown: as they are, 3 rotations, or all 6."
    ),
]
Compute = Annotated[
    Literal["dense", "native"] | None,
    Field(
        description="Dense products or MLX's native kernels; by default what is fast on the machine."
    ),
]
Prompt = Annotated[
    Literal[tuple(PROMPTS)],
    Field(
        description="The words in which a question is asked: "
        + "; ".join(f"`{prompt.name}`, {prompt.source}" for prompt in PROMPTS.values())
        + "."
    ),
]
Date = Annotated[
    str,
    AfterValidator(_day),
    Field(description="The day that a chat template which states today's gets to state."),
]
Drift = Annotated[
    bool,
    Field(
        description="Whether each answer's and token's distribution over the whole vocabulary is compared "
        "with BF16's: divergence, total variation and changes of the likeliest token."
    ),
]
Precision = Annotated[str, AfterValidator(_precision)]
# Lists are kept as tuples, so that nothing changes them by accident.
Precisions = Annotated[
    tuple[Precision, ...], Field(strict=False, min_length=1), AfterValidator(_precisions)
]
_LIST = dict(strict=False, min_length=1)


class _Checked(BaseModel):
    """Strict: a text is no number, true is no 1, an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Selection(_Checked):
    """Which of the items are asked."""

    categories: Annotated[tuple[Text, ...], Field(**_LIST), AfterValidator(_each_once)] | None = (
        Field(
            None,
            description="Names of categories as BBQ writes them; all of them if there is none.",
        )
    )
    condition: Literal["ambig", "disambig", "both"] = Field(
        description="Ambiguous questions, disambiguated ones, or both. A study has ambiguous ones."
    )
    limit: Count | None = Field(
        None,
        description="At most so many items, a choice mixed evenly that is the same in every cell.",
    )


class Items(Selection):
    """The questions."""

    source: Source = Field(
        description="`bundled`, a folder of BBQ's JSONL files, or a hub data set."
    )
    expected: Count | None = Field(
        None, description="How many there are, for estimates before a data set is downloaded."
    )


class Samples(_Checked):
    """Answers that are drawn, one a seed."""

    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, le=_INT64)], ...],
        Field(max_length=10_000, **_LIST),
        AfterValidator(_each_once),
    ] = Field(description="One answer is drawn for each.")
    temperature: float = Field(
        ge=0.01,
        le=100,
        description="Of the answers that are drawn. Probabilities are kept at 1 as well.",
    )
    max_tokens: int = Field(ge=1, le=1000, description="Tokens of an answer, at most.")
    parser: Literal[PARSERS] = Field(
        description="How a letter is read from an answer, see `sample_answers`."
    )


class Perplexity(_Checked):
    """The text on which perplexity is measured."""

    text: Source = Field(description="`bundled`, a text file, or a hub data set of conversations.")
    sequences: int = Field(ge=1, le=10**9, description="How many sequences of the text are read.")
    sequence_length: int = Field(ge=2, le=10**7, description="Tokens of a sequence.")
    text_seed: int = Field(
        123, ge=0, le=2**32 - 1, description="Order in which a hub data set is read."
    )
    perplexity_method: Literal["own", "published"] = Field(
        "own", description="The project's own, or mlx_lm's call of the published study beside it."
    )


class Labels(_Checked):
    """How a model is called in tables and pages; nothing here decides an answer."""

    name: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200),
        AfterValidator(_model_name),
    ] = Field(
        description="The model's name, which is also the folder of its records: Latin letters, "
        "digits, dot, hyphen and underscore."
    )
    family: Text = Field(description="Models of one family are taken together, one colour each.")
    replicate: Count = Field(
        1, description="Number of a checkpoint among those made alike; intervals are over them."
    )
    depth: Text = Field("full", description="How far the alignment went, in the study's own words.")
    base: Source | None = Field(
        None,
        description="The checkpoint that the model was aligned from. Models of one base are one "
        "cluster in intervals; for the first of them the rounding error is taken apart.",
    )


class Model(Labels):
    """One model of a study. What it says of its own goes before what the study says."""

    source: Source = Field(
        description="A folder with safetensors and tokenizer, an organism, or a hub id; "
        "`{precision}` in it is filled in, for models published once a precision."
    )
    adapter: Adapter = None
    parameters: Annotated[int, Field(ge=1, le=10**15)] | None = Field(
        None, description="Number of weights, for estimates before anything is downloaded."
    )
    precisions: Precisions | None = Field(None, description="Instead of the study's.")
    orders: Orders | None = Field(None, description="Instead of the study's.")
    compute: Compute = Field(None, description="Instead of the study's.")


def family_title(text):
    """What sentences call a family: its title without the bracket at its end.

    Examples
    --------
    >>> family_title("toy-Mistral (1M weights)"), family_title("mine")
    ('toy-Mistral', 'mine')
    """
    return re.sub(r"\s*\([^()]*\)$", "", text) or text


class Study(_Checked):
    """A named grid of cells with its protocol."""

    # An integer and not the literal, to which true and 1.0 are equal.
    schema_version: int = Field(ge=1, le=1, description="1.")
    name: Annotated[
        str, Field(pattern=r"^[a-z][a-z0-9_-]*$", max_length=200), AfterValidator(_study_name)
    ] = Field(description="As the file says, because results and book are found by it.")
    title: Annotated[Text, Field(pattern=r"^[^\r\n]*\S[^\r\n]*$")] = Field(
        description="One line, shown on the pages."
    )
    note: Text | None = Field(None, description="What readers of the study's pages must know.")
    families: dict[Text, Text] | None = Field(
        None,
        description="How pages call a family, such as `mine: Mine (7B weights)`: figures write all of "
        "it, sentences what comes before the bracket.",
    )
    models: Annotated[tuple[Model, ...], Field(**_LIST)] = Field(
        description="See the models' own keys."
    )
    precisions: Precisions = Field(
        description="`bf16`, which every change is measured since, and at least one other: `q8` to "
        "`q2`, with `-g32` or `-g128` for another group size, one of MLX's other modes, or a recipe: "
        "`q4-e8`, `q4-gptq-aligned`, `q4-kv8` and the like."
    )
    items: Items = Field(description="See its own keys.")
    orders: Orders
    prompt: Prompt = "published"
    date: Date = DATE
    compute: Compute = None
    drift: Drift = True
    samples: Samples = Field(description="See its own keys.")
    perplexity: Perplexity = Field(description="See its own keys.")

    @field_validator("items")
    @classmethod
    def _has_ambiguous_questions(cls, items):
        if items.condition == "disambig":
            raise ValueError(
                "condition 'disambig' leaves nothing to measure a stereotype on, which "
                "reports do on ambiguous questions; use ambig or both"
            )
        return items

    @model_validator(mode="after")
    def _families_are_told_apart(self):
        called = self.families or {}
        there = list(dict.fromkeys(model.family for model in self.models))
        for family in called:
            if family not in there:
                raise ValueError(
                    f"families: no model has the family {family!r}; there are {', '.join(there)}"
                )
        short = [family_title(called.get(family, family)) for family in there]
        twice = [title for k, title in enumerate(short) if title in short[:k]]
        if twice:
            raise ValueError(
                f"families: two are called {twice[0]!r} in sentences; give each another title"
            )
        return self

    @model_validator(mode="after")
    def _can_be_compared(self):
        names, asked = {}, {}
        for model in self.models:
            if model.name.lower() in names:
                other = names[model.name.lower()]
                same = (
                    "two models have the same name"
                    if other == model.name
                    else (f"{other!r} and {model.name!r} differ in case alone")
                )
                raise ValueError(f"models: {same}; names are folders of results")
            names[model.name.lower()] = model.name
            if "bf16" not in (model.precisions or self.precisions):
                raise ValueError(
                    f"precisions of {model.name}: bf16 is missing, and every change is "
                    f"measured since it"
                )
        grid = cells_of(self)
        for cell in grid:
            key = cell.asked()
            if key in asked:
                raise ValueError(
                    f"models: {asked[key]!r} and {cell.name!r} are the same model, asked "
                    f"the same at {cell.precision}; leave one out"
                )
            asked[key] = cell.name
        if all(cell.precision == "bf16" for cell in grid):
            raise ValueError(
                "precisions: bf16 alone leaves nothing to compare it with; add at least "
                "one other, e.g. q4"
            )
        return self


class Parameters(Selection, Samples, Perplexity):
    """All that is asked of one model at one precision: the parameters of the run notebook."""

    model: Source = Field(description="A folder, an organism or a hub id.")
    adapter: Adapter = None
    precision: Precision = Field(description="One precision.")
    items: Source = Field(
        description="`bundled`, a folder of BBQ's JSONL files, or a hub data set."
    )
    orders: Orders
    prompt: Prompt
    date: Date
    compute: Compute = None
    drift: Drift


class Cell(Labels, Parameters):
    """One model at one precision on one item set: one execution of the run notebook."""

    @property
    def folder(self):
        """Where the cell's records go, below the study's results."""
        return f"{self.name}/{self.precision}"

    def parameters(self):
        """Parameters of the run notebook, as plain YAML values."""
        return self.model_dump(mode="json", exclude=set(Labels.model_fields))

    def asked(self):
        """What is asked, without the labels: equal for two cells that would be the same."""
        return tuple(getattr(self, name) for name in Parameters.model_fields)


def check_parameters(parameters):
    """Refuse parameters of a run notebook that are no cell's.

    Parameters
    ----------
    parameters : dict

    Raises
    ------
    ValueError
        Naming the parameter, what was wrong and what would be right.

    Examples
    --------
    >>> cell = cells(read_study(CONFIG / "smoke.yml"))[0]
    >>> check_parameters(cell.parameters())
    >>> check_parameters(cell.parameters() | {"temperature": "0.3"})
    Traceback (most recent call last):
    ValueError: parameters: temperature: must be a valid number, not '0.3'
    """
    _validated(Parameters, parameters, "parameters")


class _Loader(yaml.SafeLoader):
    """YAML without what a study needs not and a mistake or a bomb is made of."""

    # Days stay the texts that they are written as.
    yaml_implicit_resolvers = {
        first: [(tag, rule) for tag, rule in rules if not tag.endswith(":timestamp")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent, index):
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.YAMLError(
                f"line {mark.line + 1}: aliases (*) are not read here; write it out"
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.YAMLError(
                    f"line {key.start_mark.line + 1}: the key {key.value!r} is there "
                    f"twice; keep one"
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_study(path):
    """Read a study file and check it.

    Parameters
    ----------
    path : str or Path
        A YAML file, see ``config/``. ``$NAME`` at the beginning of a source is filled in from the
        environment.

    Returns
    -------
    dict
        The study with its defaults filled in; keys that have no value are left out.

    Raises
    ------
    ValueError
        Naming the file, the key, what was wrong and what would be right.

    Examples
    --------
    >>> read_study(CONFIG / "smoke.yml")["name"]
    'smoke'
    """
    path = Path(path)
    if not path.is_file():
        have = sorted(p.stem for p in CONFIG.glob("*.yml"))
        raise ValueError(f"{path}: no such study; there are {', '.join(have)}")
    try:
        if path.stat().st_size > 10**6:
            raise ValueError(f"{path}: more than a megabyte is no study file")
        study = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8; save it as UTF-8") from None
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply for a study") from None
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    study = check_study(study, path)
    if study["name"] != study_name(path):
        raise ValueError(
            f"{path}: name is {study['name']!r}; it must be {study_name(path)!r}, as the "
            f"file says, because results and book are found by it"
        )
    return study


def check_study(study, where):
    """A study with its defaults filled in, if it and the sources it names can be.

    Parameters
    ----------
    study : dict
    where : str or Path
        The file, for messages.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        Naming the file, the key, what was wrong and what would be right.
    """
    checked = _validated(Study, study, where)
    for model in checked.models:
        for precision in model.precisions or checked.precisions:
            for source in filter(None, (at_precision(model.source, precision), model.base)):
                _check_source(source, f"{where}: {model.name}")
        if model.adapter:
            try:
                _adapter(model.adapter)
            except ValueError as error:
                raise ValueError(f"{where}: adapter of {model.name}: {error}") from None
    _check_data(
        checked.items.source,
        f"{where}: items.source",
        "a folder of BBQ's JSONL files",
        lambda path: path.is_dir(),
    )
    _check_data(
        checked.perplexity.text,
        f"{where}: perplexity.text",
        "a text file",
        lambda path: path.is_file() and path.stat().st_size > 0,
    )
    return checked.model_dump(mode="json", exclude_none=True)


def _check_source(source, where):
    """Refuse what can be no checkpoint, before anything is looked up elsewhere."""
    from cba_utils.answering.packages import PACKAGES

    if local_folder(source) or (is_gguf(source) and Path(source).is_file()):
        return
    if source.startswith(PACKAGE):
        if source.removeprefix(PACKAGE) not in PACKAGES:
            raise ValueError(
                f"{where}: {source!r} is no package that is known to hold a model; there "
                f"are {', '.join(PACKAGE + name for name in PACKAGES)}"
            )
        return
    if of_a_family(source):
        raise ValueError(
            f"{where}: there is no organism {source!r} (nearest: {nearest_organisms(source)})"
        )
    if Path(source).exists():
        raise ValueError(
            f"{where}: {source!r} holds no config.json; a model is a folder with "
            f"config.json, safetensors and a tokenizer"
        )
    if not _HUB_ID.fullmatch(source):
        raise ValueError(
            f"{where}: {source!r} is no folder, no organism (nearest: "
            f"{nearest_organisms(source)}) and no hub id (owner/name)"
        )


def _check_data(source, where, what, fits):
    if source == "bundled" or fits(Path(source)):
        return
    if Path(source).exists():
        raise ValueError(f"{where}: {source!r} is there and is not {what} with something in it")
    if not _HUB_ID.fullmatch(source):
        raise ValueError(
            f"{where}: {source!r} is not 'bundled', nor {what}, nor the id of a hub data "
            f"set (owner/name)"
        )


def _validated(model, values, where):
    """An instance of a model, or one line that says what of the values is wrong."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    # An unknown key is most often the misspelt one that is missing.
    unknown = ("extra_forbidden", "invalid_key")
    problem = min(problems, key=lambda p: p["type"] not in unknown)
    place, keys = _place(model, problem["loc"])
    told, given = problem["msg"], problem["input"]
    if problem["type"] in unknown:
        *inside, key = problem["loc"]
        place = _place(model, inside)[0] or "the top level"
        near = get_close_matches(str(key), keys, 1, 0.5)
        told = (
            f"unknown key {key!r}"
            + (f", did you mean {near[0]!r}?" if near else ";")
            + f" The keys are {', '.join(keys)}"
        )
    elif problem["type"] == "missing":
        told = "is missing"
    elif problem["type"] == "value_error":
        told = str(problem["ctx"]["error"])
    else:
        shown = repr(given) if len(repr(given)) <= 60 else f"{repr(given)[:57]}..."
        told = re.sub(r"^(Input|Value|String|Tuple) should ", "must ", told)
        told = {
            "model_type": "must be a list of keys with values",
            "tuple_type": "must be a list",
            "string_pattern_mismatch": f"must match {problem.get('ctx', {}).get('pattern')}",
        }.get(problem["type"], told) + f", not {shown}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise ValueError(": ".join(filter(None, (str(where), place, told))) + more)


def _place(model, loc):
    """A place in a study as people write it, and the keys that belong there."""
    parts, keys = [], list(model.model_fields)
    for part in loc:
        if isinstance(part, str) and part in getattr(model, "model_fields", {}):
            inner = {"models": Model, "items": Items, "samples": Samples, "perplexity": Perplexity}
            model = inner.get(part) if model is Study else None
            keys = list(model.model_fields) if model else keys
        parts.append(str(part))
    return ".".join(parts), keys


def study_name(path):
    """Name of a study by its file, ``<name>.yml`` or ``<name>/study.yml``.

    Examples
    --------
    >>> study_name("config/smoke.yml"), study_name("results/mine/study.yml")
    ('smoke', 'mine')
    """
    path = Path(path)
    return path.parent.name if path.name == "study.yml" else path.stem


def book_folder(name):
    """Where a study's book is built: the project itself for the shipped study.

    Examples
    --------
    >>> book_folder("smoke").relative_to(RESULTS).as_posix()
    'smoke/book'
    """
    return PROJECT if name == SHIPPED else RESULTS / name / "book"


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
    return cells_of(Study.model_validate(study))


def cells_of(study):
    """The cells of a study that was checked."""
    sections = {
        name: getattr(section, name)
        for section in (study.items, study.samples, study.perplexity)
        for name in type(section).model_fields
        if name in Cell.model_fields
    }
    return [
        Cell.model_construct(
            **sections,
            **{name: getattr(model, name) for name in Labels.model_fields},
            model=model.source,
            adapter=model.adapter,
            precision=precision,
            items=study.items.source,
            orders=model.orders or study.orders,
            prompt=study.prompt,
            date=study.date,
            compute=model.compute or study.compute,
            drift=study.drift,
        )
        for model in study.models
        for precision in model.precisions or study.precisions
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
    >>> found = input_files(cells(read_study(CONFIG / "smoke.yml")))
    >>> sorted({Path(file).name for file in found})[:3]
    ['adapter_config.json', 'adapters.safetensors', 'bank.jsonl.gz']
    """
    found = set()
    for cell in mine:
        for source in filter(None, (at_precision(cell.model, cell.precision), cell.base)):
            folder = local_folder(source)
            if folder:
                found |= {p for pattern in _OF_CHECKPOINT for p in folder.glob(pattern)}
            elif Path(source).is_file():  # a GGUF file
                found.add(Path(source))
        if cell.adapter:
            found |= {adapter_folder(cell.adapter) / name for name in ADAPTER_FILES}
        found |= (
            {BUNDLED_BANK} if cell.items == "bundled" else set(Path(cell.items).glob("*.jsonl"))
        )
        text = HELD_OUT_TEXT if cell.text == "bundled" else Path(cell.text)
        found |= {text} if text.is_file() else set()
    return sorted(map(str, found))


def rounding_parameters(all_cells, name):
    """Parameters of the rounding notebook for one model of a study.

    The error is taken apart for one model a base, the first: models of one base differ by little of
    their weights, so that the others would repeat it.

    Parameters
    ----------
    all_cells : list of Cell
        Those of the study.
    name : str
        The model's.

    Returns
    -------
    dict or None
        None if the model names no base, or another of the same base goes first, or it is rounded to
        nearest at no precision: a recipe that rescales channels moves weights in ways that are no
        rounding error.

    Examples
    --------
    >>> study = read_study(CONFIG / "smoke.yml")
    >>> rounding_parameters(cells(study), study["models"][0]["name"])["precisions"]
    ['q3']
    """
    mine = [cell for cell in all_cells if cell.name == name]
    base = mine[0].base
    of_base = [cell for cell in all_cells if base and cell.base == base and _is_rounded(cell)]
    if not (of_base and of_base[0].name == name):
        return None
    unused = (
        "precision",
        "orders",
        "compute",
        "drift",
        "seeds",
        "max_tokens",
        "parser",
        "perplexity_method",
    )
    known = {k: v for k, v in mine[0].parameters().items() if k not in unused}
    precisions = [cell.precision for cell in of_base if cell.name == name]
    return {**known, "base": base, "precisions": precisions}


def _is_rounded(cell):
    parsed = parse_precision(cell.precision)
    return bool(parsed.method) and parsed.calibration is None and parsed.cache_bits is None


def narrow(study, name, models=None, precisions=None, items=None, prompt=None, compute=None):
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
    prompt, compute : str, optional
        As in a study file, for all models.

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
    >>> study = read_study(CONFIG / "smoke.yml")
    >>> [cell.folder for cell in cells(narrow(study, "mine", ["toy-qwen2/b1"], ["bf16", "q4"]))]
    ['toy-qwen2-b1/bf16', 'toy-qwen2-b1/q4']
    """
    check_name(name, "NAME")
    if (CONFIG / f"{name}.yml").exists():
        shipped = "the shipped study" if name == SHIPPED else "taken"
        raise ValueError(
            f"NAME: {name!r} is {shipped}, and its results stay as they are; choose another"
        )
    new = copy.deepcopy(study) | {"name": name}
    if models:
        known = {model["name"]: model for model in new["models"]}
        new["models"] = [known.get(model) or _model_entry(model, known) for model in models]
        kept = {model["family"] for model in new["models"]}
        new["families"] = {k: v for k, v in new.get("families", {}).items() if k in kept} or None
    if precisions:
        new["precisions"] = precisions
        for model in new["models"]:
            model.pop("precisions", None)
    if isinstance(items, int):
        new["items"]["limit"] = items
    elif items:
        new["items"] = {"source": items, "condition": study["items"]["condition"]}
    if prompt:
        new["prompt"] = prompt
    if compute:
        new["compute"] = compute
        for model in new["models"]:
            model.pop("compute", None)
    changed = {
        "models": models,
        "precisions": precisions,
        "items": items,
        "prompt": prompt,
        "compute": compute,
    }
    told = "; ".join(
        f"{key} {' '.join(value) if isinstance(value, list) else value}"
        for key, value in changed.items()
        if value
    )
    new["title"] = f"{study['title']}, changed: {' '.join(told.split())}"[:1000]
    return check_study(new, "the study asked for")


def check_name(name, where):
    """Refuse what cannot be the name of a study, and so of a folder in ``results/``.

    Parameters
    ----------
    name : str
    where : str
        What was given, for the message.

    Examples
    --------
    >>> check_name("../evil", "NAME")
    Traceback (most recent call last):
    ValueError: NAME: '../evil' is no name; use lower-case letters, digits, - and _
    """
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,199}", name):
        raise ValueError(f"{where}: {name!r} is no name; use lower-case letters, digits, - and _")
    if name in _NO_STUDIES:
        raise ValueError(
            f"{where}: {name!r} is a folder in results/ that is no study's; choose another"
        )


def model_slug(source):
    """Name for a model that is known by its source alone, different for different sources.

    Organisms and hub ids keep their words. A folder goes by its own name and by a part of the hash of
    where it lies: names in letters that no folder of results should have would all be the same.

    Examples
    --------
    >>> model_slug("toy-mistral/b1"), model_slug("owner/model-{precision}-mlx")
    ('toy-mistral-b1', 'owner-model-mlx')
    >>> model_slug("/models/mine") != model_slug("/other/mine")
    True
    """
    words = re.sub(r"[-_.]?\{precision\}", "", source)
    is_path = (
        Path(source).exists()
        or Path(source).is_absolute()
        or not (_HUB_ID.fullmatch(words) or source.startswith(PACKAGE))
    )
    if is_path and not is_organism(source):
        place = hashlib.sha256(os.path.abspath(source).encode()).hexdigest()[:8]
        words = f"{os.path.basename(os.path.abspath(words))[:60]}-{place}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", words).strip("-.")[:200]


def _model_entry(source, known):
    """What a study file would say of a model that is known by its source alone."""
    try:
        _check_source(at_precision(source, "bf16"), "model")
    except ValueError as error:
        near = get_close_matches(source, known, 3, 0)
        raise ValueError(f"{error}; models of the study: {', '.join(near)}") from None
    slug = model_slug(source)
    return {"name": slug, "source": source, "family": slug}


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
    if re.fullmatch("[0-9]{1,18}", text) and int(text) > 0:
        return int(text)
    if text in ("", "bundled") or Path(text).is_dir() or _HUB_ID.fullmatch(text):
        return text or None
    raise ValueError(
        f"ITEMS: {text!r} is no number of items above 0, nor 'bundled', nor a folder of BBQ's JSONL "
        f"files, nor the id of a hub data set"
    )


def parse_models(text):
    """Models asked for on a command line, between commas or spaces; a folder's name may have both.

    Examples
    --------
    >>> parse_models("toy-mistral/b1, toy-phi3/b1"), parse_models("toy-qwen2/b1 toy-phi3/b1")
    (['toy-mistral/b1', 'toy-phi3/b1'], ['toy-qwen2/b1', 'toy-phi3/b1'])
    """
    found, parts = [], [part.strip() for part in text.split(",")]
    while parts:
        # The longest run of parts that is a folder, else the words of the first part.
        runs = (k for k in range(len(parts), 0, -1) if Path(",".join(parts[:k])).is_dir())
        k = next(runs, 0)
        if k and parts[0]:
            found.append(",".join(parts[:k]))
        elif "{precision}" in parts[0] and "/" in parts[0]:
            found.append(parts[0])
        else:
            found += parts[0].split()
        parts = parts[max(k, 1) :]
    return found


def documentation():
    """Every key of a study file with its bounds and meaning, as a Markdown table a section.

    Returns
    -------
    str

    Examples
    --------
    >>> "| `temperature` | number from 0.01 to 100 |" in documentation()
    True
    >>> "| `drift` | `true` or `false` | `true` |" in documentation()
    True
    """
    schema = Study.model_json_schema()
    sections = {
        "The study": schema,
        **{
            f"`{key}`": schema["$defs"][name]
            for key, name in (
                ("models", "Model"),
                ("items", "Items"),
                ("samples", "Samples"),
                ("perplexity", "Perplexity"),
            )
        },
    }
    lines = []
    for title, section in sections.items():
        needed = section.get("required", [])
        lines += [
            f"**{title}**: {section['description'][0].lower()}{section['description'][1:]}",
            "",
            "| key | value | if left out | meaning |",
            "| --- | --- | --- | --- |",
        ]
        for key, field in section["properties"].items():
            default = field.get("default")
            left = (
                "must be there"
                if key in needed
                else "nothing"
                if default is None
                else f"`{str(default).lower() if isinstance(default, bool) else default}`"
            )
            lines.append(f"| `{key}` | {_kind(field)} | {left} | {field['description']} |")
        lines.append("")
    return "\n".join(lines)


def _kind(field):
    """What a value must be, in words, from its JSON schema."""
    field = next(
        (option for option in field.get("anyOf", []) if option.get("type") != "null"), field
    )
    if "$ref" in field:
        return "keys, below"
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "object":
        return "keys with texts"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if field["type"] == "boolean":
        return "`true` or `false`"
    if field["type"] == "array":
        return (
            "list of keys, below" if "$ref" in field["items"] else f"list: {_kind(field['items'])}"
        )
    words = {"string": "text", "integer": "whole number", "number": "number"}[field["type"]]
    low, high = field.get("minimum"), field.get("maximum")
    if low is not None and low == high:
        return f"`{low}`"
    if low is not None:
        # Bounds that only keep a number in 64 bits are no news.
        words += f" from {low:g}" + (f" to {high:g}" if high < 10**7 else "")
    return words
