"""Which cells of a study are done, running, failed and left, and the time left, read from its folder alone."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import record, terminal
from harness.errors import UserError
from harness.protocol import CellProgress
from harness.record import Cell, PlannedStudy, PlanProgress, Record, RecordError
from harness.studies import logs
from harness.sweep.cell_status import CellStatus, duration, table
from harness.sweep.live_cells import Durations, LiveCells
from harness.sweep.store import Study

if TYPE_CHECKING:
    from rich.console import RenderableType

SILENT = 600.0  # seconds without a sign of life; clocks of machines that share a disk differ by less
LOG_LINES = 3  # shown of a failed cell's log


@dataclass(kw_only=True)
class StudyStatus(LiveCells):
    """The status of a study: all its cells, and bad files, a sentence each. plan: how far it is (null: none)."""

    study: str
    problems: list[str]
    plan: PlanProgress | None = None

    def to_json(self) -> dict[str, Any]:
        cells = [cell.to_json() for cell in self.cells]
        left = {"seconds_left": self.seconds_left, "time_left": self.time_left}
        plan = None if self.plan is None else dataclasses.asdict(self.plan)
        return {"study": self.study, **self.counts, "cells": cells, **left, "plan": plan, "problems": self.problems}


class RecordCache:
    """Reads the records of studies, and reads a file again only if it changed: a watch must not disturb timings."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int], Record | str]] = {}

    def read(self, folder: Path) -> tuple[list[Record], list[str]]:
        """The same as `record.read_study`."""
        contents = [self._record(path) for path in sorted(folder.glob("*.json"))]
        return [f for f in contents if isinstance(f, Record)], [f for f in contents if isinstance(f, str)]

    def _record(self, path: Path) -> Record | str | None:
        try:
            stat = path.stat()
        except OSError:
            return None  # removed at this moment
        state = (stat.st_mtime_ns, stat.st_size)
        if path not in self._known or self._known[path][0] != state:
            try:
                self._known[path] = state, record.read(path)
            except RecordError as error:
                self._known[path] = state, str(error)
        return self._known[path][1]


def study_status(results: Path, name: str, cache: RecordCache | None = None) -> StudyStatus:
    """The status of the study `name` below `results`."""
    study = Study(results, name)
    records, problems = (cache or RecordCache()).read(study.folder)
    try:
        planned = study.planned()
    except UserError as error:
        planned, problems = [], [*problems, str(error)]
    running, recorded = study.running(), {r.cell.id for r in records}
    left = [c for c in planned if c.id not in recorded]
    cells = {c.name: c for c in [*(r.cell for r in records), *left]}
    durations = Durations(records, cells.values())

    states = [durations.expect(_running(name, owner, cells.get(name))) for name, owner in running.items()]
    states += [_recorded(r, study) for r in records if r.cell.name not in running]
    resumes = dict.fromkeys(study.checkpointed(), "checkpoint")
    states += [
        CellStatus(c.name, "left", c.id, c.method, progress=CellProgress(resumes.get(c.name)))
        for c in left
        if c.name not in running
    ]
    # Those of `run`, which plans nothing.
    states += [
        CellStatus(n, "left", progress=CellProgress(at))
        for n, at in resumes.items()
        if n not in cells and n not in running
    ]
    plan = None
    try:
        if plans := record.read_plans(study.folder):
            plan = PlannedStudy(plans, records).progress
    except UserError as error:
        problems = [*problems, str(error)]
    return StudyStatus(states, durations, study=name, problems=problems, plan=plan)


def _running(name: str, owner: dict[str, Any], cell: Cell | None) -> CellStatus:
    """cell: null of `run`, which plans nothing. One whose machine has been silent for long is left: a sweep runs it."""
    seconds = max(0.0, time.time() - owner["started"])
    status = CellStatus(name, "running", host=owner["host"], seconds=seconds)
    if cell is not None:
        status.id, status.method = cell.id, cell.method
    if owner["silent"] > SILENT:
        status.state, status.seconds = "left", None
        status.progress = CellProgress(f"silent for {duration(owner['silent'])}")
        return status
    status.follow(owner["progress"])
    return status


def _recorded(recorded: Record, study: Study) -> CellStatus:
    state = CellStatus.of_record(recorded)
    if state.failed or recorded.status == "unfit":
        state.log = logs.tail(study.log(recorded.cell), LOG_LINES)
    return state


def lines(status: StudyStatus) -> list[str]:
    """The status as plain lines: counts, a row for each cell that is not done, and why cells failed."""
    return terminal.lines(*view(status, terminal.UNLIMITED))


def view(status: StudyStatus, width: int, rows: int | None = None) -> list[RenderableType]:
    """The status for a terminal of `width` characters, with at most `rows` rows of cells (null: all)."""
    from rich.text import Text

    counts = ", ".join(f"{n} {state}" for state, n in status.counts.items())
    parts: list[RenderableType] = [
        Text(f"{status.study}: {counts}{', ' if status.time_left else ''}{status.time_left}", style="bold")
    ]
    if status.plan is not None:
        parts.append(Text(f"  plan: {status.plan.text}"))
    cells = [*status.having("running"), *status.failed, *status.having("unfit", "pruned"), *status.having("left")]
    if cells:
        parts.append(table(cells[:rows], width, indent=2))
    if rows is not None and len(cells) > rows:
        parts.append(Text(f"  … and {len(cells) - rows} more; `status` without --watch shows all"))
    for cell in (*status.failed, *status.having("unfit")):
        parts.append(Text(f"  {cell.cell} {cell.state}: {logs.shown(cell.reason or 'no reason recorded')}"))
        parts += [Text(f"    | {line}") for line in cell.log]
    return parts
