"""Checks records, and the items and weights beside them; each problem is a sentence.

    harness verify [--study NAME]

Changes nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from harness import gate, record, units
from harness.errors import UserError
from harness.record import PlannedStudy, Record, RecordError
from harness.score_names import score_label
from harness.settings import cell_id
from harness.sweep.store import Study


class StudyCheck(NamedTuple):
    """What was seen of a study, in sentences.

    files: how many JSON files it has. problems: each is one. refused: records that no command would run or load.
    misplaced: studies whose records lie in its folder. notes: what it lacks of its plan, or has beside it.
    """

    files: int
    problems: list[str]
    refused: list[str]
    misplaced: list[str]
    notes: list[str]


def study(results: Path, name: str) -> StudyCheck:
    """Check the study `name` below `results`. Each record is read once."""
    folder, records, problems = results / name, {}, []
    paths = sorted(folder.glob("*.json"))
    for path in paths:
        try:
            records[path] = record.read(path)
        except RecordError as error:
            problems.append(str(error))
        else:
            problems += _problems(records[path], path)
    try:
        Study(results, name).planned()
    except UserError as error:
        problems.append(str(error))
    contradictions, notes = _plan(folder, [*records.values()])
    problems += contradictions
    for path in Study(results, name).left_behind():
        problems.append(f"{path} was left behind by a process that was killed; the next sweep removes it.")
    refusals = [sentence for path, recorded in records.items() for sentence in refused(recorded, path)]
    return StudyCheck(len(paths), problems, refusals, _misplaced(folder, name, records.values()), notes)


def _misplaced(folder: Path, name: str, records: Iterable[Record]) -> list[str]:
    """One sentence for each study whose `records` lie in the folder of another one, `name`.

    A folder may have been put below another one, as published studies were: its own name alone is compared.
    """
    studies = Counter(recorded.study for recorded in records)
    return [
        f"{folder} holds {units.plural(count, 'record')} of the study {study}."
        for study, count in sorted(studies.items())
        if study.rpartition("/")[2] != name.rpartition("/")[2]
    ]


def _plan(folder: Path, records: list[Record]) -> tuple[list[str], list[str]]:
    """A sentence for each contradiction between the plans of the study in `folder` and its `records`, and one for
    each thing that is missing or was added."""
    try:
        plans = record.read_plans(folder)
    except UserError as error:
        return [str(error)], []
    if not plans:
        return [], []
    study = PlannedStudy(plans, records)
    notes = [] if study.progress.finished else [f"The plan is not finished: {study.progress.text}."]
    if failed := [name for names in study.failed.values() for name in names]:
        notes.append(f"Failed cells of the plan, which its command runs again: {', '.join(failed)}.")
    if reason := study.unplanned():
        notes.append(f"Exploratory: {reason}.")
    return study.contradictions(), notes


def refused(recorded: Record, path: Path) -> list[str]:
    """Why the record at `path` is neither run nor loaded by any command: a sentence, or none if it may be.

    That concerns no comparison. A model behind an API, or another project's, has nothing to load. An id that does not
    fit is for `check` to name.
    """
    cell = recorded.cell
    if recorded.source is not None or cell.settings.behind_api or cell_id(cell.settings) != cell.id:
        return []
    try:
        gate.require(recorded, path)
    except UserError as error:
        return [str(error)]
    return []


def check(path: Path) -> list[str]:
    """One sentence for each problem with the record at `path`, its items and its weights."""
    try:
        recorded = record.read(path)
    except RecordError as error:
        return [str(error)]
    return _problems(recorded, path)


def _problems(recorded: Record, path: Path) -> list[str]:
    """As `check`, of the record that was read from `path`."""
    cell, problems = recorded.cell, []
    if cell_id(cell.settings) != cell.id:
        problems.append(f"{path} has the id {cell.id[:6]}…, which is not that of its settings: one of them was edited.")
    elif record.cell_name(cell) != cell.name:
        problems.append(f"{path} calls its cell {cell.name}, whose settings are those of {record.cell_name(cell)}.")
    if path.stem != cell.name:
        problems.append(f"{path} holds the cell {cell.name}; give the file, and those beside it, that name.")
    return (
        problems + _items(recorded, path.with_suffix(".items.parquet")) + _weights(recorded, record.model_folder(path))
    )


def _items(recorded: Record, path: Path) -> list[str]:
    """Problems of the items at `path`. Imported scores may have no items, and need not be means over items."""
    own = recorded.source is None
    if not path.exists():
        missing = recorded.items_sha256 or (recorded.scores and own)
        return [f"{path} is missing: the scores of its record can't be compared item by item."] if missing else []
    if recorded.items_sha256 is None:
        return [f"{path} has no hash in its record, so nothing tells whether it is the one it had."]
    try:
        if recorded.items_sha256 != record.sha256(path):
            return [f"{path} is not the file that its record was written with: the hashes differ."]
        means = _means(path)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        return [f"{path} can't be read as items ({' '.join(str(error).split())})."]
    problems = []
    for score in recorded.scores if own else []:
        count, mean = means.get((score.task, score.metric, score.filter), (0, math.nan))
        name = score_label(score.task, score.metric, score.filter)
        if count != score.n:
            problems.append(f"{path} has {units.plural(count, 'item')} of {name}; its record counts {score.n}.")
        elif count and not math.isclose(mean, score.value, rel_tol=1e-9, abs_tol=1e-12):
            problems.append(f"{path} has a mean of {mean:.6g} in {name}; its record says {score.value:.6g}.")
    return problems


def _weights(recorded: Record, folder: Path) -> list[str]:
    """Problems of the weights in `folder`. They may be missing: no comparison rests on them."""
    if not folder.is_dir():
        return []
    if recorded.saved is None:
        return [f"{folder} lies beside a record without saved weights; move it elsewhere."]
    there, hashes = record.hashes(folder), recorded.saved.files
    wrong = [
        *(f"{folder / name} is missing among the saved weights." for name in sorted(hashes.keys() - there.keys())),
        *(f"{folder / name} is not among the files that were saved." for name in sorted(there.keys() - hashes.keys())),
    ]
    changed = [name for name in sorted(hashes.keys() & there.keys()) if hashes[name] != there[name]]
    return wrong + [f"{folder / name} is not the file that was saved: the hashes differ." for name in changed]


def _means(path: Path) -> dict[tuple[str, ...], tuple[int, float]]:
    """The number of items and the mean of their values (nan of none), by task, metric and filter."""
    keys = ["task", "metric", "filter"]
    sums_by_key: dict[tuple[str, ...], tuple[int, float]] = {}
    with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
        record.check_items(file.metadata.num_rows)
        for batch in file.iter_batches(columns=[*keys, "value"]):
            sums = pa.Table.from_batches([batch]).group_by(keys).aggregate([("value", "count"), ("value", "sum")])
            for row in sums.to_pylist():
                key = tuple(row[name] for name in keys)
                count, total = sums_by_key.get(key, (0, 0.0))
                sums_by_key[key] = count + row["value_count"], total + (row["value_sum"] or 0.0)
    return {key: (count, total / count if count else math.nan) for key, (count, total) in sums_by_key.items()}
