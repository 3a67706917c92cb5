"""What jobs do besides running a cell: a function for each kind of request, which names it as its target.

A target takes the request and a function that sends events. What a request names under `prepare` is called in the
server before the job is forked, so that later jobs find it loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness import cell_runner
from harness.errors import UserError
from harness.protocol import (
    CalibrateDevice,
    CheckCells,
    CheckTasks,
    ExamineMachine,
    JobEvent,
    Noted,
    PlanCells,
    Progress,
    Rescore,
    Result,
    RunCell,
    SortCells,
    Warned,
)
from harness.record import encode
from harness.settings import DataSettings

Send = Callable[[JobEvent], None]
Report = Callable[[dict[str, Any]], None]


def progress(send: Send) -> Report:
    """A function that sends a report of the job's own code: a warning as Warned, a note as Noted, else Progress."""

    def event(report: dict[str, Any]) -> JobEvent:
        if "warning" in report:
            return Warned(report["warning"])
        return Noted(report["note"]) if "note" in report else Progress(**report)

    return lambda report: send(event(report))


def check(request: CheckCells, send: Send) -> None:
    from harness.job import preflight

    runners = [(cell, cell_runner.runner_of(cell.settings)) for cell in request.cells]
    local = [cell for cell, by_plugin in runners if by_plugin is None]
    for note in preflight.check(local, request.data_root, request.local):
        send(Noted(note))
    for cell, by_plugin in runners:
        if by_plugin is not None:
            cost = by_plugin.check(cell, request.extra[cell.id], request.data_root, request.local)
            send(Result({"id": cell.id, "cost": cost}))


def sort(request: SortCells, send: Send) -> None:
    from harness import env
    from harness.job import preflight

    for cell in request.cells:
        if cell_runner.runner_of(cell.settings) is None:
            try:
                preflight.check_machine(cell, request.local)
            except UserError as error:
                send(Result({"id": cell.id, "reason": str(error), "environment": env.describe()}))


def plan(request: PlanCells, send: Send) -> None:
    from harness.job.predict import workers

    if own := [planned.cell for planned in request.cells if planned.cell.settings.data.own]:
        from harness.job import preflight  # it brings the libraries of tasks, which nothing else here needs

        for note in preflight.notes(own, request.data_root):
            send(Noted(note))
    for answer in workers.answer(request):
        send(Result(answer))


def calibrate(request: CalibrateDevice, send: Send) -> None:
    from harness.job.predict import calibrating

    send(Result(encode(calibrating.answer(request, progress(send)))))


def examine(request: ExamineMachine, send: Send) -> None:
    from harness.job import machine

    send(Result(machine.examine(request.models, request.data, request.data_root)))


def check_tasks(request: CheckTasks, send: Send) -> None:
    from harness.job import prepared_inputs

    prepared_inputs.tasks(request.settings, request.data, request.data_root, request.local.include_path)
    prepared_inputs.own_task(request.settings, request.data, request.data_root)  # with the encoder of its scores


def rescore(request: Rescore, send: Send) -> None:
    from harness.job.evaluate import rescoring

    path, report = Path(request.path), progress(send)
    rescoring.rescore(path, request.settings, request.data_root, report, request.local, request.cell)


# Before a fork


def prepare_cell(request: RunCell) -> None:
    """Load the cell's data, tokenizer and tasks."""
    from harness.job import prepared_inputs

    with suppress(Exception):  # the job meets the same error, and reports it
        prepared_inputs.of(request.cell.settings, request.data_root, request.local.include_path)


def prepare_check(request: CheckCells) -> None:
    """Index the tasks of the cells: it takes seconds, and the cells need it too."""
    from harness.job.evaluate import task_index

    with suppress(UserError):
        include = task_index.IncludedTasks.of(request.local.include_path)
        for tasks in {tuple(cell.settings.eval.tasks) for cell in request.cells}:
            task_index.index_of(tasks, include)


def prepare_tasks(request: CheckTasks) -> None:
    """Load the tasks."""
    _load_tasks(request, request.data)


def prepare_scoring(request: Rescore) -> None:
    """Load the tasks, without the record's data, which are not read here."""
    _load_tasks(request, DataSettings())


def _load_tasks(request: CheckTasks | Rescore, data: DataSettings) -> None:
    from harness.job import prepared_inputs

    with suppress(Exception):  # the job meets the same error, and reports it
        prepared_inputs.tasks(request.settings, data, request.data_root, request.local.include_path)
