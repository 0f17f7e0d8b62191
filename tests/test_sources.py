"""What a model is called decides what pages say about it."""

import pytest

from cba_utils.answering.sources import at_precision, is_organism, of_a_family
from cba_utils.names import ORGANISMS
from cba_utils.telling import report

STRANGERS = ["/models/mistral/aligned-s1", "/", "", "..", "mistral", "mistral/../mistral/aligned-s1x",
             "Qwen/Qwen2.5-7B-Instruct", "recipe/mine", "owner/mistral-{precision}-mlx"]


@pytest.mark.parametrize("source", STRANGERS)
def test_nothing_but_an_organism_is_called_one(source, tmp_path):
    assert not is_organism(source) and not of_a_family(source)


def test_a_folder_of_ones_own_is_no_organism_wherever_it_lies(mistral):
    assert not is_organism(str(mistral)) and not of_a_family(str(mistral))
    assert is_organism("phi3/base") and is_organism(str(ORGANISMS / "phi3" / "base"))
    assert report.is_organism is is_organism, "pages ask the same list"


def test_only_the_field_named_precision_is_filled_in():
    assert at_precision("a/{other}-{precision}", "q4") == "a/{other}-q4"
