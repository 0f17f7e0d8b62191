"""Does it carry over with size? Read from simulated studies of which one is shaken more than the other."""

from dataclasses import replace

from cba_utils.chapters import sizes
from cba_utils.chapters.sizes import Chapter
from cba_utils.telling.page import Need
from studies import study_of

import pandas as pd
import pytest


def joined(small, large):
    """Two simulated studies as two sizes of one."""
    parts = [
        study_of("noise", templates=20, replicates=3, effect=effect, family=name)
        for name, effect in (("small", small), ("large", large))
    ]
    names = ("answers", "samples", "perplexity", "provenance")
    tables = {
        name: pd.concat([getattr(p, name) for p in parts], ignore_index=True) for name in names
    }
    return replace(parts[0], **tables)


@pytest.fixture
def told(monkeypatch):
    """The page on such a study."""

    def page(small, large):
        monkeypatch.setattr(sizes, "_sizes", lambda: joined(small, large))
        known = Need("sizes", lambda study: True)
        monkeypatch.setattr(sizes, "SIZED", known)
        monkeypatch.setattr(Chapter, "needs", {"": known})
        return Chapter(study_of("none", templates=6))

    return page


def test_a_size_that_is_shaken_less_is_said_to_be(told):
    page = told(0.8, 0.2)
    assert page.ends("unknown_spread", "q3")["way"] == "less"
    assert "(less)" in page.text("answer") and "small" in page.text("answer")
    frame, formats = page.table_sizes()
    assert len(frame) == 4 and set(formats) <= set(frame)


def test_two_sizes_that_are_shaken_alike_are_not_told_apart(told):
    page = told(0.4, 0.4)
    assert page.ends("unknown_spread", "q3")["way"] == "open"


def test_a_book_without_the_larger_sizes_says_so(monkeypatch):
    unknown = Need("sizes", lambda study: False)
    monkeypatch.setattr(sizes, "SIZED", unknown)
    monkeypatch.setattr(Chapter, "needs", {"": unknown})
    assert "not there" in Chapter(study_of("none", templates=6)).text("answer")
