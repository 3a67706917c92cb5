"""Dataclasses to and from JSON, strictly: a value that does not fit its type is named by the way to it."""

from __future__ import annotations

import dataclasses
import functools
import marshal
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from harness.record.packed import packed
from harness.settings import DataSettings, EvalSettings, InferSettings, MethodSettings, ModelSettings, TrainSettings

# Parts of settings, of which most cells of a study have equal ones
SHARED = (DataSettings, EvalSettings, InferSettings, MethodSettings, ModelSettings, TrainSettings)


def encode(value: Any) -> Any:
    """A dataclass instance as plain JSON values."""
    if dataclasses.is_dataclass(value):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: encode(part) for name, part in value.items()}
    return [encode(part) for part in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def decode(kind: Any, value: Any) -> Any:
    """`value` (from JSON, and used up) as `kind`; a ValueError names the field that does not fit."""
    return _decoder(kind)(value)


def encode_tagged(value: Any) -> dict[str, Any]:
    """A dataclass instance with the name of its class, for `decode_tagged`."""
    return {type(value).__name__: encode(value)}


def decode_tagged(kinds: Iterable[Any], value: dict[str, Any]) -> Any:
    """The instance of one of `kinds` that `encode_tagged` made `value` of."""
    ((name, fields),) = value.items()
    return decode({kind.__name__: kind for kind in kinds}[name], fields)


class Misfit(ValueError):
    """A value that is not what the schema says; those who pass it on prepend the way to it."""

    def __init__(self, what: str, way: str = ""):
        self.what, self.way = what, way

    def __str__(self) -> str:
        return f"{self.way.removeprefix('.') or 'the record'} {self.what}"


@functools.cache
def _decoder(kind: Any) -> Callable[[Any], Any]:
    """What makes a value from JSON a `kind`, or raises Misfit. Made once a kind: studies have thousands of records."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _shared_decoder(kind) if kind in SHARED else _object_decoder(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return _list_decoder(arguments[0])
    if origin is dict:
        return _dict_decoder(arguments[1])
    if origin is Sequence:
        return _packed_decoder(arguments[0])
    if origin in (types.UnionType, typing.Union):  # the latter with a Literal
        return _union_decoder([a for a in arguments if a is not types.NoneType])
    return _value_decoder(kind)


def _value_decoder(kind: Any) -> Callable[[Any], Any]:
    """Of a value without parts: a text, a number, one of a Literal's values, or anything."""
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else None

    def decode(value: Any) -> Any:
        if kind is Any or type(value) is kind:
            return value
        if choices is not None:
            if value in choices:
                return value
            raise Misfit(f"is {value!r}, which is none of {', '.join(map(repr, choices))}")
        if kind is float and type(value) is int:
            return float(value)
        raise Misfit(f"should be of type {kind.__name__}, not {type(value).__name__}")

    return decode


def _shared_decoder(kind: type[Any]) -> Callable[[Any], Any]:
    """As `_object_decoder`, but what is equal is one object."""
    decode = _object_decoder(kind)

    @functools.lru_cache(maxsize=1024)
    def known(serialised: bytes) -> Any:
        return decode(marshal.loads(serialised))

    return lambda value: known(marshal.dumps(value, 2))  # later versions depend on which strings are one object


def _union_decoder(kinds: list[Any]) -> Callable[[Any], Any]:
    """What makes a value one of `kinds`, the first that it fits, or null."""
    first, *others = [_decoder(kind) for kind in kinds]

    def decode(value: Any) -> Any:
        if value is None:
            return None
        for other in others:
            try:
                return other(value)
            except Misfit:
                continue
        return first(value)  # which says what is wrong

    return decode


def _taken_as_it_is(kind: Any) -> frozenset[type]:
    """The types of values that fit `kind` as they come from JSON; a call for each of them would take most of the
    time."""
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)
    plain = (str, int, float, bool, types.NoneType)
    return frozenset(plain if Any in kinds else (one for one in kinds if one in plain))


