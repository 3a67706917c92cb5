"""Commands that ask models: answers side by side, and new training problems."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from pathlib import Path

from harness.cli.output import begun_study_names, print_errors, print_json, study_names
from harness.cli.parser import CommandLine, Parser, add_data_root, add_json, add_study, comma_separated, positive
from harness.errors import UserError, one_of, require_positive
from harness.settings import HELD_OUT

KINDS = ("paraphrase", "harder", "new")
URL = "OpenAI-compatible endpoint, such as http://localhost:8000/v1; its key is read from OPENAI_API_KEY"
JUDGE_URL = "endpoint of the judge (default: --base-url); on another server, its key is read from JUDGE_API_KEY"


def add(command_line: CommandLine) -> None:
    group = command_line.group("ask models")

    parser = group.add(
        ask,
        "ask",
        "Compare answers of base, tuned cells and models behind an API.",
        '"A box has 3 rows of 4 pens. How many pens?" --study quickstart',
    )
    parser.add_argument("prompt", nargs="*", metavar="PROMPT")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="one a line, or .jsonl with prompt or question")
    add_study(parser)
    parser.add_argument("--cells", type=comma_separated, default=[], metavar="A,B", help="(default: all with weights)")
    parser.add_argument("--as-typed", action="store_true", help="do not use the prompt template of the cell's data")
    parser.add_argument("--api", type=comma_separated, default=[], metavar="NAMES", help="models at --base-url")
    parser.add_argument("--base-url", metavar="URL", help=URL)
    parser.add_argument(
        "--judge", metavar="NAME", help="model that compares each answer with the first model's, blindly"
    )
    parser.add_argument("--judge-url", metavar="URL", help=JUDGE_URL)
    parser.add_argument("--tokens", type=positive, default=256, metavar="N", help="tokens of an answer (default: 256)")
    _add_requests(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write an HTML page too")
    add_json(parser)

    parser = group.add(
        judge,
        "judge",
        "Let a model behind an API compare recorded answers. It sees each pair in both orders, and not whose they are. "
        "The share that a cell wins against the untuned base becomes a score of its record. The same command resumes.",
        "mine --judge NAME --base-url http://localhost:8000/v1",
    )
    parser.add_argument("cells", nargs="+", metavar="STUDY|CELL", help="all cells of a study, or one cell")
    add_study(parser)
    parser.add_argument("--judge", required=True, metavar="NAME", help="model name at the endpoint")
    parser.add_argument("--base-url", required=True, metavar="URL", help=URL)
    parser.add_argument("--task", default=HELD_OUT, metavar="NAME", help=f"task with answers (default: {HELD_OUT})")
    parser.add_argument("--against", metavar="CELL", help="whose answers the others are compared with (default: base)")
    parser.add_argument("--replace", action="store_true", help="judge again what was judged already")
    _add_requests(parser)
    add_json(parser)

    parser = group.add(
        synthesize,
        "synthesize",
        "Let a model behind an API write training problems. Malformed, wrong, duplicate and contaminated ones are "
        "rejected. The same command resumes.",
        "--source wordmath_short --n 500 --base-url http://localhost:8000/v1 --model NAME",
    )
    parser.add_argument(
        "--source", required=True, metavar="FILE|DATA", help="problems to start from: a .jsonl file or a data= choice"
    )
    parser.add_argument("--n", type=positive, required=True, metavar="N", help="problems wanted")
    parser.add_argument("--base-url", required=True, metavar="URL", help=URL)
    parser.add_argument("--model", required=True, metavar="NAME", help="model name at the endpoint")
    parser.add_argument(
        "--kinds", type=comma_separated, default=",".join(KINDS), metavar="LIST", help=f"(default: {','.join(KINDS)})"
    )
    parser.add_argument(
        "--eval", type=comma_separated, metavar="TASKS", help="tasks kept out, or none (default: the data's own)"
    )
    parser.add_argument("--most", type=positive, metavar="N", help="maximum number of requests (default: 3 × --n)")
    parser.add_argument(
        "--out", type=Path, default=Path("synthetic.jsonl"), metavar="FILE", help="(default: synthetic.jsonl)"
    )
    _add_requests(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the problems shown (default: 0)")
    add_data_root(parser)
    add_json(parser)


def ask(options: argparse.Namespace) -> int:
    """Print the answers of untuned, tuned and API models to the same prompts side by side; 1 if some are missing."""
    judge_url = options.judge_url or options.base_url
    if (options.api and not options.base_url) or (options.judge and not judge_url):
        raise UserError("Models behind an API require --base-url, such as http://localhost:8000/v1.")
    require_positive("--timeout", options.timeout)

    from harness.plugins.api import asking

    prompts = asking.prompts(options.prompt, options.prompts)
    local = not options.api or options.study or options.cells
    studies = begun_study_names(options) if local else []
    cells, refused = asking.tuned(options.results_dir, studies, options.cells)
    print_errors(refused)
    if local and not cells:
        raise UserError(
            f"No cell in {options.results_dir} has saved weights; run one with save=adapter or save=merged."
        )
    if options.judge and len(cells) + len(options.api) < 1 + (not cells):
        raise UserError("--judge requires two models; name more with --cells or --api.")
    answers = asking.ask(
        cells,
        options.as_typed,
        lambda event: print(f"Asking {event.other['asking']} …", file=sys.stderr) if event.other else None,
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
        print_json(answers)
    else:
        from harness import terminal
        from harness.plugins.api import side_by_side

        width = shutil.get_terminal_size((120, 0)).columns
        terminal.show(terminal.console(), [side_by_side.text(answers, width)])
    if options.out:
        from harness.plugins.api import side_by_side

        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(side_by_side.page(answers), encoding="utf-8")
    missing = any(answer is None for by_prompt in answers["answers"] for answer in by_prompt)
    return int(bool(refused) or missing or (options.judge is not None and answers["judge"] is None))


def judge(options: argparse.Namespace) -> int:
    """Have recorded answers compared by a judge, and print the shares; 1 if a cell was refused."""
    require_positive("--timeout", options.timeout)

    from harness.plugins.api import judging

    asked = judging.JudgeOptions(
        options.judge, options.base_url, options.task, options.against, options.concurrency, options.timeout
    )
    names = study_names(options)
    found = judging.judge(options.results_dir, names, options.cells, asked, options.replace, lambda event: None)
    if found.known:
        print(f"Judged already (--replace judges again): {', '.join(found.known)}.", file=sys.stderr)
    if options.format == "json":
        print_json([dataclasses.asdict(one) for one in found.done])
    else:
        for one in found.done:
            print(judging.sentence(one))
    print_errors(found.refused)
    return int(bool(found.refused))


def synthesize(options: argparse.Namespace) -> int:
    """Let a model behind an API write training problems; 1 if there are fewer than requested."""
    for kind in options.kinds:
        one_of("--kinds", kind, KINDS)
    require_positive("--timeout", options.timeout)

    from harness.plugins.api import synthesizing

    summary = synthesizing.synthesize(
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
        print_json(summary)
    else:
        print("\n".join(synthesizing.lines(summary, options.out)))
    return int(summary["kept"] < options.n)


def _add_requests(parser: Parser) -> None:
    parser.add_argument("--concurrency", type=positive, default=8, metavar="N", help="requests at a time (default: 8)")
    parser.add_argument("--timeout", type=float, default=60, metavar="S", help="seconds for an answer (default: 60)")
