"""Items of a benchmark from three sources, checked row by row.

What a row means, and the role of every answer, is its benchmark's to say: see
`cba_utils.answering.benchmarks`.
"""

import codecs
import fnmatch
import gzip
import json
from numbers import Integral
from pathlib import Path

import numpy as np
import pandas as pd

from cba_utils.answering.benchmarks import benchmark_of, benchmarks
from cba_utils.names import BUNDLED_BANK, kind

COLUMNS = [
    "item_id",
    "category",
    "question_index",
    "question_polarity",
    "context_condition",
    "context",
    "question",
    "ans0",
    "ans1",
    "ans2",
    "label",
    "stereotyped_index",
    "anti_stereotyped_index",
    "unknown_index",
    "target_group",
    "other_group",
    "version",
]
CONDITIONS = ("ambig", "disambig", "both")
ANSWERS = ("ans0", "ans1", "ans2")
_TEXTS = ("context", "question", *ANSWERS)
_NEEDED = (
    "example_id",
    "category",
    "question_index",
    "question_polarity",
    "context_condition",
    "answer_info",
    "additional_metadata",
    "label",
    *_TEXTS,
)


def load_items(source, categories=None, condition="ambig", targets="defined"):
    """Load items and assign the role of each answer.

    Parameters
    ----------
    source : str or Path
        ``"bundled"`` (the project's own bank), a folder of a benchmark's JSONL files (one file a
        category, named after it) or the id of a Hugging Face data set (``Elfsong/BBQ``).
    categories : list of str, optional
        Categories to keep; all by default.
    condition : {"ambig", "disambig", "both"}
        Which contexts to keep.
    targets : {"defined", "undefined"}
        Items with a stereotyped answer, which measures are about, or those that the rule gives none
        (both persons or neither belong to a stereotyped group), which no measure holds.

    Returns
    -------
    DataFrame
        One row an item, columns `COLUMNS`, in the source's order. Of its two persons one is in a
        group that the item's stereotype is about, ``target_group``; the other is in
        ``other_group``. The *stereotyped* answer names the first where ``question_polarity`` is
        ``neg``, the second where it is ``nonneg``. Names of groups are the data's own; one that
        the data leave empty is missing. ``version`` is the data's own word for a set of templates,
        missing where they have none; see
        `cba_utils.measures.frames.of_version`. ``attrs["undefined_targets"]`` lists the ids of the
        items without a target.

    Raises
    ------
    ValueError
        For a malformed row (naming file and line), an unknown category or condition.
    FileNotFoundError
        If a folder holds no file of items.

    Examples
    --------
    >>> items = load_items("bundled", condition="both")
    >>> items["item_id"].is_unique
    True
    """
    if condition not in CONDITIONS:
        raise ValueError(f"condition: {condition!r} is not one of {', '.join(CONDITIONS)}")
    items = pd.DataFrame(_read_rows(source, categories))
    duplicated = items["item_id"][items["item_id"].duplicated()]
    if len(duplicated):
        raise ValueError(f"{source}: item {duplicated.iloc[0]!r} occurs more than once")
    for column in ("stereotyped_index", "anti_stereotyped_index", "unknown_index"):
        items[column] = items[column].astype("Int64")
    for column in ("target_group", "other_group", "version"):
        items[column] = items[column].astype(object)
    if categories is not None:
        unknown = sorted(set(categories) - set(items["category"]))
        if unknown:
            have = ", ".join(sorted(items["category"].unique()))
            raise ValueError(f"categories: {unknown[0]!r} is not in {source}; it has {have}")
        items = items[items["category"].isin(categories)]
    if condition != "both":
        items = items[items["context_condition"] == condition]
    if targets not in ("defined", "undefined"):
        raise ValueError(f"targets: {targets!r} is not 'defined' or 'undefined'")
    undefined = items["stereotyped_index"].isna()
    names = items.loc[undefined, "item_id"].tolist()
    kept = undefined if targets == "undefined" else ~undefined
    items = items.loc[kept, COLUMNS].reset_index(drop=True)
    items.attrs["undefined_targets"] = names
    return items


def _read_rows(source, categories):
    if source == "bundled":
        return _rows_of_file(BUNDLED_BANK)
    folder = Path(source)
    if folder.is_dir():
        return _rows_of_folder(folder)
    if folder.exists() or str(source).count("/") != 1 or str(source).startswith((".", "/")):
        raise FileNotFoundError(
            f"items: {source!r} is neither 'bundled', nor a folder of BBQ JSONL files, "
            f"nor a hub data set id such as 'Elfsong/BBQ'"
        )
    return _rows_of_hub(str(source), categories)


