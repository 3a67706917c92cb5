"""A command around the harness: what this machine can run."""

from __future__ import annotations

import argparse

from harness.cli.parser import CommandLine, add_data_root, add_results_dir


def add(command_line: CommandLine) -> None:
    group = command_line.group("tools")

    parser = group.add(
        doctor,
        "doctor",
        "Show what this machine can run, and what is missing. Downloads nothing.",
        "--data-root ~/data",
    )
    add_data_root(parser)
    add_results_dir(parser)


def doctor(options: argparse.Namespace) -> int:
    """Print what this machine can run; 1 if not even the embedded default model can."""
    from harness import terminal
    from harness.studies import doctor as machine

    facts = machine.examine(options.results_dir, options.data_root)
    console = terminal.console()
    if console.is_terminal:
        terminal.show(console, machine.view(facts))
    else:
        print("\n".join(machine.lines(facts)))
    return int(machine.obstacle(facts) is not None)
