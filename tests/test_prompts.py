import pytest
from hypothesis import given
from hypothesis import strategies as st

from cba_utils.answering.prompts import ORDERS, SYSTEM, chat_ids, letter_tokens, parse_response, user_text
from conftest import NO_SYSTEM, build_checkpoint
from transformers import AutoTokenizer

ITEM = dict(context="X met Y.", question="Who left?", ans0="X", ans1="Y", ans2="Unknown")


@pytest.mark.parametrize(
    ("text", "strict", "paper"),
    [
        ("A", "A", "A"),
        (" b", "B", "B"),
        ("(C) Unknown", "C", "C"),
        ("**B**", "B", "B"),
        ("The answer is C.", "C", "A"),
        ("A the grandfather", "A", "A"),
        ("Based on the", None, "B"),
        ("Cannot be determined", None, "C"),
        ("None of the above", None, "A"),
        ("A man was", None, "A"),
        ("", None, None),
        ("42", None, None),
    ],
)
def test_both_parsers(text, strict, paper):
    assert (parse_response(text), parse_response(text, "paper")) == (strict, paper)


@given(st.text(max_size=30))
def test_strict_answers_are_a_part_of_the_paper_parsers(text):
    """Whatever the strict parser reads as a letter holds that letter."""
    found = parse_response(text)
    assert found is None or found.lower() in text.lower()
    assert found is None or parse_response(text, "paper") is not None


def test_orders_show_every_answer_once():
    assert [len(set(ORDERS[name])) for name in ("original", "cyclic", "all")] == [1, 3, 6]
    for order in ORDERS["all"]:
        shown = user_text(ITEM, order).splitlines()[2:5]
        assert [line[3:] for line in shown] == [ITEM[f"ans{k}"] for k in order]


def test_system_sentence_survives_a_template_without_system_role(tmp_path):
    folder = build_checkpoint(tmp_path, "mistral", layers=1, template=NO_SYSTEM)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (ids,), folded = chat_ids(tokenizer, [user_text(ITEM)])
    assert folded and tokenizer.decode(ids).startswith(f"<s>[INST]{SYSTEM}")
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        chat_ids(tokenizer, ["?"])


def test_every_spelling_of_a_letter_is_found(mistral):
    tokenizer = AutoTokenizer.from_pretrained(mistral)
    for letter, ids in zip("ABC", letter_tokens(tokenizer), strict=True):
        assert {tokenizer.decode([i]).strip().upper() for i in ids} == {letter}
        assert tokenizer.encode(letter)[0] in ids and tokenizer.encode(letter.lower())[0] in ids
