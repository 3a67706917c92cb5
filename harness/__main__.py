"""harness COMMAND, or python -m harness COMMAND: the entry point. It only dispatches."""

from __future__ import annotations

import argparse
import sys

from harness.cli.commands import command_line, without_multirun
from harness.errors import UserError, about_file
from harness.program import PROGRAM
from harness.record import RecordError
from harness.terminal.streams import cleaned_streams

RUNS_CELLS = ("run", "sweep", "retry", "reproduce", "score")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 (a cell failed or a record is bad), 2 (bad input), 130 (Ctrl-C).

    arguments: those of the process if none are given.
    """
    if sys.platform == "win32":
        print("error: The harness runs on Linux: on Windows install it in WSL2 (docs/install.md).", file=sys.stderr)
        return 2
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    with cleaned_streams():
        try:
            root = command_line(PROGRAM)
            if name in ("--help", "-h", "help"):
                root.print_help()
                return 0
            if name == "--version":
                from importlib.metadata import version  # which every other command does without

                print(f"harness {version('finetune-harness')}")
                return 0
            name, rest = without_multirun(name, rest)
            options = root.command(name).parse_intermixed_args(rest, argparse.Namespace(arguments=rest))
            return options.run(options)
        except (UserError, RecordError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            resumes = " Finished cells are saved; rerun the same command to resume." if name in RUNS_CELLS else ""
            print(f"Interrupted.{resumes}", file=sys.stderr)
            return 130
        except BrokenPipeError:
            sys.stderr.close()  # the reader (head, less) has gone; there is nobody to tell
            return 1
        except OSError as error:
            if error.filename is None:
                raise  # not about a file of the user's
            print(f"error: {about_file(error)}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
