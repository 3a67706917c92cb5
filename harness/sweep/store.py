"""A study's folder: where records lie, what was planned, what is running now.

results_dir/study/NAME.json            the record
                  NAME.items.parquet   what was scored, item by item
                  NAME.log             all that the cell's process printed
                  .harness/plan.json   the cells that sweeps asked for
                  .harness/running/    one marker a running cell
                  .harness/checkpoints/NAME/   from which a cell that was killed goes on: harness/job/checkpoint.py
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
import time
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

from harness import record
from harness.errors import UserError
from harness.record import Cell, Record


class Study:
    """The folder of the study `name` below `results`; it is made when something is first written."""

    def __init__(self, results: Path, name: str):
        self.name = name
        self.folder = results / name
        self._state = self.folder / ".harness"

    def path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.json"

    def log(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.log"

    def checkpoints(self, cell: Cell) -> Path:
        return self._state / "checkpoints" / cell.name

    def recorded(self, cell: Cell) -> Record | None:
        """The record of `cell`, or None; RecordError if a file of its name can't be read as one."""
        path = self.path(cell)
        if not path.exists():
            return None
        found = record.read(path)
        if found.cell.id != cell.id:
            raise UserError(f"{path} holds another cell under this name; move it out of the study's folder.")
        return found

    def planned(self) -> list[Cell]:
        """The cells that sweeps into this study asked for, in that order."""
        try:
            return [Cell(**c) for c in json.loads((self._state / "plan.json").read_text())]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError):
            raise UserError(f"{self._state / 'plan.json'} is damaged; delete it, the records don't need it.") from None

    def plan(self, cells: Iterable[Cell]) -> None:
        """Add `cells` to what was planned."""
        known = {c.id: c for c in self.planned()} | {c.id: c for c in cells}
        record.write_json([dataclasses.asdict(c) for c in known.values()], self._state / "plan.json")

    def running(self) -> dict[str, dict]:
        """Markers of running cells by name, each with host, pid, started and the last progress; dead ones left out."""
        markers = {}
        for path in sorted((self._state / "running").glob("*.json")):
            try:
                marker = json.loads(path.read_text())
            except (OSError, ValueError):
                continue  # removed or being made at this moment
            if not isinstance(marker, dict) or not {"host", "pid", "started", "progress"} <= marker.keys():
                continue  # not ours
            if not _dead(marker):
                markers[path.stem] = marker
        return markers

    @contextmanager
    def claim(self, cell: Cell):
        """Hold the marker of `cell` while it runs; yields a function that notes its progress there.

        Raises UserError if a live process on this machine, or any on another, holds it.
        """
        path = self._state / "running" / f"{cell.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        marker = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time(), "progress": {}}
        for _ in range(2):
            try:
                with open(path, "x", encoding="utf-8") as file:
                    json.dump(marker, file)
                break
            except FileExistsError:
                held = self.running().get(cell.name)
                owner = f"process {held['pid']} on {held['host']}" if held else "another process"
                # A marker without words may have been made this moment, by a process that is about to fill it.
                if held or _age(path) < 5:
                    raise UserError(
                        f"{cell.name} is being run by {owner} already (if not so, delete {path})."
                    ) from None
                path.unlink(missing_ok=True)
        else:
            raise UserError(f"{cell.name} was taken by another process at this moment.")
        try:
            yield lambda progress: record.write_json(marker | {"progress": progress}, path)
        finally:
            path.unlink(missing_ok=True)


def _age(path: Path) -> float:
    """Seconds since an unreadable marker was written; endless for a readable one, and for one that is gone."""
    try:
        json.loads(path.read_text())
    except FileNotFoundError:
        return math.inf
    except ValueError:
        return time.time() - path.stat().st_mtime
    return math.inf


def _dead(marker: dict) -> bool:
    """Whether the marker's owner is known to be gone: a process of this machine that exists no more."""
    if marker.get("host") != socket.gethostname():
        return False
    try:
        os.kill(marker["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
