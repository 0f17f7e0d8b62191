"""The paper's prompt for an item, and two parsers of a response."""

import re
from itertools import permutations

SYSTEM = "Answer with only the letter A, B, or C."
LETTERS = "ABC"
ORDERS = {
    "original": ("012",),
    "cyclic": ("012", "120", "201"),
    "all": tuple("".join(order) for order in permutations("012")),
}
PARSERS = ("strict", "paper")
_MARK = "Context: the text goes here"

# A lone letter, perhaps after "Answer:" or an opening bracket, perhaps followed by its answer.
_STRICT = re.compile(
    r"^\W*(?:(?:the\s+)?(?:correct\s+)?answer\s*(?:is)?\s*:?\s*)?\W*([A-Ca-c])(?![\w'’])", re.I
)
# "A man ..." and "a ..." begin with a word, not with an option.
_ARTICLE = re.compile(r"^\W*[Aa]\s+(?!the\b)[a-z]")


def user_text(item, order="012"):
    """The question of an item as the user says it.

    Parameters
    ----------
    item : mapping
        A row of `load_items`.
    order : str
        Indices of the answers shown as A, B and C.

    Returns
    -------
    str

    Examples
    --------
    >>> print(user_text(dict(context="X met Y.", question="Who left?", ans0="X", ans1="Y",
    ...                      ans2="Unknown"), order="210"))
    Context: X met Y.
    Question: Who left?
    A) Unknown
    B) Y
    C) X
    Answer:
    """
    options = "\n".join(
        f"{letter}) {item[f'ans{index}']}" for letter, index in zip(LETTERS, order, strict=True)
    )
    return f"Context: {item['context']}\nQuestion: {item['question']}\n{options}\nAnswer:"


def chat_ids(tokenizer, texts):
    """Token ids of each text as a user's turn under the system sentence.

    Chat templates that refuse a system role (Gemma's does) get the sentence at the head of the
    user's turn instead.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
    texts : list of str

    Returns
    -------
    ids : list of list of int
    folded : bool
        Whether the system sentence was folded into the user's turn.

    Raises
    ------
    ValueError
        If the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; "
            f"use an instruction-tuned model or add a chat_template.jinja"
        )
    folded = not _takes_system(tokenizer)
    rendered = _render(tokenizer, texts, folded)
    return tokenizer(rendered, add_special_tokens=False)["input_ids"], folded


def _render(tokenizer, texts, folded):
    """Each text in the chat template, which is run once if it says the same around every text."""
    def whole(text):
        return tokenizer.apply_chat_template(
            _messages(text, folded), add_generation_prompt=True, tokenize=False
        )

    head, mark, tail = whole(_MARK).partition(_MARK)
    # A template may cut spaces off; beyond that, one that copies two texts copies all.
    copies = mark and head + texts[0] + tail == whole(texts[0])
    if copies and all(text == text.strip() for text in texts):
        return [head + text + tail for text in texts]
    return [whole(text) for text in texts]


def _messages(text, folded):
    if folded:
        return [{"role": "user", "content": f"{SYSTEM}\n\n{text}"}]
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


def _takes_system(tokenizer):
    from jinja2.exceptions import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            _messages("?", folded=False), add_generation_prompt=True, tokenize=False
        )
    except TemplateError:
        return False
    # A template that drops the role silently would drop the instruction.
    return SYSTEM in text


def letter_tokens(tokenizer):
    """Every token that spells a letter: ``A``, ``a`` and both after a space.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase

    Returns
    -------
    list of list of int
        Ids for A, B and C.

    Raises
    ------
    ValueError
        If a letter has no token of its own.
    """
    spellings = [[], [], []]
    ids = list(range(len(tokenizer)))
    special = set(tokenizer.all_special_ids)
    for token_id, text in zip(ids, tokenizer.batch_decode([[i] for i in ids]), strict=True):
        letter = text.strip(" \u2581\u0120").upper()
        if len(letter) == 1 and letter in LETTERS and token_id not in special:
            spellings[LETTERS.index(letter)].append(token_id)
    for letter, found in zip(LETTERS, spellings, strict=True):
        if not found:
            raise ValueError(f"{tokenizer.name_or_path}: no token spells the letter {letter}")
    return spellings


def parse_response(text, parser="strict"):
    """The letter that a response chooses.

    Parameters
    ----------
    text : str
    parser : {"strict", "paper"}
        ``"strict"`` wants a letter standing alone; ``"paper"`` is the published rule, the first
        a, b or c anywhere in the text, kept for comparison.

    Returns
    -------
    str or None
        ``"A"``, ``"B"``, ``"C"``, or ``None`` if the response chooses none.

    Examples
    --------
    >>> [parse_response(t) for t in ("B) the baker", "Answer: c", "Based on the", "A man did")]
    ['B', 'C', None, None]
    >>> parse_response("Cannot be determined", "paper"), parse_response("None of", "paper")
    ('C', None)
    """
    if parser == "paper":
        found = re.search(r"[abc]", text, re.I)
        return found.group().upper() if found else None
    if parser != "strict":
        raise ValueError(f"parser: {parser!r} is not one of {', '.join(PARSERS)}")
    found = _STRICT.match(text)
    if not found or _ARTICLE.match(text):
        return None
    return found.group(1).upper()
