"""Which cells of a study are done, running, failed and left, and the time left, read from its folder alone."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from tabulate import tabulate

from harness import record, units
from harness.errors import UserError
from harness.record import Cell, Record, RecordError
from harness.studies import logs
from harness.sweep.store import Study

LOG_LINES = 3  # shown of a failed cell's log
# The progress that a running cell reports, with types.
PROGRESS = {"phase": str} | dict.fromkeys(("step", "of", "memory_bytes"), int)
PROGRESS |= dict.fromkeys(("loss", "tokens_per_second", "seconds_left"), float)
HEADER = [
    "state",
    "cell",
    "at",
    "to go",
    "loss",
    "tokens/s",
    "memory",
    "time",
    "host",
]  # narrow terminals cut the end


@dataclass
class CellStatus:
    """The status of one cell; null where a value is unknown or does not apply.

    state: the status of its record, ``running`` or ``left``. phase, step, of, loss, tokens_per_second: the last
    progress of a running cell, or where it failed. memory_bytes: of the CUDA device, else the process's resident set.
    seconds: so far, or in total. seconds_left: of a running cell. log: the last lines of a failed cell's log.
    """

    cell: str
    state: str
    id: str | None = None
    method: str | None = None
    host: str | None = None
    phase: str | None = None
    step: int | None = None
    of: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    memory_bytes: int | None = None
    seconds: float | None = None
    seconds_left: float | None = None
    reason: str | None = None
    log: list[str] = field(default_factory=list)


@dataclass
class StudyStatus:
    """The status of a study: all its cells, the seconds left (null: unknown), and one sentence per bad file."""

    study: str
    cells: list[CellStatus]
    seconds_left: float | None
    problems: list[str]

    def having(self, *states: str) -> list[CellStatus]:
        return [cell for cell in self.cells if cell.state in states]

    @property
    def failed(self) -> list[CellStatus]:
        return [cell for cell in self.cells if cell.state not in ("ok", "running", "left")]

    @property
    def over(self) -> bool:
        """Whether no cell is running or left."""
        return not self.having("running", "left")

    @property
    def counts(self) -> dict[str, int]:
        done, running, left = (len(self.having(state)) for state in ("ok", "running", "left"))
        return {"done": done, "running": running, "failed": len(self.failed), "left": left}

    def to_json(self) -> dict[str, Any]:
        return {"study": self.study, **self.counts, **dataclasses.asdict(self)}


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
    states += [CellStatus(c.name, "left", c.id, c.method) for c in left if c.name not in running]
    to_go = [durations.to_go(s, cells[s.cell]) if s.cell in cells else s.seconds_left for s in states]
    total = None if None in to_go else sum(to_go) / max(1, len(running))
    return StudyStatus(name, states, total, problems)


class Durations:
    """How long recorded cells took, by method, in seconds."""

    def __init__(self, records: Sequence[Record]):
        self._done = [r for r in records if r.status == "ok"]

    def of_method(self, method: str) -> float | None:
        found = [r.seconds for r in self._done if r.cell.method == method]
        return mean(found) if found else None

    def to_go(self, state: CellStatus, cell: Cell) -> float | None:
        """Seconds left of a cell: by its pace, else by its method's cells, else by all cells."""
        if state.state not in ("running", "left"):
            return 0.0
        if state.seconds_left is not None or not self._done:
            return state.seconds_left
        expected = self.of_method(cell.method) or mean(r.seconds for r in self._done)
        return max(0.0, expected - (state.seconds or 0.0))

    def after_training(self, method: str) -> float:
        """Mean seconds of the phases after training; 0 if there is no recorded cell of the method."""
        found = []
        for r in self._done:
            names = list(r.phases)
            if r.cell.method == method and "train" in names:
                found.append(sum(r.phases[name].seconds for name in names[names.index("train") + 1 :]))
        return mean(found) if found else 0.0


def _running(name: str, marker: dict[str, Any], cell: Cell | None, durations: Durations) -> CellStatus:
    found = CellStatus(
        name, "running", host=marker["host"], seconds=max(0.0, time.time() - marker["started"]), phase="start"
    )
    progress = marker["progress"] if isinstance(marker["progress"], dict) else {}
    for key, kind in PROGRESS.items():
        if isinstance(progress.get(key), kind):
            setattr(found, key, progress[key])
    if cell is None:  # of `run`, which plans nothing
        return found
    found.id, found.method = cell.id, cell.method
    if found.seconds_left is not None:
        found.seconds_left += durations.after_training(cell.method)
    elif (expected := durations.of_method(cell.method)) is not None:
        found.seconds_left = max(0.0, expected - found.seconds)
    return found


def _recorded(found: Record, study: Study) -> CellStatus:
    state = CellStatus(found.cell.name, found.status, found.cell.id, found.cell.method, seconds=found.seconds)
    if found.failure is not None:
        state.phase, state.step, state.reason = found.failure.phase, found.failure.step, found.failure.reason
    if found.status != "ok":
        state.log = logs.tail(study.log(found.cell), LOG_LINES)
    return state


def lines(status: StudyStatus) -> list[str]:
    """The status for a terminal: counts, a row for each cell that is not done, and why cells failed."""
    rows = [_row(cell) for cell in (*status.having("running"), *status.failed, *status.having("left"))]
    out = [f"{status.study}: {', '.join(f'{n} {state}' for state, n in status.counts.items())}{_to_go(status)}"]
    if rows:
        out += ["  " + line for line in tabulate(rows, HEADER, "plain", disable_numparse=True).splitlines()]
    for cell in status.failed:
        out.append(f"  {cell.cell} {cell.state}: {logs.shown(cell.reason or 'no reason recorded')}")
        out += [f"    | {line}" for line in cell.log]
    return out


def _row(cell: CellStatus) -> list[str]:
    at = cell.phase or ""
    if cell.step is not None:
        at += f" {cell.step}" + (f"/{cell.of}" if cell.of is not None else "")
    return [
        cell.state,
        cell.cell,
        at,
        "" if cell.seconds_left is None else duration(cell.seconds_left),
        "" if cell.loss is None else f"{cell.loss:.3f}",
        "" if cell.tokens_per_second is None else f"{cell.tokens_per_second:.0f}",
        "" if cell.memory_bytes is None else units.size(cell.memory_bytes),
        "" if cell.seconds is None else duration(cell.seconds),
        cell.host or "",
    ]


def _to_go(status: StudyStatus) -> str:
    if status.over:
        return ""
    if status.seconds_left is None:
        return ", time left unknown until a cell is done"
    return f", about {duration(status.seconds_left)} to go"


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
