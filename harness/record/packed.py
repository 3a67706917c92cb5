"""Long series of numbers in 8 bytes a number: as objects of Python they would be most of what a study's records take.

A field of the record that is a `Sequence` is packed when it is read. What is packed equals a list of the same values.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

# By the type of a number: how it is packed, and what it is in JSON. null is packed as nan, which no record has.
PACKED: dict[Any, tuple[str, set[type]]] = {
    int: ("q", {int}),
    float: ("d", {float}),
    float | None: ("d", {float, type(None)}),
}


def packed(kind: type, values: Any) -> Sequence[Any] | None:
    """`values` from JSON, floats or objects of the dataclass `kind`, packed; None if they are not as the harness writes
    them, so that each has to be looked at."""
    if type(values) is not list:
        return None
    if kind is float:
        return None if set(map(type, values)) - {float} else PackedFloats("d", values)
    names, types = _fields(kind)
    if set(map(type, values)) != {dict} or set(map(tuple, values)) != {names}:
        return None
    columns = list(zip(*map(dict.values, values), strict=True))
    if any(set(map(type, column)) - PACKED[kind][1] for kind, column in zip(types, columns, strict=True)):
        return None
    try:
        return PackedPoints(kind, [_column(kind, column) for kind, column in zip(types, columns, strict=True)])
    except OverflowError:  # more than 64 bits
        return None


class PackedFloats(array):
    """Floats."""

    def __eq__(self, other: object) -> bool:
        return self.tolist() == (other.tolist() if isinstance(other, array) else other)


class PackedPoints(Sequence):
    """Instances of a frozen dataclass, made anew whenever they are asked for."""

    def __init__(self, kind: type[Any], columns: Sequence[array]):
        self._kind, self._columns = kind, columns

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return list(self)[at]
        return self._kind(*(_or_null(column[at]) for column in self._columns))

    def __iter__(self) -> Iterator[Any]:
        return map(self._kind, *(map(_or_null, column) for column in self._columns))

    def extremes(self) -> Iterator[tuple[str, list[float]]]:
        """The name of each field, with its least and its greatest value that is not null, if there are any."""
        for field, column in zip(dataclasses.fields(self._kind), self._columns, strict=True):
            values = [value for value in column if value == value] if column.typecode == "d" else column
            yield field.name, [min(values), max(values)] if values else []

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


@functools.cache
def _fields(kind: type) -> tuple[tuple[str, ...], list[Any]]:
    """Names and types of a dataclass's fields."""
    hints = typing.get_type_hints(kind)
    names = tuple(field.name for field in dataclasses.fields(kind))
    return names, [hints[name] for name in names]


def _column(kind: Any, values: Sequence[Any]) -> array:
    code, types = PACKED[kind]
    if type(None) in types and None in values:
        values = [math.nan if value is None else value for value in values]
    return array(code, values)


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value
