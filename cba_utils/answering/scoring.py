"""Letter probabilities and seeded samples for many items.

``score_letters`` reads exact probabilities off one forward pass. ``sample_answers`` draws what the
paper's loop draws: it calls ``mx.random.seed(seed)`` before every item, and the pinned MLX samples by
inverting the cumulative distribution over the vocabulary at one uniform number a token, so a seed
is the same number for every item. All draws of an item follow from one forward pass.
"""

import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pandas as pd
from tqdm import tqdm

from cba_utils.answering.cores import map_pieces, settle
from cba_utils.answering.engine import Engine
from cba_utils.answering.prompts import DATE, LETTERS, ORDERS, chat_ids, parse_response, user_text
from cba_utils.names import DRIFT, ITEM, PAPER_SEEDS

# Enough items to find what prompts share, few enough for memory to stay flat.
ITEMS_AT_ONCE = 512


def score_letters(loaded, items, orders="original", temperature=1.0, prompt="published", date=DATE):
    """Log-probability of each letter as the first token of the answer.

    Parameters
    ----------
    loaded : LoadedModel
    items : DataFrame
        From `load_items`.
    orders : {"original", "cyclic", "all"}
        Orders in which the three answers are shown: 1, 3 or 6 an item.
    temperature : float
        A second temperature at which to give the same probabilities.
    prompt : str
        Name of a prompt, see `cba_utils.answering.prompts.PROMPTS`.
    date : str
        What a chat template that states a date states.

    Returns
    -------
    DataFrame
        One row an item and order: ids, ``template_id``, ``order``, ``role_A`` to ``role_C``,
        ``correct`` (letter), ``logp_A`` to ``logp_C`` and ``mass_other`` (probability of all
        tokens that spell no letter) at temperature 1, and the same with the suffix ``_t`` at
        `temperature`. Natural logarithms, float32.

    Raises
    ------
    ValueError
        For unknown orders, a temperature that is not positive, no items, or a prompt longer than
        the model's context.

    Notes
    -----
    Prompts share passes, so the last digits of a log-probability depend on which others are asked:
    in fp32 by less than 2e-4, which a test bounds.

    Examples
    --------
    >>> from cba_utils import load_items, load_model
    >>> loaded = load_model("toy-mistral/b1")
    >>> answers = score_letters(loaded, load_items("bundled").head(4), orders="cyclic")
    >>> len(answers)
    12
    """
    parts = [
        answers
        for answers, _ in stream(loaded, items, orders, temperature, prompt=prompt, date=date)
    ]
    return pd.concat(parts, ignore_index=True)


def sample_answers(
    loaded,
    items,
    seeds=PAPER_SEEDS,
    temperature=0.3,
    max_tokens=5,
    parser="strict",
    prompt="published",
    date=DATE,
):
    """Sampled answers, equal to those of the paper's loop.

    Parameters
    ----------
    loaded : LoadedModel
    items : DataFrame
        From `load_items`.
    seeds : list of int
        One draw an item and seed.
    temperature : float
    max_tokens : int
        Longest answer.
    parser : {"strict", "published"}
        See `cba_utils.answering.prompts.parse_response`.
    prompt, date : str
        As in `score_letters`.

    Returns
    -------
    DataFrame
        One row an item and seed: ids, ``template_id``, ``seed``, ``raw_response``,
        ``parsed_answer`` (letter or missing), ``role`` (``"unparsed"`` where no letter was
        parsed) and ``correct``.

    Raises
    ------
    ValueError
        As `score_letters`.

    Examples
    --------
    >>> from cba_utils import load_items, load_model
    >>> loaded = load_model("toy-mistral/b1")
    >>> samples = sample_answers(loaded, load_items("bundled").head(2), seeds=[42, 123])
    >>> samples["seed"].tolist()
    [42, 123, 42, 123]
    """
    draws = dict(seeds=seeds, temperature=temperature, max_tokens=max_tokens, parser=parser)
    parts = [
        samples
        for _, samples in stream(
            loaded, items, "original", temperature, draws, prompt=prompt, date=date
        )
    ]
    return pd.concat(parts, ignore_index=True)


