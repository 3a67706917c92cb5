"""The commands that asked for a study's cells, as they were typed: a text file beside the records, one a line.

Those of merged studies were typed elsewhere, so they are comments there, and none of them is shown to be pasted. Others
are shown if they are sweeps of known settings, which run nothing but the harness.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from harness.record.files import content_of, without_link
from harness.redact import redact
from harness.terminal import printable

COMMANDS = "commands.txt"
MERGED = "# merged: "
# What a shown command may consist of: a study's folder may have been copied from anywhere, and its commands are pasted.
# They can't name code, files of settings, or an endpoint and the variable of a key.
OPTIONS = {"--fit", "--skip-impossible", "--drift", "--confirm", "--order", "--budget", "--device"}
NAME = re.compile(r"\w[\w.-]*")  # of a named sweep, or an option's value
WORDS = re.compile(  # settings whose values are words and numbers
    r"method|model|data|eval|stop|hydra/launcher|hydra\.launcher\.cells"
    r"|rank|alpha|lr|lr_scale|seed|speedups|timeout|save|tracker|repeat"
    r"|method\.(name|lr|adamw|init_seed|knobs\.\w+)"
    r"|method\.adapt\.(target_modules|exclude_modules|modules_to_save|target_parameters|layers_to_transform)"
    r"|model\.(revision|sha256|dtype|upcast|gradient_checkpointing|thinking)"
    r"|data@data\.load\.real|data\.load\.(subset|split|held_out_by)"
    r"|data\.(name|task|options|options\.\w+|columns|columns\.\w+|test_share|answers|too_long|drop_empty|limit|noise)"
    r"|eval\.(tasks|limit|num_fewshot|batch_size|seed|engine|chat_template|fewshot_as_multiturn)"
    r"|(train|infer|retry|stop)\.\w+"
)
NUMBERS = re.compile(r"(data\.load|method\.(adapt|init|optim))\.[a-z]\w*")  # arguments of functions
TEXTS = re.compile(r"model\.name|data\.(prompt|prompt_if_empty)|eval\.system_instruction")
PLACES = re.compile(r"study|results_dir|data_root|model\.path|data\.path|eval\.bertscore")
VALUES = (  # of settings with such a name, what their values may be
    (WORDS, re.compile(r"(?!.*\.ya?ml)[^/\\$`]*")),  # lm-eval takes a task with a file's name for a file with code
    (NUMBERS, re.compile(r"[\d.,e+-]+")),
    (TEXTS, re.compile(r"(?!.*\$\{)[^`]*")),
    (PLACES, re.compile(r"(?!.*(://|\$\{))[^`]*")),
)
CANDIDATE = r"""("[^"'\\]*"|'[^"'\\]*')"""
CANDIDATES = re.compile(rf"null|\[{CANDIDATE}(, *{CANDIDATE})*\]")
AXIS = "hydra.sweeper.params."


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
        lines = content_of(folder / COMMANDS).decode().split("\n")  # a command may hold U+2028
    except (OSError, UnicodeDecodeError):
        return []
    return [line for line in lines if line]


def repeated_sweeps(folder: Path, settings: Sequence[str]) -> list[str]:
    """The sweeps among the commands of the study in `folder`, each with `settings` in the place of its own settings.

    settings: KEY=VALUE, or an option and its value, or several of them. Commands that differ in these alone become one.
    None at all if one of the sweeps may not be shown: the others alone would run another study.
    """
    sweeps = [line for line in noted_commands(folder) if line.removeprefix(MERGED).startswith("harness sweep")]
    repeated = [command for line in sweeps if (command := _again(line, settings))]
    return list(dict.fromkeys(repeated)) if len(repeated) == len(sweeps) else []


def _again(command: str, settings: Sequence[str]) -> str | None:
    """`command` with `settings` in the place of its own; None if it is no sweep, or not of known settings alone."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    if words[:2] != ["harness", "sweep"] or not command.isprintable() or not all(map(_is_known, words[2:])):
        return None
    keys = {word.partition("=")[0] for word in settings if "=" in word or word.startswith("--")}
    others = [
        word
        for before, word in itertools.pairwise(["", *words])
        if word.partition("=")[0] not in keys and (before != "--confirm" or "--confirm" not in keys)
    ]
    return shlex.join([*others, *settings])


def _is_known(word: str) -> bool:
    """Whether `word` of a command is an option, a name, or a setting with a value, that a pasted command may have."""
    name, equals, value = word.partition("=")
    if name.startswith("-"):
        return name in OPTIONS and (not equals or NAME.fullmatch(value) is not None)
    return _is_known_setting(name.lstrip("+"), value) if equals else NAME.fullmatch(word) is not None


def _is_known_setting(name: str, value: str) -> bool:
    if name == "hydra.sweeper.candidates":
        words = [word for line in re.findall(CANDIDATE, value) for word in line[1:-1].split()]
        return CANDIDATES.fullmatch(value) is not None and all("=" in word and _is_known(word) for word in words)
    name = name.removeprefix(AXIS)
    return any(names.fullmatch(name) and values.fullmatch(value) for names, values in VALUES)
