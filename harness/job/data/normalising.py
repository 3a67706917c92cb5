"""One form for texts that differ in form alone: Unicode's form, case, white space and punctuation."""

from __future__ import annotations

import re
import unicodedata

SIGNS = "#%&*+/@\\-"  # punctuation to Unicode, and yet C# is not C++, and 2 * 2 not 2 / 2
MINUS = str.maketrans({"\u2212": "-"})
NO_MINUS = re.compile(r"(\d\s*)?-(?!\s*\d)")  # with the number before it, if there is one: then it is a minus


def normalised(text: str) -> str:
    """`text` in NFKC, without regard to case, its words and signs with one space between.

    A text of punctuation alone, of which nothing would be left, keeps it.
    """
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(MINUS)
    without_dashes = NO_MINUS.sub(lambda dash: dash[0] if dash[1] else " ", plain)
    words = "".join(map(_kept, without_dashes)).split()
    return " ".join(words) or " ".join(plain.split())


def _kept(character: str) -> str:
    """What of a character counts: a space in place of punctuation, nothing of invisible ones."""
    category = unicodedata.category(character)
    if category == "Cf":  # such as a zero-width space or a byte order mark
        return ""
    if category[0] == "S" or character in SIGNS:
        return f" {character} "
    return " " if category[0] in "PZC" else character
