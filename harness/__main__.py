"""python -m harness COMMAND: the command line. Thin: each command's work is done in the room it belongs to."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError, about_file, one_of
from harness.record import STUDY_NAME, Record, RecordError, read, read_study, studies

if TYPE_CHECKING:
    from harness.report.table import Table
    from harness.studies.find import Found

HELP = """\
usage: python -m harness COMMAND [...]

  run method=dora rank=16 lr=1e-4        run one cell
  sweep NAME [overrides]                 run a named grid from sweeps/
  sweep method=lora,dora rank=8,16       run an ad-hoc grid
  sweep --fit [--budget 24GB] ...        leave out cells that would not fit (into the card that is here)
  sweep --budget 5USD ...                refuse what models behind an API would cost beyond that
  plan NAME|... [--budget 24GB] [--device cuda] [--throughput N]
                                         predict a grid's memory, FLOPs and time; launches and downloads nothing
  table [--study NAME] [--columns IDS | --article] [--format md|csv|html|latex] [--out FILE]
                                         render the comparison from the records
  claims [--study NAME] [--format md|csv|html|latex] [--out FILE]
                                         the verdicts that the records give on the article's claims
  report [--study NAME] [--out FILE]     the whole comparison as one HTML page that loads nothing
  figures [--study NAME] [--out DIR]     draw the comparison, each figure as PNG and as SVG
  power --effect 0.02 --seeds 3 [--study NAME]
                                         how many items and seeds it takes to tell two methods apart
  forgetting [STUDY] [--cells] [--items N] [--figure FILE] [--format md|csv|html|latex|json]
                                         what base had right and tuning lost, by subject, item by item
  lint [--study NAME]                    what makes the cells of a study hard to compare
  merge DIR... [--into DIR] [--newer] [--format text|json]
                                         unite the result folders of several machines
  verify [--study NAME] [--format text|json]
                                         check every record, its items and their hash
  status [--study NAME] [--watch]        what is done, running, failed, left; --watch redraws it as it changes
  logs CELL [--follow]                   what a cell printed; CELL is a name or an id, the beginning of one, STUDY/CELL
  diff CELL CELL                         what differs between two cells: settings, environment, results
  score STUDY|CELL... --tasks a,b [--limit N] [--num-fewshot N] [--replace]
                                         score cells on further tasks by their saved weights, without training
  push CELL REPO [--public]              upload a cell's saved weights and their card to the hub
  retry --failed [--data-root DIR] [timeout=S] [train.save_every=N] [retry.on_oom=true]
                                         run again what failed, diverged or ran out of memory
  rm CELL [--yes]                        remove all that there is of a cell; asks first
  ask PROMPT... [--prompts FILE] [--cells A,B] [--api NAMES --base-url URL] [--judge NAME] [--out FILE]
                                         answers of base, tuned cells and API models side by side
  synthesize --source FILE|DATA --n 500 --base-url URL --model NAME
                                         have a model write training problems; checks them, drops what is no use
  import peft|lm-eval PATH [--study NAME]
                                         turn what others measured into records of a study of their own
  doctor [--data-root DIR]               what is here to run with, and what to do about what is not