def stream(
    loaded,
    items,
    orders="original",
    temperature=1.0,
    draws=None,
    memory=None,
    prompt="published",
    date=DATE,
    beside=None,
):
    """Answers, and samples if asked for, a few hundred items at a time.

    Parameters
    ----------
    loaded : LoadedModel
    items : DataFrame
    orders, temperature
        As in `score_letters`.
    draws : dict, optional
        ``seeds``, ``temperature``, ``max_tokens`` and ``parser`` as in `sample_answers`.
    memory : int, optional
        Bytes a block may use; see `cba_utils.answering.engine.Engine`.
    prompt, date : str
        As in `score_letters`.
    beside : callable, optional
        Given the position of a block's first item and the number of its items, what these are compared
        with in their original order, see `cba_utils.answering.drift`: then answers have the columns
        ``vocab_kl``, ``vocab_tv`` and ``vocab_flip``, missing in other orders.

    Yields
    ------
    answers, samples : DataFrame
        In the order of the items; ``samples`` is ``None`` without `draws`.
    """
    if orders not in ORDERS:
        raise ValueError(f"orders: {orders!r} is not one of {', '.join(ORDERS)}")
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature!r} must be above 0")
    if not len(items):
        raise ValueError("items: there is none to ask")
    if draws and draws["max_tokens"] < 1:
        raise ValueError(f"max_tokens: {draws['max_tokens']!r} must be at least 1")
    engine = Engine(loaded, memory)
    uniforms = seed_uniforms(draws["seeds"], draws["max_tokens"]) if draws else None
    settle(loaded)
    total = len(items) * len(ORDERS[orders])
    with tqdm(
        total=total,
        unit="prompt",
        desc=f"{loaded.name} {loaded.precision}",
        file=sys.stderr,
        mininterval=2,
    ) as progress:
        prompts = _made_ahead(
            lambda start: (
                start,
                *_prompts(
                    items.iloc[start : start + ITEMS_AT_ONCE], orders, loaded, draws, prompt, date
                ),
            ),
            range(0, len(items), ITEMS_AT_ONCE),
        )

        def score(block):
            start, part, keys, ids = block
            seen = beside and beside(start, len(part))
            done = _run_block(engine, ids, keys, temperature, draws, uniforms, progress, seen)
            return part, keys, *done

        # MLX's own kernels run in the thread that loaded the model.
        ahead = _made_ahead if loaded.in_fp32 else map
        for part, keys, letters, drift, responses in ahead(score, prompts):
            answers = _answers_frame(part, keys, letters)
            if beside:
                answers[DRIFT] = drift
            yield answers, _samples_frame(part, responses, draws) if draws else None


def _made_ahead(make, parts):
    """Results in order, each one made while the one before is in use."""
    with ThreadPoolExecutor(1) as beside:
        coming = None
        for part in parts:
            now, coming = coming, beside.submit(make, part)
            if now:
                yield now.result()
        if coming:
            yield coming.result()


def _prompts(part, orders, loaded, draws, prompt, date):
    """Items, the (row, order) of each prompt, and its token ids."""
    keys = [(row, order) for row in range(len(part)) for order in ORDERS[orders]]
    records = part.to_dict("records")
    texts = [user_text(records[row], order, prompt) for row, order in keys]
    ids, _ = chat_ids(loaded.hf_tokenizer, texts, prompt, date)
    _check_lengths(ids, keys, records, loaded, draws)
    return part, keys, ids


def _check_lengths(ids, keys, records, loaded, draws):
    room = loaded.context_length - (draws["max_tokens"] if draws else 0)
    for prompt, (row, _) in zip(ids, keys, strict=True):
        if len(prompt) > room:
            raise ValueError(
                f"item {records[row]['item_id']!r}: its prompt has {len(prompt)} tokens, and the "
                f"context of {loaded.name} leaves {room}"
            )
        if max(prompt) >= loaded.rows:
            raise ValueError(
                f"item {records[row]['item_id']!r}: its prompt has the token {max(prompt)}, and "
                f"{loaded.name} has {loaded.rows} embeddings"
            )


