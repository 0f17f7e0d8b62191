"""The same questions to a model behind an OpenAI-compatible server, by its log-probabilities.

A source ``served:http://127.0.0.1:8080/v1#name`` is a server's address and the name by which it knows a
model: ``mlx_lm.server``, ``llama-server`` and others answer chats with the log-probabilities of the likeliest
tokens, so that GGUF and other formats can be asked without converting them.

What cannot be had so, and is not made up: tokens beyond the likeliest few, and with them the rest of a
letter's spellings. A letter's probability is therefore known to lie between what its listed spellings have
and that plus all that is not listed. Chat template, tokenizer and weights are the server's own: that they are
what they are called cannot be checked, and no hash of them is known.
"""

import json
import math
import urllib.error
import urllib.request

import numpy as np
import pandas as pd

from cba_utils.answering.prompts import LETTERS, ORDERS, named, user_text
from cba_utils.names import ITEM

SERVED = "served:"
# As many as mlx_lm.server gives; others give twenty and more.
LISTED = 10
_TIMEOUT = 120


def is_served(source):
    """Whether a source is a server's.

    Examples
    --------
    >>> is_served("served:http://127.0.0.1:8080/v1#m"), is_served("toy-mistral/b1")
    (True, False)
    """
    return str(source).startswith(SERVED)


def address(source):
    """Where a source is asked, and the model's name there.

    Examples
    --------
    >>> address("served:http://127.0.0.1:8080/v1/#tiny")
    ('http://127.0.0.1:8080/v1/chat/completions', 'tiny')
    """
    url, _, name = str(source).removeprefix(SERVED).partition("#")
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{source}: a server's address begins with http:// or https://")
    return f"{url.rstrip('/')}/chat/completions", name or "default_model"


def score_served(source, items, orders="original", temperature=1.0, prompt="published"):
    """What a server lets know of each letter's probability as the first token of the answer.

    Parameters
    ----------
    source : str
        ``served:ADDRESS#MODEL``.
    items : DataFrame
        From `cba_utils.load_items`.
    orders, temperature, prompt
        As in `cba_utils.score_letters`.

    Returns
    -------
    DataFrame
        As from `cba_utils.score_letters`, with what is known for certain: ``logp_A`` and so on are of the
        spellings that were listed, missing where none was; ``most_A`` and so on are what they are at most;
        ``mass_other`` is what it is at most. Those at `temperature` follow from the listed tokens alone:
        below 1 what is not listed, each less likely than all that are, hardly counts.

    Raises
    ------
    ValueError
        If the server cannot be reached, refuses a question, or gives no log-probabilities.
    """
    url, name = address(source)
    system = named(prompt).system
    rows = []
    for item in items.to_dict("records"):
        for order in ORDERS[orders]:
            listed = _ask(url, name, system, user_text(item, order, prompt), source)
            rows.append({**_described(item, order), **bounds(listed, temperature)})
    return pd.DataFrame(rows)


def bounds(listed, temperature=1.0):
    """What the likeliest tokens say of the letters.

    Parameters
    ----------
    listed : list of tuple
        Texts of tokens and their log-probabilities.
    temperature : float

    Returns
    -------
    dict of str to float

    Examples
    --------
    >>> found = bounds([("A", math.log(0.6)), (" a", math.log(0.1)), ("The", math.log(0.2))])
    >>> round(math.exp(found["logp_A"]), 3), round(math.exp(found["most_A"]), 3)
    (0.7, 0.8)
    >>> found["logp_B"], round(math.exp(found["most_B"]), 3), round(found["mass_other"], 3)
    (nan, 0.1, 0.3)
    """
    p = np.exp([logp for _, logp in listed])
    left = max(0.0, 1.0 - p.sum())
    scaled = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
    letters = [text.strip(" \u2581\u0120").upper() for text, _ in listed]
    found: dict[str, float] = {}
    seen = seen_t = 0.0
    for letter in LETTERS:
        mine = np.array([one == letter for one in letters])
        mass, mass_t = p[mine].sum(), scaled[mine].sum()
        seen, seen_t = seen + mass, seen_t + mass_t
        found[f"logp_{letter}"] = math.log(mass) if mass else math.nan
        found[f"logp_{letter}_t"] = math.log(mass_t) if mass_t else math.nan
        found[f"most_{letter}"] = math.log(min(1.0, mass + left)) if mass + left else -math.inf
    return {
        **found,
        "mass_other": max(0.0, 1 - float(seen)),
        "mass_other_t": max(0.0, 1 - float(seen_t)),
    }


def _described(item, order):
    roles = {item[f"{role}_index"]: role for role in ("stereotyped", "anti_stereotyped", "unknown")}
    shown = [int(index) for index in order]
    about = {name: item[name] for name in ITEM if name in item}
    about["template_id"] = f"{item['category']}/{item['question_index']}"
    letters = {f"role_{x}": roles[index] for x, index in zip(LETTERS, shown, strict=True)}
    return {**about, "order": order, **letters, "correct": LETTERS[shown.index(item["label"])]}


def _ask(url, name, system, text, source):
    """Texts and log-probabilities of the likeliest first tokens of an answer."""
    body = {
        "model": name,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": text}],
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": True,
        "top_logprobs": LISTED,
    }
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as reply:
            said = json.load(reply)
    except urllib.error.HTTPError as error:
        detail = " ".join(error.read(300).decode(errors="replace").split())
        raise ValueError(f"{source}: the server refuses a question: {error} {detail}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: the server cannot be asked: {error}") from None
    try:
        first = said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        listed = [(str(one["token"]), float(one["logprob"])) for one in first]
    except (KeyError, IndexError, TypeError, ValueError):
        listed = []
    if not listed or not all(math.isfinite(logp) and logp < 1e-3 for _, logp in listed):
        raise ValueError(
            f"{source}: the server gives no log-probabilities of the first token (top_logprobs), without "
            f"which nothing is known of the letters"
        )
    return listed
