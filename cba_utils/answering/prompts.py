"""Named prompts, how a chat template renders them, and two parsers of a response."""

import re
from dataclasses import dataclass
from datetime import date as calendar_date
from itertools import permutations

from jinja2.exceptions import TemplateError

LETTERS = "ABC"
ORIGINAL = "012"  # the order in which an item's options were written
ORDERS = {
    "original": (ORIGINAL,),
    "cyclic": ("012", "120", "201"),
    "all": tuple("".join(order) for order in permutations(ORIGINAL)),
}
PARSERS = ("strict", "published")
# What a chat template that states today's date gets to state, so that a study asks the same on every
# day: the date that Llama 3.1's template writes where it is given none.
DATE = "2024-07-26"
_MARK = "Context: the text goes here"


@dataclass(frozen=True)
class Prompt:
    """A named way to ask an item.

    Attributes
    ----------
    name : str
    system : str
        What the system says.
    layout : str
        What the user says, with ``{context}``, ``{question}``, ``{A}``, ``{B}`` and ``{C}`` where
        those of the item go.
    source : str
        Where it comes from, in a line.
    """

    name: str
    system: str
    layout: str
    source: str


_ALL = (
    Prompt(
        name="published",
        system="Answer the following multiple choice question by responding with only the letter "
        "(A, B, or C) of your chosen answer.",
        layout="Context: {context}\n\nQuestion: {question}\n\nA) {A}\nB) {B}\nC) {C}\n\nAnswer:",
        source="the examined study's, word for word as in its repository",
    ),
    Prompt(
        name="short",
        system="Answer with only the letter A, B, or C.",
        layout="Context: {context}\nQuestion: {question}\nA) {A}\nB) {B}\nC) {C}\nAnswer:",
        source="the same in fewer words, to see what the wording changes",
    ),
)
PROMPTS = {prompt.name: prompt for prompt in _ALL}

_DATE_CODES = [f"%{letter}" for letter in "aAbBcdFGHIjmMpSTuUVwWxXyYzZ"] + ["%-d", "%-m"]

# A lone letter, perhaps after "Answer:" or an opening bracket, perhaps followed by its answer.
_STRICT = re.compile(
    r"^\W*(?:(?:the\s+)?(?:correct\s+)?answer\s*(?:is)?\s*:?\s*)?\W*([A-Ca-c])(?![\w'’])", re.I
)
# "A man ..." and "a ..." begin with a word, not with an option.
_ARTICLE = re.compile(r"^\W*[Aa]\s+(?!the\b)[a-z]")
# The published rules, the first that matches a trimmed response decides.
_PUBLISHED = tuple(
    re.compile(rule, re.I | re.S)
    for rule in (
        r"([abc])\Z",
        r"\(?([abc])\)?[).\s]",
        r".*?(?:answer|choose|select|pick)\s*(?:is)?\s*\(?([abc])",
        r".*?([abc])",
    )
)


def named(prompt):
    """The prompt of a name.

    Parameters
    ----------
    prompt : str
        A key of `PROMPTS`.

    Returns
    -------
    Prompt

    Raises
    ------
    ValueError
        If there is none of that name.

    Examples
    --------
    >>> named("short").system
    'Answer with only the letter A, B, or C.'
    """
    if prompt not in PROMPTS:
        raise ValueError(f"prompt: {prompt!r} is not one of {', '.join(PROMPTS)}")
    return PROMPTS[prompt]


def user_text(item, order=ORIGINAL, prompt="published"):
    """The question of an item as the user says it.

    Parameters
    ----------
    item : mapping
        A row of `load_items`.
    order : str
        Indices of the answers shown as A, B and C.
    prompt : str
        Name of a prompt, see `PROMPTS`.

    Returns
    -------
    str

    Examples
    --------
    >>> print(user_text(dict(context="X met Y.", question="Who left?", ans0="X", ans1="Y",
    ...                      ans2="Unknown"), order="210", prompt="short"))
    Context: X met Y.
    Question: Who left?
    A) Unknown
    B) Y
    C) X
    Answer:
    """
    options = {letter: item[f"ans{index}"] for letter, index in zip(LETTERS, order, strict=True)}
    return named(prompt).layout.format(
        context=item["context"], question=item["question"], **options
    )


