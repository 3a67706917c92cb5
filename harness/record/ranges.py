"""Which values the fields of a record may have, where their types admit more: finite, not negative, a real moment, a
study's name.

Whoever reads a record reckons with its numbers. One that no measurement gives (a negative size, a count beyond 2**53,
a date that is none) would end a whole table far from where it stands.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from harness.errors import UserError
from harness.record.codec import Misfit, decode, encode
from harness.record.failures import SmallerBatches
from harness.record.measurements import Gpu, Inference, PairRewards, Parameters
from harness.record.names import STUDY_NAME
from harness.record.packed import PackedPoints
from harness.record.schema import Cell, Record
from harness.record.scores import Score
from harness.settings import Settings, TrainSettings

LIMIT = 2**53  # integers up to it are exact as floats, which tables and JSON of other programs have
MOST = 1e100  # of floats, so that no product of three leaves their range
LONGEST_LINE = 2**20  # bytes of a record's file, where each text and each number stands in a line of its own
MOST_ITEMS = 2**22  # rows of NAME.items.parquet that are read
SEEDS = 2**32  # what libraries take
DEEPEST = 50  # levels of a value of any form; what walks through them calls itself for each
MOMENTS = {"started", "created"}
SIGNED = {(Score, "value"), (Gpu, "celsius")}  # every other number is a size, a count, a time or a share
SIGNED |= {(PairRewards, name) for name in ("chosen", "rejected", "margin")}
POSITIVE = {(Parameters, "total"), (Score, "n"), (SmallerBatches, "batch_size"), (SmallerBatches, "grad_accum")}
POSITIVE |= {(Inference, "batch_size"), (Inference, "prompt_tokens")}
POSITIVE |= {(TrainSettings, "devices"), (TrainSettings, "nodes")}

# Of the environment, which is free in form: its parts, which hold plain values by name, and the types of those that
# reports reckon with. Any of it may be left out.
PARTS = ("versions", "device", "cpu", "git", "speedups", "dtypes", "allocator")
RECKONED: dict[str, type] = {
    "boot": str,
    "precision": str,
    "attention": str,
    "cpu.name": str,
    "cpu.memory_bytes": int,
    "device.type": str,
    "device.name": str,
    "device.memory_bytes": int,
    "device.matmul_flops_per_second": float,
    "git.commit": str,
    "git.dirty": bool,
}

Check = Callable[[Any], None]


def check(value: Any) -> None:
    """Raise Misfit for the first number or time of `value`, a record or a line of a plan, that is out of its range."""
    kind: type = type(value)
    _checks(kind)(value)


def check_items(rows: int) -> None:
    """Raise ValueError for more `rows` than a file of items may have: a few bytes can hold any number of equal rows."""
    if rows > MOST_ITEMS:
        raise ValueError(f"it has {rows:,} rows; at most {MOST_ITEMS:,} are read")


def check_settings(cell: Cell) -> None:
    """Raise UserError for the first setting of `cell` that no record may have."""
    try:
        _checks(Cell)(cell)
    except Misfit as misfit:
        name = misfit.way.removeprefix(".").removeprefix("settings.")
        raise UserError(f"{name} {misfit.what}.") from None


def check_length(cell: Cell) -> None:
    """Raise UserError if the settings of `cell` are longer than what is read of a record."""
    if (size := len(json.dumps(encode(cell)))) > LONGEST_LINE:
        raise UserError(f"The settings of a cell must take at most {LONGEST_LINE:,} bytes as JSON, got {size:,}.")


def _number(least: float, most: float) -> Check:
    def inside(value: float) -> None:
        if not least <= value <= most:  # nan is not either
            raise Misfit(f"is {value!r}, which is not between {least} and {most}")

    return inside


def _moment(value: str) -> None:
    try:
        if datetime.fromisoformat(value).tzinfo is not None:
            return
    except ValueError:
        pass
    raise Misfit(f"is {value!r}, which is no date and time with a time zone, as 2026-01-31T12:00:00+00:00")


def _study_name(value: str) -> None:
    if not STUDY_NAME.fullmatch(value):
        raise Misfit(f"is {value!r}, which must name a folder by letters, digits, '.', '_', '-' and '/'")


def _free(value: Any, levels: int = DEEPEST) -> None:
    """A value of any form, as settings of a library: its numbers are finite and not beyond LIMIT."""
    if isinstance(value, dict | list) and not levels:
        raise Misfit(f"is nested deeper than {DEEPEST} levels")
    if isinstance(value, dict):
        for key, part in value.items():
            _at(f".{key}", functools.partial(_free, levels=levels - 1), part)
    elif isinstance(value, list):
        for i, part in enumerate(value):
            _at(f"[{i}]", functools.partial(_free, levels=levels - 1), part)
    elif isinstance(value, int | float) and not abs(value) <= (MOST if isinstance(value, float) else LIMIT):
        raise Misfit(f"is {value!r}, beyond {MOST if isinstance(value, float) else '2**53'}")


def _environment(value: dict[str, Any]) -> None:
    for way, kind in RECKONED.items():
        part, _, name = way.rpartition(".")
        holder = value.get(part) if part else value
        if isinstance(holder, dict) and holder.get(name) is not None:
            _at(f".{way}", functools.partial(decode, kind), holder[name])
    for name, part in value.items():
        if name in PARTS and not isinstance(part, dict | None):
            raise Misfit("should be an object", f".{name}")
        for inner in (part or {}).values() if name in PARTS else [part]:
            if isinstance(inner, dict | list):
                raise Misfit("should be a plain value, or an object of them", f".{name}")
    for name, version in (value.get("versions") or {}).items():
        if not isinstance(version, str | None):
            raise Misfit("should be a text", f".versions.{name}")
    _free(value)


def _at(way: str, check: Check, value: Any) -> None:
    try:
        check(value)
    except Misfit as misfit:
        misfit.way = f"{way}{misfit.way}"
        raise


@functools.cache
def _checks(kind: type) -> Check:
    """What checks an instance of the dataclass `kind`. Made once a kind: studies have thousands of records."""
    checks = _of_fields(kind)

    def check_all(value: Any) -> None:
        for name, check in checks.items():
            part = getattr(value, name)
            if part is not None:
                try:
                    check(part)
                except Misfit as misfit:
                    misfit.way = f".{name}{misfit.way}"
                    raise

    return check_all


@functools.cache
def _of_fields(kind: type) -> dict[str, Check]:
    """What checks each field of a dataclass that has a range."""
    hints = typing.get_type_hints(kind)
    checks = {field.name: _of_field(kind, field.name, hints[field.name]) for field in dataclasses.fields(kind)}
    return {name: check for name, check in checks.items() if check is not None}


def _of_field(owner: type, name: str, kind: Any) -> Check | None:
    """What checks the value of a field, if it is not null; None if every value of its type will do."""
    part_of_record = dataclasses.is_dataclass(kind)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kinds = [part for part in typing.get_args(kind) if part is not types.NoneType]
        return _of_field(owner, name, kinds[0]) if len(kinds) == 1 else _free  # as a batch size that may be auto
    if name in MOMENTS:
        return _moment
    if (owner, name) == (Record, "study"):
        return _study_name
    if name == "environment":
        return _environment
    if kind in (int, float):
        if (name == "seed" and owner in (Cell, Settings)) or name in ("seeds", "confirm"):  # the latter of a plan
            return _number(0, SEEDS - 1)
        most = LIMIT if kind is int else MOST
        least = -most if (owner, name) in SIGNED or owner.__module__ == Settings.__module__ else 0
        return _number(1 if (owner, name) in POSITIVE else least, most)
    if part_of_record:
        return _checks(kind)
    if kind is Any:
        return _free
    if typing.get_origin(kind) in (list, dict, Sequence):
        inner = _of_field(owner, name, typing.get_args(kind)[-1])
        return inner and _of_container(typing.get_origin(kind), typing.get_args(kind)[-1], inner)
    return None


def _of_container(container: type, kind: Any, inner: Check) -> Check:
    def check_parts(value: Any) -> None:
        if isinstance(value, PackedPoints):
            for name, extremes in value.extremes():
                for extreme in extremes if name in (checks := _of_fields(kind)) else ():
                    _at(f"[…].{name}", checks[name], extreme)
        elif container is not dict and kind in (int, float):
            for extreme in (min(value), max(value)) if value else ():
                inner(extreme)
        else:
            for key, part in value.items() if container is dict else enumerate(value):
                _at(f".{key}" if container is dict else f"[{key}]", inner, part)

    return check_parts
