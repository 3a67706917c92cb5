"""The commands that asked for a study's cells, as they were typed: a text file beside the records, one a line."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path

from harness.redact import redact

FILE = "commands.txt"


def note_command(folder: Path, arguments: Sequence[str]) -> None:
    """Add the command `harness ARGUMENTS` to those of the study in `folder`, unless it is there."""
    command = redact(shlex.join(["harness", *arguments]))
    if "\n" not in command:
        add_commands(folder, [command])


def add_commands(folder: Path, commands: Sequence[str]) -> None:
    """Add `commands`, a line each, to those of the study in `folder`, but for those that are there."""
    known = noted_commands(folder)
    if new := [command for command in dict.fromkeys(commands) if command not in known]:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / FILE).open("a", encoding="utf-8") as file:
            file.write("".join(f"{command}\n" for command in new))


def noted_commands(folder: Path) -> list[str]:
    """The commands of the study in `folder`, the first one first; none of an imported study."""
    try:
        return (folder / FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def repeated_sweeps(folder: Path, asked: Sequence[str]) -> list[str]:
    """The sweeps among the commands of the study in `folder`, each with `asked` in the place of its own settings.

    asked: KEY=VALUE, or an option and its value. Commands that differ in it alone become one.
    """
    return list(dict.fromkeys(command for typed in noted_commands(folder) if (command := _again(typed, asked))))


def _again(command: str, asked: Sequence[str]) -> str | None:
    """`command` with `asked` in the place of its own; None if it is no sweep."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    if words[:2] != ["harness", "sweep"] or "`" in command:
        return None
    key = asked[0].partition("=")[0]
    kept = [
        word
        for before, word in itertools.pairwise(["", *words])
        if word.partition("=")[0] != key and (before != key or key != "--confirm")
    ]
    return shlex.join([*kept, *asked])
