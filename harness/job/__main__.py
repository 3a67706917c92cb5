"""python -m harness.job DESCRIPTOR: serves the requests of harness/protocol.py; serve.py starts a job for each.

A job answers one request by events on its output. Whatever libraries print goes to standard error, which is the cell's
log.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from harness import redact
from harness.errors import UserError
from harness.protocol import (
    AskModels,
    CheckCells,
    CheckTasks,
    ExamineMachine,
    ExportModel,
    JobEvent,
    JobRequest,
    JudgeAnswers,
    PlanCells,
    Progress,
    Refused,
    Rescore,
    Result,
    RunCell,
    Synthesize,
    Warned,
    encode,
)
from harness.record import Record

Send = Callable[[JobEvent], None]
Report = Callable[[dict[str, Any]], None]


def main(request: JobRequest) -> int:
    """Serve `request`; returns the exit status, which is 2 for bad input, whose sentence is sent as Refused."""
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(event: JobEvent) -> None:
        try:
            print(encode(event), file=events, flush=True)
        except BrokenPipeError:
            os._exit(1)  # the sweep is gone: nobody waits for this cell, and its lease will be taken over

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        _warn_of_others(request, send)
        if isinstance(request, RunCell):
            outcome = runner(request)(request, _progress(send))
            return outcome if isinstance(outcome, int) else 0
        SERVE[type(request)](request, send)
        return 0
    except UserError as error:
        send(Refused(str(error)))
        return 2


def runner(request: RunCell) -> Callable[[RunCell, Report], Record | int]:
    """What runs the cell of `request`: it returns the record, or the exit status of several devices."""
    settings = request.cell.settings
    if settings.behind_api:
        from harness.job.api import run_api_cell

        return run_api_cell.run_api_cell
    from harness.job.run_cell import run_cell

    if settings.train.total_devices == 1:
        return run_cell
    from harness.job.training import launch

    place = request.rendezvous or launch.ALONE
    return lambda request, report: launch.run(settings.train.devices, run_cell, request, report, place)


def _warn_of_others(request: JobRequest, send: Send) -> None:
    """Warn if others use the devices, before libraries are loaded that set up CUDA and look like another process."""
    if not getattr(request, "warn", False):
        return
    import torch

    from harness.job.measure import device

    cells = [request.cell] if isinstance(request, RunCell) else getattr(request, "cells", [])
    count = max((cell.settings.train.devices for cell in cells), default=1)
    for number in range(min(count, torch.cuda.device_count())):
        if words := device.busy(number):
            send(Warned(words))


def _progress(send: Send, **same: Any) -> Report:
    """A function that sends a report of the job's own code: a warning as Warned, all else as Progress with `same`."""
    return lambda report: send(Warned(report["warning"]) if "warning" in report else Progress(**(same | report)))


def _check(request: CheckCells, send: Send) -> None:
    from harness.job import preflight
    from harness.job.api import run_api_cell

    preflight.check(request.cells, request.data_root, request.local)
    for cell in request.cells:
        if (access := request.access.get(cell.id)) is not None:
            estimate = run_api_cell.estimate(cell, access, request.data_root, request.local.include_path)
            send(Result({"id": cell.id, "estimate": estimate}))


def _plan(request: PlanCells, send: Send) -> None:
    from harness.job.predict import workers

    for answer in workers.answer(request):
        send(Result(answer))


def _examine(request: ExamineMachine, send: Send) -> None:
    from harness.job import machine

    send(Result(machine.examine(request.models, request.data, request.data_root)))


def _check_tasks(request: CheckTasks, send: Send) -> None:
    from harness.job import prepared_inputs

    prepared_inputs.tasks(request.settings, request.data, request.data_root, request.local.include_path)


def _rescore(request: Rescore, send: Send) -> None:
    from harness.job.evaluate import rescoring

    path, report = Path(request.path), _progress(send)
    rescoring.rescore(path, request.settings, request.data_root, report, request.local, request.cell)


def _synthesize(request: Synthesize, send: Send) -> None:
    from harness.job.data.generators import synthesis

    send(Result(synthesis.synthesize(request, _progress(send, phase="synthesize"))))


def _ask(request: AskModels, send: Send) -> None:
    from harness.job.evaluate import prompting

    send(Result(prompting.ask(request, _progress(send, phase="ask"))))


def _judge(request: JudgeAnswers, send: Send) -> None:
    from harness.job.api.judge import AnswerPair, Judge

    judge = Judge(request.judge_url, request.judge, request.timeout, lambda sentence: send(Warned(sentence)))
    pairs = [AnswerPair(*of) for of in zip(request.prompts, request.base, request.other, strict=True)]
    found = judge.compare(pairs, request.concurrency)
    send(Result({"host": found.host, "values": found.values, "tokens": found.tokens}))


def _export(request: ExportModel, send: Send) -> None:
    from harness.job.export import exporting

    exporting.export(request)
    send(Result({"folder": request.out}))


SERVE: dict[type, Callable[..., None]] = {
    CheckCells: _check,
    PlanCells: _plan,
    ExamineMachine: _examine,
    CheckTasks: _check_tasks,
    Rescore: _rescore,
    Synthesize: _synthesize,
    AskModels: _ask,
    JudgeAnswers: _judge,
    ExportModel: _export,
}


if __name__ == "__main__":
    from harness.job.serve import ends_at_once, serve
    from harness.terminal.streams import Filtered

    # Before libraries come in, which keep the streams they find.
    sys.stdout, sys.stderr = (Filtered(stream, redact.redact) for stream in (sys.stdout, sys.stderr))
    job = serve(int(sys.argv[1]))
    if job is None:
        sys.exit(0)
    with ends_at_once() if job.forked else nullcontext():
        sys.exit(main(job.request))
