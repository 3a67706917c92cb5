"""Unites the result folders of several machines: records with their items, weights and logs, and what was planned.

    python -m harness merge DIR... [--into DIR] [--newer]

All is looked at before anything is written. What is written is copied file by file, each whole or not at all (saved
weights as one), the record last; after a break the same command goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import record
from harness.errors import UserError
from harness.record import Cell, Record, RecordError
from harness.studies import verify
from harness.sweep.store import Study


@dataclass
class Found:
    """A record in one of the folders; its items, its weights and its log lie beside it, if there are any."""

    study: str
    path: Path
    record: Record

    @property
    def items(self) -> Path:
        return self.path.with_suffix(".items.parquet")

    @property
    def log(self) -> Path:
        return self.path.with_suffix(".log")

    @property
    def weights(self) -> Path:
        return record.model_folder(self.path)

    @property
    def has(self) -> tuple[bool, bool]:
        """Whether its items lie beside it, and its weights."""
        return self.items.exists(), self.weights.is_dir()

    @property
    def started(self) -> datetime:
        """When the cell began, or its last scoring, by its own machine's clock."""
        return max(map(_time, (self.record.started, *(scoring.started for scoring in self.record.rescored))))

    def equals(self, other: Found) -> bool:
        """Whether both hold the same record and the same items; one that lacks the items contradicts no other."""
        if self.record != other.record:
            return False
        both = self.items.exists() and other.items.exists()
        return not both or record.sha256(self.items) == record.sha256(other.items)


