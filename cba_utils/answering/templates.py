"""Whether a chat template can be asked with, found out before a model is asked anything.

A template is a small program that came with a checkpoint. It runs in Jinja's sandbox, which has no
limit of time: this module sets one.
"""

import ctypes
import threading
from functools import partial

from cba_utils.answering.prompts import PROMPTS, chat_ids

# Seconds, and tokens of a question of two words: far beyond what any template in use takes.
LONGEST, MOST_TOKENS = 20, 50_000


def check_template(tokenizer):
    """Raise a `ValueError` if the chat template hangs, fails, or leaves out what is asked.

    A tokenizer without any is left to those that need one.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase

    Examples
    --------
    >>> from cba_utils import load_model
    >>> check_template(load_model("toy-mistral/b1").hf_tokenizer)
    """
    if not tokenizer.chat_template:
        return
    where, question = f"{tokenizer.name_or_path}: the chat template", "apples or pears"
    for name in PROMPTS:
        try:
            ids, _ = within(LONGEST, partial(chat_ids, tokenizer, [question, "?"], name))
        except TimeoutError:
            raise ValueError(f"{where} does not come to an end within {LONGEST} seconds") from None
        except MemoryError:
            raise ValueError(f"{where} makes more text than there is memory for") from None
        except ValueError as error:
            said = " ".join(str(error).split())
            raise ValueError(
                said
                if said.startswith(tokenizer.name_or_path)
                else f"{where} cannot render a question: {said}"
            ) from None
        # A template is a program: it can fail in every way that one can.
        except Exception as error:
            raise ValueError(
                f"{where} cannot render a question of two words ({type(error).__name__})"
            ) from error
        if len(ids[0]) > MOST_TOKENS:
            raise ValueError(f"{where} makes {len(ids[0]):,} tokens of a question of three words")
        if ids[0] == ids[1]:
            raise ValueError(f"{where} leaves out what the user asks")


def within(seconds, function):
    """The result of a function, or a `TimeoutError` if it takes longer.

    Parameters
    ----------
    seconds : float
    function : callable
        Python code: one call of a library that takes long is not cut short.

    Examples
    --------
    >>> within(5, lambda: 1)
    1
    """
    found = {}

    def run():
        try:
            found["result"] = function()
        # The caller gets it.
        except BaseException as error:  # noqa: BLE001
            found["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        # A thread cannot be ended from outside; an exception can be put into its next instruction.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(TimeoutError)
        )
        raise TimeoutError(f"no end within {seconds} seconds")
    if "error" in found:
        raise found["error"]
    return found["result"]
