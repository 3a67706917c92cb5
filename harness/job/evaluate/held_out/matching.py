"""When a short answer is right: texts that differ in form alone are the same.

Form is case, white space, quotes, brackets and stops around the text, and how a number is written: $1,234.50 is 1234.5.
Of a text with `####`, as in GSM8K, what follows the last of them is the answer.
"""

from __future__ import annotations

import re
from decimal import Decimal

NUMBER = r"[-+]?[$€£¥]?(?:0|[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d*)?(?:\.\d+)?"
PLAIN = re.compile(rf"(?=.*\d){NUMBER} ?[€%]?")
LAST = re.compile(rf"(?<![\w.,])(?=[-+$€£¥.]*\d){NUMBER}(?= ?[€%]?\W*$)")
RESULT = re.compile(r"(?:\n|=|\b(?:answer|result|total|solution)(?: is|:| is:)?|\\boxed\{)[\s*_$(]*$", re.IGNORECASE)
AROUND = " ,:;!?\"'`“”‘’()[]{}*_"  # not - + # %, which tell C from C++
SIGNS = str.maketrans({"−": "-", "\u00a0": " "})
MARK = "####"


def same(said: str, answer: str) -> bool:
    """Whether `said` is `answer`, or the number that `answer` ends in."""
    forms = {plain(final(answer))}
    if (number := last_number(answer)) is not None:
        forms.add(plain(number))
    return plain(final(said)) in forms


def final(text: str) -> str:
    """What follows the last `####`; the whole text without one."""
    return text.rpartition(MARK)[2]


def last_number(text: str) -> str | None:
    """The number at the end of `text`, as it is written there; None if it ends otherwise."""
    match = LAST.search(final(text).translate(SIGNS).rstrip())
    return match[0] if match else None


def states_result(text: str) -> bool:
    """Whether a longer text ends in a result, and not in prose that happens to end in a number, such as a date.

    A result follows `####`, "=", "answer is" or a like phrase, or has a line of its own.
    """
    if MARK in text:
        return True
    whole = text.translate(SIGNS).rstrip()
    number = LAST.search(whole)
    return number is not None and RESULT.search(whole[: number.start()]) is not None


def plain(text: str) -> str:
    """`text` without what is form alone."""
    text = " ".join(text.translate(SIGNS).split())
    bare = text.lstrip(AROUND).rstrip(AROUND + ".") or text  # a stop before a digit is a number's
    if PLAIN.fullmatch(bare):
        value = Decimal(re.sub(r"[^-\d.]", "", bare))
        return f"{value.normalize():f}" if value else "0"
    return bare.casefold()
