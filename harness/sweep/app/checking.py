"""The check that the cells of a grid can run, before any of them does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from harness import cell_runner
from harness.errors import UserError
from harness.record import Cell
from harness.sweep import runner
from harness.sweep.app import inputs
from harness.sweep.app.point import Point
from harness.sweep.app.session import Options


def check(points: Sequence[Point], options: Options, elsewhere: bool = False) -> None:
    """Raise UserError if a cell can't run, or if cells that plug-ins run would exceed the budget, or others have one.

    points: of one sweep, whose data_root and local paths are the same; at least one. elsewhere: whether they run on
    other machines.
    """
    if options.dollars is not None and any(point.is_local for point in points):
        raise UserError(
            f"A budget of {options.dollars:g}USD limits models behind an API alone; `plan` with this budget and a "
            "price says if cells that run here stay within it."
        )
    inputs.require(points)
    requests = [point.request for point in points]
    local, first = [point.cell for point in points if point.is_local], requests[0]
    extra = {request.cell.id: request.extra for request in requests if request.extra is not None}
    cells = [*_distinct(local).values(), *(request.cell for request in requests if request.cell.id in extra)]
    costs = runner.check(cells, first.data_root, extra, first.local, elsewhere)
    for by_plugin in cell_runner.runners():
        if own := [request for request in requests if by_plugin.runs(request.cell.settings)]:
            by_plugin.admit(own, costs, options.dollars)


def impossible(points: Sequence[Point], elsewhere: bool) -> dict[str, dict[str, Any]]:
    """Which of `points` can't run, by the id of the cell: as harness.sweep.runner.impossible.

    Raises UserError if none can, and for data that can't be read.

    points, elsewhere: as of `check`.
    """
    local = [point.cell for point in points if point.is_local]
    distinct = _distinct(local)
    request = points[0].request
    reasons = runner.impossible([*distinct.values()], request.data_root, request.local, elsewhere)
    refused = {cell.id: reasons[distinct[_alike(cell)].id] for cell in local if distinct[_alike(cell)].id in reasons}
    if len(refused) == len(points):
        raise UserError(next(iter(refused.values()))["reason"])
    return refused


def leaves_others(points: Sequence[Point], elsewhere: bool, error: UserError) -> bool:
    """Whether `error`, raised by `check`, is about some of `points` that `impossible` names, and others can run."""
    try:
        inputs.require(points)  # otherwise it is about an input, and no job needs to look
        return str(error) in {each["reason"] for each in impossible(points, elsewhere).values()}
    except UserError:  # none can run, or it is about data
        return False


def _distinct(cells: Sequence[Cell]) -> dict[str, Cell]:
    """By `_alike`, one of all cells that work or don't for the same reasons.

    A large grid has few of these: a job does not look at seeds, nor at the lr and alpha that validate.py has passed.
    """
    distinct: dict[str, Cell] = {}
    for cell in cells:
        distinct.setdefault(_alike(cell), cell)
    return distinct


def _alike(cell: Cell) -> str:
    """What cells have in common that work or don't for the same reasons."""
    settings, slots = cell.settings, cell.settings.method
    passed = {"lr": cell.lr, "lora_alpha": cell.alpha}
    slots = dataclasses.replace(slots, adapt=_without(passed, slots.adapt), optim=_without(passed, slots.optim))
    return repr((cell.rank, dataclasses.replace(settings, method=slots, seed=None)))


def _without(passed: dict[str, Any], slot: Any) -> Any:
    """`slot` without the values `passed`, at any depth."""
    if not isinstance(slot, dict):
        return slot
    return {k: _without(passed, v) for k, v in slot.items() if not (k in passed and v == passed[k])}
