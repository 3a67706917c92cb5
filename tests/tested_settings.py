"""The command lines of tests/cli/settings/ and of plug-ins, and which of them runs each setting and option.

`python tests/tested_settings.py` writes tests/SETTINGS.md.

A line counts for what its own words say: a setting with another value than its default, an option of the command, and
where an option has choices, each of them.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType

import pytest

from harness.cli.commands import command_line
from harness.config_folders import selected_groups
from harness.config_help import config_groups

TARGET = Path(__file__).with_name("SETTINGS.md")
HEAD = """\
# What is run by which test

Made from the command lines in `tests/cli/settings/` and in `tests/plugins/NAME/test_options_of_NAME.py` by
`make publish`. Each setting and option is given there, a setting with another value than its default. *refused*: what
it requires is not on the machines that run the tests, and it is refused as its documentation says.
"""
SMALL = (
    "model=tiny rank=4 train.max_steps=2 train.batch_size=2 train.validation_items=2 eval=facts eval.limit=4 "
    "infer.repeats=0"
)
CELL = f"{SMALL} data=wordmath_short ++data.load.train=64 ++data.load.validation=8"  # two seconds
GROUPS = selected_groups()
COMMANDS = command_line("harness")


@dataclass(frozen=True)
class Line:
    """A command line without ``harness``. Words in braces stand for what is only known when it runs.

    status: how it ends. said: a pattern of what it prints. refused: whether `said` is a refusal.
    """

    words: str
    status: int = 0
    said: str = ""
    refused: bool = False


def refused(words: str, said: str) -> Line:
    return Line(words, 2, said, refused=True)


def lines(*given: str | Line) -> Callable[[FunctionType], FunctionType]:
    """A test of these command lines; the fixture `run` runs them in this order."""

    def mark(function: FunctionType) -> FunctionType:
        function.lines = [Line(line) if isinstance(line, str) else line for line in given]
        return pytest.mark.slow(function)

    return mark


def documented() -> list[str]:
    """Every setting (`rank`), group (`method=`), command (`run`), option (`run --budget`) and choice of one."""
    settings = [field.key for group in config_groups() for field in group.fields]
    return [*settings, *(f"{group}=" for group in GROUPS), *(name for c in COMMANDS.names() for name in _offered(c))]


def _offered(command: str) -> Iterator[str]:
    yield command
    for action in COMMANDS.command(command)._actions:
        shown = next((word for word in action.option_strings if word.startswith("--")), None)
        if shown == "--help" or (shown is None and action.choices is None):
            continue
        named = f"{command} {shown}" if shown else command
        yield from [f"{named} {choice}" for choice in action.choices] if action.choices else [named]


def named(line: Line) -> set[str]:
    """What of `documented()` a line gives."""
    command, *words = shlex.split(re.sub(r"\{\w+\}", "0", line.words))
    options = COMMANDS.command(command).parse_intermixed_args(words, argparse.Namespace())
    found = {command}
    for action in COMMANDS.command(command)._actions:
        given = [i for i, word in enumerate(words) if word.partition("=")[0] in action.option_strings]
        if given:
            shown = next(word for word in action.option_strings if word.startswith("--"))
            value = words[given[0] + 1] if action.choices else None
            found.add(f"{command} {shown}" + (f" {value}" if value else ""))
        elif not action.option_strings and action.choices:
            found.add(f"{command} {getattr(options, action.dest)}")
    for typed in getattr(options, "settings", []):
        key, equals, value = typed.partition("=")
        found |= {f"{key}="} & {f"{group}=" for group in GROUPS} if equals else set()
        found |= {name for name, default in DEFAULTS.items() if _sets(key.lstrip("+"), name) and value != default}
    return found


DEFAULTS = {field.key: field.default for group in config_groups() for field in group.fields}
OPEN = {field.key for group in config_groups() for field in group.fields if field.type.startswith("dict")}


def _sets(key: str, setting: str) -> bool:
    """Whether `key` is `setting`, or an entry of it."""
    return key == setting or (setting in OPEN and key.startswith(f"{setting}."))


def tests() -> dict[str, FunctionType]:
    """The tests of tests/cli/settings/ and of plug-ins by the place that the table names."""
    folder = Path(__file__).parent
    files = sorted(folder.glob("cli/settings/test_*.py")) + sorted(folder.glob("plugins/*/test_options_of_*.py"))
    sys.path.extend({str(path.parent): None for path in files})
    return {
        f"{path.stem}::{name}": function
        for path in files
        for name, function in vars(importlib.import_module(path.stem)).items()
        if hasattr(function, "lines")
    }


def run_by() -> dict[str, tuple[str, bool]]:
    """Of everything documented that a test runs, the first test, and whether it is refused there.

    One that runs it goes before one that has it refused.
    """
    found: dict[str, tuple[str, bool]] = {}
    for place, function in tests().items():
        for line in function.lines:
            for name in named(line):
                if name not in found or (found[name][1] and not line.refused):
                    found[name] = (place, line.refused)
    return found


def page() -> str:
    """The text of tests/SETTINGS.md."""
    found = run_by()
    rows = ["| Setting or option | Test |", "| --- | --- |"]
    for name in documented():
        place, refusal = found.get(name, ("", False))
        rows.append(f"| `{name}` | {place}{' (*refused*)' if refusal else ''} |")
    return HEAD + "\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
