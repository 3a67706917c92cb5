"""Commands around the harness: what this machine can run, others' results."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness import units
from harness.cli.output import require_study_name
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

    parser = group.add(
        import_results,
        "import",
        "Turn result files of peft or lm-eval into records of a study.",
        "lm-eval results_2025.json --study theirs",
    )
    parser.add_argument("project", choices=["peft", "lm-eval"], help="whose files they are")
    parser.add_argument("path", type=Path, metavar="PATH", help="result file, or folder of result files")
    parser.add_argument("--study", metavar="NAME", help="study for the records (default: the project's name)")
    add_results_dir(parser)


def doctor(options: argparse.Namespace) -> int:
    """Print what this machine can run; 1 if not even the embedded default model can."""
    from harness import terminal
    from harness.studies import doctor as machine

    facts = machine.examine(options.results_dir, options.data_root)
    shown = terminal.console()
    if shown.is_terminal:
        terminal.show(shown, machine.view(facts))
    else:
        print("\n".join(machine.lines(facts)))
    return int(machine.obstacle(facts) is not None)


def import_results(options: argparse.Namespace) -> int:
    """Make records of another project's result files: of all of them, or of none if one is bad."""
    name = options.study or options.project
    require_study_name(name, options.results_dir)

    from harness.report import importers

    summary = importers.store(importers.collect(options.project, options.path, name), options.results_dir / name)
    counts = {"new": summary.new, "changed": summary.changed, "unchanged": summary.unchanged}
    told = ", ".join(f"{len(names)} {of}" for of, names in counts.items())
    again = units.plural(summary.repeats, "earlier run")
    repeats = f", with {again} of the same experiments as repeats" if summary.repeats else ""
    print(f"{options.results_dir / name}: {told} records{repeats}.")
    for path in summary.other_settings:
        print(f"{path} was skipped: another run of the same experiment has other settings.")
    return 0
