"""Help and completion: generated for every command, with an example that the command's own parser accepts."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess

import pytest

from harness.__main__ import main
from harness.cli.commands import command_line
from harness.cli.parser import FIRST

ROOT_PARSER = command_line("python -m harness")
NAMES = ROOT_PARSER.names()


def parse(line: str) -> argparse.Namespace:
    """The options of a command line that begins with ``python -m harness``."""
    words = shlex.split(re.sub(r" [>|] .*", "", line), comments=True)[3:]
    return ROOT_PARSER.command(words[0]).parse_intermixed_args(words[1:])


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_with_an_example_that_it_accepts(capsys, name):
    with pytest.raises(SystemExit, match=r"^0$"):
        main([name, "--help"])
    text = capsys.readouterr().out
    example = re.search(rf"^example:\n  (python -m harness {name} .+)$", text, re.MULTILINE)
    assert parse(example[1]).run


def test_each_command_is_one_line_of_the_help():
    lines = ROOT_PARSER.format_help().splitlines()
    for name in NAMES:
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert len(line) <= 80


def test_the_help_begins_with_the_commands_that_a_newcomer_needs():
    first, *others = ROOT_PARSER.format_help().partition("start here:\n")[2].split("\n\n")
    assert [line.split()[0] for line in first.splitlines()] == [name for name in FIRST if name in NAMES]
    rest = {words[0] for block in others for line in block.splitlines() if (words := line.split())}
    assert not rest & set(FIRST)
    assert set(NAMES) - set(FIRST) <= rest


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script_that_knows_commands_and_options(capsys, shell):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "reproduce" in script
    assert "--fewshot-as-multiturn" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