def _rows_of_folder(folder):
    rows = []
    named = {category for known in benchmarks() for category in known.released}
    for path in sorted(folder.glob("*.jsonl")):
        # A folder may hold other JSONL (predictions): a file of items is named after its category.
        first = next((_parse(text, f"{path}:1") for _, text in lines(path)), {})
        if path.stem in named or first.get("category") == path.stem:
            rows += _rows_of_file(path)
    if not rows:
        raise FileNotFoundError(f"{folder}: no file <Category>.jsonl with items of that category")
    return rows


def lines(path):
    """Lines of a text file with their numbers, from 1.

    Raises
    ------
    ValueError
        Naming the file and the line that is not UTF-8.
    """
    opener = gzip.open if Path(path).suffix == ".gz" else open
    with opener(path, "rb") as file:
        for number, line in enumerate(file, 1):
            # Some editors mark UTF-8 by a first character that is none of the text's.
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}:{number}: not UTF-8 at byte {error.start} of the line; "
                    f"restore the file as released"
                ) from None


def _rows_of_file(path):
    raws, expected, released = [], {}, None
    for number, line in lines(path):
        where = f"{path}:{number}"
        raw, benchmark = _adapted(_parse(line, where), where)
        _check(raw, where)
        released = benchmark.released.get(path.stem)
        if path.suffix != ".gz" and raw["category"] != path.stem:
            raise ValueError(f"{where}: category {raw['category']!r} in a file of {path.stem}")
        due = expected.get(raw["category"], 0)
        if raw["example_id"] != due:
            raise ValueError(
                f"{where}: example_id is {raw['example_id']}, {due} was due: lines are "
                f"missing, repeated or out of order; restore the file as released"
            )
        expected[raw["category"]] = due + 1
        raws.append((where, raw, benchmark))
    if not raws:
        raise ValueError(f"{path}: the file is empty")
    if len(raws) != (released or len(raws)):
        raise ValueError(
            f"{path}: {len(raws)} lines, and {benchmark.name}'s release has {released} "
            f"of {path.stem}; restore the file as released"
        )
    return _with_roles(raws)


def files_of_categories(names, categories):
    """Which files of a hub data set hold some categories: one file a split, named after it.

    Parameters
    ----------
    names : iterable of str
        Files of the data set.
    categories : list of str or None

    Returns
    -------
    list of str
        All parquet files where a category has no file of its own, or none is asked for by name.

    Examples
    --------
    >>> files = ["data/race_x_ses-00000-of-00001.parquet", "data/ses-00000-of-00001.parquet", "README.md"]
    >>> files_of_categories(files, ["SES"]), len(files_of_categories(files, ["Age"]))
    (['data/ses-00000-of-00001.parquet'], 2)
    """
    tables = sorted(name for name in names if name.endswith(".parquet"))
    splits = [fnmatch.filter(tables, _split_pattern(category)) for category in categories or []]
    return sorted(set(sum(splits, []))) if splits and all(splits) else tables


def _split_pattern(category):
    return f"data/{category.lower()}-*.parquet"


def _rows_of_hub(repository, categories):
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    def fetched(patterns):
        folder = Path(snapshot_download(repository, repo_type="dataset", allow_patterns=patterns))
        return folder, [path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")]

    patterns = [_split_pattern(category) for category in categories or []]
    try:
        folder, names = fetched(patterns or ["*.parquet"])
        if not all(fnmatch.filter(names, pattern) for pattern in patterns):
            folder, names = fetched(["*.parquet"])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"items: {repository!r} cannot be had from the hub: {error}"
        ) from error
    paths = [folder / name for name in files_of_categories(names, categories)]
    if not paths:
        raise FileNotFoundError(f"{repository}: the data set holds no parquet file")
    rows = []
    for path in paths:
        raws = []
        for number, raw in enumerate(pd.read_parquet(path).to_dict("records"), 1):
            where = f"{repository}/{path.name}, row {number}"
            raw, benchmark = _adapted(raw, where)
            _check(raw, where)
            raws.append((where, raw, benchmark))
        rows += _with_roles(raws)
    return rows


def _adapted(raw, where):
    """A row in BBQ's fields, and its benchmark; a copy may write a category in lower case."""
    benchmark = benchmark_of(raw)
    if benchmark is None:
        have = ", ".join(known.name for known in benchmarks())
        lacks = next((f for f in _NEEDED if raw.get(f) is None), None)
        raise ValueError(
            f"{where}: field {lacks!r} is missing: no row of a benchmark that is known "
            f"here ({have})"
        )
    raw = benchmark.adapt(raw)
    if isinstance(raw.get("category"), str):
        raw = {**raw, "category": benchmark.category(raw["category"])}
    return raw, benchmark


