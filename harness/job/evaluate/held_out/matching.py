"""When a short answer is right: texts that differ in form alone are the same.

Form is case, white space, quotes, brackets and stops around the text, and how a number is written: $1,234.50 is 1234.5.
So are full-width characters, the digits of other scripts, whether an accent is a character of its own, and what is
invisible. A comma before decimals is no form of a point: 1,234 would have two meanings.
Of a text with `####`, as in GSM8K, what follows the last of them is the answer.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

from harness.job.data.words import UNSPACED

NUMBER = r"[-+]?[$€£¥]?(?:0|[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d*)?(?:\.\d+)?"
PLAIN = re.compile(rf"(?=.*\d){NUMBER} ?[€%]?")
LAST = re.compile(rf"(?:(?<![\w.,])|(?<=[{UNSPACED}]))(?=[-+$€£¥.]*\d){NUMBER}(?= ?[€%]?\W*$)")
RESULT = re.compile(r"(?:\n|=|\b(?:answer|result|total|solution)(?: is|:| is:)?|\\boxed\{)[\s*_$(]*$", re.IGNORECASE)
AROUND = " ,:;!?\"'`“”‘’()[]{}*_"  # not - + # %, which tell C from C++
AROUND += "«»‹›„‚…¡¿。、「」『』【】《》〈〉〔〕｡｢｣､·؟،؛۔।॥"
WIDTH = 0xFEE0  # from ! to its full-width form
SIGNS = str.maketrans(
    {chr(code + WIDTH): chr(code) for code in range(ord("!"), ord("~") + 1)}
    | {"−": "-", "\u00a0": " ", "￥": "¥", "٫": ".", "٬": ",", "٪": "%"}
    | dict.fromkeys("\u00ad\u061c\u200b\u200c\u200e\u200f\u2060\u2066\u2067\u2068\u2069\ufeff")  # invisible
)
CAPITAL_I_WITH_DOT = "\u0130".casefold()  # of Turkish, an i and a dot
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
    match = LAST.search(_with_ascii_signs(final(text)).rstrip())
    return match[0] if match else None


def states_result(text: str) -> bool:
    """Whether a longer text ends in a result, and not in prose that happens to end in a number, such as a date.

    A result follows `####`, "=", "answer is" or a like phrase, or has a line of its own.
    """
    if MARK in text:
        return True
    whole = _with_ascii_signs(text).rstrip()
    number = LAST.search(whole)
    return number is not None and RESULT.search(whole[: number.start()]) is not None


def plain(text: str) -> str:
    """`text` without what is form alone."""
    text = " ".join(_with_ascii_signs(text).split())
    bare = text.lstrip(AROUND).rstrip(AROUND + ".") or text  # a stop before a digit is a number's
    if PLAIN.fullmatch(bare):
        value = Decimal(re.sub(r"[^-\d.]", "", bare))
        return f"{value.normalize():f}" if value else "0"
    return unicodedata.normalize("NFC", bare.casefold().replace(CAPITAL_I_WITH_DOT, "i"))


def _with_ascii_signs(text: str) -> str:
    """`text` with composed accents, and with ASCII's digits and signs in place of others that mean the same."""
    if text.isascii():
        return text
    composed = unicodedata.normalize("NFC", text).translate(SIGNS)
    return re.sub(r"\d", lambda digit: str(unicodedata.digit(digit[0])), composed)
