"""Commands that run cells, or predict what running them takes: Hydra apps with options of their own."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import units
from harness.cli.parser import CommandLine, Parser, positive
from harness.errors import UserError, require_positive
from harness.python.launching import KERNELS, chosen, requested

if TYPE_CHECKING:
    from harness.sweep.app import Arguments, Options

MANY = 1_000  # records that the sweep's own process reads to answer; each takes some 35 KB
DRIFT = 20  # cells between two repeats, about a twentieth of the sweep's time


def add(command_line: CommandLine) -> None:
    group = command_line.group("run")

    parser = group.add(run, "run", "Run one cell.", "method=dora rank=16 lr=1e-4", _settings)
    _add_settings(parser, "KEY=VALUE")
    _add_budget(parser, "5USD: refuse what models behind an API would cost beyond that")
    _add_hydra(parser)

    parser = group.add(
        sweep,
        "sweep",
        "Run a grid: a named one, or the product of KEY=A,B,C.",
        "method=lora,dora rank=8,16 study=mine",
        _settings,
    )
    _add_settings(parser, "NAME|KEY=A,B,C")
    parser.add_argument("--fit", action="store_true", help="skip cells that are predicted not to fit into memory")
    _add_budget(parser, "24GB: memory for --fit (default: this machine's); 5USD: limit for models behind an API")
    _add_device(parser)
    parser.add_argument(
        "--order", choices=["random", "grid"], default="random", help="order in which cells run (default: random)"
    )
    parser.add_argument(
        "--drift",
        nargs="?",
        const=DRIFT,
        type=positive,
        metavar="N",
        help=f"run one cell again after each N cells, to measure the machine's drift (default of N: {DRIFT})",
    )
    parser.add_argument(
        "--skip-impossible",
        action="store_true",
        help="skip cells that can't work: settings, libraries or the model refuse them; others run",
    )
    parser.add_argument(
        "--confirm",
        type=positive,
        metavar="N",
        help="then run N fresh seeds of each method's best setting; methods are compared on these alone",
    )
    _add_hydra(parser)

    parser = group.add(
        plan,
        "plan",
        "Predict memory, FLOPs and time of a grid. Launches and downloads nothing.",
        "model=llama_3_1_8b method=lora,qlora --budget 24GiB",
        _settings,
    )
    _add_settings(parser, "NAME|KEY=A,B,C")
    _add_budget(parser, "24GB: memory that cells should fit into (default: this machine's); 5USD: limit, at --price")
    _add_device(parser)
    parser.add_argument("--throughput", type=float, metavar="N", help="tokens/s of every cell (default: from records)")
    parser.add_argument(
        "--price", type=float, metavar="N", help="dollars for an hour of one device (default: that of the card's file)"
    )
    parser.add_argument(
        "--advise",
        action="store_true",
        help="search batch, accumulation, checkpointing and method for the fastest that fits the card; requires "
        "--device CARD",
    )
    _add_hydra(parser)

    parser = group.add(
        calibrate,
        "calibrate",
        "Time the kernels of a grid's cells on this machine, for `plan`. Takes about a minute a method.",
        "model=llama_3_1_8b method=lora,qlora,full",
        _settings,
        after="plan",
    )
    _add_settings(parser, "NAME|KEY=A,B,C")
    _add_hydra(parser)


def run(options: argparse.Namespace) -> int:
    """Run one cell; 1 if it did not end as ok."""
    from harness.sweep import app

    return app.main(*_requested("run", options)).exit_status


def sweep(options: argparse.Namespace) -> int:
    """Run the cells of a grid, and print what they say about its methods; 1 if one did not end as ok or pruned."""
    from harness.report.rules import judging_rules
    from harness.sweep import app

    names = ("fit", "device", "order", "drift", "skip_impossible", "confirm")
    app_options = {name: getattr(options, name) for name in names}
    session = app.main(*_requested("sweep", options, choose=chosen, rules=judging_rules(), **app_options))
    if options.confirm and session.study is None:
        raise UserError("--confirm requires hydra/sweeper=grid, which runs every seed of a setting.")
    if session.study is not None:
        _print_answer(session.study.folder)
    return session.exit_status


def _print_answer(folder: Path) -> None:
    """What the study's table says first; nothing if there is nothing to compare."""
    from harness import terminal
    from harness.report.tables import screen

    console = terminal.console()
    terminal.show(console, screen.answer(_answer_aside(folder), console.width))


def _answer_aside(folder: Path) -> Sequence[str]:
    """`_answer`, of many records in a process of its own, whose memory they take instead of the sweep's."""
    if len([*folder.glob("*.json")]) <= MANY:
        return _answer(folder)

    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_answer, folder).result()


def _answer(folder: Path) -> Sequence[str]:
    """The sentences of the study's answer; none if there is nothing to compare."""
    from harness.record import read_study
    from harness.report.answer import answer

    return answer(read_study(folder)[0], folder).sentences


