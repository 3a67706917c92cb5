"""``harness view``: serves the reports of a results folder to this machine's browser, and follows a running sweep."""

from __future__ import annotations

import argparse
import errno
import shlex
from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING

from harness.cli.output import begun_study_names, require_study_name
from harness.cli.parser import Group, add_study_name
from harness.errors import UserError, nearest
from harness.program import results_option
from harness.record import Record

if TYPE_CHECKING:
    from harness.report.pages.server import Viewer

PORT = 8765


def add(group: Group) -> None:
    parser = group.add(
        view,
        "view",
        "Show reports in the browser, and follow a running sweep. Only this machine can open them; nothing is written.",
        "quickstart --port 8800",
    )
    add_study_name(parser)
    parser.add_argument("--port", type=int, default=PORT, metavar="N", help=f"port on 127.0.0.1 (default: {PORT})")


def view(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    if not 0 <= options.port < 2**16:
        raise UserError(f"--port must lie between 0 and 65535, got {options.port}.")
    names = _names(options)
    with viewer(options) as server:
        path = server.address("study", names[0]) if options.study else server.address()
        print(f"http://127.0.0.1:{server.port}{path}\nCtrl-C ends it.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def _names(options: argparse.Namespace) -> list[str]:
    """The studies to serve. One that has not begun is waited for, as `status --watch` does; if its name is close to
    another's, that one is named."""
    try:
        return begun_study_names(options)
    except UserError:
        from harness.sweep import store

        if options.study is None:
            raise
        if (options.results_dir / options.study).is_file():
            raise UserError(f"{options.results_dir / options.study} is a file; a study is a folder.") from None
        require_study_name(options.study, options.results_dir)
        near = nearest(options.study, store.begun(options.results_dir))
        hint = f" Did you mean {near}? Then press Ctrl-C." if near else ""
        print(f"{options.study} has not begun; its page waits for it.{hint}", flush=True)
        return [options.study]


def card_price(records: Sequence[Record]) -> float | None:
    """Dollars for an hour of the card on which `records` ran, of the files in conf/device; None if none has it."""
    from harness.report.lint.environment import ran_with
    from harness.sweep.estimates import card

    return card.price_of({ran_with(record).get("device", "") for record in records})


def viewer(options: argparse.Namespace) -> Viewer:
    """A server of the studies that the options name; UserError if the port is taken."""
    from harness import env, gate
    from harness.report.pages import page
    from harness.report.pages.server import CellNews, StudyNews, Viewer
    from harness.studies.status import RecordCache, study_status
    from harness.sweep import store
    from harness.sweep.cell_status import AT_WORK, duration

    cache, results = RecordCache(), options.results_dir

    def studies() -> list[str]:
        return [options.study] if options.study else store.begun(results)

    def render(name: str, live: dict[str, str]) -> str:
        records, problems = cache.read(results / name)
        if not records:
            return page.waiting(name, live)
        where = ["--study", name, *results_option(results)]
        command = shlex.join(["harness", "report", *where, "--out", "report.html"])
        versions, price = env.made_with(), card_price(records)
        folder = results / name
        return page.render(records, folder, problems, shlex.join(where), command, versions, live, price, gate.runnable)

    def news(name: str) -> StudyNews:
        status = study_status(results, name, cache)
        counts = [f"{n} {state}" for state, n in status.counts.items() if n or state == "done"]
        said = ", ".join([*counts, *filter(None, [status.time_left])]) + "."
        running = [
            CellNews(
                name=cell.cell,
                method=cell.method or "",
                phase=cell.progress.phase or "start",
                step=cell.progress.step,
                of=cell.progress.of,
                loss=cell.progress.loss if cell.progress.loss is None or isfinite(cell.progress.loss) else None,
                to_go="" if cell.progress.seconds_left is None else duration(cell.progress.seconds_left),
            )
            for cell in status.having("running")
        ]
        return StudyNews(said, len(status.cells) - len(status.having(*AT_WORK)), len(status.cells), running)

    try:
        return Viewer(results, studies, render, news, options.port)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = str(error.strerror).lower()
        raise UserError(f"Port {options.port} can't be used ({why}); take another with --port.") from None