def chat_ids(tokenizer, texts, prompt="published", date=DATE):
    """Token ids of each text as a user's turn under the prompt's system sentence.

    Chat templates that refuse or drop a system role (Gemma's refuses) get the sentence at the head
    of the user's turn instead. The rendered text is tokenized as mlx-lm tokenizes a prompt that is
    a string: a template that does not begin with the beginning-of-text token leaves adding it to
    the tokenizer.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
    texts : list of str
    prompt : str
        Name of a prompt, see `PROMPTS`.
    date : str
        What a template that states a date states, as ``2024-07-26``.

    Returns
    -------
    ids : list of list of int
    folded : bool
        Whether the system sentence was folded into the user's turn.

    Raises
    ------
    ValueError
        If the tokenizer has no chat template, none that renders, or for a bad name or date.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; "
            f"use an instruction-tuned model or add a chat_template.jinja"
        )
    system = named(prompt).system
    try:
        folded = not _takes_system(tokenizer, system, date)
        rendered = _render_all(tokenizer, texts, system, folded, date)
    except TemplateError as error:
        raise ValueError(
            f"{tokenizer.name_or_path}: the chat template cannot render a question: {error}"
        ) from None
    begun = bool(tokenizer.bos_token) and rendered[0].startswith(tokenizer.bos_token)
    return tokenizer(rendered, add_special_tokens=not begun)["input_ids"], folded


def render(tokenizer, messages, date=DATE, to_answer=True):
    """A conversation in the tokenizer's chat template.

    What a template can be told is fixed: the date, and that the model does not think aloud first.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
    messages : list of dict
        Each with ``role`` and ``content``.
    date : str
        What a template that states a date states, as ``2024-07-26``.
    to_answer : bool
        Whether what a model's turn begins with stands at the end.

    Returns
    -------
    str
    """
    try:
        day = calendar_date.fromisoformat(date)
    except (TypeError, ValueError):
        raise ValueError(f"date: {date!r} is no day written as {DATE}") from None
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = _clock_at(day) + template
    return tokenizer.apply_chat_template(
        messages,
        chat_template=template,
        add_generation_prompt=to_answer,
        tokenize=False,
        date_string=day.strftime("%d %b %Y"),
        # Two names for one switch: Qwen3 and most others, DeepSeek and Kimi.
        enable_thinking=False,
        thinking=False,
    )


def _clock_at(day):
    """Head of a template in which ``strftime_now`` is that day: transformers takes no function."""
    written = "".join(f".replace('{code}', '{day.strftime(code)}')" for code in _DATE_CODES)
    # The empty output keeps a line break that the template may begin with.
    return f"{{% macro strftime_now(form) %}}{{{{ form{written} }}}}{{% endmacro %}}{{{{ '' }}}}"


def _render_all(tokenizer, texts, system, folded, date):
    """Each text in the chat template, which is run once if it says the same around every text."""

    def whole(text):
        return render(tokenizer, _messages(text, system, folded), date)

    head, mark, tail = whole(_MARK).partition(_MARK)
    # A template may cut spaces off; beyond that, one that copies two texts copies all.
    copies = mark and head + texts[0] + tail == whole(texts[0])
    if copies and all(text == text.strip() for text in texts):
        return [head + text + tail for text in texts]
    return [whole(text) for text in texts]


def _messages(text, system, folded):
    if folded:
        return [{"role": "user", "content": f"{system}\n\n{text}"}]
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


def _takes_system(tokenizer, system, date):
    try:
        text = render(tokenizer, _messages("?", system, folded=False), date)
    except TemplateError:
        return False
    # A template that drops the role silently would drop the instruction.
    return system in text


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
    parser : {"strict", "published"}
        ``"strict"`` wants a letter standing alone. ``"published"`` is the examined study's: the
        first of four rules that matches the trimmed text, in either case: it is a letter; it begins
        with a letter, perhaps in brackets, before ``)``, ``.`` or white space; a letter comes after
        answer, choose, select or pick, with nothing between but spaces, "is" and ``(``; the first
        a, b or c anywhere.

    Returns
    -------
    str or None
        ``"A"``, ``"B"``, ``"C"``, or ``None`` if the response chooses none.

    Examples
    --------
    >>> [parse_response(t) for t in ("B) the baker", "Answer: c", "Based on the", "A man did")]
    ['B', 'C', None, None]
    >>> [parse_response(t, "published") for t in ("I would pick B", "Cannot be determined", "Not")]
    ['B', 'C', None]
    """
    if parser == "published":
        text = text.strip()
        found = next(filter(None, (rule.match(text) for rule in _PUBLISHED)), None)
        return found.group(1).upper() if found else None
    if parser != "strict":
        raise ValueError(f"parser: {parser!r} is not one of {', '.join(PARSERS)}")
    found = _STRICT.match(text)
    if not found or _ARTICLE.match(text):
        return None
    return found.group(1).upper()
