"""python -m harness.job DESCRIPTOR [LIBRARIES]: serves requests of harness/protocol.py; serve.py starts a job for each.

A job answers one request by events on its output. Whatever libraries print goes to standard error, which is the cell's
log.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from harness import cell_runner, plugin, redact
from harness.errors import UserError
from harness.job.services import Send, progress
from harness.protocol import CheckCells, JobEvent, Refused, Report, Request, RunCell, Warned, encode
from harness.record import Record


@contextmanager
def answering() -> Iterator[Send]:
    """Yields what sends events to the sweep, on what was standard output until now.

    Bad input within is sent as Refused, and ends the process with status 2.
    """
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(event: JobEvent) -> None:
        try:
            print(encode(event), file=events, flush=True)
        except BrokenPipeError:
            os._exit(1)  # the sweep is gone: nobody waits for this cell, and its lease will be taken over

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        yield send
    except UserError as error:
        send(Refused(str(error)))
        sys.exit(2)


def serving(request: Request, send: Send) -> Callable[[], Any]:
    """What serves `request` when it is called; of a cell as `runner` has it."""
    if isinstance(request, RunCell):
        return partial(runner(request), request, progress(send))
    return partial(plugin.load(request.target), request, send)


def runner(request: RunCell) -> Callable[[RunCell, Report], Record | int]:
    """What runs the cell of `request`: it returns the record, or the exit status of several devices.

    Raises UserError for data or a model that can't be had.
    """
    settings = request.cell.settings
    if (by_plugin := cell_runner.runner_of(settings)) is not None:
        return by_plugin.run
    from harness.job import reachable

    reachable.check([request.cell], request.data_root)
    from harness.job.run_cell import run_cell  # late: its libraries take seconds

    if settings.train.total_devices == 1:
        return run_cell
    from harness.job.training import launch

    place = request.rendezvous or launch.ALONE
    return lambda request, report: launch.run(settings.train.devices, run_cell, request, report, place)


def warn_of_others(request: Request, send: Send) -> None:
    """Warn if others use the devices, before libraries are loaded that set up CUDA and look like another process."""
    if not getattr(request, "warn", False):
        return
    import torch

    from harness.job.measure import device

    cells = [request.cell] if isinstance(request, RunCell) else []
    cells = request.cells if isinstance(request, CheckCells) else cells
    count = max((cell.settings.train.devices for cell in cells), default=1)
    for number in range(min(count, torch.cuda.device_count())):
        if words := device.busy(number):
            send(Warned(words))


if __name__ == "__main__":
    from harness.job.serve import ends_at_once, serve
    from harness.terminal.streams import Filtered

    # Before libraries come in, which keep the streams they find.
    sys.stdout, sys.stderr = (Filtered(stream, redact.redact) for stream in (sys.stdout, sys.stderr))
    job = serve(int(sys.argv[1]), *sys.argv[2:])
    if job is None:
        sys.exit(0)
    with ends_at_once() if job.forked else nullcontext(), answering() as send:
        warn_of_others(job.request, send)
        outcome = serving(job.request, send)()
        sys.exit(outcome if isinstance(outcome, int) else 0)
