"""Unites the result folders of several machines: records with their items, weights and logs, plans, commands.

    harness merge DIR... [--into DIR] [--newer]

The folders may come from anywhere: links in them are refused, and their commands are kept as comments. Everything is
read and checked before anything is written. Files are copied one by one, each whole or not at all (saved weights as
one), the record last; after an interruption the same command resumes.
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
from harness.grouping import grouped
from harness.record import Cell, Record, RecordError, StudyPlan
from harness.score_names import score_label
from harness.studies import verify
from harness.sweep.store import Study


@dataclass
class RecordFile:
    """A record in one of the folders. Its items, weights and log lie beside it, if there are any."""

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
        """Whether its items, and its weights, lie beside it."""
        return self.items.exists(), self.weights.is_dir()

    @property
    def started(self) -> datetime:
        """When the cell, its last scoring or its last repeat began, by the clock of its own machine."""
        scorings = [scoring.started for scoring in self.record.rescored]
        repeats = [repeat.started for repeat in self.record.repeats]
        return max(map(_time, (self.record.started, *scorings, *repeats)))

    @property
    def priority(self) -> tuple[bool, datetime]:
        """The greater, the rather a record is kept: one that finished before one that failed, then the later one."""
        return self.record.status in record.COMPLETE, self.started

    def equals(self, other: RecordFile) -> bool:
        """Whether both have the same record, and so the same items, whose hash it has."""
        return self.record == other.record


@dataclass
class MergePlan:
    """What a merge has to do, and what forbids it.

    new: records that the target lacks, or has without their items or weights. newer: records that replace an older one
    of the target. equal: the number of records that need nothing. conflicts: unequal records of one name, none chosen.
    problems: one sentence for each file that can't be trusted. refused: one for each record to be merged that the gate
    refuses: it is merged, but no command runs or loads it. planned: by study, cells to add to its plan.
    commands: by study, those that asked for its cells. plans: by study, the lines of its plan.
    """

    new: list[RecordFile] = field(default_factory=list)
    newer: list[RecordFile] = field(default_factory=list)
    equal: int = 0
    conflicts: list[list[RecordFile]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    planned: dict[str, list[Cell]] = field(default_factory=dict)
    commands: dict[str, list[str]] = field(default_factory=dict)
    plans: dict[str, list[StudyPlan]] = field(default_factory=dict)


def plan_merge(folders: Sequence[Path], into: Path, newer: bool) -> MergePlan:
    """Plan the merge of the result folders `folders` into `into`; writes nothing.

    newer: of unequal records, keep the one that finished and began last. Raises UserError for a folder without studies.
    """
    plan = MergePlan()
    candidates = grouped(
        ((file.study, file.path.name), file) for folder in folders for file in _records(folder, into, plan)
    )
    for (study, name), of_name in candidates.items():
        try:
            there = [RecordFile(study, path, record.read(path))] if (path := into / study / name).exists() else []
        except RecordError as error:
            plan.problems.append(str(error))
            continue
        _decide([*there, *of_name], bool(there), newer, plan)
    for study in {file.study for file in (*plan.new, *plan.newer)} | plan.planned.keys() | plan.plans.keys():
        Study(into, study).planned()
        record.read_plans(into / study)
    for file in (*plan.new, *plan.newer):
        plan.refused += verify.refused(file.record, file.path)
        if Study(into, file.study).is_running(file.record.cell.name):
            plan.problems.append(f"{into / file.study / file.path.name} can't be written: its cell is being run.")
    return plan


def write(plan: MergePlan, into: Path) -> None:
    """Carry out `plan`. Raises OSError; the same merge then resumes."""
    for file in (*plan.new, *plan.newer):
        target = RecordFile(file.study, into / file.study / file.path.name, file.record)
        target.path.parent.mkdir(parents=True, exist_ok=True)
        for source, beside in ((file.items, target.items), (file.log, target.log)):
            if source.exists():
                _copy(source, beside)
            elif file in plan.newer:
                beside.unlink(missing_ok=True)  # it belongs to the replaced record
        if file.weights.is_dir():
            _copy_weights(file, target)
        elif file in plan.newer and record.read(target.path).saved != file.record.saved:
            shutil.rmtree(target.weights, ignore_errors=True)
        _copy(file.path, target.path)
    for study, cells in plan.planned.items():
        Study(into, study).plan(cells)
    for study, commands in plan.commands.items():
        record.add_merged_commands(into / study, commands)
    for study, plans in plan.plans.items():
        with Study(into, study).planning():
            record.add_plans(into / study, plans)


def lines(plan: MergePlan, into: Path, written: bool) -> list[str]:
    """What was written, or why nothing was, for a terminal."""
    out = []
    for conflict in plan.conflicts:
        out.append(f"conflict: {conflict[0].study}/{conflict[0].path.stem}")
        out += [f"  {_tell(file)}" for file in conflict]
    if not written:
        hint = "; --newer keeps of each the last one that finished" if plan.conflicts and not plan.problems else ""
        return [*out, f"Nothing was written to {into}{hint}."]
    counts = f"{len(plan.new)} new, {len(plan.newer)} replaced by newer ones, {plan.equal} already there"
    return [*out, f"{into}: {counts}.", *plan.refused]


def facts(plan: MergePlan, into: Path, written: bool) -> dict[str, Any]:
    """The same as `lines`, for JSON."""

    def short(file: RecordFile) -> dict[str, Any]:
        names = {"study": file.study, "name": file.path.stem, "file": str(file.path)}
        return names | {"status": file.record.status, "started": file.record.started}

    return {
        "into": str(into),
        "written": written,
        "new": [short(file) for file in plan.new],
        "newer": [short(file) for file in plan.newer],
        "equal": plan.equal,
        "conflicts": [[short(file) for file in conflict] for conflict in plan.conflicts],
        "problems": plan.problems,
        "refused": plan.refused,
    }


def _records(folder: Path, into: Path, plan: MergePlan) -> Iterator[RecordFile]:
    """The valid records of one result folder; problems of others and planned cells go into `plan`."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} to merge.")
    if into.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder} can't be merged into {into}, which is the same folder or lies in it.")
    plans = {path.parent.parent.relative_to(folder).as_posix() for path in folder.rglob(".harness/plan.json")}
    studies = [name for name in sorted(plans | set(record.studies(folder))) if name != "."]
    if not studies:
        raise UserError(f"There are no studies in {folder}; name a folder that holds them, such as results.")
    for name in studies:
        _note_requests(folder, name, plan)
        for path in sorted((folder / name).glob("*.json")):
            if problems := _links(*_beside(path)) or verify.check(path):
                plan.problems += problems
            else:
                yield RecordFile(name, path, record.read(path))


