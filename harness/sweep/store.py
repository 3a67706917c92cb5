"""A study's folder: its records, its plan, its running cells.

results_dir/study/NAME.json            the record
                  NAME.items.parquet   scores, item by item
                  NAME.log             output of the cell's process
                  NAME/                tuned weights, with save=: harness/job/models/saved.py
                  commands.txt         sweeps that requested cells, as they were typed
                  plan.jsonl           what sweeps asked for before their first cell: harness/record/study_plan.py
                  tensorboard/NAME/    what the tracker wrote: harness/job/tracker.py
                  .harness/plan.json   cells that sweeps requested
                  .harness/points/     points for the workers of a launcher: harness/sweep/launchers/through_hydra.py
                  .harness/running/    one lease per running cell: harness/sweep/lease.py
                  .harness/checkpoints/NAME/   checkpoints of killed cells: harness/job/training/checkpoints.py
                  .harness/rungs/NAME.json     losses by which a plug-in ends cells early
                  .harness/repeats/NAME/       what a repeat writes until NAME.json has it
                  .harness/answers/NAME.jsonl  what the plug-in that runs the cell keeps
                  .harness/verdicts/NAME/      a judge's replies, until NAME.json has what they say
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from harness import plugin, record
from harness.errors import UserError
from harness.program import PROGRAM, results_option
from harness.protocol import EarlyStopping
from harness.record import Cell, Record, StopRule
from harness.sweep import lease
from harness.sweep.lease import Lease


class Study:
    """The folder of the study `name` below `results`; the first write creates it."""

    def __init__(self, results: Path, name: str):
        self.name, self._results = name, results
        self.folder = results / name
        self._state = self.folder / ".harness"
        self._plan = self._state / "plan.json"

    def path(self, cell: Cell) -> Path:
        return self._record(cell.name)

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def weights(self, recorded: Record) -> Path | None:
        """The folder of the saved weights of a record; None if none were saved or they are gone."""
        folder = record.model_folder(self.path(recorded.cell))
        return folder if recorded.saved is not None and folder.is_dir() else None

    def log(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.log"

    def checkpoints(self, cell: Cell) -> Path:
        return self._checkpoints(cell.name)

    def repeating(self, cell: Cell) -> Path:
        """Where a repeat's record is written, in a folder of its own, before the cell's record takes it in."""
        return self._repeating(cell.name) / f"{cell.name}.json"

    def _repeating(self, name: str) -> Path:
        return self._state / "repeats" / name

    def early_stopping(self, rule: StopRule | None) -> EarlyStopping | None:
        """What a cell of this study needs to compete by `rule`, if there is one.

        Raises UserError if no plug-in ends cells by a rule.
        """
        if rule is None:
            return None
        target = next((part.early_stop for part in plugin.installed() if part.early_stop is not None), None)
        if target is None:
            raise UserError("A rule by which a cell may end early requires a plug-in that ends cells.")
        return EarlyStopping(rule, str((self._state / "rungs").absolute()), target)

    def answers(self, cell: Cell) -> Path:
        """Where the plug-in that runs `cell` may keep answers, from one attempt to the next."""
        return self._answers(cell.name)

    def _answers(self, name: str) -> Path:
        return self._state / "answers" / f"{name}.jsonl"

    def verdicts(self, cell: Cell) -> Path:
        """A folder for a judge's replies on the answers of `cell`, until its record has what they say."""
        return self._verdicts(cell.name)

    def _verdicts(self, name: str) -> Path:
        return self._state / "verdicts" / name

    def checkpointed(self) -> list[str]:
        """The names of cells that left checkpoints to resume from."""
        return sorted(path.name for path in (self._state / "checkpoints").glob("*") if path.is_dir())

    def _checkpoints(self, name: str) -> Path:
        return self._state / "checkpoints" / name

    def recorded(self, cell: Cell) -> Record | None:
        """The record of `cell`, or None; RecordError if its file is no valid record."""
        path = self.path(cell)
        if not path.exists():
            return None
        recorded = record.read(path)
        if recorded.cell.id != cell.id:
            raise UserError(f"{path} holds another cell under this name; move it out of the study's folder.")
        return recorded

    def settle(self) -> None:
        """Complete the writes of processes that died while they added scores to a record."""
        running = self.running()
        for path in sorted(self.folder.glob("*.json")):
            if path.stem not in running:
                record.settle(path)

    def command(self, name: str) -> str:
        """A command on this study alone, to paste into a shell."""
        return self._typed(name, self.name)

    def anew(self, recorded: Record, save: str | None = None) -> str:
        """The commands that train the cell of a record again. save: what they are to keep; null: as they were typed."""
        overrides = [] if save is None else [f"save={save}"]
        remove = self._typed("rm", f"{self.name}/{recorded.cell.name}")
        # Named, since records that were moved have another study's name in their commands.
        here = [] if self._results == Path("results") else [f"results_dir={self._results}"]
        sweeps = record.repeated_sweeps(self.folder, [f"study={self.name}", *here, *overrides])
        planned = [cell.id for cell in self.planned()]  # by sweeps; none in a folder that was copied or moved
        if overrides and sweeps and (not planned or recorded.cell.id in planned):
            return f"`{' && '.join([remove, *sweeps])}`"
        return f"`{remove}`, then the command that ran it{' with '.join(['', *overrides])}"

    def _typed(self, *words: str) -> str:
        return f"{PROGRAM} {shlex.join([*words, *results_option(self._results)])}"

    def planned(self) -> list[Cell]:
        """The cells that sweeps of this study requested, in order."""
        try:
            cells = record.decode(list[Cell], json.loads(record.content_of(self._plan)))
            for cell in cells:
                record.check_settings(cell)
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError, UserError):
            cells = None
        if cells is None or not all(record.names_a_file(cell.name) for cell in cells):
            raise UserError(f"{self._plan} is damaged; delete it, records do not need it.")
        return cells

    def plan(self, cells: Iterable[Cell]) -> None:
        """Add `cells` to the plan, under a lease, and remove what dead processes left behind."""
        cells = list(cells)
        with self.planning() as planning:
            for path in self.left_behind(planning.path.stat().st_mtime):
                discard(path)
            by_id = {c.id: c for c in self.planned()} | {c.id: c for c in cells}
            record.write_json([dataclasses.asdict(c) for c in by_id.values()], self._plan)

    def planning(self) -> AbstractContextManager[Lease]:
        """Within this context no other process plans cells of this study."""
        return lease.hold(self._state / "planning", "The plan", patiently=True)

    def left_behind(self, now: float | None = None) -> list[Path]:
        """Temporary files and leases of dead processes.

        now: the time by the clock of the folder's file system (null: this machine's clock).
        """
        folders = (self.folder, self._state, self._state / "running", self._state / "rungs")
        return lease.left_behind(folders, time.time() if now is None else now)

    def remove(self, name: str) -> list[Path]:
        """Remove the cell `name` with all its files and its place in the plan; returns the removed `files`.

        A link is removed, and not what it points to. Raises UserError for a file that can't be removed. Folders come
        first, as they are what may resist: then the cell still has its record.
        """
        gone, path = self.files(name), self._record(name)
        begun = [left for left in self.left_behind() if left.name.startswith(f".{name}.")]
        begun += [record.pending(path), *record.beginnings(path), self.folder / "tensorboard" / name]
        rungs = self._state / "rungs" / f"{name}.json"
        begun += [self._checkpoints(name), self._answers(name), self._verdicts(name), self._repeating(name), rungs]
        for entry in sorted((*gone, *begun), key=Path.is_file):
            try:
                discard(entry, strict=True)
            except OSError as error:
                raise UserError(
                    f"{self.name}/{name} is not removed, as {entry} can't be ({error.strerror}); make that possible, "
                    "and give the same command again."
                ) from error
        with self.planning():
            planned = self.planned()
            if left := [cell for cell in planned if cell.name != name]:
                if len(left) < len(planned):
                    record.write_json([dataclasses.asdict(c) for c in left], self._plan)
            elif planned:
                self._plan.unlink()
        return gone

    def files(self, name: str) -> list[Path]:
        """The files of the cell `name`: record, items, log and the folder of its weights, if they exist.

        Each may be a link, also one that points to nothing.
        """
        paths = [self.folder / f"{name}{ending}" for ending in (".json", ".items.parquet", ".log")]
        files = [path for path in paths if path.is_file() or path.is_symlink()]
        weights = record.model_folder(self._record(name))
        return [*files, weights] if weights.is_dir() or weights.is_symlink() else files

    def running(self) -> dict[str, dict]:
        """The owners of running cells by name, as `lease.owner` has them."""
        owners = {folder.name: lease.owner(folder) for folder in sorted((self._state / "running").glob("*"))}
        return {name: owner for name, owner in owners.items() if owner is not None}

    def is_running(self, name: str) -> bool:
        """Whether a live process runs the cell `name`; of another machine, a sign of life is waited for."""
        return lease.alive(self._state / "running" / name)

    def lease(self, cell: Cell) -> AbstractContextManager[Lease]:
        """Hold the lease of `cell` while it runs. Raises Held if a live process has it.

        Read the record again afterwards: another process may just have written it.
        """
        return lease.hold(self._lease_folder(cell), cell.name)

    def wait(self, cells: Sequence[Cell]) -> list[Cell]:
        """Wait until some of `cells`, which other processes hold, are free; returns those."""
        by_folder = {self._lease_folder(cell): cell for cell in cells}
        return [by_folder[free] for free in lease.wait(list(by_folder))]

    def _lease_folder(self, cell: Cell) -> Path:
        return self._state / "running" / cell.name


def discard(path: Path, strict: bool = False) -> None:
    """Remove a file, a link, or a folder with its content, if it exists.

    strict: raise OSError if part of a folder stays, which otherwise loses what can be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=not strict)
    else:
        path.unlink(missing_ok=True)


def begun(results: Path) -> list[str]:
    """The studies below `results`, including those without a record that have a plan or a running cell."""
    folders = [path.parent.relative_to(results).as_posix() for path in results.rglob(".harness") if path.is_dir()]
    return sorted({*record.studies(results), *filter(record.STUDY_NAME.fullmatch, folders)})
