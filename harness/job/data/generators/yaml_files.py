"""Reads the YAML files that problems are generated from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UserError, first_line

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times faster


def read_yaml(path: Path) -> Any:
    """What the file holds. Raises UserError if it is not valid YAML."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path.name}{place}, is not valid YAML: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path.name} is not valid YAML: {first_line(error)}.") from None


def text(entry: Mapping[str, Any], key: str) -> str:
    """The text at `key`. Raises ValueError if it is none."""
    if not isinstance(entry[key], str):
        raise ValueError(f"{key} must be a text, got {entry[key]}")
    return entry[key]


def texts(entry: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The texts at `key`. Raises ValueError if it is no list of them; an empty one has nothing to draw."""
    listed = entry[key]
    if not isinstance(listed, list) or not listed or not all(isinstance(one, str) for one in listed):
        raise ValueError(f"{key} must be a list of texts, got {listed}")
    return tuple(listed)
