"""Forward passes over many prompts that share beginnings.

The prompts of a block are arranged in a prefix tree over token ids. Every shared beginning is run
once; its keys and values go to a pool, from which each continuation gathers its own prefix. Only
the last position of a prompt is projected to the vocabulary. The same step, with segments of one
token, continues sampled answers.
"""

import os
from dataclasses import dataclass, field
from itertools import pairwise

import mlx.core as mx
import numpy as np
import psutil
from mlx_lm.models.cache import KVCache, make_prompt_cache

from cba_utils.answering.cpu_kernels import MASKED, read_only

# A shared beginning shorter than this costs more as a step of its own than it saves.
SHORTEST_SHARED = 12
# Share of the memory that all blocks at work may use, and bounds for tokens in one forward pass:
# below the first the matrix products are too thin, above the second nothing gets faster.
MEMORY_SHARE = 0.25
FEWEST_TOKENS, MOST_TOKENS = 256, 1024
# Prompts of a block: enough to share beginnings, few enough for every core to have a block.
MOST_PROMPTS = 128
# Architectures that keep query heads which share a key head on an axis of their own, masks included.
_HEADS_ON_TWO_AXES = ("gemma2",)
# A position beyond any prompt's.
_NOWHERE = 2**40


class CannotBeAsked(ValueError):
    """Why a model's architecture cannot be run here."""


class _PrefixCache:
    """What an mlx-lm attention layer asks of a cache, for rows with prefixes of any length.

    Masks are true where a position is seen, which is what mlx-lm's own are and what layers that test
    one rely on. The kernels for a CPU take what is added to a score: it is made once, and kept in
    `biases`, which the caches of all layers share, beside the mask that it stands for.
    """

    def __init__(self, keys, values, lengths, biases, axes=1, rounded=None):
        self._keys, self._values, self._biases, self._axes = keys, values, biases, axes
        self._rounded = rounded
        self.added = None
        self.last_layer = False
        equal = len(lengths) == 0 or (lengths == lengths[0]).all()
        # Rotary positions start where the row's own prefix ends.
        self.offset = int(lengths[0]) if equal and len(lengths) else mx.array(lengths)
        self._padded = None if equal else lengths

    def update_and_fetch(self, keys, values):
        if self._rounded:
            keys, values = self._rounded(keys), self._rounded(values)
        self.added = (keys, values)
        if self._keys is None:
            return keys, values
        return (
            mx.concatenate([self._keys, keys], axis=2),
            mx.concatenate([self._values, values], axis=2),
        )

    def make_mask(self, n, return_array=False, window_size=None):
        longest = 0 if self._keys is None else self._keys.shape[2]
        windowed = window_size is not None and longest + n > window_size
        if self._padded is None and not windowed and not return_array:
            return "causal" if n > 1 else None
        lengths = np.atleast_1d(longest if self._padded is None else self._padded)[:, None]
        before, own = np.arange(longest), np.arange(n)
        # What only fills up a shorter prefix stands where nothing looks.
        keys = np.concatenate([np.where(before < lengths, before, _NOWHERE), lengths + own], axis=1)
        keys, queries = keys[:, None], (lengths + own)[:, :, None]
        mask = (keys <= queries) & (queries < keys + (window_size or _NOWHERE))
        mask = mask.reshape(mask.shape[0], *[1] * self._axes, *mask.shape[1:])
        seen = mx.array(mask)
        if self._biases is not None:
            self._biases[id(seen)] = seen, np.where(mask, np.float32(0), np.float32(MASKED))
        return seen

    def bias(self, mask):
        """What to add to scores for a mask that `make_mask` gave; None for another one."""
        return self._biases[id(mask)][1] if self._biases and id(mask) in self._biases else None


@dataclass
class _Pool:
    """Keys and values of tokens already run, one row a token, for every layer."""

    keys: list = field(default_factory=list)
    values: list = field(default_factory=list)
    size: int = 0

    def gather(self, layer, slots):
        """Keys and values at slots of shape (rows, length), as (rows, heads, length, width)."""
        return tuple(
            mx.take(store[layer], slots, axis=0).transpose(0, 2, 1, 3)
            for store in (self.keys, self.values)
        )

    def append(self, keys, values):
        if not self.keys:
            self.keys, self.values = keys, values
        else:
            self.keys = [mx.concatenate(pair) for pair in zip(self.keys, keys, strict=True)]
            self.values = [mx.concatenate(pair) for pair in zip(self.values, values, strict=True)]
        self.size = self.keys[0].shape[0]


