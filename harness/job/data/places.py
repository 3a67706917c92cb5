"""Where rows stand in their file, which a refusal of a row names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from harness.errors import UserError

T = TypeVar("T")
Place = Callable[[int], str]
"""The place of a row by its position among all rows, such as "line 7"."""


def by_record(position: int) -> str:
    """The place of a row of which no more is known than its position."""
    return f"record {position + 1}"


def naming(error: UserError, place: str) -> UserError:
    """`error`, about the row at `place`, as one that names it."""
    return UserError(f"In {place}: {error}")


def read_each(reader: Callable[[dict[str, Any]], T], rows: Iterable[dict[str, Any]], place: Place) -> Iterator[T]:
    """What `reader` makes of each of `rows`. Its UserError names the row."""
    for position, row in enumerate(rows):
        try:
            yield reader(row)
        except UserError as error:
            raise naming(error, place(position)) from None
