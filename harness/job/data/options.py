"""The options of a record, and which of them its answer means: an option's text, its letter or its number.

All records of a file are read in one way. Where two ways work and mean different options, the file is refused.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Sequence
from typing import Any

from harness.errors import UserError
from harness.job.data.places import Place, by_record, naming

LETTER = re.compile(r"\(?([A-Za-z])[.)]?")


def listed(value: Any, what: str) -> list[str]:
    """The options in a list, or in a JSON list. Raises UserError unless they are two or more different texts.

    what: the data's name for messages.
    """
    decoded = value
    if isinstance(value, str):
        try:
            decoded = json.loads(value)
        except (ValueError, RecursionError):
            decoded = None
    plain = isinstance(decoded, list) and all(isinstance(option, str | int | float) for option in decoded)
    texts = [str(option).strip() for option in decoded] if plain else []
    if len(texts) < 2 or len(set(texts)) < len(texts) or "" in texts:
        raise UserError(
            f"The options of {what} must be lists, or JSON lists, of two or more different texts, got {_shown(value)}."
        )
    return texts


def meant(records: Sequence[tuple[str, list[str]]], what: str, place: Place = by_record) -> list[str]:
    """The text of the option that the answer of each record means.

    records: answers and their options. place: of a record by its position, for messages.

    Raises UserError if an answer is no option, or if the answers can be read in two ways.
    """
    readings = {name: [read(answer.strip(), options) for answer, options in records] for name, read in READINGS.items()}
    complete = {name: indices for name, reading in readings.items() if (indices := _complete(reading)) is not None}
    if not complete:
        nearest = min(readings.values(), key=lambda reading: reading.count(None))
        missing = nearest.index(None)
        answer, options = records[missing]
        error = UserError(
            f"The answers of {what} must be the text, the letter or the number of an option, got {_shown(answer)} for "
            f"the options {_shown(options)}."
        )
        raise naming(error, place(missing))
    name, first = next(iter(complete.items()))
    for other, indices in complete.items():
        if indices != first:
            raise UserError(
                f"The answers of {what} can be read as {name} and as {other}, which mean different options; write the "
                "options' texts."
            )
    return [options[index] for index, (_, options) in zip(first, records, strict=True)]


def _complete(reading: list[int | None]) -> list[int] | None:
    """The indices of a reading of all answers; None if one of them can't be read."""
    indices = [index for index in reading if index is not None]
    return indices if len(indices) == len(reading) else None


def lettered(options: Sequence[str]) -> str:
    """The options as lines, each after its letter."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False))


def _text(answer: str, options: list[str]) -> int | None:
    return options.index(answer) if answer in options else None


def _letter(answer: str, options: list[str]) -> int | None:
    letter = LETTER.fullmatch(answer)
    return _within(string.ascii_uppercase.index(letter[1].upper()), options) if letter else None


def _number(answer: str, options: list[str], first: int) -> int | None:
    return _within(int(answer) - first, options) if re.fullmatch(r"\d{1,3}", answer) else None


def _within(index: int, options: list[str]) -> int | None:
    return index if 0 <= index < len(options) else None


READINGS = {
    "texts": _text,
    "letters": _letter,
    "numbers from 0": lambda answer, options: _number(answer, options, 0),
    "numbers from 1": lambda answer, options: _number(answer, options, 1),
}


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:79]}…"
