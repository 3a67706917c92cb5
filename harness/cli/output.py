"""What commands share besides parsing: the studies and cells that options name, and where output goes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError, nearest
from harness.record import STUDY_NAME, studies
from harness.terminal.streams import cleaned

if TYPE_CHECKING:
    from harness.report.tables.table import Table
    from harness.studies.find import CellRef


def study_names(options: argparse.Namespace) -> list[str]:
    """The studies that the options ask for and that have records; UserError if there is none."""
    _require_results(options)
    return _requested(options, studies(options.results_dir))


def begun_study_names(options: argparse.Namespace) -> list[str]:
    """As `study_names`, and studies that have no record yet but a plan or a running cell."""
    _require_results(options)
    from harness.sweep import store

    return _requested(options, store.begun(options.results_dir))


def find_cell(options: argparse.Namespace, cell: str) -> CellRef:
    from harness.studies.find import find

    return find(options.results_dir, begun_study_names(options), cell)


def require_study_name(name: str, results: Path) -> None:
    if not STUDY_NAME.fullmatch(name):
        raise UserError(f"--study must name a folder below {results}, got {name}.")


def write(text: str, out: Path | None) -> None:
    """Write `text` to the file `out`, or to standard output."""
    if out is None:
        sys.stdout.write(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(cleaned(text), encoding="utf-8")


def render(tables: Sequence[Table], options: argparse.Namespace) -> None:
    """Write `tables` in the requested format; by default for reading on a terminal, and as Markdown elsewhere.

    UserError for Parquet without a file.
    """
    if options.format == "parquet":
        if options.out is None:
            raise UserError("--format parquet requires --out FILE: Parquet is not text.")
        from harness.report.tables.formats import tidy

        options.out.parent.mkdir(parents=True, exist_ok=True)
        tidy(tables).to_parquet(options.out, index=False)
        return
    if options.format not in (None, "text") or (options.format is None and (options.out or not sys.stdout.isatty())):
        from harness.report.tables.formats import document

        write(document(tables, options.format or "md"), options.out)
        return
    from harness import terminal
    from harness.report.tables import screen

    if options.out is not None:
        write("\n".join(terminal.lines(*screen.view(tables, terminal.UNLIMITED))) + "\n", options.out)
        return
    console = terminal.console(wide=options.wide)
    terminal.show(console, screen.view(tables, console.width))


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def print_errors(problems: Sequence[str]) -> None:
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)


def _require_results(options: argparse.Namespace) -> None:
    if options.study is not None:
        require_study_name(options.study, options.results_dir)
    if not options.results_dir.is_dir():
        raise UserError(
            f"There is no results folder {options.results_dir}; run a sweep first, or name one with --results-dir."
        )


def _requested(options: argparse.Namespace, names: list[str]) -> list[str]:
    results, name = options.results_dir, options.study
    if name is None and not names:
        raise UserError(f"There are no records in {results}; run a sweep first.")
    if name is not None and not (results / name).is_dir():
        missing = f"There is no study {name} in {results}"
        if any((path := Path(name)).glob("*.json")):
            raise UserError(
                f"{missing}; its folder is named in two parts: --study {path.name} --results-dir {path.parent}."
            )
        if not names:
            raise UserError(f"{missing}; there is none yet.")
        near = nearest(name, names)
        hint = f". Did you mean {near}? There is: " if near else "; there is: "
        raise UserError(f"{missing}{hint}{', '.join(names)}.")
    return names if name is None else [name]
