"""Settings given as keyword arguments, as the overrides that a command line would have."""

from __future__ import annotations

import functools
import numbers
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.errors import UserError, nearest

FIRST = "train"  # the group whose setting a name means where several groups have it
PLAIN = re.compile(r"[A-Za-z_./~][\w./~:@+-]*")  # texts that Hydra's grammar takes as they are
LITERALS = {"null", "true", "false", "nan", "inf"}  # but these are no texts there
ALIASES = {"methods": "method"}


def overrides_of(
    named: Mapping[str, Any], settings: Mapping[str, Any] | None, options: Iterable[str], grid: bool
) -> list[str]:
    """``KEY=VALUE`` for each setting of `named`, by its name without a group, and of `settings`, by its dotted name.

    options: what the function takes besides settings, for the hint on a misspelt name. grid: whether a list is an
    axis; a setting that is a list itself has a list of lists as its axis. A config group that is None is left out.
    Raises UserError for a name that several settings have, for a setting that is given twice, and for a list where one
    value is needed.
    """
    overrides: dict[str, str] = {}
    for name, value in [*named.items(), *(settings or {}).items()]:
        key = key_of(name, options)
        if key in overrides:
            raise UserError(f"{key} is given twice; give it once.")
        overrides[key] = _override(key, value, grid)
    return list(overrides.values())


def key_of(name: str, options: Iterable[str] = ()) -> str:
    """The dotted name of the setting that `name` means.

    That is the setting or config group of this name, else the training's, else the only one of any group. A dotted
    name is taken as it is, and so is an unknown one, about which the command line has a sentence of its own.
    """
    name = ALIASES.get(name, name)
    types, groups = _settings()
    if name in types or name in groups or not name.isidentifier():
        return name
    keys = [key for key in types if key.rpartition(".")[2] == name]
    if f"{FIRST}.{name}" in keys:
        return f"{FIRST}.{name}"
    if len(keys) > 1:
        raise UserError(f"{name} is ambiguous; give {', '.join(keys[:-1])} or {keys[-1]} in `settings`.")
    options = list(options)
    last = {key.rpartition(".")[2] for key in types}
    if not keys and (near := nearest(name, [*options, *last])) in options:
        raise UserError(f"There is no setting {name!r}; did you mean {near}?")
    return keys[0] if keys else name


def text(value: Any) -> str:
    """`value` as Hydra's grammar has it. Raises UserError for what no setting can be."""
    if value is None:
        return "null"
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        value = value.tolist()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, numbers.Real):
        return repr(int(value)) if isinstance(value, numbers.Integral) else repr(float(value))
    if isinstance(value, str | os.PathLike):
        return _quoted(os.fspath(value))
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_quoted(str(name))}:{text(of)}" for name, of in value.items()) + "}"
    if _is_list(value):
        return "[" + ",".join(map(text, value)) + "]"
    raise UserError(f"A setting must be a number, a text, a list, a dict or None, got {type(value).__name__}.")


def _override(key: str, value: Any, grid: bool) -> str:
    if key in _settings()[1]:
        if value is None:
            return f"~{key}"
        if _is_list(value) and None in value:
            raise UserError(f"{key} must be a name on each place of its axis, got None; None alone leaves it out.")
    return f"{key}={_values(key, value, grid)}"


def _values(key: str, value: Any, grid: bool) -> str:
    value = value.tolist() if hasattr(value, "tolist") else value
    types, groups = _settings()
    kind = types.get(key, "")
    if not _is_list(value) or (kind.startswith("list") and not any(map(_is_list, value))):
        return text(value)
    if not grid:
        if key in types.keys() | groups and not kind.startswith("list"):
            raise UserError(f"{key} must be one value, got {text(value)}; `sweep` runs a cell for each.")
        return text(value)
    if not value:
        raise UserError(f"{key} must have at least one value, got an empty list.")
    return ",".join(map(text, value))


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _quoted(word: str) -> str:
    if PLAIN.fullmatch(word) and word.lower() not in LITERALS:
        return word
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", word)  # of backslashes those before a quote count twice
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return f"'{escaped}'"


@functools.cache
def _settings() -> tuple[dict[str, str], frozenset[str]]:
    """The type of each setting by its dotted name, and the names of the groups."""
    from harness.config_help import config_groups

    groups = config_groups()
    types = {field.key: field.type for group in groups for field in group.fields}
    return types, frozenset(group.key for group in groups if group.key)
