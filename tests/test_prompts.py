import json
import shutil
from pathlib import Path

from cba_utils import load_model
from cba_utils.answering.prompts import (
    ORDERS,
    PROMPTS,
    chat_ids,
    letter_tokens,
    named,
    parse_response,
    render,
    user_text,
)
from conftest import NO_SYSTEM, PLAIN, build_checkpoint

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

ITEM = dict(context="X met Y.", question="Who left?", ans0="X", ans1="Y", ans2="Unknown")


@pytest.mark.parametrize(
    ("text", "strict", "published"),
    [
        ("A", "A", "A"),
        (" b", "B", "B"),
        ("(C) Unknown", "C", "C"),
        ("**B**", "B", "B"),
        ("The answer is C.", "C", "C"),
        ("The answer is B", "B", "B"),
        ("I choose B", None, "B"),
        ("I would pick B", None, "B"),
        ("The best answer is C", None, "C"),
        ("answer: A", "A", "A"),
        ("pick an", None, "A"),
        ("b.c", "B", "B"),
        ("A the grandfather", "A", "A"),
        ("Based on the", None, "B"),
        ("Cannot be determined", None, "C"),
        ("None of the above", None, "A"),
        ("A man", None, "A"),
        ("", None, None),
        ("42", None, None),
    ],
)
def test_both_parsers(text, strict, published):
    assert (parse_response(text), parse_response(text, "published")) == (strict, published)


def four_rules(text):
    """The published parser again, by walking over the text."""
    text = text.strip()
    low = text.lower()
    if low in ("a", "b", "c"):
        return low.upper()
    rest = low[1:] if low[:1] == "(" else low
    if rest[:1] in ("a", "b", "c"):
        after = rest[1:]
        for left in [after[1:], after] if after[:1] == ")" else [after]:
            if left[:1] in (")", ".") or left[:1].isspace():
                return rest[0].upper()
    for start in range(len(low)):
        for word in ("answer", "choose", "select", "pick"):
            if low.startswith(word, start):
                left = low[start + len(word) :].lstrip()
                for tail in [left[2:].lstrip(), left] if left.startswith("is") else [left]:
                    tail = tail[1:] if tail[:1] == "(" else tail
                    if tail[:1] in ("a", "b", "c"):
                        return tail[0].upper()
    return next((letter.upper() for letter in low if letter in "abc"), None)


PIECES = [
    "a",
    "b",
    "c",
    "A",
    "B",
    "C",
    "(",
    ")",
    ".",
    ":",
    " ",
    "\n",
    "\t",
    "is",
    "IS",
    "answer",
    "Answer",
    "choose",
    "SELECT",
    "pick",
    "the",
    "of",
    "an",
    "not",
    "1",
    "d",
    "*",
    "é",
]


@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
def test_the_published_parser_is_its_four_rules(text):
    assert parse_response(text, "published") == four_rules(text)


@given(st.text(max_size=30))
def test_strict_answers_are_a_part_of_the_published_parsers(text):
    """Whatever the strict parser reads as a letter holds that letter."""
    found = parse_response(text)
    assert found is None or found.lower() in text.lower()
    assert found is None or parse_response(text, "published") is not None


def test_orders_show_every_answer_once():
    assert [len(set(ORDERS[name])) for name in ("original", "cyclic", "all")] == [1, 3, 6]
    for order in ORDERS["all"]:
        shown = user_text(ITEM, order, "short").splitlines()[2:5]
        assert [line[3:] for line in shown] == [ITEM[f"ans{k}"] for k in order]


def test_prompts_are_the_texts_that_their_studies_asked(mistral):
    """Character for character: another blank line is another question."""
    tokenizer = AutoTokenizer.from_pretrained(mistral)
    published = (
        "<s>Answer the following multiple choice question by responding with only the letter (A, B, "
        "or C) of your chosen answer.\n[INST]Context: X met Y.\n\nQuestion: Who left?\n\nA) X\nB) Y\n"
        "C) Unknown\n\nAnswer:[/INST]"
    )
    short = (
        "<s>Answer with only the letter A, B, or C.\n[INST]Context: X met Y.\nQuestion: Who left?\n"
        "A) X\nB) Y\nC) Unknown\nAnswer:[/INST]"
    )
    for name, text in (("published", published), ("short", short)):
        (ids,), folded = chat_ids(tokenizer, [user_text(ITEM, prompt=name)], name)
        assert not folded and tokenizer.decode(ids) == text
    with pytest.raises(ValueError, match="prompt: 'paper' is not one of published, short"):
        named("paper")


def test_texts_with_braces_and_signs_are_asked_as_they_are(mistral):
    item = ITEM | {"context": "{question} {0} %s \\n {", "ans2": "{A}"}
    for name in PROMPTS:
        text = user_text(item, prompt=name)
        assert item["context"] in text and "\nC) {A}\n" in text


