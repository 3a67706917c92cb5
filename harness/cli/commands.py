"""All commands under one parser."""

from __future__ import annotations

from harness.cli import cells, llm, results, sweep, tools
from harness.cli.parser import CommandLine


def command_line(prog: str) -> CommandLine:
    """prog: how the command line begins, ``harness`` or ``python -m harness``."""
    root = CommandLine(prog)
    for commands in (sweep, cells, results, llm, tools):
        commands.add(root)
    return root
