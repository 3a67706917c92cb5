"""Reads the YAML files that problems are generated from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
