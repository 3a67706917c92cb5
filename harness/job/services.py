"""What jobs do besides running a cell: a function for each kind of request, which names it as its target.

A target takes the request and a function that sends events. What a request names under `prepare` is called in the
server before the job is forked, so that later jobs find it loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness import cell_runner, data_files, protocol
from harness.errors import UserError
from harness.protocol import Noted, Progress, Report, RunCell
from harness.record import Cell, encode
from harness.settings import DataSettings

Send = Callable[[protocol.JobEvent], None]


def progress(send: Send) -> Report:
    """A function that sends a report of the job's own code: a warning as Warned, a note as Noted, else Progress."""

    def event(report: dict[str, Any]) -> protocol.JobEvent:
        if "warning" in report:
            return protocol.Warned(report["warning"])
        return Noted(report["note"]) if "note" in report else Progress(**report)

    return lambda report: send(event(report))


def check(request: protocol.CheckCells, send: Send) -> None:
    from harness.job import reachable

    local = _local(request.cells)
    reachable.check(local, request.data_root)
    from harness.job import preflight  # late: its libraries take seconds

    for note in preflight.check(local, request.data_root, request.local, request.elsewhere):
        send(Noted(note))
    for cell in request.cells:
        if (by_plugin := cell_runner.runner_of(cell.settings)) is not None:
            cost = by_plugin.check(cell, request.extra[cell.id], request.data_root, request.local)
            send(protocol.Result({"id": cell.id, "cost": cost}))


def sort(request: protocol.SortCells, send: Send) -> None:
    from harness import env
    from harness.job import reachable

    cells = _local(request.cells)
    reachable.check_data(cells, request.data_root)
    for cell in cells:
        try:
            reachable.check_model(cell.settings.model)
            from harness.job import preflight  # late: its libraries take seconds

            preflight.check_cell(cell, request.local, request.elsewhere)
        except UserError as error:
            send(protocol.Result({"id": cell.id, "reason": str(error), "environment": env.describe()}))


def _local(cells: Sequence[Cell]) -> list[Cell]:
    """Those of `cells` that no plug-in runs."""
    return [cell for cell in cells if cell_runner.runner_of(cell.settings) is None]


def plan(request: protocol.PlanCells, send: Send) -> None:
    from harness.job.predict import pool

    if own := [planned.cell for planned in request.cells if planned.cell.settings.data.own]:
        from harness.job import own_files, reachable

        reachable.check_data([cell for cell in own if not _on_hub(cell, request.data_root)], request.data_root)
        for note in own_files.notes(own, request.data_root):
            send(Noted(note))
    for answer in pool.answer(request):
        send(protocol.Result(answer))


def _on_hub(cell: Cell, data_root: str | None) -> bool:
    return data_files.names_hub(str(cell.settings.data.path), Path(data_root or "."))


def calibrate(request: protocol.CalibrateDevice, send: Send) -> None:
    from harness.job.predict import calibrating

    send(protocol.Result(encode(calibrating.answer(request, progress(send)))))


def examine(request: protocol.ExamineMachine, send: Send) -> None:
    from harness.job import machine

    send(protocol.Result(machine.examine(request.models, request.data, request.data_root)))


def check_tasks(request: protocol.CheckTasks, send: Send) -> None:
    from harness.job import prepared_inputs

    prepared_inputs.tasks(request.settings, request.data, request.data_root, request.local.include_path)
    prepared_inputs.own_task(request.settings, request.data, request.data_root)  # with the encoder of its scores


def rescore(request: protocol.Rescore, send: Send) -> None:
    from harness.job.evaluate import rescoring

    path, report = Path(request.path), progress(send)
    rescoring.rescore(path, request.settings, request.data_root, report, request.local, request.cell)


# Before a fork


def prepare_cell(request: RunCell) -> None:
    """Load the cell's data, import the libraries of cells, and load the tokenizer and the tasks.

    Nothing more is done after data or a model that are refused, so that the job can say it soon.
    """
    from harness.job import libraries, reachable

    with suppress(Exception):  # the job meets the same error, and reports it
        reachable.check(_local([request.cell]), request.data_root)
        libraries.load(protocol.LIBRARIES)
        from harness.job import prepared_inputs

        prepared_inputs.inputs_of(request.cell.settings, request.data_root, request.local.include_path)


def prepare_check(request: protocol.CheckCells) -> None:
    """Read the data, import the libraries of cells and index their tasks: it takes seconds, and the cells need it too.

    The rest as prepare_cell.
    """
    from harness.job import libraries, reachable

    with suppress(Exception):
        reachable.check(_local(request.cells), request.data_root)
        libraries.load(protocol.LIBRARIES)
        from harness.job.evaluate import task_index

        include = task_index.IncludedTasks.in_folder(request.local.include_path)
        for tasks in {tuple(cell.settings.eval.tasks) for cell in request.cells}:
            task_index.index_of(tasks, include)


def prepare_tasks(request: protocol.CheckTasks) -> None:
    """Load the tasks."""
    _load_tasks(request, request.data)


def prepare_scoring(request: protocol.Rescore) -> None:
    """Load the tasks, without the record's data, which are not read here."""
    _load_tasks(request, DataSettings())


def _load_tasks(request: protocol.CheckTasks | protocol.Rescore, data: DataSettings) -> None:
    from harness.job import prepared_inputs

    with suppress(Exception):  # the job meets the same error, and reports it
        prepared_inputs.tasks(request.settings, data, request.data_root, request.local.include_path)