def _object_decoder(kind: type[Any]) -> Callable[[Any], Any]:
    hints = typing.get_type_hints(kind)
    decoders = {name: _decoder(hint) for name, hint in hints.items()}
    plain_types = {name: _taken_as_it_is(hint) for name, hint in hints.items()}
    defaults = _defaults(kind)
    make = _maker(kind)
    required = {field.name for field in dataclasses.fields(kind)} - defaults.keys()

    def shape(value: dict[str, Any]) -> tuple[list[str], list[tuple[str, Callable[[], Any]]]]:
        """The fields that are not taken as they are, and those that are missing, with what makes their defaults."""
        if not value.keys() <= decoders.keys():
            raise Misfit(f"has the unknown field {min(value.keys() - decoders.keys())!r}")
        if not required <= value.keys():
            raise Misfit("is missing", f".{min(required - value.keys())}")
        inner = [name for name, part in value.items() if type(part) not in plain_types[name]]
        return inner, [(name, default) for name, default in defaults.items() if name not in value]

    # By the names and types of an object's values. Most objects of a kind have the same, so one look decides for all.
    shapes: dict[tuple[str | type, ...], tuple[list[str], list[tuple[str, Callable[[], Any]]]]] = {}

    def decode(value: Any) -> Any:
        if not isinstance(value, dict):
            raise Misfit("should be an object")
        seen = (*value, *map(type, value.values()))
        fields = shapes.get(seen)
        if fields is None:
            fields = shapes[seen] = shape(value)
        inner, missing = fields
        for name in inner:
            try:
                value[name] = decoders[name](value[name])
            except Misfit as misfit:
                misfit.way = f".{name}{misfit.way}"
                raise
        for name, default in missing:
            value[name] = default()
        return make(value)

    return decode


def _maker(kind: type[Any]) -> Callable[[dict[str, Any]], Any]:
    """What makes an instance of the dataclass `kind` of the values of all its fields."""

    def mutable(values: dict[str, Any]) -> Any:
        return kind(**values)  # whose attributes take a third of the memory of a dict

    def frozen(values: dict[str, Any]) -> Any:
        instance = object.__new__(kind)
        object.__setattr__(instance, "__dict__", values)  # as __init__ would, field by field and many times as slowly
        return instance

    return frozen if kind.__dataclass_params__.frozen else mutable


def _defaults(kind: type[Any]) -> dict[str, Callable[[], Any]]:
    """What makes the default of each field that has one."""
    defaults: dict[str, Callable[[], Any]] = {}
    for field in dataclasses.fields(kind):
        if field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory
        elif field.default is not dataclasses.MISSING:
            defaults[field.name] = functools.partial(_same, field.default)
    return defaults


def _same(value: Any) -> Any:
    return value


def _packed_decoder(kind: type[Any]) -> Callable[[Any], Any]:
    in_full = _list_decoder(kind)

    def decode(value: Any) -> Any:
        return packed(kind, value) or in_full(value)

    return decode


def _list_decoder(kind: Any) -> Callable[[Any], list[Any]]:
    inner = _decoder(kind)
    plain = {kind} if kind in (int, float, str) else set()

    def decode(value: Any) -> list[Any]:
        if type(value) is not list:
            raise Misfit("should be a list")
        if kind is Any or (value and set(map(type, value)) == plain):
            return value
        parts: list[Any] = []
        try:
            for part in value:
                parts.append(inner(part))
        except Misfit as misfit:
            misfit.way = f"[{len(parts)}]{misfit.way}"
            raise
        return parts

    return decode


def _dict_decoder(kind: Any) -> Callable[[Any], dict[str, Any]]:
    inner = _decoder(kind)

    def decode(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise Misfit("should be an object")
        if kind is Any:
            return value
        parts: dict[str, Any] = {}
        for name, part in value.items():
            try:
                parts[name] = inner(part)
            except Misfit as misfit:
                misfit.way = f".{name}{misfit.way}"
                raise
        return parts

    return decode