`run`, `sweep` and `plan` are Hydra apps: `run --help` lists their settings, `run --cfg job` shows them resolved.
`COMMAND --help` explains the others. `status`, `logs`, `diff`, `retry` and `rm` have `--format json` for scripts.
"""


def main(arguments: list[str]) -> int:
    """Run a command; returns the exit status: 0, 1 (a cell failed or a record is bad), 2 (bad input), 130 (Ctrl-C)."""
    command, *rest = arguments or ["--help"]
    try:
        if command in ("run", "sweep", "plan"):
            from harness.sweep import app

            return app.main(command, rest)
        if command in COMMANDS:
            return COMMANDS[command](rest)
        if command in ("--help", "-h", "help"):
            print(HELP, end="")
            return 0
        raise UserError(f"There is no command {command!r}; `python -m harness --help` lists them.")
    except (UserError, RecordError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. What was finished is recorded; the same command goes on from there.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader (head, less) has gone; there is nobody to tell
        return 1
    except OSError as error:
        if error.filename is None:
            raise  # not about a file of the user's
        print(f"error: {about_file(error)}", file=sys.stderr)
        return 2


def table(arguments: list[str]) -> int:
    """Render the tables of one study or of all; a bad record is named and the good ones are rendered."""
    parser = _table_parser("table", "Render the comparison table of a study from its records.")
    parser.add_argument(
        "--columns",
        type=_listed,
        metavar="IDS",
        help="show these columns in this order, such as method,setting,kinds,decode; `all` shows every one that has a "
        "value, an unknown one lists them",
    )
    parser.add_argument("--article", action="store_true", help="the article's table instead, measured")
    options = parser.parse_args(arguments)
    if options.columns and options.article:
        raise UserError("--columns can't be combined with --article, whose columns are the article's; leave one out.")
    if options.columns and options.format == "csv":
        raise UserError("--columns can't be combined with --format csv, which always has every number; leave one out.")

    if options.article:
        from harness.articles.beyond_lora.table import article

        return _render(options, lambda records, folder: [article(records, folder)])

    from harness.report.best import tables

    return _render(options, lambda records, folder: tables(records, folder, options.columns))


def claims(arguments: list[str]) -> int:
    """Render the verdicts of one study or of all on the article's claims."""
    parser = _table_parser("claims", "Say what the records of a study make of the article's claims.")
    options = parser.parse_args(arguments)

    from harness.articles.beyond_lora.claims import table, verdicts

    return _render(options, lambda records, folder: [table(verdicts(records, folder))])


def report(arguments: list[str]) -> int:
    """Write the report of a study; a bad record is named, also on the page, and the good ones are reported on."""
    parser = _parser("report", "Write a study's report: one HTML page.", "which study (default: the one that is there)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there instead of to standard output")
    options = parser.parse_args(arguments)
    names = _studies(options)
    if len(names) > 1:
        raise UserError(f"A report is of one study; name it with --study. There are {', '.join(names)}.")

    from harness import env
    from harness.report import page

    folder = options.results_dir / names[0]
    records, problems = read_study(folder)
    _complain(problems)
    if not records:
        raise UserError(f"There are no records to report on in {folder}; run a sweep first.")
    where = ["--study", names[0]]
    if options.results_dir != parser.get_default("results_dir"):
        where += ["--results-dir", str(options.results_dir)]
    command = shlex.join(["python", "-m", "harness", "report", *arguments])
    _write(options, page.render(records, folder, problems, shlex.join(where), command, env.made_with()))
    return int(bool(problems))


def figures(arguments: list[str]) -> int:
    """Draw what there is to draw of one study or all."""
    parser = _parser("figures", "Draw the comparison of a study from its records, each figure as PNG and as SVG.")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write to DIR/STUDY (default: STUDY's own folder/figures)"
    )
    options = parser.parse_args(arguments)

    from harness.report.figures import FIGURES, save

    problems: list[str] = []
    for name in _studies(options):
        folder = options.results_dir / name
        records, bad = read_study(folder)
        problems += bad
        out = options.out / name if options.out else folder / "figures"
        drawn = save(records, folder, out) if records else []
        without = [figure for figure in FIGURES if figure not in drawn]
        print(f"{out}: {', '.join(drawn) or 'nothing'}" + (f"; no records for {', '.join(without)}" if without else ""))
    _complain(problems)
    return int(bool(problems))


def power(arguments: list[str]) -> int:
    """Say how many items and seeds a difference takes, by assumptions or by what a study measured."""
    does = "Say how many items and seeds it takes to tell two methods apart by their accuracy."
    parser = _parser("power", does, "measure what the noise is made of on this study, instead of assuming it")
    parser.add_argument("--effect", type=float, required=True, metavar="SHARE", help="0.02 is 2 points of accuracy")
    parser.add_argument("--seeds", type=int, required=True, metavar="N")
    options = parser.parse_args(arguments)
    if not 0 < options.effect < 1 or options.seeds < 1:
        raise UserError("--effect must lie between 0 and 1 (0.02 is 2 points), and --seeds be 1 or more.")

    from harness.report.power import Assumptions, assumptions, describe

    given, said, problems = Assumptions(), [], []
    if options.study:
        (name,) = _studies(options)
        records, problems = read_study(options.results_dir / name)
        given, said = assumptions(records, options.results_dir / name)
    sys.stdout.write(describe(options.effect, options.seeds, given, said))
    _complain(problems)
    return int(bool(problems))


