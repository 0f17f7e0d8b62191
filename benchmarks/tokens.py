"""How many tokens the engine runs for a set of items."""

from cba_utils.answering.engine import Engine, prefix_tree
from cba_utils.answering.prompts import chat_ids, user_text
from cba_utils.answering.scoring import ITEMS_AT_ONCE, chunk_size


def count_tokens(loaded, items):
    """Tokens of all prompts; those left when shared beginnings of a block are run once; those read.

    Read is the end of a stretch, which is all that the last layer's MLP sees.
    """
    total = run = read = 0
    for first in range(0, len(items), ITEMS_AT_ONCE):
        part = items.iloc[first : first + ITEMS_AT_ONCE].to_dict("records")
        ids = sorted(chat_ids(loaded.hf_tokenizer, [user_text(item) for item in part])[0])
        total += sum(map(len, ids))
        size = chunk_size(Engine(loaded), ids)
        for start in range(0, len(ids), size):
            levels, _ = prefix_tree(ids[start : start + size])
            run += sum(len(node.tokens) for level in levels for node in level)
            read += sum(map(len, levels))
    return total, run, read
