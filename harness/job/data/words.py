"""Words of any script. Where no spaces stand between words, as in Chinese, Japanese and Thai, each character is one."""

from __future__ import annotations

import itertools
import re
import unicodedata

HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
SYLLABLES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u312f\u31f0-\u31ff\uff66-\uff9f"  # Thai to Khmer, and kana
UNSPACED = HAN + SYLLABLES  # ranges of characters, for patterns


def _marks() -> str:
    """The ranges of marks that belong to the letter before them, such as Hindi's vowels, which are no \\w to Python."""
    marks = (code for code in range(0x300, 0x10000) if unicodedata.category(chr(code))[0] == "M")
    runs = itertools.groupby(enumerate(marks), lambda pair: pair[1] - pair[0])
    ends = [[code for _, code in run] for _, run in runs]
    return "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in ends)


MARKS = _marks()
NUMBER = r"\d+(?:[.,]\d+)*"
WORD = rf"(?=\w)[{UNSPACED}][{MARKS}]*|(?![{UNSPACED}])\w(?:(?![{UNSPACED}])\w|[{MARKS}])*"
WORDS = re.compile(WORD)
NUMBERS_AND_WORDS = re.compile(rf"{NUMBER}|{WORD}")
CHARACTER = re.compile(rf"(?=\w)[{UNSPACED}][{MARKS}]*")
HAN_ALONE = re.compile(rf"[{HAN}]")
HAN_IN_A_WORD, SYLLABLES_IN_A_WORD = 2, 4  # about how many a word has


def words(text: str) -> list[str]:
    """The words of `text`, without punctuation."""
    return WORDS.findall(unicodedata.normalize("NFC", text))


def words_and_numbers(text: str) -> list[str]:
    """The words of `text`, of which a number such as 1,234.5 is one."""
    return NUMBERS_AND_WORDS.findall(unicodedata.normalize("NFC", text))


def spaced(text: str) -> str:
    """`text` with spaces around each character of scripts that have none between words."""
    return CHARACTER.sub(lambda match: f" {match[0]} ", unicodedata.normalize("NFC", text))


def length(text: str) -> float:
    """How many words `text` has, about, by its spaces and by the characters of scripts without spaces."""
    characters, han = len(CHARACTER.findall(text)), len(HAN_ALONE.findall(text))
    others = len(CHARACTER.sub(" ", text).split()) if characters else len(text.split())
    return others + han / HAN_IN_A_WORD + (characters - han) / SYLLABLES_IN_A_WORD