def forgetting(arguments: list[str]) -> int:
    """Say of one study or all which items tuning lost and won against the untuned base."""
    does = "Show which items the untuned base had right and tuned models lost, and which they won, with the answers."
    parser = _table_parser("forgetting", does, "json")
    parser.add_argument("name", nargs="?", metavar="STUDY", help="the same as --study STUDY")
    parser.add_argument("--cells", action="store_true", help="every cell by itself, not each method's chosen setting")
    parser.add_argument("--items", type=int, default=3, metavar="N", help="lost and won of each method (default: 3)")
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw it too, as PNG or SVG by the name's ending")
    options = parser.parse_args(arguments)
    options.study = options.name or options.study
    if options.items < 0:
        raise UserError("--items must be 0 or more.")
    if options.figure and options.figure.suffix not in (".png", ".svg"):
        raise UserError(f"--figure {options.figure} is neither a .png nor an .svg; name it so.")
    names = _studies(options)
    if options.figure and len(names) > 1:
        raise UserError(f"A figure is of one study; name it. There are {', '.join(names)}.")

    from harness.report import forgetting as compare

    found, problems = {}, []
    for name in names:
        records, bad = read_study(options.results_dir / name)
        problems += bad
        if records:
            found[name] = compare.forgetting(records, options.results_dir / name, options.cells)
    _complain(problems)
    if not found:
        raise UserError(f"There are no records to compare in {options.results_dir}; run a sweep first.")
    if options.format == "json":
        _write(options, json.dumps({name: compare.to_json(of_it) for name, of_it in found.items()}, indent=1) + "\n")
    else:
        from harness.report.table import document

        tables = [table for name, of_it in found.items() for table in compare.tables(of_it, name, options.items)]
        _write(options, document(tables, options.format))
    if options.figure:
        from harness.report.figures import lost_won

        (of_it,) = found.values()
        drawn = lost_won(of_it)
        if drawn is None:
            raise UserError("There is nothing to draw: no cell could be compared with its base.")
        options.figure.parent.mkdir(parents=True, exist_ok=True)
        options.figure.write_bytes(drawn.png() if options.figure.suffix == ".png" else drawn.svg().encode())
    return int(bool(problems))


def lint(arguments: list[str]) -> int:
    """Say of one study or all what makes their cells hard to compare; 1 if anything does, or a record is bad."""
    parser = _parser("lint", "Say what makes the cells of a study hard to compare. Exit status 1 if anything does.")
    options = parser.parse_args(arguments)

    from harness.report.lint import findings

    problems: list[str] = []
    told = 0
    for name in _studies(options):
        records, bad = read_study(options.results_dir / name)
        problems += bad
        found = findings(records)
        told += len(found)
        if records:
            print(f"{name}: {len(found) or 'no'} finding{'s' if len(found) != 1 else ''} on {len(records)} cells")
        for finding in found:
            print(f"- {finding.sentence}")
    _complain(problems)
    return int(bool(told or problems))


def status(arguments: list[str]) -> int:
    """Say of one study or all what is done, running, failed and left."""
    parser = _cell_parser("status", "Show what is done, running, failed and left, and how long that will take.")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="draw it anew every 2 s until all is done or Ctrl-C; not on a terminal, print a line for each change",
    )
    options = parser.parse_args(arguments)
    if options.watch and options.format == "json":
        raise UserError("--watch can't be combined with --format json: a script asks as often as it likes.")

    from harness.studies.status import Reader, lines, look

    reader = Reader()

    def standings():
        return [look(options.results_dir, name, reader) for name in _studies(options, begun=True)]

    if options.watch:
        from harness.studies.watch import watch

        found = watch(standings)
    elif options.format == "json":
        found = standings()
        _print_json([standing.to_json() for standing in found])
    else:
        found = standings()
        print("\n".join(line for standing in found for line in lines(standing)))
    problems = [problem for standing in found for problem in standing.problems]
    _complain(problems)
    return int(bool(problems))


