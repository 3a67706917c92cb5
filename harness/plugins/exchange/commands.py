"""Commands that take results of other programs, and that hand records over to them."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness import units
from harness.cli.output import print_errors, print_json, require_study_name, study_names
from harness.cli.parser import CommandLine, add_json, add_repository, add_results_dir, add_study_name
from harness.errors import UserError
from harness.record import PLAN, read_study, require_one_folder_each


def add(command_line: CommandLine) -> None:
    group = command_line.group("keep and share")

    parser = group.add(
        push_study,
        "push-study",
        "Upload a study to the hub as a data set with a card: its records, their items, and a table of all cells.",
        "quickstart me/quickstart-study",
    )
    parser.add_argument("study", metavar="STUDY", help="study below the results folder")
    add_repository(parser)
    add_results_dir(parser)
    add_json(parser)

    parser = group.add(
        export,
        "export",
        "Write each cell's scores as lm-eval writes its own, as results_DATE.json.",
        "quickstart --out lm_eval",
    )
    add_study_name(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="write to DIR/STUDY__CELL; required")
    add_json(parser)

    group = command_line.group("tools")

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


def push_study(options: argparse.Namespace) -> int:
    """Upload a study's records, items and plan to the hub, with a card and a table of all cells. Logs and weights stay.

    UserError if there are no records, if one is bad, without a token, or if the hub refuses them.
    """
    (name,) = study_names(options)

    from harness.plugins.exchange.exports import dataset_card
    from harness.studies import verify
    from harness.studies.upload import upload

    folder = options.results_dir / name
    if problems := verify.study(options.results_dir, name).problems:
        raise UserError(problems[0])
    records, _ = read_study(folder)
    if not records:
        raise UserError(f"There are no records to push in {folder}; run a sweep first.")
    paths = [folder / f"{record.cell.name}{end}" for record in records for end in (".json", ".items.parquet")]
    paths.append(folder / PLAN)
    files = {path.name: path for path in paths if path.is_file()} | dataset_card.files(records, folder)
    url = upload(name, name, files, options.repo, options.public, "dataset")
    if options.format == "json":
        print_json({"study": name, "url": url})
    else:
        print(url)
    return 0


def export(options: argparse.Namespace) -> int:
    """Write the scores of one study or of all in lm-eval's layout; 1 if a record is bad."""
    from harness.plugins.exchange.exports import lm_eval

    studies, problems = [], []
    for name in study_names(options):
        records, bad = read_study(options.results_dir / name)
        problems += bad
        studies.append((options.results_dir / name, records))
    require_one_folder_each(studies)
    paths = [path for folder, records in studies for path in lm_eval.write(records, folder, options.out)]
    if options.format == "json":
        print_json([str(path) for path in paths])
    else:
        print(f"{options.out}: {units.plural(len(paths), 'file')}, a cell each.")
    print_errors(problems)
    return int(bool(problems))


def import_results(options: argparse.Namespace) -> int:
    """Make records of another project's result files: of all of them, or of none if one is bad."""
    name = options.study or options.project
    require_study_name(name, options.results_dir)

    from harness.plugins.exchange import importers

    summary = importers.store(importers.collect(options.project, options.path, name), options.results_dir / name)
    counts = {"new": summary.new, "changed": summary.changed, "unchanged": summary.unchanged}
    totals = ", ".join(f"{len(names)} {of}" for of, names in counts.items())
    again = units.plural(summary.repeats, "earlier run")
    repeats = f", with {again} of the same experiments as repeats" if summary.repeats else ""
    print(f"{options.results_dir / name}: {totals} records{repeats}.")
    for path in summary.other_settings:
        print(f"{path} was skipped: another run of the same experiment has other settings.")
    return 0
