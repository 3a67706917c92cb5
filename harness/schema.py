"""What a setting's field says beside its type, default and comment: which values it may have, and what they count.

`setting` writes that into a dataclass field, `settings_of` reads it, and `check` refuses other values. The help and
docs/settings.md show it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.errors import UserError, one_of

SEEDS = 2**32  # numpy takes no larger seed


@dataclass(frozen=True)
class Rule:
    """Which values a setting may have, and what they mean for a cell.

    choices: its only values, or those of a list's elements. least, most: it may be these; above, below: not these
    themselves. auto: it may be the word auto instead of a number. words: what a number must be, as a refusal says it
    (empty: made of the bounds). unit: what a number counts. label: its name in a refusal (empty: its key). axis:
    whether the cells of one sweep may differ in it. in_cell: whether it is part of a cell, so that cells with other
    values of it have other ids.
    """

    choices: tuple[str, ...] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    auto: bool = False
    words: str = ""
    unit: str = ""
    label: str = ""
    axis: bool = True
    in_cell: bool = True

    @property
    def bounds(self) -> str:
        """What a number must be; empty if it may be any."""
        if self.words:
            return self.words
        if self.above == 0 and self.below is None:
            return "positive"
        if (self.least, self.most) == (0, 1):
            return "a share from 0 to 1"
        if self.least is not None and self.below is not None:
            return f"at least {self.least:g} and below {self.below:g}"
        return "" if self.least is None else f"{self.least:g} or more"

    def admits(self, value: float) -> bool:
        """Whether a number is within the bounds; an infinite one is by `most` alone."""
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (value < float("inf") if self.most is None else value <= self.most)
            and (self.below is None or value < self.below)
        )


NO_RULE = Rule()


def setting(default: Any, **rule: Any) -> Any:
    """A dataclass field with this default (or a function that makes it), and a Rule of these fields."""
    metadata = {"rule": Rule(**rule)}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """One field of the schema, by its dotted key."""

    key: str
    type: str
    default: Any
    rule: Rule


def settings_of(schema: type, prefix: str = "") -> Iterator[Setting]:
    """All settings of a dataclass and of the groups in it."""
    for part in dataclasses.fields(schema):
        if (group := group_of(part)) is not None:
            yield from settings_of(group, f"{prefix}{part.name}.")
        else:
            default = part.default if part.default_factory is dataclasses.MISSING else part.default_factory()
            yield Setting(prefix + part.name, str(part.type), default, part.metadata.get("rule", NO_RULE))


def group_of(part: dataclasses.Field[Any]) -> type | None:
    """The dataclass of a group of settings; None for a setting."""
    factory: Any = part.default_factory
    return factory if dataclasses.is_dataclass(factory) and isinstance(factory, type) else None


def check(settings: Mapping[str, Setting], value_of: Callable[[str], Any]) -> None:
    """Raise UserError for the first of `settings`, by key, whose value is none that it may have.

    value_of: gives the value of a dotted key.
    """
    for key, described in settings.items():
        value, rule = value_of(key), described.rule
        if value is None:
            continue
        if rule.choices:
            for one in value if isinstance(value, list | tuple) else [value]:
                one_of(rule.label or key, one, rule.choices)
        elif rule.auto and value == "auto":
            continue
        elif rule.bounds and (isinstance(value, str) or not rule.admits(value)):
            raise UserError(f"{rule.label or key} must be {rule.bounds}, got {_typed(value)}.")


def _typed(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
