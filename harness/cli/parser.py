"""The parsers of all commands: their options in common, one form of error, and the help that groups them.

Building them imports nothing but the standard library, so that help and completion come at once.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from harness.errors import UserError

FIRST = ("run", "sweep", "plan", "status", "table", "report", "view", "doctor", "export-model")
"""The commands that a newcomer needs, which the help shows first."""
TASKS_OWN = "task"
"""In place of a number of examples: the one that the task's file has."""


class Parser(argparse.ArgumentParser):
    """Reports bad input as one sentence, where argparse would print its usage and exit.

    appendix: gives more text for the help, at its end.
    """

    def __init__(self, *, appendix: Callable[[], str] | None = None, **keywords: Any):
        super().__init__(**keywords)
        self._appendix = appendix

    def format_help(self) -> str:
        return super().format_help() + ("" if self._appendix is None else self._appendix())

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized") and any(action.dest == "settings" for action in self._actions):
            shows = "`harness plan` shows a grid and runs none of it"
            message += f"; {shows if '--dry-run' in message else 'a setting is KEY=VALUE, without dashes'}"
        raise UserError(f"{message}; `{self.prog} --help` lists the options.")


class Group:
    """Commands under one heading of the help."""

    def __init__(self, title: str, prog: str, subparsers: argparse._SubParsersAction[Parser]):
        self.title = title
        self.names: list[str] = []
        self._prog, self._subparsers = prog, subparsers

    def add(
        self,
        run: Callable[[argparse.Namespace], int],
        name: str,
        summary: str,
        example: str,
        appendix: Callable[[], str] | None = None,
        after: str | None = None,
    ) -> Parser:
        """The parser of a new command. `run` takes its options and returns the exit status.

        summary: what it does; the first sentence is its line among all commands. example: arguments that work.
        after: the command that it follows in the help; by default it is the group's last.
        """
        parser = self._subparsers.add_parser(
            name,
            help=summary.partition(". ")[0].removesuffix("."),
            description=summary,
            epilog=f"example:\n  {self._prog} {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
            appendix=appendix,
        )
        parser.add_argument("--help", "-h", action="help", help="show this help")
        parser.set_defaults(run=run)
        self.names.insert(len(self.names) if after is None else self.names.index(after) + 1, name)
        return parser


class CommandLine(Parser):
    """The parser above all commands."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog=prog, description="Comparative benchmarking of LLM fine-tuning on your model and GPU.")
        self._subparsers_action = self.add_subparsers(parser_class=Parser, metavar="COMMAND")
        self._groups: dict[str, Group] = {}

    def group(self, title: str) -> Group:
        """The group of this title: a new one, or that which other commands are in."""
        return self._groups.setdefault(title, Group(title, self.prog, self._subparsers_action))

    def names(self) -> list[str]:
        """All commands, in the order of the help."""
        return [name for group in self._groups.values() for name in group.names]

    def command(self, name: str) -> Parser:
        """The parser of a command; UserError if there is none of this name."""
        parsers = self._subparsers_action.choices
        if name not in parsers:
            near = difflib.get_close_matches(name, parsers, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"There is no command {name!r}.{hint} `{self.prog} --help` lists them.")
        return parsers[name]

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage("%(prog)s COMMAND [...]", [], [])
        formatter.add_text(self.description)
        summaries = {action.dest: action for action in self._subparsers_action._get_subactions()}
        others = {group.title: [name for name in group.names if name not in FIRST] for group in self._groups.values()}
        first = [name for name in FIRST if name in summaries]
        for title, names in {"start here": first, **others}.items():
            if names:
                formatter.start_section(title)
                for name in names:
                    formatter.add_argument(summaries[name])
                formatter.end_section()
        formatter.add_text(f"`{self.prog} COMMAND --help` shows a command's options and an example.")
        return formatter.format_help()


def comma_separated(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return int(text)


def shots(text: str) -> int | str:
    """Examples before a question: a number, or TASKS_OWN."""
    if text != TASKS_OWN and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number or `{TASKS_OWN}`, got {text}")
    return text if text == TASKS_OWN else int(text)


def add_study(parser: Parser, summary: str = "study below the results folder (default: all)") -> None:
    parser.add_argument("--study", metavar="NAME", help=summary)
    add_results_dir(parser)


def add_study_name(parser: Parser, summary: str = "study below the results folder (default: all)") -> None:
    """A study by --study NAME, or by NAME alone, for commands without other positional arguments."""
    parser.add_argument("study", nargs="?", metavar="STUDY", action=OneStudy, help="the same as --study STUDY")
    add_study(parser, summary)


class OneStudy(argparse.Action):
    """Takes a study that is named by position; refused if --study names another one."""

    def __init__(self, **keywords: Any):
        super().__init__(**keywords | {"default": argparse.SUPPRESS})

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if (other := getattr(namespace, self.dest, None)) not in (None, values):
            parser.error(f"one study at a time, got {values} and --study {other}")
        setattr(namespace, self.dest, values)


def add_results_dir(parser: Parser) -> None:
    parser.add_argument("--results-dir", type=Path, default=Path("results"), metavar="DIR", help="(default: results)")


def add_cells(parser: Parser, *names: str) -> None:
    """The positional arguments `names`, a cell each, and the options that tell where cells are looked for."""
    for name in names:
        parser.add_argument(name, metavar="CELL", help="cell: a name, an id, the beginning of either, or STUDY/CELL")
    add_study(parser)


def add_repository(parser: Parser) -> None:
    """The repository of the hub that a command uploads to."""
    parser.add_argument("repo", metavar="REPO", help="OWNER/NAME; created, as a private one, if it does not exist")
    parser.add_argument("--public", action="store_true", help="make a new repository public")


def add_json(parser: Parser) -> None:
    parser.add_argument("--format", default="text", choices=["text", "json"], help="(default: text)")


def add_tables(parser: Parser, *formats: str) -> None:
    """The options of a command that renders tables of studies. formats: as of `add_formats`."""
    add_study_name(parser)
    add_formats(parser, *formats)


def add_formats(parser: Parser, *formats: str) -> None:
    """How tables are rendered. formats: what the command renders besides those of every table."""
    choices = ["text", "md", "csv", "html", "latex", *formats]
    parser.add_argument("--format", choices=choices, help="(default: text on a terminal, else md)")
    add_wide(parser)
    add_out(parser)


def add_wide(parser: Parser) -> None:
    parser.add_argument("--wide", action="store_true", help="on a terminal: all columns, not only those that fit")


def add_out(parser: Parser) -> None:
    parser.add_argument("--out", type=Path, metavar="FILE", help="write to FILE instead of standard output")


def add_local_paths(parser: Parser) -> None:
    parser.add_argument("--vllm-python", metavar="PYTHON", help="as eval.vllm_python, for cells with eval.engine=vllm")
    parser.add_argument("--include-path", metavar="DIR", help="as eval.include_path: your folder of lm-eval tasks")


def add_data_root(parser: Parser) -> None:
    parser.add_argument("--data-root", metavar="DIR", help="folder that holds hub data sets by name")