def merge(arguments: list[str]) -> int:
    """Unite result folders, if nothing speaks against it; 1 if something does, and then nothing is written."""
    parser = _Parser(
        prog="python -m harness merge",
        description="Unite the result folders of several machines: records, items, logs.",
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="a folder that holds studies")
    parser.add_argument("--into", type=Path, default=Path("results"), metavar="DIR", help="(default: results)")
    parser.add_argument(
        "--newer", action="store_true", help="of unequal records of a cell keep the one that began last"
    )
    parser.add_argument("--format", default="text", choices=["text", "json"])
    options = parser.parse_args(arguments)

    from harness.studies import unite as merge

    made = merge.plan(options.folders, options.into, options.newer)
    written = not made.conflicts and not made.problems
    if written:
        merge.write(made, options.into)
    if options.format == "json":
        print(json.dumps(merge.facts(made, options.into, written), indent=1))
    else:
        print("\n".join(merge.lines(made, options.into, written)))
    _complain(made.problems)
    return int(not written)


def verify(arguments: list[str]) -> int:
    """Check the records of one study or all, and what lies beside them; 1 if anything is wrong."""
    parser = _parser("verify", "Check every record, its items and their hash. Exit status 1 if anything is wrong.")
    parser.add_argument("--format", default="text", choices=["text", "json"])
    options = parser.parse_args(arguments)

    from harness.studies import verify

    found = {name: verify.study(options.results_dir, name) for name in _studies(options)}
    if options.format == "json":
        print(json.dumps({name: {"records": n, "problems": bad} for name, (n, bad) in found.items()}, indent=1))
    else:
        for name, (n, bad) in found.items():
            print(f"{name}: {n} records, {len(bad) or 'no'} problem{'s' if len(bad) != 1 else ''}")
    _complain([problem for _, bad in found.values() for problem in bad])
    return int(any(bad for _, bad in found.values()))


def logs(arguments: list[str]) -> int:
    """Print the log of a cell, and with --follow what comes to it."""
    parser = _cell_parser("logs", "Print all that a cell and its libraries printed.", "cell")
    parser.add_argument("--follow", action="store_true", help="go on as long as the cell runs")
    options = parser.parse_args(arguments)
    if options.follow and options.format == "json":
        raise UserError("--follow can't be combined with --format json, which is whole; leave one out.")

    from harness.studies import logs

    found = _find(options, options.cell)
    if not found.log.is_file():
        raise UserError(f"{found} has no log: it was not run here, or not yet.")
    if options.format == "json":
        text = found.log.read_text(encoding="utf-8", errors="replace")
        _print_json({"study": found.study.name, "cell": found.name, "log": text})
    elif options.follow:
        for line in logs.follow(found):
            print(logs.shown(line), flush=True)
    else:
        for line in found.log.read_text(encoding="utf-8", errors="replace").split("\n"):
            print(logs.shown(line))
    return 0


def diff(arguments: list[str]) -> int:
    """Say what differs between two cells."""
    does = "Show what differs between two cells: in their settings, in where they ran, and in what came of them."
    options = _cell_parser("diff", does, "a", "b").parse_args(arguments)

    from harness.report.diff import difference, text

    cells = [_find(options, options.a), _find(options, options.b)]
    for found in cells:
        if not found.record.is_file():
            raise UserError(f"{found} has no record yet; there is nothing to compare.")
    a, b = (read(found.record) for found in cells)
    differs = difference(a, b, (str(cells[0]), str(cells[1])))
    if options.format == "json":
        _print_json(dataclasses.asdict(differs))
    else:
        sys.stdout.write(text(differs))
    return 0


