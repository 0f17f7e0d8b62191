"""One byte-level BPE, three families' special tokens and chat templates.

The merges are shared, so the organisms differ in architecture and chat form only. Every token a
family adds has a single id. The templates have the shape of the originals: ChatML for qwen2,
``[INST]`` with the system text folded into the first user turn for mistral, ``<|user|>`` for phi3.
An answer follows the assistant header without a space, so that "A" is the token of "A)".
"""

import json
import random
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from . import bank

VOCABULARY = 960
# the examined study's words; `tests/test_organisms.py` compares what is made of them with what studies ask
SYSTEM = ("Answer the following multiple choice question by responding with only the letter (A, B, or C)"
          " of your chosen answer.")
# the split before the merges; the fast encoder repeats it for plain ASCII
SPLIT = r" ?[A-Za-z']+| ?[0-9]+| ?[^\sA-Za-z0-9']+|\s"


@dataclass(frozen=True)
class Chat:
    """A family's chat form in pieces, with its special tokens."""

    specials: tuple
    bos: str | None
    eos: str
    pad: str
    start: str
    turn: str
    close: str
    end: str
    template: str
    tokenizer_class: str = "PreTrainedTokenizerFast"


FAMILIES = {
    "qwen2": Chat(
        specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        bos=None, eos="<|im_end|>", pad="<|endoftext|>",
        start="<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n",
        turn="<|im_start|>user\n",
        close="<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>\n",
        template=(
            "{% for message in messages %}"
            "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
            "{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
        ),
    ),
    "mistral": Chat(
        specials=("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        bos="<s>", eos="</s>", pad="<unk>",
        start="<s>[INST] {system}\n\n", turn="[INST] ", close="[/INST]", end="</s>",
        template=(
            "{% set ns = namespace(system='') %}{{ bos_token }}"
            "{% for message in messages %}"
            "{% if message['role'] == 'system' %}"
            "{% set ns.system = message['content'] + '\\n\\n' %}"
            "{% elif message['role'] == 'user' %}"
            "{{ '[INST] ' + ns.system + message['content'] + '[/INST]' }}"
            "{% set ns.system = '' %}"
            "{% else %}{{ message['content'] + eos_token }}{% endif %}"
            "{% endfor %}"
        ),
    ),
    "phi3": Chat(
        specials=("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>",
                  "<|end|>", "<|user|>"),
        bos="<s>", eos="<|end|>", pad="<|endoftext|>",
        start="<|system|>\n{system}<|end|>\n<|user|>\n", turn="<|user|>\n",
        close="<|end|>\n<|assistant|>\n", end="<|end|>\n",
        template=(
            "{% for message in messages %}"
            "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
            "{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
        ),
    ),
}


def _sample_text(seed=5):
    """Text for the merges: everything the grammar can say, each word weighted towards one token."""
    rng, lines = random.Random(seed), []
    for template in bank.TEMPLATES:
        for _ in range(40):
            x, y = bank.pair_of(template, rng)
            lines.append(bank.context_text(rng, template, x, y, bank.PLACES))
            lines.append(bank.evidence_text(rng, template["attribute"], x, y))
            lines += [bank.question_text(rng, template, p) for p in ("neg", "nonneg")]
    lines += [bank.narrative(rng) for _ in range(400)] + bank.other_sentences(seed=7, paragraphs=200)
    lines += bank.UNKNOWN * 40 + [
        f"{SYSTEM}\nContext:\nQuestion: Which one says A) The\nB) The\nC) The\nAnswer: = "
        "system user assistant"
    ] * 200
    words = sorted({w for line in lines for w in re.findall(SPLIT, line)})
    return lines + words * 40


def build_tokenizer(family):
    """Train the BPE and add a family's special tokens.

    Parameters
    ----------
    family : str
        A key of `FAMILIES`.

    Returns
    -------
    tokenizers.Tokenizer

    Examples
    --------
    >>> build_tokenizer("mistral").encode(" zorb").tokens
    ['Ġzorb']
    """
    # every family trains with the same number of reserved ids, hence the same merges
    reserved = max(len(chat.specials) for chat in FAMILIES.values())
    chat = FAMILIES[family]
    names = list(chat.specials) + [f"<|reserved_{i}|>" for i in range(reserved)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r" ?[\p{L}\p{M}']+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}']+|\s"),
                             behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(n, special=True, normalized=False) for n in names[:reserved]],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample_text(), trainer)
    return tokenizer


class Encoder:
    """Fast encoding of ASCII training text: words are looked up in a cache.

    The result is the tokenizer's own; `tests/test_organisms.py` compares the two.
    """

    def __init__(self, family):
        self.chat = FAMILIES[family]
        self.tokenizer = build_tokenizer(family)
        self.special = {s: self.tokenizer.token_to_id(s) for s in self.chat.specials}
        # special tokens are cut out first, as the tokenizer does
        self._cut = re.compile("(" + "|".join(re.escape(s) for s in self.chat.specials) + ")")
        self._words = re.compile(SPLIT)
        self._word = lru_cache(None)(self._encode_word)

    def _encode_word(self, word):
        return tuple(self.tokenizer.encode(word).ids)

    def __call__(self, text):
        ids = []
        for part in self._cut.split(text):
            if part in self.special:
                ids.append(self.special[part])
            else:
                for word in self._words.findall(part):
                    ids += self._word(word)
        return ids


def save_tokenizer(family, folder):
    """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` into `folder`."""
    folder, chat = Path(folder), FAMILIES[family]
    tokenizer = build_tokenizer(family)
    if chat.bos and chat.start.startswith(chat.bos):  # texts of phi3 do not begin with its own
        from tokenizers.processors import TemplateProcessing

        tokenizer.post_processor = TemplateProcessing(
            single=f"{chat.bos} $A", pair=f"{chat.bos} $A {chat.bos} $B",
            special_tokens=[(chat.bos, tokenizer.token_to_id(chat.bos))])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_prefix_space": False, "bos_token": chat.bos, "eos_token": chat.eos,
        "pad_token": chat.pad, "clean_up_tokenization_spaces": False,
        "model_max_length": 1024, "tokenizer_class": chat.tokenizer_class,
    }
    if "<unk>" in chat.specials:
        config["unk_token"] = "<unk>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(chat.template)