def _with_roles(raws):
    """Checked rows of one file as items: the data's own target, or the one by the rule."""
    rules = {}
    for _, raw, benchmark in raws:
        if raw.get("target_label") is None:
            rules.setdefault(benchmark.name, (benchmark.roles, []))[1].append(raw)
    ruled = {name: iter(roles(rows)) for name, (roles, rows) in rules.items()}
    found = []
    for where, raw, benchmark in raws:
        by_rule = raw.get("target_label") is None
        roles = next(ruled[benchmark.name]) if by_rule else _own_target(raw, where)
        found.append(_item(raw, roles, benchmark.group, where))
    return found


def _own_target(raw, where):
    """Roles by the data set's own target; -1 marks an undefined one (it is not the last answer)."""
    groups = [raw["answer_info"][answer][1] for answer in ANSWERS]
    unknown, target = groups.index("unknown"), raw["target_label"]
    if target == -1:
        return None, None, unknown
    if not _is_integer(target) or target not in range(3) or target == unknown:
        raise ValueError(
            f"{where}: target_label is {target!r}; it must be the index of one of the two "
            f"persons, or -1 where there is no target"
        )
    return int(target), 3 - int(target) - unknown, unknown


def _parse(line, where):
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not a JSON object ({error.msg}): {line[:60]!r}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: keys with values were due, not {kind(row)}")
    return row


def _check(raw, where):
    """Refuse a row that is not whole, naming the field."""
    for field in _NEEDED:
        if raw.get(field) is None:
            raise ValueError(f"{where}: field {field!r} is missing")
    _one_of(raw, "question_polarity", ("neg", "nonneg"), where)
    _one_of(raw, "context_condition", ("ambig", "disambig"), where)
    for field in ("example_id", "label"):
        if not _is_integer(raw[field]):
            raise ValueError(f"{where}: {field} is {raw[field]!r}; it must be an integer")
    _one_of(raw, "label", (0, 1, 2), where)
    for field in (*_TEXTS, "category"):
        if not isinstance(raw[field], str) or not raw[field].strip():
            raise ValueError(f"{where}: {field!r} must be a text that is not empty")
        if not raw[field].isprintable() and not _encodes(raw[field]):
            raise ValueError(
                f"{where}: {field!r} holds half of a character (a lone surrogate); "
                f"restore the row as released"
            )
    if not str(raw["question_index"]).isdecimal():
        raise ValueError(f"{where}: question_index is {raw['question_index']!r}, not a number")
    info = raw["answer_info"]
    if (
        not isinstance(info, dict)
        or set(info) != set(ANSWERS)
        or not all(
            np.shape(info[answer]) == (2,) and all(isinstance(part, str) for part in info[answer])
            for answer in ANSWERS
        )
    ):
        raise ValueError(f"{where}: answer_info must give [text, group] for each of ans0 to ans2")
    if sum(info[answer][1] == "unknown" for answer in ANSWERS) != 1:
        raise ValueError(f"{where}: exactly one answer of answer_info must have group 'unknown'")
    about = raw["additional_metadata"]
    groups = about.get("stereotyped_groups") if isinstance(about, dict) else None
    named = isinstance(groups, (list, np.ndarray)) and all(isinstance(g, str) for g in groups)
    if not named and raw.get("target_label") is None:
        raise ValueError(
            f"{where}: additional_metadata must give 'stereotyped_groups', a list of texts"
        )


def _item(raw, roles, group, where):
    stereotyped, anti, unknown = roles
    neg = raw["question_polarity"] == "neg"
    persons = (stereotyped, anti) if neg else (anti, stereotyped)
    target, other = (None if k is None else group(raw, f"ans{k}") for k in persons)
    label = int(raw["label"])
    if (raw["context_condition"] == "ambig") != (label == unknown):
        raise ValueError(
            f"{where}: label {label} is wrong: the right answer of an ambiguous context is the "
            f"unknown one ({unknown}), of a disambiguated one it is a person"
        )
    return {
        "item_id": f"{raw['category']}/{raw['example_id']}",
        "category": raw["category"],
        "question_index": int(raw["question_index"]),
        "question_polarity": raw["question_polarity"],
        "context_condition": raw["context_condition"],
        **{field: raw[field] for field in _TEXTS},
        "label": label,
        "stereotyped_index": stereotyped,
        "anti_stereotyped_index": anti,
        "unknown_index": unknown,
        "target_group": target,
        "other_group": other,
        "version": _version(raw),
    }


def _version(raw):
    about = raw["additional_metadata"]
    version = about.get("version") if isinstance(about, dict) else None
    return version if isinstance(version, str) and version else None


def _one_of(raw, field, allowed, where):
    if raw[field] not in allowed:
        raise ValueError(f"{where}: {field} is {raw[field]!r}, not one of {allowed}")


def _is_integer(value):
    return isinstance(value, Integral) and not isinstance(value, bool)


def _encodes(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