def score(arguments: list[str]) -> int:
    """Score recorded cells, and the untuned ones beside them, on further tasks; 1 if one could not be."""
    does = "Score cells on further tasks by their saved weights, and the untuned models that they are compared with."
    parser = _parser("score", does)
    parser.add_argument("cells", nargs="+", metavar="STUDY|CELL", help="all cells of a study, or one as CELL elsewhere")
    parser.add_argument("--tasks", required=True, type=_listed, metavar="NAMES", help="lm-eval's, such as mmlu,gsm8k")
    parser.add_argument("--limit", type=_positive, metavar="N", help="a seeded sample of N items a task (default: all)")
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="examples before a question (default: the task's)")
    parser.add_argument("--batch-size", type=_positive, metavar="N", help="(default: as the cell was scored with)")
    parser.add_argument("--chat-template", action="store_true", help="put questions in the tokenizer's template")
    parser.add_argument("--fewshot-as-multiturn", action="store_true", help="and each example as a message of its own")
    parser.add_argument("--system-instruction", metavar="TEXT", help="said before every question")
    parser.add_argument("--unsafe-code", action="store_true", help="run what a model writes, where a task does that")
    parser.add_argument("--replace", action="store_true", help="score again what a cell was scored on already")
    parser.add_argument("--data-root", metavar="DIR", help="the folder that holds hub data sets by their names")
    parser.add_argument("--format", default="text", choices=["text", "json"])
    options = parser.parse_args(arguments)
    if options.fewshot_as_multiturn and not options.chat_template:
        raise UserError("--fewshot-as-multiturn can't be without a conversation: add --chat-template.")
    settings = {"limit": options.limit, "num_fewshot": options.num_fewshot}
    given = ("batch_size", "chat_template", "fewshot_as_multiturn", "system_instruction", "unsafe_code")
    settings |= {name: value for name in given if (value := getattr(options, name))}

    from harness.studies import rescore

    names = _studies(options)
    asked = rescore.plan(options.results_dir, names, options.cells, options.tasks, options.replace)
    if asked.known:
        print(f"Scored already, --replace scores them again: {', '.join(asked.known)}.", file=sys.stderr)
    text = options.format == "text"
    done = rescore.score(asked, settings, options.data_root, print if text else lambda line: None)
    if not text:
        _print_json([{"study": study.name, "cell": r.cell.name, "tasks": r.rescored[-1].tasks} for study, r in done])
    _complain(asked.refused)
    return int(bool(asked.refused))


def push(arguments: list[str]) -> int:
    """Upload the saved weights of a cell to the hub."""
    parser = _cell_parser("push", "Upload a cell's saved weights and their card to the hub.", "cell")
    parser.add_argument("repo", metavar="REPO", help="OWNER/NAME; made, and private, if it is not there")
    parser.add_argument("--public", action="store_true", help="make a new repository public")
    options = parser.parse_args(arguments)

    from harness.studies.push import push as upload

    found = _find(options, options.cell)
    url = upload(found, options.repo, options.public)
    if options.format == "json":
        _print_json({"study": found.study.name, "cell": found.name, "url": url})
    else:
        print(url)
    return 0


def retry(arguments: list[str]) -> int:
    """Run again the cells of one study or all that broke; 1 if one did not end as ok."""
    parser = _cell_parser("retry", "Run cells again from their records, without the command that asked for them.")
    parser.add_argument("--failed", action="store_true", help="those that failed, diverged or ran out of memory")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="timeout, train.save_every or retry.on_oom, where it is to be another than the cells ran with",
    )
    parser.add_argument("--data-root", metavar="DIR", help="the folder that holds hub data sets by their names")
    options = parser.parse_intermixed_args(arguments)
    if not options.failed:
        raise UserError("Say which cells: `retry --failed` runs those that failed, diverged or ran out of memory.")

    from harness.studies.retry import changes, failed
    from harness.studies.retry import retry as run_again
    from harness.sweep.store import Study

    changed = changes(options.overrides)
    studies = [Study(options.results_dir, name) for name in _studies(options)]
    asked = {study: broken for study in studies if (broken := failed(study))}
    if not asked:
        print("No cell failed.", file=sys.stderr)
    done = []
    for study, broken in asked.items():
        done += run_again(study, broken, options.data_root, changed)
    if options.format == "json":
        _print_json([{"study": r.study, "cell": r.cell.name, "status": r.status, "seconds": r.seconds} for r in done])
    return int(len(done) < sum(map(len, asked.values())) or any(record.status != "ok" for record in done))


