"""Which cells of a study are done, running, failed and left, and the time left, read from its folder alone."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from harness import record, terminal
from harness.errors import UserError
from harness.protocol import CellProgress
from harness.record import Cell, Record, RecordError
from harness.studies import logs
from harness.sweep.cell_status import AT_WORK, CellStatus, table, to_go
from harness.sweep.store import Study

if TYPE_CHECKING:
    from rich.console import RenderableType

LOG_LINES = 3  # shown of a failed cell's log


@dataclass
class StudyStatus:
    """The status of a study: all its cells, the seconds left (null: unknown) also in words, and bad files, a sentence
    each."""

    study: str
    cells: list[CellStatus]
    seconds_left: float | None
    time_left: str
    problems: list[str]

    def having(self, *states: str) -> list[CellStatus]:
        return [cell for cell in self.cells if cell.state in states]

    @property
    def failed(self) -> list[CellStatus]:
        return [cell for cell in self.cells if cell.failed]

    @property
    def over(self) -> bool:
        """Whether no cell is running or left."""
        return not self.having(*AT_WORK)

    @property
    def counts(self) -> dict[str, int]:
        done, running, left = (len(self.having(state)) for state in ("ok", "running", "left"))
        counts = {"done": done, "running": running, "failed": len(self.failed), "left": left}
        return counts | {state: n for state in ("unfit", "pruned") if (n := len(self.having(state)))}

    def to_json(self) -> dict[str, Any]:
        cells = [cell.to_json() for cell in self.cells]
        return {"study": self.study, **self.counts, **dataclasses.asdict(self), "cells": cells}


class RecordCache:
    """Reads the records of studies, and reads a file again only if it changed: a watch must not disturb timings."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int], Record | str]] = {}

    def read(self, folder: Path) -> tuple[list[Record], list[str]]:
        """The same as `record.read_study`."""
        found = [self._record(path) for path in sorted(folder.glob("*.json"))]
        return [f for f in found if isinstance(f, Record)], [f for f in found if isinstance(f, str)]

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
    """The status of the study `name` below `results`.

    The time left assumes that a cell takes the mean time of the recorded cells of its method (of all cells, if there
    are none), that a training cell keeps its pace, and that as many cells run at a time as now, at least one.
    """
    study = Study(results, name)
    records, problems = (cache or RecordCache()).read(study.folder)
    try:
        planned = study.planned()
    except UserError as error:
        planned, problems = [], [*problems, str(error)]
    running, recorded = study.running(), {r.cell.id for r in records}
    left = [c for c in planned if c.id not in recorded]
    cells = {c.name: c for c in [*(r.cell for r in records), *left]}
    durations = Durations(records)

    states = [_running(name, marker, cells.get(name), durations) for name, marker in running.items()]
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
    remaining = [durations.to_go(state, cells.get(state.cell)) for state in states if state.state in AT_WORK]
    shared = [seconds and seconds / max(1, len(running)) for seconds in remaining]
    known = [seconds for seconds in shared if seconds is not None]
    total = sum(seconds for seconds in known if seconds > 0) if len(known) == len(shared) else None
    return StudyStatus(name, states, total, to_go(shared) if shared else "", problems)


class Durations:
    """How long recorded cells took, by method, in seconds."""

    def __init__(self, records: Sequence[Record]):
        self._done = [r for r in records if r.status == "ok"]

    def of_method(self, method: str) -> float | None:
        found = [r.seconds for r in self._done if r.cell.method == method]
        return mean(found) if found else None

    def to_go(self, state: CellStatus, cell: Cell | None) -> float | None:
        """Seconds left of a cell: by its pace, else by its method's cells, else by all cells; null if it is not known.

        Below 0 if it takes longer than those did.
        """
        if (left := state.progress.seconds_left) is not None or not self._done or cell is None:
            return left
        expected = self.of_method(cell.method) or mean(r.seconds for r in self._done)
        return expected - (state.seconds or 0.0)

    def after_training(self, method: str) -> float:
        """Mean seconds of the phases after training; 0 if there is no recorded cell of the method."""
        found = []
        for r in self._done:
            names = list(r.phases)
            if r.cell.method == method and "train" in names:
                found.append(sum(r.phases[name].seconds for name in names[names.index("train") + 1 :]))
        return mean(found) if found else 0.0


def _running(name: str, marker: dict[str, Any], cell: Cell | None, durations: Durations) -> CellStatus:
    seconds = max(0.0, time.time() - marker["started"])
    found = CellStatus(name, "running", host=marker["host"], seconds=seconds)
    found.follow(marker["progress"] if isinstance(marker["progress"], dict) else {})
    if cell is None:  # of `run`, which plans nothing
        return found
    found.id, found.method = cell.id, cell.method
    if (left := found.progress.seconds_left) is not None:
        left += durations.after_training(cell.method)
    elif (expected := durations.of_method(cell.method)) is not None and expected > seconds:
        left = expected - seconds
    found.progress = dataclasses.replace(found.progress, seconds_left=left)
    return found


def _recorded(found: Record, study: Study) -> CellStatus:
    state = CellStatus.of_record(found)
    if state.failed or found.status == "unfit":
        state.log = logs.tail(study.log(found.cell), LOG_LINES)
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
    cells = [*status.having("running"), *status.failed, *status.having("unfit", "pruned"), *status.having("left")]
    if cells:
        parts.append(table(cells[:rows], width, indent=2))
    if rows is not None and len(cells) > rows:
        parts.append(Text(f"  … and {len(cells) - rows} more; `status` without --watch shows all"))
    for cell in (*status.failed, *status.having("unfit")):
        parts.append(Text(f"  {cell.cell} {cell.state}: {logs.shown(cell.reason or 'no reason recorded')}"))
        parts += [Text(f"    | {line}") for line in cell.log]
    return parts
