"""BBQ-schema items from three sources, and the role of every answer.

Rule and exceptions are those of the BBQ authors' analysis scripts (Parrish et al. 2022,
doi:10.18653/v1/2022.findings-acl.165): the *stereotyped* answer of a negative question names a
group the template marks as stereotyped; of a non-negative question it names the other person.
"""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from cba_utils.names import BUNDLED_BANK

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
]
CONDITIONS = ("ambig", "disambig", "both")
ANSWERS = ("ans0", "ans1", "ans2")
_TEXTS = ("context", "question", *ANSWERS)
# BBQ's files, and how many questions those hold that the published study asked: twice the
# ambiguous ones in published.csv. A file that was cut shows.
_RELEASED = {
    "Age": 3680, "Gender_identity": 5672, "Race_ethnicity": 6880, "Religion": 1200, "SES": 6864,
    **dict.fromkeys(("Disability_status", "Nationality", "Physical_appearance", "Race_x_SES",
                     "Race_x_gender", "Sexual_orientation")),
}
_GENDER = {"man": "m", "boy": "m", "male": "m", "woman": "f", "girl": "f", "female": "f"}


def load_items(source, categories=None, condition="ambig"):
    """Load items and assign the role of each answer.

    Parameters
    ----------
    source : str or Path
        ``"bundled"`` (the project's own bank), a folder of BBQ JSONL files (one file a category,
        named after it) or the id of a Hugging Face data set in BBQ's schema (``Elfsong/BBQ``).
    categories : list of str, optional
        Categories to keep; all by default.
    condition : {"ambig", "disambig", "both"}
        Which contexts to keep.

    Returns
    -------
    DataFrame
        One row an item, columns `COLUMNS`, in the source's order. ``attrs["undefined_targets"]``
        lists the ids of the items left out because the rule gives them no stereotyped answer
        (both persons or neither belong to a stereotyped group).

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
    items = pd.DataFrame(_read_rows(source))
    duplicated = items["item_id"][items["item_id"].duplicated()]
    if len(duplicated):
        raise ValueError(f"{source}: item {duplicated.iloc[0]!r} occurs more than once")
    for column in ("stereotyped_index", "anti_stereotyped_index", "unknown_index"):
        items[column] = items[column].astype("Int64")
    if categories is not None:
        unknown = sorted(set(categories) - set(items["category"]))
        if unknown:
            have = ", ".join(sorted(items["category"].unique()))
            raise ValueError(f"categories: {unknown[0]!r} is not in {source}; it has {have}")
        items = items[items["category"].isin(categories)]
    if condition != "both":
        items = items[items["context_condition"] == condition]
    undefined = items["stereotyped_index"].isna()
    names = items.loc[undefined, "item_id"].tolist()
    items = items.loc[~undefined, COLUMNS].reset_index(drop=True)
    items.attrs["undefined_targets"] = names
    return items


def roles_of(row):
    """Index of the stereotyped, the anti-stereotyped and the unknown answer of one BBQ row.

    Parameters
    ----------
    row : dict
        One row in BBQ's schema.

    Returns
    -------
    tuple of (int or None, int or None, int)
        The first two are ``None`` where the rule leaves the target undefined.

    Examples
    --------
    >>> roles_of({"category": "Age", "question_polarity": "nonneg",
    ...     "answer_info": {"ans0": ["a grandson", "nonOld"], "ans1": ["unsure", "unknown"],
    ...                     "ans2": ["a grandfather", "old"]},
    ...     "additional_metadata": {"stereotyped_groups": ["old"]}})
    (0, 2, 1)
    """
    info = [row["answer_info"][answer] for answer in ANSWERS]
    unknown = [group for _, group in info].index("unknown")
    people = [index for index in range(3) if index != unknown]
    known = row["additional_metadata"]["stereotyped_groups"]
    member = [_is_member(info[index], known, row["category"]) for index in people]
    if member[0] == member[1]:
        return None, None, unknown
    in_group, other = people if member[0] else people[::-1]
    if row["question_polarity"] == "nonneg":
        in_group, other = other, in_group
    return in_group, other, unknown


def _is_member(answer, known_groups, category):
    text, group = answer
    if category == "Nationality":
        # The groups are countries; the answer's group is its region, its text has the country.
        return any(re.search(rf"\b{re.escape(k)}\w{{0,2}}\b", text, re.I) for k in known_groups)
    return bool(_names(group) & set().union(*(_names(k) for k in known_groups)))


def _names(group):
    """Comparable names of a group: whole names only, never parts of words."""
    name = group.lower().replace(" ", "")
    _, dash, after_gender = name.partition("-")
    if dash and name[0] in "fm" and name[1] == "-":
        return {after_gender}
    return {_GENDER.get(name, name)}


def _read_rows(source):
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
    return _rows_of_hub(str(source))


def _rows_of_folder(folder):
    rows = []
    for path in sorted(folder.glob("*.jsonl")):
        # A folder may hold other JSONL (predictions): a file of items is named after its category.
        first = next((_parse(text, f"{path}:1") for _, text in lines(path)), {})
        if path.stem in _RELEASED or first.get("category") == path.stem:
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
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8 at byte {error.start} of the line; "
                                 f"restore the file as released") from None


def _rows_of_file(path):
    rows, expected = [], {}
    for number, line in lines(path):
        where = f"{path}:{number}"
        raw = _parse(line, where)
        row = _checked(raw, where)
        if path.suffix != ".gz" and row["category"] != path.stem:
            raise ValueError(f"{where}: category {row['category']!r} in a file of {path.stem}")
        due = expected.get(row["category"], 0)
        if raw["example_id"] != due:
            raise ValueError(
                f"{where}: example_id is {raw['example_id']}, {due} was due: lines are "
                f"missing, repeated or out of order; restore the file as released"
            )
        expected[row["category"]] = due + 1
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: the file is empty")
    if len(rows) != (_RELEASED.get(path.stem) or len(rows)):
        raise ValueError(f"{path}: {len(rows)} lines, and BBQ's release has {_RELEASED[path.stem]} "
                         f"of {path.stem}; restore the file as released")
    return rows


def _rows_of_hub(repository):
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(repository, repo_type="dataset"))
    paths = sorted(folder.rglob("*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{repository}: the data set holds no parquet file")
    rows = []
    for path in paths:
        for number, raw in enumerate(pd.read_parquet(path).to_dict("records"), 1):
            where = f"{repository}/{path.name}, row {number}"
            raw["label"] = raw.pop("answer_label", raw.get("label"))
            target = raw.get("target_label")
            row = _checked(raw, where)
            if target is not None:
                _adopt_target(row, int(target), where)
            rows.append(row)
    return rows


def _adopt_target(row, target, where):
    """Take the data set's own target; -1 marks an undefined one (it is not the last answer)."""
    if target == -1:
        row["stereotyped_index"] = row["anti_stereotyped_index"] = None
        return
    if target not in range(3) or target == row["unknown_index"]:
        raise ValueError(f"{where}: target_label is {target}; it must name one of the two persons")
    row["stereotyped_index"] = target
    row["anti_stereotyped_index"] = 3 - target - row["unknown_index"]