class Engine:
    """Runs prompts through one model.

    Parameters
    ----------
    loaded : LoadedModel
    memory : int, optional
        Bytes that a block may use; by default a quarter of the machine's, shared by its cores, or of
        its accelerator's where that has less. Not of what is free now: batches, and with them the last
        digits, must not depend on what else is running.
    """

    def __init__(self, loaded, memory=None):
        self.loaded = loaded
        args = getattr(loaded.model, "args", None)
        needed = (
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "hidden_size",
            "intermediate_size",
            "vocab_size",
        )
        known = hasattr(loaded.model, "model") and all(hasattr(args, name) for name in needed)
        if not known:
            raise CannotBeAsked(
                "its layers are not where they are in llama, mistral, qwen2 or phi3"
            )
        heads = args.num_key_value_heads or args.num_attention_heads
        head_width = getattr(args, "head_dim", None) or args.hidden_size // args.num_attention_heads
        itemsize = 4 if loaded.in_fp32 else 2
        self.layers = args.num_hidden_layers
        apart = args.model_type in _HEADS_ON_TWO_AXES and heads < args.num_attention_heads
        self._axes = 2 if apart else 1
        self._pool_bytes = 2 * self.layers * heads * head_width * itemsize
        self._step_bytes = 4 * (4 * args.intermediate_size + 8 * args.hidden_size)
        self._attention_bytes = 4 * args.num_attention_heads
        self._logit_bytes = 4 * args.vocab_size * 4
        self._rounded = None
        if loaded.cache_bits:
            group = cache_group(loaded)
            self._rounded = lambda x: round_cache(x, loaded.cache_bits, group)
        total = psutil.virtual_memory().total
        at_once = os.cpu_count()
        if not loaded.in_fp32:
            total, at_once = min(total, mx.device_info().get("total_memory", total)), 1
        self.memory = memory or int(MEMORY_SHARE * total / at_once)
        if not loaded.in_fp32:
            # What MLX frees it keeps for later, by default up to nearly all that the device has; CUDA's
            # allocator then finds no room for a shape that is new.
            mx.set_cache_limit(self.memory)

    def block_size(self, length):
        """Prompts of a length that fit the memory budget together."""
        each = length * self._pool_bytes * 2 + self._logit_bytes
        return int(np.clip(self.memory // 2 // each, 8, MOST_PROMPTS))

    def tokens_per_pass(self, length):
        """Tokens in one forward pass at a context length."""
        each = self._step_bytes + self._attention_bytes * length * 3 + self._pool_bytes
        return int(np.clip(self.memory // 2 // each, FEWEST_TOKENS, MOST_TOKENS))

    def rows_per_pass(self, length):
        """Prompts in one forward pass, whose prefixes of a length are gathered and joined to what is new."""
        return max(8, int(self.memory // 2 // (2 * max(1, length) * self._pool_bytes)))

    def start(self, prompts):
        """Run prompts, each shared beginning once.

        Parameters
        ----------
        prompts : list of list of int
            Token ids, one block (see `block_size`).

        Returns
        -------
        hidden : mx.array, shape (len(prompts), width)
            Last hidden state of every prompt, in the order given.
        state : tuple
            What `extend` needs to go on from these prompts.

        Notes
        -----
        With ``cache_bits``, keys and values are rounded as ``mlx_lm.generate`` does with ``kv_bits`` and
        ``quantized_kv_start`` 0: all tokens but the last are run, what they leave is rounded, and the
        last token and those that follow meet rounded keys and values alone. (mlx-lm runs a long prompt
        2,048 tokens at a time and rounds after each; prompts here are run whole.)
        """
        if self._rounded is None:
            return self._start(prompts)
        _, (pool, paths) = self._start([prompt[:-1] for prompt in prompts])
        pool.keys = [self._rounded(keys) for keys in pool.keys]
        pool.values = [self._rounded(values) for values in pool.values]
        return self.extend((pool, paths), range(len(prompts)), [prompt[-1] for prompt in prompts])

    def _start(self, prompts):
        order = sorted(range(len(prompts)), key=lambda i: prompts[i])
        levels, leaves = prefix_tree([prompts[i] for i in order])
        pool, slots, hidden, places = _Pool(), {}, [], {}
        for level in levels:
            prefixes = [slots[node.parent] if node.parent is not None else _NONE for node in level]
            last, ends = self._run(pool, prefixes, [node.tokens for node in level])
            offset = sum(part.shape[0] for part in hidden)
            hidden.append(last)
            for row, node in enumerate(level):
                slots[node.number] = ends[row]
                places[node.number] = offset + row
        back = np.empty(len(prompts), int)
        back[order] = [places[leaf] for leaf in leaves]
        paths = [None] * len(prompts)
        for position, leaf in zip(order, leaves, strict=True):
            paths[position] = slots[leaf]
        return mx.concatenate(hidden)[mx.array(back)], (pool, paths)

    def extend(self, state, rows, tokens):
        """Continue by one token each.

        Parameters
        ----------
        state : tuple
            From `start` or `extend`.
        rows : list of int
            Which sequence of the state each continuation belongs to.
        tokens : list of int
            Token that each continuation adds.

        Returns
        -------
        hidden, state
            As from `start`, one entry a continuation.
        """
        pool, paths = state
        hidden, ends = self._run(
            pool, [paths[row] for row in rows], [[t] for t in tokens], self._rounded
        )
        return hidden, (pool, ends)

    def logits(self, hidden):
        """Logits of hidden states, (n, vocabulary)."""
        return self.loaded.project(hidden)

    def _run(self, pool, prefixes, segments, rounded=None):
        """Run segments after their prefixes; append their keys and values to the pool."""
        count = len(segments)
        order = sorted(range(count), key=lambda i: (len(segments[i]), len(prefixes[i])))
        lasts, keys, values = [], [[] for _ in range(self.layers)], [[] for _ in range(self.layers)]
        ends, position, slot = [None] * count, np.empty(count, int), pool.size
        start = 0
        room = self.tokens_per_pass(
            max(len(p) + len(s) for p, s in zip(prefixes, segments, strict=True))
        )
        most = self.rows_per_pass(max(map(len, prefixes)))
        while start < count:
            batch = _batch(order[start:][:most], segments, room)
            hidden, caches, real = self._forward(
                pool, [prefixes[i] for i in batch], [segments[i] for i in batch], rounded
            )
            lasts.append(hidden)
            for layer, cache in enumerate(caches):
                for store, added in zip((keys, values), cache.added, strict=True):
                    rows = added.transpose(0, 2, 1, 3)
                    store[layer].append(rows.reshape(-1, *rows.shape[2:])[real])
            mx.async_eval(
                hidden,
                *(store[layer][-1] for store in (keys, values) for layer in range(self.layers)),
            )
            for row, i in enumerate(batch):
                length = len(segments[i])
                ends[i] = np.concatenate([prefixes[i], np.arange(slot, slot + length)])
                slot += length
                position[i] = start + row
            start += len(batch)
        pool.append([mx.concatenate(k) for k in keys], [mx.concatenate(v) for v in values])
        mx.eval(pool.keys, pool.values, lasts)
        return mx.concatenate(lasts)[mx.array(position)], ends

    def _forward(self, pool, prefixes, segments, rounded):
        lengths = np.array([len(segment) for segment in segments])
        width = lengths.max()
        ids = np.zeros((len(segments), width), np.int32)
        for row, segment in enumerate(segments):
            ids[row, : len(segment)] = segment
        before = np.array([len(prefix) for prefix in prefixes])
        if before.max() > 0:
            slots = np.zeros((len(prefixes), before.max()), np.int32)
            for row, prefix in enumerate(prefixes):
                slots[row, : len(prefix)] = prefix
            gathered = [pool.gather(layer, mx.array(slots)) for layer in range(self.layers)]
        else:
            gathered = [(None, None)] * self.layers
        biases = {} if self.loaded.in_fp32 else None
        caches = [_PrefixCache(k, v, before, biases, self._axes, rounded) for k, v in gathered]
        caches[-1].last_layer = True
        with read_only(lengths - 1):
            hidden = self.loaded.model.model(mx.array(ids), cache=caches)
        last = hidden[mx.arange(len(segments)), mx.array(lengths - 1)]
        real = np.flatnonzero((np.arange(width)[None, :] < lengths[:, None]).ravel())
        return last, caches, mx.array(real)


def cache_group(loaded):
    """Numbers of a key or value that share a scale where the cache is rounded.

    Parameters
    ----------
    loaded : LoadedModel

    Returns
    -------
    int
        64, which is mlx-lm's own choice, or 32 where heads are too narrow for it.

    Raises
    ------
    CannotBeAsked
        If mlx-lm has no rounded cache for this model.
    """
    kinds = {type(one) for one in make_prompt_cache(loaded.model)}
    if kinds != {KVCache}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise CannotBeAsked(
            f"its cache ({names}) is none that mlx_lm rounds to fewer bits; ask without -kv8 or -kv4"
        )
    args = loaded.model.args
    width = getattr(args, "head_dim", None) or args.hidden_size // args.num_attention_heads
    group = next((size for size in (64, 32) if width % size == 0), None)
    if group is None:
        raise CannotBeAsked(
            f"its heads are {width} wide, no multiple of 32, and mlx_lm rounds a cache in groups of 64 or "
            f"32; ask without -kv8 or -kv4"
        )
    return group


def round_cache(values, bits, group):
    """Keys or values as a rounded cache gives them back, the last axis in groups.

    Examples
    --------
    >>> round_cache(mx.arange(32.0)[None], 4, 32).max().item()
    31.0
    """
    return mx.dequantize(
        *mx.quantize(values, group_size=group, bits=bits), group_size=group, bits=bits
    )


def _batch(order, segments, room):
    """As many segments, shortest first, as padded to one width fit the room."""
    width = 0
    for count, i in enumerate(order):
        width = max(width, len(segments[i]))
        if count and (count + 1) * width > room:
            return order[:count]
    return order


_NONE = np.empty(0, int)


@dataclass
class Node:
    """A stretch of tokens that follows its parent's."""

    number: int
    parent: int | None
    tokens: list


def prefix_tree(prompts, shortest=SHORTEST_SHARED):
    """Arrange sorted prompts so that shared beginnings are run once.

    Parameters
    ----------
    prompts : list of list of int
        In lexicographic order.
    shortest : int
        Tokens below which a shared stretch is not worth a node.

    Returns
    -------
    levels : list of list of Node
        Parents come in an earlier level than their children.
    leaves : list of int
        Number of the node that ends each prompt.

    Examples
    --------
    >>> levels, leaves = prefix_tree([[1, 2, 3, 4], [1, 2, 3, 5], [9]], shortest=2)
    >>> [[node.tokens for node in level] for level in levels]
    [[[1, 2, 3], [9]], [[4], [5]]]
    """
    shared = [0] + [_common(a, b) for a, b in pairwise(prompts)]
    levels, leaves, numbers = [], [None] * len(prompts), iter(range(2 * len(prompts) + 1))
    stack = [(0, len(prompts), 0, None, 0)]
    while stack:
        low, high, depth, parent, level = stack.pop()
        for first, last in _runs(shared, low, high, depth + shortest):
            end = len(prompts[first]) if last - first == 1 else min(shared[first + 1 : last])
            if level == len(levels):
                levels.append([])
            node = Node(next(numbers), parent, prompts[first][depth:end])
            levels[level].append(node)
            if last - first == 1:
                leaves[first] = node.number
            else:
                stack.append((first, last, end, node.number, level + 1))
    return levels, leaves


def _runs(shared, low, high, least):
    """Stretches of neighbours that share at least so many tokens."""
    first = low
    for i in range(low + 1, high + 1):
        if i == high or shared[i] < least:
            yield first, i
            first = i


def _common(a, b):
    # A prompt's last token always stays in its own leaf: its hidden state is what is read.
    limit = min(len(a), len(b)) - 1
    x, y = np.asarray(a[:limit]), np.asarray(b[:limit])
    different = np.flatnonzero(x != y)
    return int(different[0]) if len(different) else limit