@dataclass
class Merge:
    """What there is to do, and what forbids it.

    new: records that are not there yet, or not with their items and weights; newer: those that replace an older one
    that is there; equal: how many need nothing. conflicts: unequal records of one name, of which none was chosen.
    problems: one sentence each on what can't be trusted. planned: by study the cells to be added to its plan.
    """

    new: list[Found] = field(default_factory=list)
    newer: list[Found] = field(default_factory=list)
    equal: int = 0
    conflicts: list[list[Found]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    planned: dict[str, list[Cell]] = field(default_factory=dict)


def plan(folders: Sequence[Path], into: Path, newer: bool) -> Merge:
    """What uniting the result folders `folders` with `into` takes; writes nothing.

    newer: of unequal records the one that began last is kept. Raises UserError for a folder that is none of results.
    """
    made = Merge()
    candidates: dict[tuple[str, str], list[Found]] = {}
    for folder in folders:
        for found in _records(folder, into, made):
            candidates.setdefault((found.study, found.path.name), []).append(found)
    for (study, name), found in candidates.items():
        try:
            there = [Found(study, path, record.read(path))] if (path := into / study / name).exists() else []
        except RecordError as error:
            made.problems.append(str(error))
            continue
        _decide([*there, *found], bool(there), newer, made)
    for study in {found.study for found in (*made.new, *made.newer)} | made.planned.keys():
        Study(into, study).planned()
    for found in (*made.new, *made.newer):
        if found.record.cell.name in Study(into, found.study).running():
            made.problems.append(f"{into / found.study / found.path.name} can't be written: its cell is being run.")
    return made


def write(made: Merge, into: Path) -> None:
    """Do what `made` says. Raises OSError; the same merge then goes on from there."""
    for found in (*made.new, *made.newer):
        target = Found(found.study, into / found.study / found.path.name, found.record)
        target.path.parent.mkdir(parents=True, exist_ok=True)
        for source, beside in ((found.items, target.items), (found.log, target.log)):
            if source.exists():
                _copy(source, beside)
            elif found in made.newer:
                beside.unlink(missing_ok=True)  # it is of the record that is replaced
        if found.weights.is_dir():
            _copy_weights(found, target)
        elif found in made.newer and record.read(target.path).saved != found.record.saved:
            shutil.rmtree(target.weights, ignore_errors=True)
        _copy(found.path, target.path)
    for study, cells in made.planned.items():
        Study(into, study).plan(cells)


def lines(made: Merge, into: Path, written: bool) -> list[str]:
    """What was done, or why nothing was, for a terminal."""
    out = []
    for conflict in made.conflicts:
        out.append(f"conflict: {conflict[0].study}/{conflict[0].path.stem}")
        out += [f"  {_tell(found)}" for found in conflict]
    if not written:
        kept = "; --newer keeps the one of each that began last" if made.conflicts and not made.problems else ""
        return [*out, f"Nothing was written to {into}{kept}."]
    counts = f"{len(made.new)} new, {len(made.newer)} replaced by newer ones, {made.equal} already there"
    return [*out, f"{into}: {counts}."]


def facts(made: Merge, into: Path, written: bool) -> dict[str, Any]:
    """The same for a script."""

    def short(found: Found) -> dict[str, Any]:
        told = {"study": found.study, "name": found.path.stem, "file": str(found.path)}
        return told | {"status": found.record.status, "started": found.record.started}

    return {
        "into": str(into),
        "written": written,
        "new": [short(found) for found in made.new],
        "newer": [short(found) for found in made.newer],
        "equal": made.equal,
        "conflicts": [[short(found) for found in conflict] for conflict in made.conflicts],
        "problems": made.problems,
    }


def _records(folder: Path, into: Path, made: Merge) -> Iterator[Found]:
    """The sound records of one result folder. What is wrong with others, and what was planned, goes into `made`."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} to merge.")
    if into.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder} can't be merged into {into}, which is the same folder or lies in it; name another.")
    plans = {path.parent.parent.relative_to(folder).as_posix() for path in folder.rglob(".harness/plan.json")}
    studies = [name for name in sorted(plans | set(record.studies(folder))) if name != "."]
    if not studies:
        raise UserError(f"There are no studies in {folder}; name a folder that holds them, such as results.")
    for name in studies:
        if cells := Study(folder, name).planned():
            made.planned.setdefault(name, []).extend(cells)
        for path in sorted((folder / name).glob("*.json")):
            if problems := verify.check(path):
                made.problems += problems
            else:
                yield Found(name, path, record.read(path))


def _decide(found: list[Found], there: bool, newer: bool, made: Merge) -> None:
    """Choose among records of one name, of which the first is in place if one is `there`."""
    first = found[0]
    unequal = [other for other in found if not other.equals(first)]
    latest = [f for f in found if f.started == max(other.started for other in found)] if unequal else found
    best = max(latest, key=lambda f: f.has)  # the first that has its items with it, and its weights
    clear = all(f.equals(best) for f in latest) and len({f.record.cell.id for f in found}) == 1
    if unequal and not (newer and clear):
        made.conflicts.append([first, *unequal])
    elif there and not best.equals(first):
        made.newer.append(best)
    elif there and first.has >= best.has:
        made.equal += 1
    else:
        made.new.append(best)


def _tell(found: Found) -> str:
    """A record in a line: where it is, and what one would choose by."""
    known = found.record
    loss = f", validation loss {known.validation[-1].loss:.4g}" if known.validation else ""
    scores = "".join(f", {score.task} {score.metric} {score.value:.4g}" for score in known.scores[:1])
    why = f": {known.failure.reason}" if known.failure else ""
    return f"{found.path}: {known.status}, began {known.started}{loss}{scores}{why}"


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = datetime.min
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _copy(source: Path, target: Path) -> None:
    with record.replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def _copy_weights(source: Found, target: Found) -> None:
    made = record.beginnings(target.path)[0]
    shutil.rmtree(made, ignore_errors=True)
    try:
        with record.naming(target.weights):
            for path in (path for path in source.weights.rglob("*") if path.is_file()):
                copy = made / path.relative_to(source.weights)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        record.place(made, target.weights)
    finally:
        shutil.rmtree(made, ignore_errors=True)
