"""The commands that asked for a study's cells, as they were typed: a text file beside the records, one a line.

Those of merged studies were typed elsewhere, so they are comments there, and none of them is shown to be pasted.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from harness.record.files import without_link
from harness.redact import redact
from harness.terminal import printable

COMMANDS = "commands.txt"
MERGED = "# merged: "
# What makes a sweep run code from elsewhere. A study's folder may have been copied from anywhere.
RUNS_CODE = re.compile(
    r"trust_remote_code|use_safetensors|unsafe_code|_target_|include.path|vllm.python|config-|-c[dn]$"
)


def note_command(folder: Path, arguments: Sequence[str]) -> None:
    """Add the command `harness ARGUMENTS` to those of the study in `folder`, unless it is there."""
    command = redact(shlex.join(["harness", *arguments]))
    if "\n" not in command:
        add_commands(folder, [command])


def add_merged_commands(folder: Path, commands: Sequence[str]) -> None:
    """Add `commands` of a merged study to those of the study in `folder`, as comments."""
    texts = (printable(command).removeprefix(MERGED) for command in commands)
    add_commands(folder, [f"{MERGED}{text}" for text in texts])


def add_commands(folder: Path, commands: Sequence[str]) -> None:
    """Add `commands`, a line each, to those of the study in `folder`, but for those that are there."""
    earlier = noted_commands(folder)
    if new := [command for command in dict.fromkeys(commands) if command not in earlier]:
        folder.mkdir(parents=True, exist_ok=True)
        with without_link(folder / COMMANDS).open("a", encoding="utf-8") as file:
            file.write("".join(f"{command}\n" for command in new))


def noted_commands(folder: Path) -> list[str]:
    """The commands of the study in `folder`, the first one first; none of an imported study, and none behind a link."""
    if (folder / COMMANDS).is_symlink():
        return []
    try:
        return (folder / COMMANDS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def repeated_sweeps(folder: Path, settings: Sequence[str]) -> list[str]:
    """The sweeps among the commands of the study in `folder`, each with `settings` in the place of its own settings.

    settings: KEY=VALUE, or an option and its value, or several of them. Commands that differ in these alone become one.
    """
    return list(dict.fromkeys(command for line in noted_commands(folder) if (command := _again(line, settings))))


def _again(command: str, settings: Sequence[str]) -> str | None:
    """`command` with `settings` in the place of its own; None if it is no sweep."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    if words[:2] != ["harness", "sweep"] or "`" in command or any(map(RUNS_CODE.search, words)):
        return None
    keys = {word.partition("=")[0] for word in settings if "=" in word or word.startswith("--")}
    others = [
        word
        for before, word in itertools.pairwise(["", *words])
        if word.partition("=")[0] not in keys and (before != "--confirm" or "--confirm" not in keys)
    ]
    return shlex.join([*others, *settings])
