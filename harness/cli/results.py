"""Commands on the records of studies: tables, reports, figures and what they rest on."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness import units
from harness.cli import view
from harness.cli.output import find_cell, print_errors, print_json, render, study_names, write
from harness.cli.parser import CommandLine, add_cells, add_json, add_out, add_study_name, add_tables, comma_separated
from harness.errors import UserError, require_positive
from harness.program import results_option
from harness.record import Record, read, read_study, require_one_folder_each

if TYPE_CHECKING:
    from harness.report.tables.table import Table


def add(command_line: CommandLine) -> None:
    group = command_line.group("compare")

    parser = group.add(
        table,
        "table",
        "Render the comparison from the records. CSV and Parquet have every number, one row a cell.",
        "--study quickstart --format parquet --out cells.parquet",
    )
    add_tables(parser, "parquet")
    parser.add_argument(
        "--columns",
        type=comma_separated,
        metavar="IDS",
        help="columns in this order, such as method,setting,kinds,decode; `all` shows every one that has a value, an "
        "unknown one lists them",
    )
    parser.add_argument(
        "--price", type=float, metavar="N", help="dollars for an hour of one device: adds what each cell cost"
    )
    parser.add_argument(
        "--cost",
        action="store_true",
        help="show cost against score alone: the Pareto front, and the cheapest setting that no other beats; requires "
        "--price",
    )

    parser = group.add(report, "report", "Write a study's report: one HTML page that loads nothing.", "--out page.html")
    add_study_name(parser, "study to report on (default: the only one)")
    add_out(parser)

    view.add(group)

    parser = group.add(figures, "figures", "Draw the comparison, each figure as PNG and as SVG.", "--study quickstart")
    add_study_name(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="write to DIR/STUDY (default: the study's figures/)")

    parser = group.add(
        forgetting,
        "forgetting",
        "Show the items that tuning lost and won against the base model.",
        "quickstart --figure lost.png",
    )
    add_tables(parser, "json")
    parser.add_argument("--cells", action="store_true", help="every cell, not each method's chosen setting")
    parser.add_argument("--items", type=int, default=3, metavar="N", help="items shown of each method (default: 3)")
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw it too, as PNG or SVG by the name's ending")

    parser = group.add(
        power, "power", "Show how many items and seeds tell two methods apart.", "--effect 0.02 --seeds 3"
    )
    add_study_name(parser, "study to measure the noise on (default: assumptions)")
    parser.add_argument("--effect", type=float, required=True, metavar="SHARE", help="0.02 is 2 points of accuracy")
    parser.add_argument("--seeds", type=int, required=True, metavar="N")

    parser = group.add(
        lint,
        "lint",
        "Show what makes the cells of a study hard to compare. Exit status 1 if anything does.",
        "--study quickstart",
    )
    add_study_name(parser)

    parser = group.add(diff, "diff", "Show what differs between two cells.", "lora-r8 lora-r16")
    add_cells(parser, "a", "b")
    add_json(parser)


def table(options: argparse.Namespace) -> int:
    """Render the tables of one study or of all. Bad records are named; the good ones are rendered."""
    if options.columns and options.format in ("csv", "parquet"):
        raise UserError(f"--columns can't be combined with --format {options.format}, which has every number.")
    require_positive("--price", options.price)
    if options.price is None and "cost" in (options.columns or []):
        raise UserError("--columns cost requires --price, dollars for an hour of one device.")

    if options.cost and options.price is None:
        raise UserError("--cost requires --price, dollars for an hour of one device.")
    if options.cost and (options.columns or options.format in ("csv", "parquet")):
        raise UserError("--cost is a table of its own: leave out --columns, and --format csv or parquet.")

    from harness.report.tables.best import costs, tables

    if options.cost:
        return render_studies(options, lambda records, folder: costs(records, folder, options.price))
    return render_studies(options, lambda records, folder: tables(records, folder, options.columns, options.price))


def report(options: argparse.Namespace) -> int:
    """Write the report of a study. Bad records are named, also on the page; the good ones are reported on."""
    name = _only(study_names(options), "A report")
    if options.out is None and sys.stdout.isatty():
        raise UserError("A report is a page of HTML; name its file with --out report.html.")
    if options.out is not None and options.out.is_dir():
        raise UserError(f"--out must be a file, got the folder {options.out}; use --out {options.out / 'report.html'}.")

    from harness import env, gate
    from harness.report.pages import page

    folder = options.results_dir / name
    where = ["--study", name, *results_option(options.results_dir)]
    command = shlex.join(["harness", "report", *options.arguments])
    with _all_is_kept():
        records, problems = read_study(folder)
        print_errors(problems)
        if not records:
            raise UserError(f"There are no records to report on in {folder}; run a sweep first.")
        price = view.card_price(records)
        text = page.render(
            records, folder, problems, shlex.join(where), command, env.made_with(), price=price, runnable=gate.runnable
        )
        write(text, options.out)
    return int(bool(problems))


def figures(options: argparse.Namespace) -> int:
    """Draw what there is to draw of one study or all."""
    from harness.report.figures import FIGURES, save

    problems: list[str] = []
    for name in study_names(options):
        folder = options.results_dir / name
        records, bad = read_study(folder)
        problems += bad
        out = options.out / name if options.out else folder / "figures"
        figure_names = save(records, folder, out) if records else []
        without = [figure for figure in FIGURES if figure not in figure_names]
        print(
            f"{out}: {', '.join(figure_names) or 'nothing'}"
            + (f"; no records for {', '.join(without)}" if without else "")
        )
    print_errors(problems)
    return int(bool(problems))


def power(options: argparse.Namespace) -> int:
    """Print how many items and seeds a difference takes, by assumptions or by the noise of a study."""
    if not 0 < options.effect < 1:
        raise UserError(f"--effect must lie between 0 and 1 (0.02 is 2 points), got {options.effect:g}.")
    if options.seeds < 1:
        raise UserError(f"--seeds must be positive, got {options.seeds}.")

    from harness.report.power import Assumptions, assumptions, describe

    noise_model = Assumptions()
    said: list[str] = []
    problems: list[str] = []
    if options.study:
        (name,) = study_names(options)
        records, problems = read_study(options.results_dir / name)
        noise_model, said = assumptions(records, options.results_dir / name)
    sys.stdout.write(describe(options.effect, options.seeds, noise_model, said))
    print_errors(problems)
    return int(bool(problems))


def forgetting(options: argparse.Namespace) -> int:
    """Compare the tuned cells of one study or of all with the untuned base, item by item."""
    if options.items < 0:
        raise UserError(f"--items must be 0 or more, got {options.items}.")
    if options.figure and options.figure.suffix not in (".png", ".svg"):
        raise UserError(f"--figure must end in .png or .svg, got {options.figure}.")
    names = study_names(options)
    if options.figure:
        _only(names, "A figure")

    from harness.report import forgetting as compare

    comparisons, problems = {}, []
    for name in names:
        records, bad = read_study(options.results_dir / name)
        problems += bad
        if records:
            comparisons[name] = compare.forgetting(records, options.results_dir / name, options.cells)
    print_errors(problems)
    if not comparisons:
        raise UserError(f"There are no records to compare in {options.results_dir}; run a sweep first.")
    if options.format == "json":
        by_study = {name: compare.to_json(comparison) for name, comparison in comparisons.items()}
        write(json.dumps(by_study, indent=1) + "\n", options.out)
    else:
        tables = [
            table
            for name, comparison in comparisons.items()
            for table in compare.tables(comparison, name, options.items, options.format in ("csv", "parquet"))
        ]
        render(tables, options)
    if options.figure:
        from harness.report.figures.forgetting import lost_won

        (comparison,) = comparisons.values()
        figure = lost_won(comparison)
        if figure is None:
            raise UserError("There is nothing to draw: no cell could be compared with its base.")
        options.figure.parent.mkdir(parents=True, exist_ok=True)
        options.figure.write_bytes(figure.png() if options.figure.suffix == ".png" else figure.svg().encode())
    return int(bool(problems))


def lint(options: argparse.Namespace) -> int:
    """Print the linter's findings on one study or all; 1 if there are any, or a record is bad."""
    from harness.report.lint import findings
    from harness.report.lint.drift import drift_text, drifts

    problems: list[str] = []
    total = 0
    for name in study_names(options):
        records, bad = read_study(options.results_dir / name)
        problems += bad
        study_findings = findings(records)
        total += len(study_findings)
        if not records and not bad:
            raise UserError(f"There are no records to look at in {options.results_dir / name}; run a sweep first.")
        if records:
            count = units.plural(len(study_findings), "finding") if study_findings else "no findings"
            print(f"{name}: {count} on {units.plural(len(records), 'cell')}")
        for finding in study_findings:
            print(f"- {finding.sentence}")
        for drift in drifts(records):
            print(drift_text(drift))
    print_errors(problems)
    return int(bool(total or problems))