def _note_requests(folder: Path, name: str, plan: MergePlan) -> None:
    """Add to `plan` what asked for the cells of the study `name` in `folder`: planned cells, commands and plans."""
    files = (".harness", record.COMMANDS, record.PLAN)
    plan.problems += _links(folder / name, *(folder / name / file for file in files))
    if cells := Study(folder, name).planned():
        plan.planned.setdefault(name, []).extend(cells)
    if commands := record.noted_commands(folder / name):
        plan.commands.setdefault(name, []).extend(commands)
    try:
        if plans := record.read_plans(folder / name):
            plan.plans.setdefault(name, []).extend(plans)
    except UserError as error:
        plan.problems.append(str(error))


def _beside(path: Path) -> Iterator[Path]:
    """The record at `path`, and all that belongs to it."""
    weights = record.model_folder(path)
    yield from (path, path.with_suffix(".items.parquet"), path.with_suffix(".log"), weights)
    yield from () if weights.is_symlink() else weights.rglob("*")


def _links(*paths: Path) -> list[str]:
    """A sentence for each of `paths` that is a link: what it leads to is no part of the folder."""
    return [
        f"{path} is a link, which is not followed; put the file itself there." for path in paths if path.is_symlink()
    ]


def _decide(files: list[RecordFile], there: bool, newer: bool, plan: MergePlan) -> None:
    """Choose among records of one name; if `there`, the first is the target's own."""
    first = files[0]
    unequal = [other for other in files if not other.equals(first)]
    latest = [f for f in files if f.priority == max(other.priority for other in files)] if unequal else files
    best = max(latest, key=lambda f: f.has)  # the first that has its items with it, and its weights
    clear = all(f.equals(best) for f in latest) and len({f.record.cell.id for f in files}) == 1
    if unequal and not (newer and clear):
        plan.conflicts.append([first, *unequal])
    elif there and not best.equals(first):
        plan.newer.append(best)
    elif there and first.has >= best.has:
        plan.equal += 1
    else:
        plan.new.append(best)


def _tell(file: RecordFile) -> str:
    """A line on a record: where it is, and what to choose it by."""
    recorded = file.record
    loss = "" if recorded.validation_loss is None else f", validation loss {recorded.validation_loss:.4g}"
    scores = "".join(f", {score_label(s.task, s.metric, s.filter)} {s.value:.4g}" for s in recorded.scores[:1])
    why = f": {recorded.failure.reason}" if recorded.failure else ""
    return f"{file.path}: {recorded.status}, began {recorded.started}{loss}{scores}{why}"


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = datetime.min
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _copy(source: Path, target: Path) -> None:
    with record.replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def _copy_weights(source: RecordFile, target: RecordFile) -> None:
    temporary = record.beginnings(target.path)[0]
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with record.naming(target.weights):
            for path in (path for path in source.weights.rglob("*") if path.is_file()):
                copy = temporary / path.relative_to(source.weights)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        record.place(temporary, target.weights)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
