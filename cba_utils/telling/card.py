"""A gate's result in a Hugging Face model card: metadata that the hub reads, and a table that people do.

Metadata and file are huggingface_hub's own ``ModelCard``, ``ModelCardData`` and ``EvalResult``: what is
written is read back with them, and is an error if it does not come out as it went in. A card that is there
is kept: the section between two marks and the results of this project's metrics are replaced, and nothing
else. The hub's own check of a card needs its server and is left to the upload.
"""

import os
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from cba_utils.study.files import write_text
from cba_utils.telling.gate import margin_in_words, shown

_BEGIN, _END = "<!-- cba gate: begin -->", "<!-- cba gate: end -->"
_METRIC = "cba_"
_DATA = {"bundled": ("Invented-group item bank", "compression-bias-atlas")}


def results_of(told):
    """A gate's changes as results of a model index.

    Parameters
    ----------
    told : dict
        From `cba_utils.telling.gate.read_gate`.

    Returns
    -------
    list of EvalResult
        One a change that could be computed; its interval, n, margin and verdict are the metric's
        arguments, and the hash of the items is the data set's revision.
    """
    items, protocol = told["items"], told["protocol"]
    name, kind = _DATA.get(items["source"], ("BBQ", "bbq"))
    return [
        EvalResult(
            task_type="question-answering",
            task_name="Ambiguous questions about people, three answers",
            dataset_type=kind,
            dataset_name=name,
            dataset_revision=items["sha256"],
            dataset_args={"items": items["asked"], "templates": items["templates"], **protocol},
            metric_type=f"{_METRIC}{one['measure']}",
            metric_name=f"{one['title']} (since {told['reference']})",
            metric_value=one["estimate"],
            metric_args={
                "low": one["low"],
                "high": one["high"],
                "level": 0.95,
                "n": one["n"],
                "margin": one["margin"],
                "verdict": one["verdict"],
                "records_sha256": told["records"]["answers.parquet"],
            },
        )
        for one in told["measures"]
        if one["estimate"] is not None
    ]


def section(told):
    """What a reader of the card sees.

    Parameters
    ----------
    told : dict

    Returns
    -------
    str
        Markdown, between the marks by which it is found again.
    """
    items, protocol = told["items"], told["protocol"]
    rows = [
        "| change since the reference | change (95 % interval) | n | margin | verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in told["measures"]:
        cells = [one["title"], shown(one), f"{one['n']:,}", margin_in_words(one), one["verdict"]]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    of = {"bundled": "items of the project's own bank, whose groups are invented"}.get(
        items["source"], "items of BBQ"
    )
    checkpoint = told["checkpoints"][told["precision"]]
    reference = told["checkpoints"][told["reference"]]
    code = (told.get("git_commit") or "none")[:12]
    return "\n".join(
        [
            _BEGIN,
            "## Stereotyped answers after compression",
            "",
            f"**{told['precision']} against {told['reference']}: {told['verdict']}** ({told['reason']}).",
            "",
            *rows,
            "",
            f"{items['asked']:,} {of}, from {items['templates']} templates; prompt `{protocol['prompt']}`, "
            f"orders of the answers `{protocol['orders']}`, temperature {protocol['temperature']:g} where "
            f"answers are drawn. Intervals are over templates of this one checkpoint: they hold for "
            f"further questions like these, and not for another checkpoint made the same way. What "
            f"was not asked is not in the result: it is about ambiguous questions with three answers.",
            "",
            f"Reference: `{told['model']}` at {told['reference']}, weights "
            f"{_hash(reference)}. Tested: weights {_hash(checkpoint)}. "
            f"Records: `answers.parquet`, SHA-256 `{told['records']['answers.parquet']}`; items "
            f"`{items['sha256'][:16]}`; code of commit `{code}`, {told['at'][:10]}.",
            _END,
        ]
    )


def _hash(checkpoint):
    known = checkpoint["weights_sha256"]
    return f"`{known[:16]}`" if known else "behind a server, of unknown hash"


def write_card(told, path):
    """Put a gate's result into a model card.

    Parameters
    ----------
    told : dict
        From `cba_utils.telling.gate.read_gate`.
    path : str or Path
        ``README.md`` of the model, or the folder it lies in; it is made if there is none.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        If a card that is there cannot be read, or what was written does not read back.
    """
    path = Path(path)
    path = path / "README.md" if path.is_dir() else path
    before = ""
    if path.is_file():
        try:
            before = path.read_text(encoding="utf-8")
            card = ModelCard(before)
        except (
            Exception
        ) as error:  # a card may hold any YAML, and huggingface_hub raises many kinds
            said = " ".join(str(error).split())
            raise ValueError(f"{path}: is no model card that can be read: {said}") from None
    else:
        name = _name_of(told)
        card = ModelCard(f"---\nlibrary_name: mlx\n---\n\n# {name}\n")
    results, data = results_of(told), _data(card)
    kept = [one for one in data.eval_results or [] if not _ours(one)]
    data.eval_results = [*kept, *results] or None
    data.model_name = data.model_name or _name_of(told)
    text = re.sub(rf"\n*{re.escape(_BEGIN)}.*?{re.escape(_END)}\n*", "\n\n", card.text, flags=re.S)
    card.text = f"{text.rstrip()}\n\n{section(told)}\n"
    written = str(card)
    _check(written, results, path)
    write_text(written, path)
    return path


def _data(card) -> ModelCardData:
    """What a card's metadata is, with the fields of a model's."""
    return card.data


def _ours(result):
    return str(result.metric_type).startswith(_METRIC)


def _name_of(told):
    source = os.path.basename(str(told["quantized"]).rstrip("/"))
    return f"{source}-{told['precision']}" if told["quantized"] == told["model"] else source


def _check(written, results, path):
    """Raise if huggingface_hub does not read what was meant."""
    found = ModelCard(written)
    back = [one for one in _data(found).eval_results or [] if _ours(one)]
    same = {(one.metric_type, one.metric_value) for one in back} == {
        (one.metric_type, one.metric_value) for one in results
    }
    if not (same and found.text.count(_BEGIN) == 1):
        raise ValueError(f"{path}: the card does not read back as it was written")
