"""Every chapter, whole, on studies of every kind: none leaves out, or speaks of what is not there."""

import hashlib
import re

from cba_utils.chapters.dose_response import Chapter
from cba_utils.telling import page as pages
from cba_utils.telling.page import CHAPTERS, plain
from studies import study_of, without_letters, without_probabilities

import matplotlib
import pytest

NAMES = sorted(p.stem for p in CHAPTERS.glob("*.py") if p.stem != "__init__")


def parts(kind, chapter):
    return [n.partition("_")[2] for n in dir(chapter) if n.startswith(f"{kind}_")]


def whole(chapter):
    """All texts of a chapter, after its figures and tables were made where they can be."""
    texts = []
    for kind in ("figure", "table"):
        for name in parts(kind, chapter):
            if chapter.lacks(name):
                continue
            texts.append(chapter.text(f"{kind[:3]}_{name}"))
            texts.append(chapter._message(name))
            made = chapter._part(kind, name)()
            if kind == "figure":
                figure, alt, _ = made
                assert isinstance(figure, matplotlib.figure.Figure) and alt
                texts.append(" ".join([alt] if isinstance(alt, str) else alt))
            else:
                texts.append(pages.table_html(*made))
    template = pages._TEMPLATES.get_template(f"{type(chapter).__module__.rpartition('.')[2]}.md.j2")
    common = [
        "records",
        "scope",
        "foot",
        "bars",
        "answers_from",
        "rates_from",
        "draws_from",
        "hollow",
    ]
    said = [name for name in template.blocks if not name.startswith(("fig_", "tab_", "msg_"))]
    return texts + [chapter.text(name) for name in [*said, *common]]


def of_kind(kind):
    """A small study: with all that can be recorded, of drawn answers alone, or of one foreign model."""
    if kind == "draws":
        return without_probabilities(study_of(templates=6))
    study = study_of(replicates=2 if kind == "several" else 1, orders="all", templates=6)
    if kind == "silent":
        return without_letters(study)
    if kind == "silent at Q3":
        return without_letters(study, lambda table: table["precision"] == "q3")
    if kind in FOREIGN:
        study.provenance = study.provenance.assign(**{"identity.parameters.model": FOREIGN[kind]})
    return study


# Pages that tell a study of the project's own, whatever the book is about.
OWN = ("nothing", "sizes")
FOREIGN = {
    "absolute": "/models/My_model *1*",
    "local": "models/mine",
    "hub": "Qwen/Qwen2.5-7B-Instruct",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["several", "draws", "silent", "silent at Q3", *FOREIGN])
def test_a_chapter_tells_every_kind_of_study_all_it_can(name, kind, monkeypatch):
    chapter = pages.import_module(f"cba_utils.chapters.{name}").Chapter(of_kind(kind))
    study = chapter.study
    monkeypatch.setattr("cba_utils.telling.page.open_study", lambda *_, **__: study)
    texts = whole(chapter)
    assert not [t for t in texts if re.search(r"\bnan\b|\bNone\b(?! of)|Undefined|\{\{|\{%", t)]
    # The rates of the hazards are those of simulated respondents, those of the real model of one study.
    if kind == "silent" and name not in (
        "hazards",
        "real_model",
        "who_is_hit",
        "temperature",
        "verdicts",
        *OWN,
    ):
        assert not [t for t in texts if re.search(r"became biased|stereotyped", t) and "%" in t]
    if kind in FOREIGN and name not in OWN:
        told = [t for t in texts if re.search("organism|planted", t)]
        assert not told


@pytest.mark.parametrize("name", NAMES)
def test_every_part_is_in_the_notebook_and_every_block_is_said(name):
    """A figure that no notebook shows, or a sentence that nothing says, is dead."""
    used = "".join(p.read_text() for p in (CHAPTERS.parents[1] / "notebooks").glob("*.ipynb"))
    mine = [*CHAPTERS.glob("*.j2"), *CHAPTERS.glob("*.py")]
    used += "".join(p.read_text() for p in mine)
    chapter = pages.import_module(f"cba_utils.chapters.{name}").Chapter
    for kind in ("figure", "table"):
        for part in parts(kind, chapter):
            shown = rf'page\.(?:{kind}|cite_{kind})\(\\"{part}\\"'
            assert re.search(shown, used), f"{kind} {part} is in no notebook"
    for block in pages._TEMPLATES.get_template(f"{name}.md.j2").blocks:
        if not block.startswith(("fig_", "tab_", "msg_", "no_")):
            assert re.search(rf'\\?"{block}\\?"|common\.{block}\b', used), f"{block} is never said"


def test_a_model_that_gives_no_letter_is_said_to_give_none_and_why():
    quiet = Chapter(of_kind("silent"))
    assert "gives no letter at BF16, Q4, Q3, so no rate is computed for it at all" in quiet.text(
        "letters"
    )
    assert "thinking aloud" in quiet.text("letters") and "“<think> Well”" in plain(
        quiet.text("letters")
    )
    assert quiet.text("answer").startswith("These models gave no letter")
    half = Chapter(of_kind("silent at Q3"))
    assert half.study.lowest == "q4" and "gives no letter at Q3" in half.text("letters_here")
    untaught = study_of(templates=6)
    untaught.provenance = untaught.provenance.assign(
        **{"identity.chat_template_sha256": hashlib.sha256(b"").hexdigest()}
    )
    said = Chapter(without_letters(untaught, response="Well")).text("silent")
    assert "no chat template" in said and "thinking" not in said
