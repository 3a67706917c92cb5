"""Runs cells and sweeps for a program: what a command does, without leaving a trace in the process that asks for it."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import units
from harness.errors import UserError, about_file, require_positive
from harness.python.overrides import overrides_of
from harness.record import Record, RecordError
from harness.terminal.streams import NO_TEXT, printable

if TYPE_CHECKING:
    from harness.python.study import RecordedStudy
    from harness.sweep.app import Arguments, Options

KERNELS = ("cpu", "cuda")  # what a device may be besides a card
SETTINGS = ("settings", "config_dir", "quiet")  # what `run`, `sweep` and `plan` all take
LOCK = threading.RLock()  # Hydra's state is that of the process


def run(
    named: Mapping[str, Any],
    settings: Mapping[str, Any] | None,
    budget: str | None,
    config_dir: str | os.PathLike[str] | None,
    quiet: bool,
) -> Record:
    """`harness.run`."""
    dollars = amount_of(budget)
    if dollars is not None and not isinstance(dollars, units.Dollars):
        raise UserError(f"budget must be a sum of money, such as 5USD, got {budget}.")
    from harness.sweep import app

    overrides = overrides_of(named, settings, ("budget", *SETTINGS), grid=False)
    with undisturbed(quiet):
        session = app.main(*requested("run", overrides, budget=dollars, config_dir=config_dir))
    if session.record is None:
        raise UserError("No cell was run: this machine is a spare one of its job.")
    return session.record


def sweep(
    name: str | None,
    axes: Mapping[str, Any],
    settings: Mapping[str, Any] | None,
    budget: int | str | None,
    options: Mapping[str, Any],
    config_dir: str | os.PathLike[str] | None,
    quiet: bool,
) -> RecordedStudy:
    """`harness.sweep`."""
    amount = amount_of(budget)
    if amount is not None and not isinstance(amount, units.Dollars) and not options["fit"]:
        raise UserError("budget in bytes requires fit=True; a sum of money, such as 5USD, does not.")
    if options["device"] is not None and not options["fit"]:
        raise UserError("device requires fit=True; cells run on the device that is here.")
    if options["order"] not in ("random", "grid"):
        raise UserError(f"order must be random or grid, got {options['order']}.")
    for option in ("drift", "confirm"):
        require_positive(option, options[option])
    from harness.report.rules import judging_rules
    from harness.sweep import app

    overrides = overrides_of(axes, settings, ("name", "budget", *options, *SETTINGS), grid=True)
    overrides = overrides if name is None else [name, *overrides]
    with undisturbed(quiet):
        more = {"choose": chosen, "rules": judging_rules(), **options}
        session = app.main(*requested("sweep", overrides, budget=amount, config_dir=config_dir, **more))
        folder = session.folder if session.study is None else session.study.folder
    if options["confirm"] and session.study is None:
        raise UserError("confirm requires hydra/sweeper=grid, which runs every seed of a setting.")
    if folder is None:
        raise UserError("The cells ran elsewhere; `harness.read` reads their study's folder.")
    from harness.python.study import RecordedStudy

    return RecordedStudy([folder.absolute()])


def requested(
    command: str,
    settings: Sequence[str],
    *,
    budget: float | None = None,
    device: str | None = None,
    hydra: Sequence[str] = (),
    config_dir: str | os.PathLike[str] | None = None,
    typed: Sequence[str] | None = None,
    **options: Any,
) -> tuple[Arguments, Options]:
    """What `harness.sweep.app.main` takes to run ``run``, ``sweep`` or ``plan`` with `settings`, as they are typed.

    budget: bytes of memory, or `units.Dollars` (null: none). device: a card, or one of KERNELS. hydra: options of
    Hydra's. typed: the arguments as the study notes them (null: `settings`). options: of `harness.sweep.app.Options`.
    Raises UserError for an unknown card, and for settings with bytes that are no text.
    """
    from harness.sweep import app
    from harness.sweep.estimates import card

    _require_text(settings)
    if device not in (None, *KERNELS):
        options["card"] = card.load(device)
        device = None
    money = isinstance(budget, units.Dollars)
    what = app.Options(
        memory=None if money or budget is None else int(budget),
        dollars=budget if money else None,
        device=device,
        typed=(command, *(settings if typed is None else typed)),
        **options,
    )
    folder = None if config_dir is None else os.fspath(config_dir)
    return app.Arguments(command, [*settings], [*hydra], folder), what


def _require_text(settings: Sequence[str]) -> None:
    """Raise UserError for a setting that no record can hold: bytes that the terminal's encoding has no letters for."""
    for word in settings:
        if NO_TEXT.search(word):
            raise UserError(
                f"Settings must be text in the encoding of the terminal, which is {sys.getfilesystemencoding()} here, "
                f"got {printable(word)}; set LC_ALL=C.UTF-8, or rename a file whose name is not UTF-8."
            )


def chosen(records: Sequence[Record]) -> list[list[Record]]:
    """Of each chosen setting, the records that chose it."""
    from harness.report.select import select

    tried = [record for record in records if not record.confirmation]
    return [[tried[i] for i in choice.index] for choice in select(tried) if choice.index]


@contextmanager
def undisturbed(quiet: bool = False) -> Iterator[None]:
    """Within this context a command may run; afterwards the process is as it was.

    What it prints goes to standard error, or nowhere if `quiet`. Hydra's state, the command line, the handler of
    SIGTERM and the working folder are restored. One thread at a time is in it. Every refusal is a UserError.
    """
    from harness.sweep.app.plugins import own_hydra
    from harness.terminal.streams import cleaned_streams

    with LOCK, _restored(), own_hydra(), contextlib.ExitStack() as stack:
        if quiet:
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.enter_context(cleaned_streams())
        try:
            yield
        except RecordError as error:
            raise UserError(str(error)) from None
        except OSError as error:
            if error.filename is None or isinstance(error, BrokenPipeError):
                raise  # not about a file of the user's
            raise UserError(about_file(error)) from None
        except KeyboardInterrupt:
            print("Interrupted. Cells that finished are saved.", file=sys.stderr)
            raise


@contextmanager
def _restored() -> Iterator[None]:
    """Restores the command line, the handlers of signals and exceptions, HYDRA_FULL_ERROR and the working folder."""
    arguments, hook, folder, full = sys.argv, sys.excepthook, Path.cwd(), os.environ.get("HYDRA_FULL_ERROR")
    is_main = threading.current_thread() is threading.main_thread()
    at_end = signal.getsignal(signal.SIGTERM) if is_main else None
    try:
        yield
    finally:
        sys.argv, sys.excepthook = arguments, hook
        if at_end is not None:
            signal.signal(signal.SIGTERM, at_end)
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full
        os.chdir(folder)


def amount_of(budget: int | str | None) -> float | None:
    """Bytes, or `units.Dollars`, of a budget as one gives it. UserError if it is none, or not positive."""
    if isinstance(budget, str):
        return units.parse_budget(budget)
    require_positive("budget", budget)
    if isinstance(budget, int | float) and budget < 2**20:
        raise UserError(f"budget is in bytes, or a text such as '24GiB', got {budget}.")
    return budget