def rm(arguments: list[str]) -> int:
    """Remove a cell: its record, items and log, and its place in the plan; 1 if that was declined."""
    parser = _cell_parser("rm", "Remove all that there is of a cell, so that a sweep runs it anew.", "cell")
    parser.add_argument("--yes", action="store_true", help="don't ask")
    options = parser.parse_args(arguments)
    found = _find(options, options.cell)
    names = [path.name for path in found.study.files(found.name)]
    if not options.yes:
        if not sys.stdin.isatty():
            raise UserError(f"{found} is not removed: there is no terminal to ask at; --yes removes it unasked.")
        question = f"Remove {found} ({', '.join(names) or 'planned, not run'})? [y/N] "
        print(question, end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return 1
    if found.name in found.study.running():
        raise UserError(f"{found} is running; stop its sweep first.")
    gone = [path.name for path in found.study.remove(found.name)]
    if options.format == "json":
        _print_json({"study": found.study.name, "cell": found.name, "removed": gone})
    else:
        print(f"{found} is removed: {', '.join(gone) or 'it was planned, and not run'}.")
    return 0


def ask(arguments: list[str]) -> int:
    """Show the answers of untuned, tuned and API models to the same prompts side by side."""
    parser = _Parser(
        prog="python -m harness ask",
        description="Put prompts to the untuned model, to tuned cells whose weights were saved (save=adapter or "
        "save=merged), and to models behind an API. Keys are taken from OPENAI_API_KEY in the environment.",
    )
    parser.add_argument("prompt", nargs="*", metavar="PROMPT")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="one a line, or .jsonl with prompt or question")
    parser.add_argument("--study", metavar="NAME", help="whose cells are asked (default: those of every study)")
    parser.add_argument("--cells", type=_listed, default=[], metavar="A,B", help="(default: all that left weights)")
    parser.add_argument("--as-typed", action="store_true", help="don't put prompts as the cells' data puts questions")
    parser.add_argument("--api", type=_listed, default=[], metavar="NAMES", help="models at --base-url to be asked too")
    parser.add_argument("--base-url", metavar="URL", help="OpenAI-compatible, such as http://localhost:8000/v1")
    parser.add_argument(
        "--judge", metavar="NAME", help="a model that compares each answer with the first model's, blindly"
    )
    parser.add_argument("--judge-url", metavar="URL", help="where it is (default: --base-url)")
    parser.add_argument("--tokens", type=_positive, default=256, metavar="N", help="of an answer (default: 256)")
    parser.add_argument(
        "--concurrency", type=_positive, default=8, metavar="N", help="API questions at a time (default: 8)"
    )
    parser.add_argument("--timeout", type=float, default=60, metavar="S", help="seconds for an answer (default: 60)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write an HTML page too")
    parser.add_argument("--format", default="text", choices=["text", "json"])
    parser.add_argument("--results-dir", type=Path, default=Path("results"), metavar="DIR")
    options = parser.parse_args(arguments)
    judge_url = options.judge_url or options.base_url
    if (options.api and not options.base_url) or (options.judge and not judge_url):
        raise UserError("Say where the models behind an API are: --base-url http://localhost:8000/v1, for example.")
    if not options.timeout > 0:
        raise UserError("--timeout must be positive.")

    from harness.studies import ask as asking

    prompts = asking.prompts(options.prompt, options.prompts)
    local = not options.api or options.study or options.cells
    studies = _studies(options, begun=True) if local else []
    cells = asking.tuned(options.results_dir, studies, options.cells)
    if local and not cells:
        raise UserError(
            f"No cell in {options.results_dir} left weights to ask; run one with save=adapter or save=merged."
        )
    if options.judge and len(cells) + len(options.api) < 1 + (not cells):
        raise UserError("A judge needs two models to compare; name more with --cells or --api.")
    found = asking.ask(
        cells,
        options.as_typed,
        lambda event: print(f"Asking {event['asking']} …", file=sys.stderr) if "asking" in event else None,
        prompts=prompts,
        api=options.api,
        base_url=options.base_url,
        judge=options.judge,
        judge_url=judge_url,
        tokens=options.tokens,
        concurrency=options.concurrency,
        timeout=options.timeout,
    ) | {"prompts": prompts}
    if options.format == "json":
        _print_json(found)
    else:
        from harness.report import side_by_side

        sys.stdout.write(side_by_side.text(found, shutil.get_terminal_size((120, 0)).columns, sys.stdout.isatty()))
    if options.out:
        from harness.report import side_by_side

        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(side_by_side.page(found), encoding="utf-8")
    return 0


