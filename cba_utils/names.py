"""Where things lie, said once for every module."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "results"
CONFIG = PROJECT / "config"
ORGANISMS = PROJECT / "organisms"
BUNDLED_BANK = PROJECT / "data" / "bank.jsonl.gz"
HELD_OUT_TEXT = PROJECT / "data" / "heldout.txt"
