"""A study's folder: where records lie, what was planned, what is running now.

results_dir/study/NAME.json            the record
                  NAME.items.parquet   what was scored, item by item
                  NAME.log             all that the cell's process printed
                  .harness/plan.json   the cells that sweeps asked for
                  .harness/running/    one marker a running cell
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
            found = record.decode(list[Cell], json.loads((self._state / "plan.json").read_text()))
        except FileNotFoundError:
            return []
        except ValueError:
            found = None
        if found is None or not all(record.names_a_file(cell.name) for cell in found):
            raise UserError(f"{self._state / 'plan.json'} is damaged; delete it, the records don't need it.")
        return found

    def plan(self, cells: Iterable[Cell]) -> None:
        """Add `cells` to what was planned."""
        known = {c.id: c for c in self.planned()} | {c.id: c for c in cells}
        record.write_json([dataclasses.asdict(c) for c in known.values()], self._state / "plan.json")

    def remove(self, name: str) -> list[Path]:
        """Remove all that there is of the cell `name`, the plan included; returns the files that are gone."""
        gone = []
        for path in self.files(name):
            path.unlink(missing_ok=True)
            gone.append(path)
        planned = self.planned()
        if left := [cell for cell in planned if cell.name != name]:
            if len(left) < len(planned):
                record.write_json([dataclasses.asdict(c) for c in left], self._state / "plan.json")
        elif planned:
            (self._state / "plan.json").unlink()
        return gone

    def files(self, name: str) -> list[Path]:
        """What the cell `name` has left: record, items, log, those that are there."""
        paths = [self.folder / f"{name}{ending}" for ending in (".json", ".items.parquet", ".log")]
        return [path for path in paths if path.is_file()]

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


def begun(results: Path) -> list[str]:
    """Names of the studies below `results`, with those that have no record yet, but a plan or a running cell."""
    folders = [path.parent.relative_to(results).as_posix() for path in results.rglob(".harness") if path.is_dir()]
    return sorted({*record.studies(results), *filter(record.STUDY_NAME.fullmatch, folders)})


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
