"""Refuses records with images, sounds or videos: only text is trained, and what it is about would be lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from harness.errors import UserError

Row = dict[str, Any]
KINDS = {"image": "images", "video": "videos", "audio": "sounds"}  # in names of columns and types of parts
COLUMNS = {name: words for kind, words in KINDS.items() for name in (kind, f"{kind}s")}
EMPTY: tuple[Any, ...] = (None, "", [], {})


def refuse(rows: Sequence[Row], text_columns: Collection[str], what: str) -> None:
    """Raise UserError if some of `rows` have a column of images, or images in their turns.

    text_columns: those that are read, whatever they are called. what: the data's name for messages.
    """
    there = dict.fromkeys(name for row in rows for name in row)
    for column in there:
        if column in COLUMNS and column not in text_columns:
            if count := sum(row.get(column) not in EMPTY for row in rows):
                raise _refusal(f"{COLUMNS[column]} in its column {column!r}", count, rows, what)
            continue
        counts = Counter(kind for row in rows for kind in _kinds(row.get(column)))
        for kind, count in counts.items():
            raise _refusal(f"{kind} in the turns of its column {column!r}", count, rows, what)


def _refusal(media: str, count: int, rows: Sequence[Row], what: str) -> UserError:
    return UserError(
        f"{what} has {media}, in {count:,} of {len(rows):,} records; only text is trained, so remove these records, or "
        "the images alone to train on the text."
    )


def _kinds(value: Any) -> set[str]:
    """What the turns of a conversation have beside text; nothing of another value."""
    return {words for part in _parts(value) for kind, words in KINDS.items() if kind in str(part.get("type"))}


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """The parts of the contents of all turns, as OpenAI's files have them."""
    for turn in value if isinstance(value, list) else ():
        content = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
        yield from (part for part in content if isinstance(part, dict)) if isinstance(content, list) else ()
