"""The settings with their types, defaults and comments, read from harness/config.py; and the knobs of a method's file.

A field's comment is the string below it. Python does not keep it, so it is read from the source.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import operator
import re
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import MISSING, OmegaConf

from harness.config import CONF, Config, FullConfig, typed
from harness.config_folders import group_files
from harness.schema import NO_RULE, Rule, group_of

UNLESS = re.compile(r"^\$\{unless:.*,(\w+)\}$")  # a value, but null where another setting is given


class ConfigField(NamedTuple):
    """One setting: dotted key, type, default, and what it does.

    default: as one types it where no other setting is given, or as conf/config.yaml computes it (``${…}``); None if a
    file of its group must set it. rule: which values it may have, and whether it is part of a cell.
    """

    key: str
    type: str
    default: str | None
    comment: str
    rule: Rule

    @property
    def kind(self) -> str:
        """The type, and what a number counts."""
        return f"{self.type}: {self.rule.unit}" if self.rule.unit else self.type

    @property
    def sentences(self) -> str:
        """The comment, with what the rule adds to it."""
        bounds = f" It must be {self.rule.bounds}." if self.rule.bounds and not self.rule.auto else ""
        return f"{self.comment}{bounds}{'' if self.rule.in_cell else ' Not part of the cell.'}"


class ConfigGroup(NamedTuple):
    """Settings with a common prefix, `key`; that of the top level is empty."""

    key: str
    comment: str
    fields: list[ConfigField]


def config_groups() -> list[ConfigGroup]:
    """All settings in the order of harness/config.py, those of the top level first."""
    composed: Any = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"), resolve=False)
    groups = [ConfigGroup("", inspect.getdoc(Config) or "", _fields(Config, "", composed))]
    for f in dataclasses.fields(FullConfig):
        if schema := group_of(f):
            fields = _fields(schema, f"{f.name}.", composed.get(f.name, {}))
            groups.append(ConfigGroup(f.name, inspect.getdoc(schema) or "", fields))
    return groups


def method_knobs(method_file: Path) -> dict[str, Any]:
    """The knobs of a method's file and of those that it is built on, with their defaults."""
    content: Any = OmegaConf.to_container(OmegaConf.load(method_file), resolve=False)
    files = group_files("method")
    built_on = [method_knobs(files[name]) for name in content.get("defaults", []) if name in files]
    return functools.reduce(operator.or_, [*built_on, content.get("knobs") or {}], {})


def field_comments(schema: type) -> dict[str, str]:
    """The string below each field of a dataclass, on one line, by the field's name."""
    comments: dict[str, str] = {}
    for definition in ast.parse(textwrap.dedent(inspect.getsource(schema))).body:
        body = definition.body if isinstance(definition, ast.ClassDef) else []
        for statements in itertools.pairwise(body):
            match statements:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(comment))):
                    comments[name] = " ".join(comment.split())
    return comments


def _fields(schema: type[Any], prefix: str, composed: dict[str, Any]) -> list[ConfigField]:
    """The settings of a dataclass without its groups, but for a group within a group.

    composed: what conf/config.yaml sets in place of the dataclass's defaults.
    """
    comments = field_comments(schema)
    settings: list[ConfigField] = []
    for f in dataclasses.fields(schema):
        if nested := group_of(f):
            settings += _fields(nested, f"{prefix}{f.name}.", composed.get(f.name, {})) if prefix else []
            continue
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        default = composed.get(f.name, default)
        settings.append(
            ConfigField(
                key=prefix + f.name,
                type=re.sub(r"\bNone\b", "null", re.sub(r"dict\[.*?\](?= \||$)", "dict", str(f.type))),
                default=None if default == MISSING else UNLESS.sub(r"\1", typed(default).replace("'", "")),
                comment=comments[f.name],
                rule=f.metadata.get("rule", NO_RULE),
            )
        )
    return settings
