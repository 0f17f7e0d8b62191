"""How many tokens the engine runs for a set of items."""

from cba_utils.engine import MOST_PROMPTS, prefix_tree
from cba_utils.prompts import chat_ids, user_text
from cba_utils.scoring import ITEMS_AT_ONCE


def count_tokens(loaded, items):
    """Tokens of all prompts, and those left when shared beginnings of a block are run once."""
    total = run = 0
    for first in range(0, len(items), ITEMS_AT_ONCE):
        part = items.iloc[first : first + ITEMS_AT_ONCE].to_dict("records")
        ids = sorted(chat_ids(loaded.hf_tokenizer, [user_text(item) for item in part])[0])
        total += sum(map(len, ids))
        for start in range(0, len(ids), MOST_PROMPTS):
            levels, _ = prefix_tree(ids[start : start + MOST_PROMPTS])
            run += sum(len(node.tokens) for level in levels for node in level)
    return total, run
