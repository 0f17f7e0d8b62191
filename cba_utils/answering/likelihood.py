"""Per-sequence negative log-likelihoods on a text set."""

import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pandas as pd
import psutil
from tqdm import tqdm

from cba_utils.answering.cores import map_pieces, settle
from cba_utils.answering.drift import MOST_TOKENS
from cba_utils.answering.prompts import DATE, render
from cba_utils.names import DRIFT, HELD_OUT_TEXT

_TOKENS_PER_PASS = 1024


def perplexity(loaded, texts, sequence_length=512, beside=None):
    """Negative log-likelihood of every sequence of a text set.

    The texts are joined and cut into sequences of equal length; the first token of a sequence has
    nothing to be predicted from and is not scored. Perplexity is ``exp(nll.sum() / tokens.sum())``.

    Parameters
    ----------
    loaded : LoadedModel
    texts : list of str or list of list of int
        Texts, or token ids where the texts were tokenized already.
    sequence_length : int
        Tokens in a sequence; a shorter remainder is left out.
    beside : callable, optional
        Given the number of a batch's first sequence and of its positions, what these are compared
        with, see `cba_utils.answering.drift`.

    Returns
    -------
    DataFrame
        One row a sequence: ``sequence``, ``tokens`` (scored ones) and ``nll`` (their summed
        negative log-likelihood, in nats); with `beside`, sums over its tokens of ``vocab_kl``,
        ``vocab_tv`` and ``vocab_flip`` too, missing beyond the first 32,768 tokens.

    Raises
    ------
    ValueError
        If the texts give not one sequence, or a sequence is longer than the model's context.

    Examples
    --------
    >>> from cba_utils import load_model, perplexity
    >>> nll = perplexity(load_model("toy-mistral/b1"), ["one two three four five"], 8)
    >>> int(nll["tokens"].iloc[0])
    7
    """
    if not 2 <= sequence_length <= loaded.context_length:
        raise ValueError(
            f"sequence_length: {sequence_length} must lie between 2 and the context of "
            f"{loaded.name}, {loaded.context_length}"
        )
    ids = _sequences(loaded, texts, sequence_length)
    settle(loaded)
    rows = max(1, _TOKENS_PER_PASS // sequence_length)
    starts, found = range(0, len(ids), rows), []

    def run(start):
        batch = ids[start : start + rows]
        positions = len(batch) * (sequence_length - 1)
        compared = beside and start * (sequence_length - 1) + positions <= MOST_TOKENS
        return _batch_sums(loaded, batch, beside(start, positions) if compared else None)

    with tqdm(
        total=len(ids),
        unit="sequence",
        desc=f"{loaded.name} {loaded.precision} perplexity",
        file=sys.stderr,
        mininterval=2,
    ) as progress:
        for sums in map_pieces(loaded, run, list(starts)):
            found.append(sums)
            progress.update(len(sums))
    sums = np.concatenate(found).astype(float)
    frame = pd.DataFrame(
        {"sequence": np.arange(len(ids)), "tokens": sequence_length - 1, "nll": sums[:, 0]}
    )
    if beside:
        frame[DRIFT] = sums[:, 1:]
    return frame


def published_losses(loaded, texts, sequence_length=512, batch_size=8):
    """Losses of the same sequences as ``mlx_lm.perplexity`` computes them.

    Whole batches go through the model's own call, and their logits at once: with MLX's own kernels
    (``compute="native"``) these are the numbers of ``mlx_lm.perplexity.eval_ppl``, to the last digits
    of a sum.

    Parameters
    ----------
    loaded : LoadedModel
    texts, sequence_length
        As in `perplexity`; `load_texts` takes a hub data set's conversations in the order of
        ``mlx_lm.perplexity.load_data`` with ``numpy`` seeded alike.
    batch_size : int
        Sequences in a batch.

    Returns
    -------
    DataFrame
        One row a sequence: ``nll_published``, the sum of its tokens' losses, and
        ``squares_published``, the sum of their squares.
    """
    ids = _sequences(loaded, texts, sequence_length)
    settle(loaded)
    sums = []
    for start in tqdm(
        range(0, len(ids), batch_size),
        file=sys.stderr,
        mininterval=2,
        unit="batch",
        desc=f"{loaded.name} {loaded.precision} published perplexity",
    ):
        batch = mx.array(ids[start : start + batch_size])
        logits = loaded.model(batch[:, :-1]).astype(mx.float32)
        losses = np.array(nn.losses.cross_entropy(logits, batch[:, 1:])).astype(float)
        sums.append(np.stack([losses.sum(axis=1), (losses**2).sum(axis=1)], axis=1))
    return pd.DataFrame(np.concatenate(sums), columns=["nll_published", "squares_published"])


def published_perplexity(nll):
    """The perplexity and its standard error that ``mlx_lm.perplexity`` prints.

    Tokens count as independent in that standard error, which those of a text are not: it is what was
    published, and no interval of this project's.

    Parameters
    ----------
    nll : DataFrame
        ``tokens`` and the columns of `published_losses`, one row a sequence of one cell.

    Returns
    -------
    perplexity, standard_error : float
    """
    tokens = nll["tokens"].sum()
    mean = nll["nll_published"].sum() / tokens
    variance = (nll["squares_published"].sum() - tokens * mean**2) / (tokens - 1)
    value = np.exp(mean)
    return float(value), float(value * np.sqrt(max(variance, 0) / tokens))


def load_texts(source, loaded, tokens, seed=123, date=DATE):
    """Texts to measure perplexity on.

    Parameters
    ----------
    source : str
        ``"bundled"`` (the project's held-out text), a text file (one text a line), or the id of
        a hub data set with a ``messages`` column (``allenai/tulu-3-sft-mixture``).
    loaded : LoadedModel
        Its chat template renders messages.
    tokens : int
        How many tokens are needed at least.
    seed : int
        Order in which a hub data set is read, as ``mlx_lm.perplexity`` does.
    date : str
        What a chat template that states a date states.

    Returns
    -------
    list of str or list of list of int

    Raises
    ------
    FileNotFoundError
        If the source is neither.

    Examples
    --------
    >>> len(load_texts("bundled", None, 1000)) > 1
    True
    """
    path = HELD_OUT_TEXT if source == "bundled" else Path(source)
    if path.is_file():
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if source == "bundled" or str(source).count("/") != 1:
        raise FileNotFoundError(
            f"perplexity: {source!r} is neither 'bundled', nor a text file, nor a hub data set id"
        )
    return _hub_conversations(source, loaded.hf_tokenizer, tokens, seed, date)


def _hub_conversations(source, tokenizer, tokens, seed, date):
    import pyarrow.dataset
    from huggingface_hub import snapshot_download

    folder = snapshot_download(source, repo_type="dataset", allow_patterns="data/train*.parquet")
    table = pyarrow.dataset.dataset(sorted(map(str, Path(folder).rglob("*.parquet"))))
    order = np.random.RandomState(seed).permutation(table.count_rows())
    found, total = [], 0
    # A thousand conversations at a time: most studies need no second thousand.
    for start in range(0, len(order), 1000):
        rows = table.take(order[start : start + 1000], columns=["messages"])
        for messages in rows["messages"].to_pylist():
            text = render(tokenizer, messages, date, to_answer=False)
            found.append(tokenizer.encode(text, add_special_tokens=False))
            total += len(found[-1])
            if total >= tokens:
                return found
    return found


def token_ids(texts, loaded, at_most=None):
    """Texts as one run of tokens, one after the other behind a space.

    No special tokens come between: whether a tokenizer adds them differs from family to family, and
    a beginning of text inside a sequence is not what a model can foresee.

    Parameters
    ----------
    texts : list of str or list of list of int
    loaded : LoadedModel
    at_most : int, optional
        Later texts are left out.

    Returns
    -------
    list of int

    Examples
    --------
    >>> from cba_utils import load_model
    >>> loaded = load_model("toy-mistral/b1")
    >>> loaded.hf_tokenizer.decode(token_ids(["one", "two"], loaded))
    'one two'
    """
    ids = []
    for text in texts:
        if isinstance(text, str):
            text = loaded.hf_tokenizer.encode(f" {text}" if ids else text, add_special_tokens=False)
        ids += text
        if at_most is not None and len(ids) >= at_most:
            return ids[:at_most]
    return ids


def _sequences(loaded, texts, length):
    ids = token_ids(texts, loaded)
    count = len(ids) // length
    if count == 0:
        raise ValueError(f"texts: {len(ids)} tokens in all, fewer than one sequence of {length}")
    return np.array(ids[: count * length], np.int32).reshape(count, length)


def batch_nll(loaded, batch):
    """Summed negative log-likelihood of every row; logits exist for some positions at a time.

    Parameters
    ----------
    loaded : LoadedModel
    batch : array of int, shape (sequences, tokens)

    Returns
    -------
    numpy array, shape (sequences,)
    """
    return _batch_sums(loaded, batch)[:, 0]


def _batch_sums(loaded, batch, seen=None):
    """Sums over every row's tokens, shape (sequences, 4): losses, and distances where compared."""
    batch = mx.array(batch)
    # Some architectures want to be told that there is no cache.
    hidden = loaded.model.model(batch[:, :-1], cache=None)
    flat, target = hidden.reshape(-1, hidden.shape[-1]), batch[:, 1:].reshape(-1)
    vocabulary = loaded.model.args.vocab_size
    rows = max(128, int(psutil.virtual_memory().total // 64 // (4 * vocabulary)))
    parts, apart = [], []
    for start in range(0, flat.shape[0], rows):
        states = flat[start : start + rows]
        logits = loaded.project(states).astype(mx.float32)
        chosen = mx.take_along_axis(logits, target[start : start + rows, None], axis=1)[:, 0]
        parts.append(mx.logsumexp(logits, axis=-1) - chosen)
        mx.eval(parts[-1])
        if seen:
            apart.append(seen.see(np.arange(start, start + states.shape[0]), states, logits))
    sums = np.full((batch.shape[0], 1 + len(DRIFT)), np.nan, np.float32)
    sums[:, 0] = np.array(mx.concatenate(parts).reshape(batch.shape[0], -1).sum(axis=1))
    if seen:
        seen.done()
        each = np.concatenate(apart).reshape(batch.shape[0], -1, len(DRIFT))
        sums[:, 1:] = each.sum(axis=1, dtype=float)
    return sums
