"""Commands on the cells of studies: watch them, run them again, score, check, merge and remove them."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness import record, units
from harness.cli import reproduce
from harness.cli.output import begun_study_names, find_cell, print_errors, print_json, require_study_name, study_names
from harness.cli.parser import (
    TASKS_OWN,
    CommandLine,
    add_cells,
    add_data_root,
    add_json,
    add_local_paths,
    add_study,
    add_study_name,
    add_wide,
    comma_separated,
    positive,
    shots,
)
from harness.errors import UserError
from harness.protocol import LocalPaths
from harness.record import COMPLETE

if TYPE_CHECKING:
    from harness.sweep.store import Study

LIKE_BEFORE = "(default: as the cell was scored before)"


def add(command_line: CommandLine) -> None:
    group = command_line.group("watch and repeat")

    parser = group.add(status, "status", "Show which cells are done, running, failed and left.", "--watch")
    add_study_name(parser)
    parser.add_argument(
        "--watch",
        action="store_true",
        help="redraw every 2 s until all cells are done or Ctrl-C; without a terminal, print a line for each change",
    )
    add_wide(parser)
    add_json(parser)

    parser = group.add(logs, "logs", "Print everything that a cell and its libraries printed.", "lora-r16 --follow")
    add_cells(parser, "cell")
    parser.add_argument("--follow", action="store_true", help="print new lines as long as the cell runs")
    add_json(parser)

    parser = group.add(
        retry,
        "retry",
        "Run failed, diverged and out-of-memory cells again. Their records hold all settings.",
        "--failed timeout=7200",
    )
    add_study(parser)
    parser.add_argument("--failed", action="store_true", help="which cells to run; required")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="timeout, train.save_every or retry.on_oom, if it should differ from the recorded one",
    )
    add_data_root(parser)
    add_local_paths(parser)
    add_json(parser)

    parser = group.add(
        score,
        "score",
        "Score cells on further tasks by their saved weights. The untuned base is scored with them.",
        "quickstart --tasks arc_easy,hellaswag --limit 500",
    )
    add_study(parser)
    parser.add_argument("cells", nargs="+", metavar="STUDY|CELL", help="all cells of a study, or one cell")
    parser.add_argument("--tasks", required=True, type=comma_separated, metavar="NAMES", help="lm-eval tasks")
    parser.add_argument("--limit", type=positive, metavar="N", help="seeded sample of N items a task (default: all)")
    parser.add_argument(
        "--num-fewshot",
        type=shots,
        metavar="N",
        help=f"examples before a question, `task`: the task's own {LIKE_BEFORE}",
    )
    parser.add_argument("--batch-size", type=positive, metavar="N", help=LIKE_BEFORE)
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--chat-template", action=switch, help=f"put questions in a chat template {LIKE_BEFORE}")
    parser.add_argument("--fewshot-as-multiturn", action=switch, help=f"examples as messages {LIKE_BEFORE}")
    parser.add_argument("--system-instruction", metavar="TEXT", help=f"message before every question {LIKE_BEFORE}")
    parser.add_argument(
        "--unsafe-code", action="store_true", help="run code that a model writes, where a task asks for it"
    )
    parser.add_argument("--replace", action="store_true", help="score again what a cell was scored on already")
    add_data_root(parser)
    add_local_paths(parser)
    add_json(parser)

    reproduce.add(group)

    group = command_line.group("keep and share")

    parser = group.add(merge, "merge", "Unite the result folders of several machines.", "server/results --newer")
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folder that holds studies")
    parser.add_argument("--into", type=Path, default=Path("results"), metavar="DIR", help="(default: results)")
    parser.add_argument(
        "--newer", action="store_true", help="of unequal records of a cell keep the last one that finished"
    )
    add_json(parser)

    parser = group.add(
        verify,
        "verify",
        "Check every record, its items and their hash. Exit status 1 if anything is wrong.",
        "--study quickstart",
    )
    add_study_name(parser)
    add_json(parser)

    parser = group.add(rm, "rm", "Remove a cell and all its files, so that a sweep runs it again.", "lora-r16")
    add_cells(parser, "cell")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_json(parser)


def status(options: argparse.Namespace) -> int:
    """Print which cells of one study or all are done, running, failed and left."""
    if options.watch and options.format == "json":
        raise UserError("--watch can't be combined with --format json.")
    if options.watch and options.wide:
        raise UserError("--watch can't be combined with --wide: it redraws what fits the terminal.")

    from harness import terminal
    from harness.studies.status import RecordCache, StudyStatus, study_status, view

    cache = RecordCache()

    def read() -> list[StudyStatus]:
        return [study_status(options.results_dir, name, cache) for name in begun_study_names(options)]

    def read_if_begun() -> list[StudyStatus]:
        try:
            return read()
        except UserError:  # it has not begun yet
            return []

    if options.watch:
        from harness.studies.watch import watch

        if options.study is not None:
            require_study_name(options.study, options.results_dir)
        studies = watch(read_if_begun)
    elif options.format == "json":
        studies = read()
        print_json([study.to_json() for study in studies])
    else:
        studies, console = read(), terminal.console(wide=options.wide)
        for study in studies:
            terminal.show(console, view(study, console.width))
    problems = [problem for study in studies for problem in study.problems]
    print_errors(problems)
    return int(bool(problems))


def logs(options: argparse.Namespace) -> int:
    """Print the log of a cell; with --follow, also the lines that are added to it."""
    if options.follow and options.format == "json":
        raise UserError("--follow can't be combined with --format json.")

    from harness.studies import logs

    cell = find_cell(options, options.cell)
    if not logs.is_log(cell.log):
        raise UserError(f"{cell} has no log: it has not run, or not on this machine.")
    if options.format == "json":
        text = cell.log.read_text(encoding="utf-8", errors="replace")
        print_json({"study": cell.study.name, "cell": cell.name, "log": text})
    elif options.follow:
        for line in logs.follow(cell):
            print(logs.shown(line), flush=True)
    else:
        for line in cell.log.read_text(encoding="utf-8", errors="replace").split("\n"):
            print(logs.shown(line))
    return 0


def retry(options: argparse.Namespace) -> int:
    """Run the failed cells of one study or all again; 1 if one did not end as ok or pruned."""
    if not options.failed:
        raise UserError("`retry` requires --failed: the cells that failed, diverged or ran out of memory.")

    from harness.studies.retry import changes, failed
    from harness.studies.retry import retry as run_again
    from harness.sweep.store import Study

    changed, local = changes(options.overrides), LocalPaths.absolute(options.vllm_python, options.include_path)
    studies = [Study(options.results_dir, name) for name in study_names(options)]
    requested = {study: broken for study in studies if (broken := failed(study))}
    if not requested:
        print("No cell failed.", file=sys.stderr)
    records = []
    for study, broken in requested.items():
        records += run_again(study, broken, options.data_root, changed, local)
    if options.format == "json":
        print_json([{"study": r.study, "cell": r.cell.name, "status": r.status, "seconds": r.seconds} for r in records])
    ended = [record for record in records if record.status in COMPLETE]
    return int(len(ended) < sum(map(len, requested.values())))


def score(options: argparse.Namespace) -> int:
    """Score recorded cells and their untuned base on further tasks; 1 if one was refused."""
    names = ("limit", "num_fewshot", "batch_size", "chat_template", "fewshot_as_multiturn", "system_instruction")
    settings = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.num_fewshot == TASKS_OWN:
        settings["num_fewshot"] = None
    settings |= {"unsafe_code": options.unsafe_code}

    from harness.studies import rescore

    planned = rescore.plan(options.results_dir, study_names(options), options.cells, options.tasks, options.replace)
    if planned.known:
        print(f"Scored already (--replace scores again): {', '.join(planned.known)}.", file=sys.stderr)
    text, local = options.format == "text", LocalPaths.absolute(options.vllm_python, options.include_path)
    tell = print if text else lambda line: None
    records = rescore.score(planned, settings, options.data_root, tell, local)
    if not text:
        print_json([{"study": study.name, "cell": r.cell.name, "tasks": r.rescored[-1].tasks} for study, r in records])
    print_errors(planned.refused)
    return int(bool(planned.refused))


def merge(options: argparse.Namespace) -> int:
    """Unite result folders; 1 if records contradict each other or are bad, and then nothing is written."""
    from harness.studies import unite

    plan = unite.plan_merge(options.folders, options.into, options.newer)
    written = not plan.conflicts and not plan.problems
    if written:
        unite.write(plan, options.into)
    if options.format == "json":
        print_json(unite.facts(plan, options.into, written))
    else:
        print("\n".join(unite.lines(plan, options.into, written)))
    print_errors(plan.problems)
    return int(not written)


def verify(options: argparse.Namespace) -> int:
    """Check the records of one study or all, and the files beside them; 1 if anything is wrong."""
    from harness.studies import verify

    names = study_names(options)
    checks = {name: verify.study(options.results_dir, name) for name in names}
    if options.format == "json":
        print_json(
            {
                name: {
                    "records": check.files,
                    "problems": check.problems,
                    "refused": check.refused,
                    "misplaced": check.misplaced,
                    "plan": check.notes,
                }
                for name, check in checks.items()
            }
        )
    else:
        for name, check in checks.items():
            problems = units.plural(len(check.problems), "problem") if check.problems else "no problems"
            print(f"{name}: {units.plural(check.files, 'record')}, {problems}")
            for sentence in (*check.refused, *check.misplaced, *check.notes):
                print(f"- {sentence}")
    print_errors([problem for check in checks.values() for problem in check.problems])
    return int(any(check.problems for check in checks.values()))


def rm(options: argparse.Namespace) -> int:
    """Remove a cell: its record, items and log, and its place among the cells left; 1 if the user declines."""
    cell = find_cell(options, options.cell)
    names = {path: _named(path) for path in cell.study.files(cell.name)}
    if not options.yes:
        if not sys.stdin.isatty():
            raise UserError(f"{cell} is not removed: without a terminal to ask at, `rm` requires --yes.")
        question = f"Remove {cell} ({', '.join(names.values()) or 'planned, not run'})? [y/N] "
        print(question, end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return 1
    if cell.study.is_running(cell.name):
        raise UserError(f"{cell} is running; stop its sweep first.")
    gone = cell.study.remove(cell.name)
    if options.format == "json":
        print_json({"study": cell.study.name, "cell": cell.name, "removed": [path.name for path in gone]})
    else:
        listing = ", ".join(names.get(path, path.name) for path in gone)
        print(f"{cell} is removed: {listing or 'it was planned, not run'}.")
    if _is_preregistered(cell.study, cell.name):
        print(
            f"{record.PLAN} is never changed and still has this cell: until a sweep runs it, verdicts of the study are "
            "interim. To compare without it, take another study (study=NAME).",
            file=sys.stderr,
        )
    return 0


def _is_preregistered(study: Study, name: str) -> bool:
    """Whether a plan of the study's asks for the cell `name`. Of a damaged plan `verify` tells."""
    with contextlib.suppress(UserError):
        return any(name in part.cells for plan in record.read_plans(study.folder) for part in plan.methods)
    return False


def _named(path: Path) -> str:
    """The name of a file that `rm` removes; of a link also what it leaves."""
    return f"{path.name} (a link; {path.readlink()} is left as it is)" if path.is_symlink() else path.name
