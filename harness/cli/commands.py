"""All commands under one parser, and their completion by a shell."""

from __future__ import annotations

import argparse

from harness import plugin
from harness.cli import cells, results, sweep
from harness.cli.parser import CommandLine, add_data_root, add_results_dir
from harness.errors import UserError


def command_line(prog: str) -> CommandLine:
    """prog: how the command line begins, ``harness`` or ``python -m harness``."""
    root = CommandLine(prog)
    for commands in (sweep, cells, results):
        commands.add(root)
    parser = root.group("tools").add(
        doctor,
        "doctor",
        "Show what this machine can run, and what is missing. Downloads nothing.",
        "--data-root ~/data",
    )
    add_data_root(parser)
    add_results_dir(parser)
    for part in plugin.installed():
        if part.commands is not None:
            plugin.load(part.commands)(root)
    parser = root.group("shell").add(
        completion,
        "completion",
        "Print a shell script that completes commands and options.",
        "bash > ~/.local/share/bash-completion/completions/harness",
    )
    parser.add_argument("shell", choices=["bash", "zsh"])
    return root


def without_multirun(name: str, arguments: list[str]) -> tuple[str, list[str]]:
    """The command and its arguments, without Hydra's option for a grid: `run --multirun` is `sweep`."""
    others = [argument for argument in arguments if argument not in ("-m", "--multirun")]
    if name not in ("run", "sweep", "plan") or len(others) == len(arguments):
        return name, arguments
    return ("sweep" if name == "run" else name), others


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


def completion(options: argparse.Namespace) -> int:
    """Print the completion script of the command `harness` for a shell."""
    try:
        import shtab
    except ImportError:
        raise UserError("`completion` requires shtab: pip install shtab.") from None
    print(shtab.complete(command_line("harness"), options.shell))
    return 0
