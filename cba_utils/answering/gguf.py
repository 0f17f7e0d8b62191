"""A GGUF file as a checkpoint: its weights rounded to bf16, its tokenizer and chat template."""

import json
import struct
from pathlib import Path

import numpy as np
from safetensors import TensorSpec, serialize_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

# ggml's numbers of the types that a tensor can have.
_TYPE_NAMES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}
# How many weights a block holds, and its fields.
_BLOCKS = {
    "F32": (1, [("w", "<f4")]),
    "F16": (1, [("w", "<f2")]),
    "BF16": (1, [("w", "<u2")]),
    "Q8_0": (32, [("d", "<f2"), ("q", "i1", 32)]),
    "Q4_0": (32, [("d", "<f2"), ("q", "u1", 16)]),
    "Q4_1": (32, [("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)]),
}
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# How text is split before its pairs are merged, by llama.cpp's name of the family.
_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL, _USER_DEFINED = 3, 4


def read_gguf(path):
    """What a GGUF file says of itself, and its tensors.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    metadata : dict
        By GGUF's own keys.
    tensors : dict of str to tuple
        By name: type, shape (rows first), and the bytes, which stay on disk until they are read.

    Raises
    ------
    ValueError
        If it is no GGUF file, or not a whole one.
    """
    data = np.memmap(path, np.uint8, "r") if Path(path).stat().st_size else np.empty(0, np.uint8)
    reader = _Reader(path, data)
    if bytes(data[:4]) != b"GGUF":
        raise ValueError(f"{path}: not a GGUF file")
    reader.at = 4
    version = reader.scalar(4)
    if version not in (2, 3):
        raise ValueError(
            f"{path}: GGUF of version {version}; versions 2 and 3, little-endian, are read"
        )
    count, keys = reader.scalar(10), reader.scalar(10)
    metadata = {}
    for _ in range(keys):
        key = reader.string()
        metadata[key] = reader.value(reader.scalar(4))
    entries = []
    for _ in range(count):
        name = reader.string()
        shape = [reader.scalar(10) for _ in range(reader.scalar(4))][::-1]
        entries.append((name, reader.scalar(4), shape, reader.scalar(10)))
    alignment = metadata.get("general.alignment", 32)
    start = -(-reader.at // alignment) * alignment
    tensors = {}
    for name, number, shape, offset in entries:
        kind = _TYPE_NAMES.get(number, f"number {number}")
        if kind not in _BLOCKS:
            raise ValueError(
                f"{path}: tensor {name!r} is of type {kind}; {', '.join(_BLOCKS)} are read"
            )
        weights, fields = _BLOCKS[kind]
        if shape[-1] % weights:
            raise ValueError(
                f"{path}: tensor {name!r}: rows of {shape[-1]} do not divide into blocks of "
                f"{weights}, which {kind} has"
            )
        reader.at = start + offset
        tensors[name] = (
            kind,
            shape,
            reader.take(int(np.prod(shape)) // weights * np.dtype(fields).itemsize),
        )
    return metadata, tensors


class _Reader:
    """Values of a GGUF file one after the other."""

    def __init__(self, path, data):
        self.path, self.data, self.at = path, data, 0

    def take(self, size):
        if self.at + size > len(self.data):
            raise ValueError(f"{self.path}: not a whole GGUF file; fetch it again")
        self.at += size
        return self.data[self.at - size : self.at]

    def scalar(self, kind):
        form = _SCALARS.get(kind)
        if form is None:
            raise ValueError(f"{self.path}: not a GGUF file that can be read: value of type {kind}")
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self):
        return bytes(self.take(self.scalar(10))).decode("utf-8", "replace")

    def value(self, kind):
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(kind)
        kind, count = self.scalar(4), self.scalar(10)
        if kind in _SCALARS:
            form = np.dtype(_SCALARS[kind])
            return self.take(count * form.itemsize).view(form).tolist()
        return [self.value(kind) for _ in range(count)]


def dequantize(kind, shape, data):
    """Weights of a tensor in fp32, as its blocks say.

    Parameters
    ----------
    kind : str
        ``"F32"``, ``"F16"``, ``"BF16"``, ``"Q8_0"``, ``"Q4_0"`` or ``"Q4_1"``.
    shape : list of int
    data : ndarray of uint8

    Returns
    -------
    ndarray

    Examples
    --------
    >>> dequantize("Q4_1", [1, 32], np.frombuffer(np.float16([2, -1]).tobytes() + bytes([0x31] * 16),
    ...            np.uint8))[0, [0, 16]].tolist()
    [1.0, 5.0]
    """
    blocks = np.frombuffer(data, _BLOCKS[kind][1])
    if kind == "BF16":
        weights = (blocks["w"].astype(np.uint32) << 16).view(np.float32)
    elif kind in ("F32", "F16"):
        weights = blocks["w"].astype(np.float32)
    else:
        steps = blocks["q"]
        if kind != "Q8_0":  # low halves of the bytes first, then the high ones
            steps = np.concatenate([steps & 15, steps >> 4], axis=1)
        steps = steps.astype(np.float32) - (8 if kind == "Q4_0" else 0)
        weights = steps * blocks["d"].astype(np.float32)[:, None]
        if kind == "Q4_1":
            weights += blocks["m"].astype(np.float32)[:, None]
    return weights.reshape(shape)


def to_bf16(weights):
    """Nearest bf16 values of finite fp32 values, ties to even, as 16-bit patterns.

    Examples
    --------
    >>> [hex(v) for v in to_bf16(np.float32([1, -2, 1 + 2**-8, 1 + 3 * 2**-8]))]
    ['0x3f80', '0xc000', '0x3f80', '0x3f82']
    """
    bits = np.ascontiguousarray(weights, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def convert_gguf(path, folder):
    """Write a GGUF file's model as a checkpoint of Hugging Face's layout, in bf16.

    Parameters
    ----------
    path : str or Path
        A model of llama's architecture with a byte-level BPE tokenizer.
    folder : Path
        Gets ``config.json``, ``model.safetensors``, ``tokenizer.json``, ``tokenizer_config.json`` and
        the chat template.

    Returns
    -------
    list of str
        Types of the file's tensors, the one with the most weights first.

    Raises
    ------
    ValueError
        That names what of the file is not served.

    Notes
    -----
    llama.cpp turns the two halves of a head's rotary pairs into neighbours; rows of the query and key
    matrices are put back.
    """
    metadata, tensors = read_gguf(path)
    architecture = metadata.get("general.architecture")
    if architecture != "llama" or metadata.get("llama.expert_count"):
        raise ValueError(
            f"{path}: architecture {architecture!r}"
            f"{' with experts' if metadata.get('llama.expert_count') else ''}; "
            f"'llama' without experts is read"
        )
    try:
        config = _config(metadata, tensors, path)
        tokenizer, settings = _tokenizer(metadata, path)
    except KeyError as error:
        raise ValueError(f"{path}: no {error.args[0]!r} in the file") from None
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(config, folder / "config.json")
    _write_json(settings, folder / "tokenizer_config.json")
    tokenizer.save(str(folder / "tokenizer.json"))
    if "tokenizer.chat_template" in metadata:
        (folder / "chat_template.jinja").write_text(
            metadata["tokenizer.chat_template"], encoding="utf-8"
        )
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    stored, sizes = {}, {}
    for name, (kind, shape, data) in tensors.items():
        target, part = _target(name, config, path)
        weights = dequantize(kind, shape, data)
        if not np.isfinite(weights).all():
            raise ValueError(
                f"{path}: tensor {name!r} holds values that are not finite; fetch it again"
            )
        if part in heads:
            rows, width = shape
            weights = (
                weights.reshape(heads[part], rows // heads[part] // 2, 2, width)
                .swapaxes(1, 2)
                .reshape(shape)
            )
        stored[target] = to_bf16(weights)
        sizes[kind] = sizes.get(kind, 0) + weights.size
    missing = sorted(_expected(config) - set(stored))
    if missing:
        raise ValueError(f"{path}: no tensor for {missing[0]!r} in the file")
    # NumPy has no bf16: the file is told that these are.
    specs = {
        name: TensorSpec(dtype="bfloat16", shape=v.shape, data_ptr=v.ctypes.data, data_len=v.nbytes)
        for name, v in stored.items()
    }
    serialize_file(specs, str(folder / "model.safetensors"), {"format": "mlx"})
    return sorted(sizes, key=sizes.get, reverse=True)


def _config(metadata, tensors, path):
    of = {
        key.removeprefix("llama."): value
        for key, value in metadata.items()
        if key.startswith("llama.")
    }
    scaling = of.get("rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in tensors:
        told = "rope_freqs.weight" if scaling == "none" else scaling
        raise ValueError(
            f"{path}: rotary angles are scaled ({told}); models without scaling are read"
        )
    names = (
        "embedding_length",
        "attention.head_count",
        "block_count",
        "feed_forward_length",
        "context_length",
        "attention.layer_norm_rms_epsilon",
    )
    for name in names:
        if name not in of:
            raise KeyError(f"llama.{name}")
    heads = of["attention.head_count"]
    width = of.get(
        "attention.key_length", of.get("rope.dimension_count", of["embedding_length"] // heads)
    )
    if of.get("rope.dimension_count", width) != width:
        raise ValueError(
            f"{path}: only {of['rope.dimension_count']} of {width} dimensions of a head turn; "
            f"models that turn all are read"
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": of["embedding_length"],
        "num_hidden_layers": of["block_count"],
        "intermediate_size": of["feed_forward_length"],
        "num_attention_heads": heads,
        "num_key_value_heads": of.get("attention.head_count_kv", heads),
        "head_dim": width,
        "rms_norm_eps": float(f"{of['attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": float(of.get("rope.freq_base", 10000.0)),
        "max_position_embeddings": of["context_length"],
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": "output.weight" not in tensors,
        "hidden_act": "silu",
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "torch_dtype": "bfloat16",
    }


def _target(name, config, path):
    """A tensor's name in Hugging Face's layout, and its part of a layer."""
    if name in _WHOLE:
        return _WHOLE[name], None
    block, _, rest = name.removeprefix("blk.").partition(".")
    part, _, ending = rest.partition(".")
    if (
        not name.startswith("blk.")
        or not block.isdecimal()
        or part not in _PARTS
        or ending != "weight"
        or int(block) >= config["num_hidden_layers"]
    ):
        raise ValueError(
            f"{path}: tensor {name!r} has no place in a llama model of "
            f"{config['num_hidden_layers']} layers"
        )
    return f"model.layers.{block}.{_PARTS[part]}.weight", part


def _expected(config):
    whole = set(_WHOLE.values()) - ({"lm_head.weight"} if config["tie_word_embeddings"] else set())
    return whole | {
        f"model.layers.{layer}.{part}.weight"
        for part in _PARTS.values()
        for layer in range(config["num_hidden_layers"])
    }


def _tokenizer(metadata, path):
    """The tokenizer and its settings, by the vocabulary, merges and kinds of token in the file."""
    kind, split = metadata["tokenizer.ggml.model"], metadata.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        raise ValueError(f"{path}: tokenizer {kind!r}; 'gpt2' (byte-level BPE) is read")
    if split in _DIGITS_APART:
        before = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    elif split in ("gpt-2", "gpt2"):
        before = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    elif split in ("llama-bpe", "llama3"):
        before = [
            pre_tokenizers.Split(Regex(_LLAMA_3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    else:
        raise ValueError(
            f"{path}: tokenizer splits text as {split!r}; {', '.join(_DIGITS_APART)}, gpt-2 "
            f"and llama-bpe are read"
        )
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
    llama_3 = split in ("llama-bpe", "llama3")
    tokenizer = Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=llama_3)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(before)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    added = [
        AddedToken(token, normalized=False, special=kind == _CONTROL)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if number is not None:
            settings[f"{name}_token"] = tokens[number]
    if metadata.get("tokenizer.ggml.add_bos_token", llama_3):
        first = settings["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A",
            pair=f"{first} $A {first} $B",
            special_tokens=[(first, metadata["tokenizer.ggml.bos_token_id"])],
        )
    return tokenizer, settings


def _write_json(content, path):
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