def plan(options: argparse.Namespace) -> int:
    """Print what a grid would take."""
    require_positive("--throughput", options.throughput)
    require_positive("--price", options.price)
    if options.advise and options.device in (None, *KERNELS):
        raise UserError("--advise requires --device with a card, such as rtx_4090.")
    from harness.sweep import app

    names = ("device", "throughput", "price", "advise")
    app_options = {name: getattr(options, name) for name in names}
    return app.main(*_requested("plan", options, plan=True, **app_options)).exit_status


def calibrate(options: argparse.Namespace) -> int:
    """Time kernels, and write them beside the records."""
    from harness.sweep import app

    request = requested(
        "calibrate",
        options.settings,
        hydra=options.hydra,
        config_dir=options.config_dir,
        typed=options.arguments,
        calibrate=True,
    )
    return app.main(*request).exit_status


def _requested(command: str, options: argparse.Namespace, **more: Any) -> tuple[Arguments, Options]:
    """What `app.main` takes. Raises UserError for options that don't go together."""
    budget = options.budget
    in_bytes = budget is not None and not isinstance(budget, units.Dollars)
    predicts = more.get("plan") or more.get("fit")
    if in_bytes and not predicts:
        raise UserError("--budget in bytes requires `plan` or `sweep --fit`; a sum of money, as 5USD, does not.")
    if more.get("device") and not predicts:
        raise UserError("--device requires `plan` or `sweep --fit`; cells run on the device that is here.")

    return requested(
        command,
        options.settings,
        budget=budget,
        hydra=options.hydra,
        config_dir=options.config_dir,
        typed=options.arguments,
        **more,
    )


class PassOn(argparse.Action):
    """Keeps an option of Hydra's as it was typed."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), option_string, *([values] if values else [])])


def _add_settings(parser: Parser, metavar: str) -> None:
    parser.add_argument("settings", nargs="*", metavar=metavar, help="settings; --help lists them below")


def _add_budget(parser: Parser, summary: str) -> None:
    parser.add_argument("--budget", type=units.parse_budget, metavar="SIZE|MONEY", help=summary)


def _add_device(parser: Parser) -> None:
    parser.add_argument(
        "--device",
        metavar="CARD|KERNELS",
        help="a card of conf/device, such as rtx_4090, with its memory and rates; or cpu, cuda: whose kernels are "
        "predicted (default: CUDA's for a GPU's budget)",
    )


def _add_hydra(parser: Parser) -> None:
    group = parser.add_argument_group("Hydra's options")
    common: dict[str, Any] = {"dest": "hydra", "default": [], "action": PassOn}
    group.add_argument(
        "--cfg", "-c", choices=["job", "hydra", "all"], help="print the resolved config, and stop", **common
    )
    group.add_argument("--resolve", nargs=0, help="with --cfg: resolve interpolations", **common)
    group.add_argument("--package", "-p", metavar="KEY", help="with --cfg: print this part only", **common)
    group.add_argument(
        "--info", "-i", nargs="?", metavar="KIND", help="print how the config is composed, and stop", **common
    )
    group.add_argument("--hydra-help", nargs=0, help="print Hydra's own help, and stop", **common)
    group.add_argument("--config-name", "-cn", metavar="NAME", help="another config than conf/config.yaml", **common)
    group.add_argument("--config-dir", "-cd", metavar="DIR", help="another folder of config groups and named sweeps")


def _settings() -> str:
    """The help on config groups, named sweeps and settings."""
    from harness.config_folders import group_files, offered_sweeps, published_sweeps, selected_groups
    from harness.config_help import config_groups

    lines = ["", "config groups (GROUP=NAME):"]
    groups = selected_groups()[:-1]  # sweepers are for axes of another kind
    lines += _listed({group: ", ".join(group_files(group)) for group in groups})
    lines += ["", "cards (--device CARD):", *_wrapped(", ".join(group_files("device")), "  ", "  ")]
    lines += ["", "named sweeps (sweep NAME):"]
    sweeps = offered_sweeps().items()
    lines += _listed({name: path.read_text(encoding="utf-8").partition("\n")[0].strip("# ") for name, path in sweeps})
    lines.append(f"  and {len(published_sweeps())} of published studies in sweeps/published/")
    lines += ["", "settings (KEY=VALUE):"]
    for config_group in config_groups():
        if config_group.key:
            lines += ["", *_wrapped(f"{config_group.key}: {' '.join(config_group.comment.split())}", "  ", "  ")]
        for setting in config_group.fields:
            default = "" if setting.default is None else f"={setting.default}"
            lines.append(f"  {setting.key}{default}  ({setting.kind})")
            lines += _wrapped(setting.sentences, " " * 6, " " * 6)
    return "\n".join(lines) + "\n"


def _listed(texts: Mapping[str, str]) -> list[str]:
    """Each name with its text beside it, all texts below each other: no name is as long as the room for it."""
    room = max(16, *(len(name) + 2 for name in texts))
    return [line for name, text in texts.items() for line in _wrapped(text, f"  {name:{room}}", " " * (2 + room))]


def _wrapped(text: str, first: str, others: str) -> list[str]:
    """`text` in lines that fit the terminal, of at most 100 letters; a name without a text stands alone."""
    width = min(100, max(60, shutil.get_terminal_size().columns))
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=others) or [first.rstrip()]
