"""The grid of a sweep: every combination of the values of its axes, as lists of Hydra overrides."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser

from harness.errors import UserError


def grid(
    params: dict[str, Any] | None,
    candidates: list[str] | None,
    arguments: Sequence[str],
    loader: ConfigLoader | None = None,
) -> list[list[str]]:
    """All points of the axes `params`, once for each candidate; `arguments` take precedence over both.

    candidates: overrides that belong together, such as ``method=base model=tiny``. loader: as of `points`.
    """
    axes = [f"{key}={values}" for key, values in (params or {}).items()]
    return [point for line in candidates or [""] for point in points([*shlex.split(line), *axes, *arguments], loader)]


def points(overrides: list[str], loader: ConfigLoader | None = None) -> list[list[str]]:
    """All combinations of the values that `overrides` give their keys; a later override of a key replaces it.

    loader: knows the names that a ``glob`` stands for. Raises UserError if one stands for none.
    """
    axes: dict[str, list[str]] = {}
    for override in OverridesParser.create(config_loader=loader).parse_overrides(overrides):
        key = override.get_key_element()
        if not override.is_sweep_override():
            axes[key] = [f"{key}={_as_typed(override.get_value_element_as_str())}"]
        elif override.is_discrete_sweep():
            axes[key] = [f"{key}={_as_typed(value)}" for value in override.sweep_string_iterator()]
            if not axes[key]:
                raise UserError(f"{override.input_line} matches nothing in conf/{override.key_or_group}/.")
        else:
            raise UserError(f"A grid requires key=a,b,c, got {override.input_line}.")
    return [list(point) for point in itertools.product(*axes.values())]


def _as_typed(value: str) -> str:
    """`value` as one types it: Hydra writes true and false as Python does, and messages show them."""
    return value.lower() if value in ("True", "False") else value