def synthesize(arguments: list[str]) -> int:
    """Have a model behind an API write training problems; 1 if there are fewer than were asked for."""
    parser = _Parser(
        prog="python -m harness synthesize",
        description="Have a model behind an API write problems in the schema of the training data. What is malformed, "
        "wrongly worked out, too much like another or in the evaluation is rejected. The same command goes on where "
        "it stopped. The key is taken from OPENAI_API_KEY in the environment.",
    )
    parser.add_argument(
        "--source", required=True, metavar="FILE|DATA", help="problems to begin from: JSON lines, or data="
    )
    parser.add_argument("--n", type=_positive, required=True, metavar="N", help="problems wanted")
    parser.add_argument(
        "--base-url", required=True, metavar="URL", help="OpenAI-compatible, such as http://localhost:8000/v1"
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="as the endpoint calls it")
    parser.add_argument(
        "--kinds", type=_listed, default="paraphrase,harder,new", metavar="LIST", help="(default: all three)"
    )
    parser.add_argument("--eval", type=_listed, metavar="TASKS", help="kept out (default: the data set's own); or none")
    parser.add_argument("--most", type=_positive, metavar="N", help="questions to ask at most (default: 3 × --n)")
    parser.add_argument(
        "--out", type=Path, default=Path("synthetic.jsonl"), metavar="FILE", help="(default: synthetic.jsonl)"
    )
    parser.add_argument(
        "--concurrency", type=_positive, default=8, metavar="N", help="questions at a time (default: 8)"
    )
    parser.add_argument("--timeout", type=float, default=60, metavar="S", help="seconds for an answer (default: 60)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of which problems are shown (default: 0)")
    parser.add_argument("--data-root", metavar="DIR", help="the folder that holds hub data sets by their names")
    parser.add_argument("--format", default="text", choices=["text", "json"])
    options = parser.parse_args(arguments)
    for kind in options.kinds:
        one_of("--kinds", kind, ["paraphrase", "harder", "new"])
    if not options.timeout > 0:
        raise UserError("--timeout must be positive.")

    from harness.studies import synthesize as synthesis

    summary = synthesis.synthesize(
        options.source,
        [] if options.eval == ["none"] else options.eval,
        options.data_root,
        options.out,
        options.n,
        most=options.most or 3 * options.n,
        kinds=options.kinds,
        seed=options.seed,
        base_url=options.base_url,
        model=options.model,
        concurrency=options.concurrency,
        timeout=options.timeout,
    )
    if options.format == "json":
        _print_json(summary)
    else:
        print("\n".join(synthesis.lines(summary, options.out)))
    return int(summary["kept"] < options.n)


def import_(arguments: list[str]) -> int:
    """Make records of another project's result files: of all of them, or of none if one is bad."""
    parser = _Parser(
        prog="python -m harness import",
        description="Turn result files of peft's method comparison, or of lm-eval, into records of a study.",
    )
    parser.add_argument("project", choices=["peft", "lm-eval"], help="whose files they are")
    parser.add_argument("path", type=Path, metavar="PATH", help="a result file, or a folder that holds some")
    parser.add_argument("--study", metavar="NAME", help="where the records go (default: the project's name)")
    parser.add_argument("--results-dir", type=Path, default=Path("results"), metavar="DIR")
    options = parser.parse_args(arguments)
    name = options.study or options.project
    if not STUDY_NAME.fullmatch(name):
        raise UserError(f"--study {name} can't name a folder below {options.results_dir}.")

    from harness.report import importers

    summary = importers.store(importers.collect(options.project, options.path, name), options.results_dir / name)
    counts = {"new": summary.new, "changed": summary.changed, "unchanged": summary.unchanged}
    print(f"{options.results_dir / name}: {', '.join(f'{len(names)} {of}' for of, names in counts.items())} records.")
    for path in summary.older:
        print(f"{path} was left out: there is a later result of the same settings.")
    return 0