@pytest.mark.parametrize("name", PROMPTS)
def test_system_sentence_survives_a_template_without_system_role(name, tmp_path):
    folder = build_checkpoint(tmp_path, "mistral", layers=1, template=NO_SYSTEM)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (ids,), folded = chat_ids(tokenizer, [user_text(ITEM, prompt=name)], name)
    assert folded and tokenizer.decode(ids).startswith(f"<s>[INST]{named(name).system}\n\nContext")
    tokenizer.chat_template = PLAIN.replace(
        "m['role'] == 'system'", "false and m['role'] == 'system'"
    ).replace("messages %}", "messages[-1:] %}")
    assert chat_ids(tokenizer, [user_text(ITEM, prompt=name)], name)[1]
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        chat_ids(tokenizer, ["?"], name)
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(ValueError, match="the chat template cannot render a question: never"):
        chat_ids(tokenizer, ["?"], name)


DATED = {
    "clock": "{{ strftime_now('%d %b %Y') }}",
    "clock in a macro": "{% macro now(form) %}{{ strftime_now(form) }}{% endmacro %}"
    "{{ now('%-d %B %Y').replace('July', 'Jul').replace('January', 'Jan')"
    ".replace('2 Jan', '02 Jan') }}",
    "given": "{{ date_string }}",
    "llama 3.1": "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{{ date_string }}",
}


@pytest.mark.parametrize("head", DATED.values(), ids=DATED)
def test_a_template_that_states_a_date_states_the_studys(head, mistral):
    tokenizer = AutoTokenizer.from_pretrained(mistral)
    tokenizer.chat_template = head + PLAIN
    (ids,), _ = chat_ids(tokenizer, ["?"])
    assert tokenizer.decode(ids).startswith("26 Jul 2024")
    (ids,), _ = chat_ids(tokenizer, ["?"], date="2025-01-02")
    assert tokenizer.decode(ids).startswith("02 Jan 2025")
    with pytest.raises(ValueError, match="date: 'today' is no day written as 2024-07-26"):
        chat_ids(tokenizer, ["?"], date="today")


def test_a_model_that_can_think_aloud_does_not(mistral):
    tokenizer = AutoTokenizer.from_pretrained(mistral)
    for switch in ("enable_thinking", "thinking"):
        tokenizer.chat_template = (
            PLAIN + f"{{% if {switch} is not defined or {switch} %}}<think>{{% endif %}}"
        )
        assert "<think>" not in render(tokenizer, [{"role": "user", "content": "?"}])


def test_texts_are_tokenized_as_mlx_lm_tokenizes_a_prompt(mistral):
    """With or without the beginning-of-text token in the template, there is one."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(mistral)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    for template in (PLAIN, PLAIN.replace("{{ bos_token }}", "")):
        tokenizer.chat_template = template
        (ids,), _ = chat_ids(tokenizer, [user_text(ITEM)])
        assert ids.count(0) == 1 and ids[0] == 0


def test_every_spelling_of_a_letter_is_found(mistral):
    tokenizer = AutoTokenizer.from_pretrained(mistral)
    for letter, ids in zip("ABC", letter_tokens(tokenizer), strict=True):
        assert {tokenizer.decode([i]).strip().upper() for i in ids} == {letter}
        assert tokenizer.encode(letter)[0] in ids and tokenizer.encode(letter.lower())[0] in ids


def test_a_study_of_the_published_prompt_asks_it(mistral):
    """The prompt's name reaches the model: another one gives other numbers."""
    from cba_utils import load_items, score_letters

    loaded, items = load_model(mistral), load_items("bundled").head(2)
    ours, theirs = (score_letters(loaded, items, prompt=name)["logp_A"] for name in PROMPTS)
    assert (ours - theirs).abs().max() > 1e-3


# Two generations of Mistral v0.3's template: the first refuses a system role, the second writes what
# the system says at the head of the last turn.
MISTRAL = {
    "refuses": "{% if messages[0]['role'] != 'user' %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}{{ bos_token }}[INST] {{ messages[0]['content'] }}[/INST]",
    "writes": "{% set said = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' %}"
    "{{ bos_token }}[INST] {{ said }}{{ messages[-1]['content'] }}[/INST]",
}


@pytest.mark.parametrize("template", MISTRAL.values(), ids=MISTRAL)
def test_mistral_is_asked_the_tokens_that_its_makers_own_library_writes(template, tmp_path):
    """Independent route: mistral-common's rendering of the two messages, with the true vocabulary."""
    library = pytest.importorskip("mistral_common", reason="mistral-common is not installed")
    pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    from mistral_common.protocol.instruct.messages import SystemMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    from transformers import LlamaTokenizer

    data = Path(library.__file__).parent / "data" / "mistral_instruct_tokenizer_240323.model.v3"
    shutil.copy(data, tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            dict(
                tokenizer_class="LlamaTokenizer",
                bos_token="<s>",
                eos_token="</s>",
                unk_token="<unk>",
                legacy=False,
                add_bos_token=True,
            )
        )
    )
    tokenizer = LlamaTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = template
    text = user_text(ITEM, prompt="published")
    (ids,), _ = chat_ids(tokenizer, [text], "published")
    asked = ChatCompletionRequest(
        messages=[SystemMessage(content=named("published").system), UserMessage(content=text)]
    )
    assert ids == MistralTokenizer.v3().encode_chat_completion(asked).tokens