def chunk_size(engine, ids):
    """Prompts that one piece of work has; a few prompts are pieces for several cores too.

    They are cut alike whatever the number of cores, so that answers do not depend on it.

    Parameters
    ----------
    engine : Engine
    ids : list of list of int
        Token ids of all prompts of a block.

    Returns
    -------
    int
    """
    return min(engine.block_size(max(map(len, ids))), max(32, -(-len(ids) // 4)))


def _run_block(engine, ids, keys, temperature, draws, uniforms, progress, seen):
    """Letter log-probabilities (prompts, 8), distances (prompts, 3) and responses of a block."""
    letters = np.empty((len(ids), 8), np.float32)
    drift = np.full((len(ids), len(DRIFT)), np.nan, np.float32)
    responses = [None] * len(ids)
    # Neighbours share the most, so chunks are cut from the sorted prompts.
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    size = chunk_size(engine, ids)

    def run(chunk):
        hidden, state = engine.start([ids[i] for i in chunk])
        logits = engine.logits(hidden)
        found = np.array(_letter_summary(logits, engine.loaded.letters, temperature))
        rows = [row for row, i in enumerate(chunk) if keys[i][1] == ORDERS["original"][0]]
        if seen and rows:
            at, places = mx.array(rows), np.array([keys[chunk[row]][0] for row in rows])
            drift[[chunk[row] for row in rows]] = seen.see(places, hidden[at], logits[at])
        return found, rows, _draw(engine, state, logits, rows, draws, uniforms) if draws else []

    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    for chunk, (found, rows, drawn) in zip(
        chunks, map_pieces(engine.loaded, run, chunks), strict=True
    ):
        letters[chunk] = found
        for row, texts in zip(rows, drawn, strict=bool(draws)):
            responses[chunk[row]] = texts
        progress.update(len(chunk))
    if seen:
        seen.done()
    return letters, drift, [texts for texts in responses if texts is not None]


def _letter_summary(logits, letters, temperature):
    """Columns logp_A, logp_B, logp_C, mass_other at temperature 1, then at `temperature`."""
    logits = logits.astype(mx.float32)
    columns = []
    for scaled in (logits, logits / temperature):
        total = mx.logsumexp(scaled, axis=-1)
        mine = mx.stack([mx.logsumexp(scaled[:, mx.array(ids)], axis=-1) for ids in letters], 1)
        logp = mine - total[:, None]
        # The rest is summed itself: one minus the letters would lose all digits near zero.
        hidden = mx.full(scaled.shape[-1:], True)
        hidden[mx.array(sum(letters, []))] = False
        rest = mx.logsumexp(mx.where(hidden, scaled, -mx.inf), axis=-1)
        columns += [logp, mx.exp(rest - total)[:, None]]
    return mx.concatenate(columns, axis=1)


def seed_uniforms(seeds, steps):
    """The numbers that decide every draw after ``mx.random.seed(seed)``.

    ``mx.random.categorical`` of the pinned MLX inverts the cumulative distribution at one uniform
    number a call, and splits the seed's key once a call.

    Parameters
    ----------
    seeds : list of int
    steps : int
        Tokens drawn after each seeding.

    Returns
    -------
    dict of int to list of float
        One number a step.

    Examples
    --------
    >>> [round(u, 3) for u in seed_uniforms([42], 2)[42]]
    [0.915, 0.421]
    """
    numbers = {}
    for seed in seeds:
        key, numbers[seed] = mx.random.key(seed), []
        for _ in range(steps):
            key, now = mx.random.split(key)
            numbers[seed].append(mx.random.uniform(shape=(1,), key=now).item())
    return numbers


def _draw(engine, state, logits, rows, draws, uniforms):
    """Responses of every seed for the prompts at `rows`, continued until they end.

    Draws that agree so far are one sequence: it is run once, however many seeds share it.
    """
    ends = engine.loaded.tokenizer.eos_token_ids
    seeds = list(draws["seeds"])
    # Each live sequence: the state's row it continues, its tokens, the (prompt, seed) draws on it.
    live = [(row, (), [(row, seed) for seed in seeds]) for row in rows]
    texts = {}
    decode = _decoder(engine.loaded.tokenizer)
    for step in range(draws["max_tokens"]):
        chosen = _choose(logits, [sequence[0] for sequence in live], seeds, step, draws, uniforms)
        branches = defaultdict(list)
        for position, (row, tokens, on_it) in enumerate(live):
            for draw in on_it:
                token = int(chosen[draw[1]][position])
                if token in ends:
                    texts[draw] = decode(tokens)
                elif step + 1 == draws["max_tokens"]:
                    texts[draw] = decode((*tokens, token))
                else:
                    branches[row, (*tokens, token)].append(draw)
        if not branches:
            break
        hidden, state = engine.extend(
            state, [row for row, _ in branches], [tokens[-1] for _, tokens in branches]
        )
        logits = engine.logits(hidden)
        live = [(n, tokens, on_it) for n, ((_, tokens), on_it) in enumerate(branches.items())]
    return [[texts[row, seed] for seed in seeds] for row in rows]


def _choose(logits, rows, seeds, step, draws, uniforms):
    """Token each seed would choose for each row."""
    picked = logits[mx.array(rows)]
    logp = picked - mx.logsumexp(picked, axis=-1, keepdims=True)
    chances = mx.softmax((logp * (1.0 / draws["temperature"])).astype(mx.float32), axis=-1)
    cumulative = mx.cumsum(chances, axis=-1)
    last = cumulative.shape[-1] - 1
    tokens = {
        seed: mx.minimum((cumulative <= uniforms[seed][step]).sum(axis=-1), last) for seed in seeds
    }
    mx.eval(list(tokens.values()))
    return {seed: np.array(found) for seed, found in tokens.items()}


def _decoder(tokenizer):
    """Text of a token sequence, by mlx-lm's own detokenizer; answers are few, so remembered."""
    known = {}

    def decode(tokens):
        if tokens not in known:
            detokenizer = tokenizer.detokenizer
            detokenizer.reset()
            for token in tokens:
                detokenizer.add_token(token)
            detokenizer.finalize()
            known[tokens] = detokenizer.text
        return known[tokens]

    return decode


def _item_columns(part):
    frame = part[[c for c in ITEM if c in part and c != "template_id"]].reset_index(drop=True)
    frame["template_id"] = frame["category"] + "/" + frame["question_index"].astype(str)
    return frame


def _roles(part):
    """Role of each answer index, shape (items, 3)."""
    roles = np.empty((len(part), 3), object)
    rows = np.arange(len(part))
    for role in ("stereotyped", "anti_stereotyped", "unknown"):
        roles[rows, part[f"{role}_index"].to_numpy(int)] = role
    return roles


def _answers_frame(part, keys, letters):
    rows = np.array([row for row, _ in keys])
    shown = np.array([[int(index) for index in order] for _, order in keys])
    frame = _item_columns(part).iloc[rows].reset_index(drop=True)
    frame["order"] = [order for _, order in keys]
    roles = _roles(part)[rows[:, None], shown]
    for position, letter in enumerate(LETTERS):
        frame[f"role_{letter}"] = roles[:, position]
    right = part["label"].to_numpy()[rows]
    frame["correct"] = np.array(list(LETTERS))[(shown == right[:, None]).argmax(axis=1)]
    names = [f"logp_{letter}" for letter in LETTERS] + ["mass_other"]
    for column, name in enumerate([*names, *(f"{name}_t" for name in names)]):
        frame[name] = letters[:, column]
    return frame


def _samples_frame(part, responses, draws):
    seeds = list(draws["seeds"])
    frame = _item_columns(part)
    frame = frame.iloc[np.repeat(np.arange(len(part)), len(seeds))].reset_index(drop=True)
    frame["seed"] = seeds * len(part)
    frame["raw_response"] = [text for texts in responses for text in texts]
    parsed = {text: parse_response(text, draws["parser"]) for text in set(frame["raw_response"])}
    frame["parsed_answer"] = frame["raw_response"].map(parsed)
    index = frame["parsed_answer"].map({letter: n for n, letter in enumerate(LETTERS)})
    chosen = index.fillna(-1).to_numpy(int)
    rows = np.repeat(np.arange(len(part)), len(seeds))
    roles = np.where(chosen >= 0, _roles(part)[rows, np.maximum(chosen, 0)], "unparsed")
    frame["role"] = roles
    frame["correct"] = chosen == part["label"].to_numpy()[rows]
    return frame