def _parse(line, where):
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not a JSON object ({error.msg}): {line[:60]!r}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a JSON object was due, not {type(row).__name__}")
    return row


def _checked(raw, where):
    needed = ("example_id", "category", "question_index", "question_polarity",
              "context_condition", "answer_info", "additional_metadata", "label", *_TEXTS)
    for field in needed:
        if raw.get(field) is None:
            raise ValueError(f"{where}: field {field!r} is missing")
    _one_of(raw, "question_polarity", ("neg", "nonneg"), where)
    _one_of(raw, "context_condition", ("ambig", "disambig"), where)
    _one_of(raw, "label", (0, 1, 2), where)
    for field in _TEXTS:
        if not isinstance(raw[field], str) or not raw[field].strip():
            raise ValueError(f"{where}: {field!r} must be a text that is not empty")
    if not str(raw["question_index"]).isdecimal():
        raise ValueError(f"{where}: question_index is {raw['question_index']!r}, not a number")
    info = raw["answer_info"]
    if not isinstance(info, dict) or set(info) != set(ANSWERS) or any(
            np.shape(info[answer]) != (2,) for answer in ANSWERS):
        raise ValueError(f"{where}: answer_info must give [text, group] for each of ans0 to ans2")
    if sum(info[answer][1] == "unknown" for answer in ANSWERS) != 1:
        raise ValueError(f"{where}: exactly one answer of answer_info must have group 'unknown'")
    if "stereotyped_groups" not in raw["additional_metadata"]:
        raise ValueError(f"{where}: additional_metadata lacks 'stereotyped_groups'")
    stereotyped, anti, unknown = roles_of(raw)
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
    }


def _one_of(raw, field, allowed, where):
    if raw[field] not in allowed:
        raise ValueError(f"{where}: {field} is {raw[field]!r}, not one of {allowed}")