def diff(options: argparse.Namespace) -> int:
    """Print what differs between two cells."""
    from harness.report.diff import difference, text

    cells = [find_cell(options, options.a), find_cell(options, options.b)]
    for cell in cells:
        if not cell.record.is_file():
            raise UserError(f"{cell} has no record yet; there is nothing to compare.")
    a, b = (read(cell.record) for cell in cells)
    differs = difference(a, b, (str(cells[0]), str(cells[1])))
    if options.format == "json":
        print_json(dataclasses.asdict(differs))
    else:
        sys.stdout.write(text(differs))
    return 0


def _only(names: Sequence[str], what: str) -> str:
    if len(names) > 1:
        raise UserError(f"{what} is of one study; name it with --study. There are {', '.join(names)}.")
    return names[0]


def render_studies(options: argparse.Namespace, tables: Callable[[list[Record], Path], list[Table]]) -> int:
    """Write the tables of each requested study in the requested format; 1 if a record is bad."""
    return render_joined(options, lambda studies: [table for study in studies for table in tables(*study)])


def render_joined(
    options: argparse.Namespace, tables: Callable[[Sequence[tuple[list[Record], Path]]], list[Table]]
) -> int:
    """`render_studies` of tables that are made of all requested studies together: of each its records and folder."""
    studies, problems = [], []
    with _all_is_kept():
        for name in study_names(options):
            folder = options.results_dir / name
            records, bad = read_study(folder)
            problems += bad
            if records:
                studies.append((records, folder))
        print_errors(problems)
        require_one_folder_each((folder, records) for records, folder in studies)
        if not studies:
            where = options.results_dir / (options.study or "")
            raise UserError(
                f"There are no records to render in {where}" + ("." if problems else "; run a sweep first.")
            )
        render(tables(studies), options)
    return int(bool(problems))


@contextmanager
def _all_is_kept() -> Iterator[None]:
    """Collect no garbage: of thousands of records, all kept to the end, that would take a third of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # else the first collection would go through all that was kept
        gc.enable()