def doctor(arguments: list[str]) -> int:
    """Say what there is on this machine; 1 if not even the embedded default can run."""
    parser = _Parser(prog="python -m harness doctor", description="Show what is here to run with. Downloads nothing.")
    parser.add_argument("--data-root", metavar="DIR", help="the folder that holds hub data sets by their names")
    parser.add_argument("--results-dir", type=Path, default=Path("results"), metavar="DIR")
    options = parser.parse_args(arguments)

    from harness.studies import doctor as look

    facts = look.examine(options.results_dir, options.data_root)
    print("\n".join(look.lines(facts)))
    return int(look.obstacle(facts) is not None)


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} can't be: it must be a whole number, 1 or more")
    return int(text)


def _table_parser(command: str, description: str, *formats: str) -> argparse.ArgumentParser:
    """A parser of a command that renders tables; `formats`: what it renders beside those of every table."""
    parser = _parser(command, description)
    parser.add_argument("--format", default="md", choices=["md", "csv", "html", "latex", *formats])
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there instead of to standard output")
    return parser


def _render(options: argparse.Namespace, tables: Callable[[list[Record], Path], list[Table]]) -> int:
    """Write the tables of the studies asked for, in the format asked for; 1 if a record is bad."""
    from harness.report.table import document

    found, problems = [], []
    gc.disable()  # all that is read is kept to the end: to look through it for garbage takes a third of the time
    try:
        for name in _studies(options):
            folder = options.results_dir / name
            records, bad = read_study(folder)
            problems += bad
            if records:
                found += tables(records, folder)
    finally:
        gc.enable()
    _complain(problems)
    if not found:
        raise UserError(f"There are no records to render in {options.results_dir}; run a sweep first.")
    _write(options, document(found, options.format))
    return int(bool(problems))


def _write(options: argparse.Namespace, text: str) -> None:
    """Write `text` to --out, or to standard output."""
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, where argparse would print its usage before it."""

    def error(self, message: str):
        raise UserError(f"{message}; `{self.prog} --help` lists the options.")


def _parser(
    command: str, description: str, study: str = "a study below the results folder (default: every one)"
) -> argparse.ArgumentParser:
    parser = _Parser(prog=f"python -m harness {command}", description=description)
    parser.add_argument("--study", metavar="NAME", help=study)
    parser.add_argument("--results-dir", type=Path, default=Path("results"), metavar="DIR")
    return parser


def _cell_parser(command: str, description: str, *cells: str) -> argparse.ArgumentParser:
    """A parser of a command on the cells of studies, which are its arguments `cells`, and of what scripts can read."""
    parser = _parser(command, description)
    for cell in cells:
        parser.add_argument(cell, metavar="CELL", help="a name or an id, the beginning of one, or STUDY/CELL")
    parser.add_argument("--format", default="text", choices=["text", "json"])
    return parser


def _find(options: argparse.Namespace, cell: str) -> Found:
    from harness.studies.find import find

    return find(options.results_dir, _studies(options, begun=True), cell)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def _studies(options: argparse.Namespace, begun: bool = False) -> list[str]:
    """The studies asked for, also those that have merely `begun`; UserError if there is none."""
    results, name = options.results_dir, options.study
    if name is not None and not STUDY_NAME.fullmatch(name):
        raise UserError(f"--study {name} can't name a folder below {results}.")
    if not results.is_dir():
        raise UserError(f"There is no results folder {results}; run a sweep first, or name one with --results-dir.")
    if begun:
        from harness.sweep import store

        found = store.begun(results)
    else:
        found = studies(results)
    if name is not None and not (results / name).is_dir():
        there = f"there is: {', '.join(found)}" if found else "there is none yet"
        raise UserError(f"There is no study {name} in {results}; {there}.")
    if name is None and not found:
        raise UserError(f"There are no records in {results}; run a sweep first.")
    return found if name is None else [name]


def _complain(problems: list[str]) -> None:
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "table": table,
    "claims": claims,
    "report": report,
    "figures": figures,
    "power": power,
    "forgetting": forgetting,
    "lint": lint,
    "merge": merge,
    "verify": verify,
    "status": status,
    "logs": logs,
    "diff": diff,
    "score": score,
    "push": push,
    "retry": retry,
    "rm": rm,
    "ask": ask,
    "synthesize": synthesize,
    "import": import_,
    "doctor": doctor,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
