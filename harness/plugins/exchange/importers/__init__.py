"""Turns measurements of other projects into records: peft's published method comparison, and output files of lm-eval.

    harness import peft FOLDER
    harness import lm-eval FOLDER

What a source did not measure is null in its records. Where a number means something else than the harness's own, the
record's `source` says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import record
from harness.errors import UserError
from harness.plugins.exchange.importers.lm_eval import read_lm_eval
from harness.plugins.exchange.importers.peft import read_peft
from harness.plugins.exchange.importers.records import Imported
from harness.record import Record, Repeat
from harness.record.ranges import check
from harness.settings import plain


@dataclass
class Summary:
    """The names of new, changed and unchanged records, how many repeats they have, and the files that were left out.

    other_settings: files of earlier runs whose settings differ from those of the latest run of the experiment.
    """

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    repeats: int = 0
    other_settings: list[Path] = field(default_factory=list)


def collect(project: str, path: Path, study: str) -> list[Imported]:
    """The records in the file or folder `path`, for `study`, sorted by file name.

    project: a key of `READERS`. Raises UserError for the first file that is not a result of it, or without any.
    """
    pattern, read = READERS[project]
    if not path.exists():
        raise UserError(f"There is no file or folder {path}.")
    paths = sorted(path.rglob(pattern)) if path.is_dir() else [path]
    if not paths:
        raise UserError(f"There is no {pattern} in {path}; name the folder that holds the results of {project}.")
    return [_read(project, read, found, study) for found in paths]


def store(found: Sequence[Imported], folder: Path) -> Summary:
    """Write the records `found` and their items to `folder`. Repeating it changes nothing.

    The latest run of an experiment is its record, and the others are its repeats, whatever the order of imports. Raises
    UserError, before anything is written, if a record has the name of a cell that the harness ran.
    """
    summary = Summary()
    there = {path.stem: record.read(path) for path in folder.glob("*.json")} if folder.is_dir() else {}
    for name, known in there.items():
        if known.source is None and any(new.record.cell.name == name for new in found):
            raise UserError(f"{folder / name}.json is a cell that the harness ran; import into another --study.")
    imported = [known for known in there.values() if known.source is not None]
    for experiment in dict.fromkeys(_experiment(new.record) for new in found):
        new = _latest([new for new in found if _experiment(new.record) == experiment], summary)
        before = [known for known in imported if _experiment(known) == experiment]
        stored = max(before, key=lambda record: record.started, default=None)
        latest = new.record if stored is None else _joined(stored, new, summary)
        name = latest.cell.name
        summary.repeats += len(latest.repeats)
        if stored is not None and stored == dataclasses.replace(latest, items_sha256=stored.items_sha256):
            summary.unchanged.append(name)
            continue
        if latest is new.record:
            _write(new, folder / f"{name}.json")
        else:  # the items beside it are its own
            record.write(latest, folder / f"{name}.json")
        (summary.new if stored is None else summary.changed).append(name)
        for old in (known for known in before if known.cell.name != name):
            (folder / f"{old.cell.name}.json").unlink()
            (folder / f"{old.cell.name}.items.parquet").unlink(missing_ok=True)
    return summary


def _experiment(imported: Record) -> tuple[str | None, str, int | None]:
    """What the runs of one experiment share: by its source's own name if it has one, else by the settings."""
    cell, source = imported.cell, imported.source
    return source.project if source else None, cell.settings.other.get("experiment", cell.name), cell.seed


def _latest(runs: Sequence[Imported], summary: Summary) -> Imported:
    """The latest of `runs`, with the earlier ones of the same settings as its repeats."""
    *earlier, latest = sorted(runs, key=lambda run: run.record.started)
    for run in earlier:
        _add(latest.record, run.record, run.path, summary)
    return latest


def _joined(known: Record, new: Imported, summary: Summary) -> Record:
    """The later of `new` and the stored record `known`, with all runs of both as its repeats."""
    stored_is_later = known.started > new.record.started
    latest, other = (dataclasses.replace(known), new.record) if stored_is_later else (new.record, known)
    _add(latest, other, new.path, summary)
    runs = {run.started: run for run in (*other.repeats, *latest.repeats)}
    latest.repeats = _numbered([run for started, run in runs.items() if started != latest.started])
    return latest


def _add(latest: Record, run: Record, path: Path, summary: Summary) -> None:
    """Make `run` a repeat of `latest`, if it is another one and their settings agree."""
    if not _agree(plain(run.cell.settings), plain(latest.cell.settings)):
        summary.other_settings.append(path)
        return
    if run.started == latest.started:
        return
    repeat = dataclasses.replace(record.repeat_of(run, 0), scores=run.scores)  # numbered below
    latest.repeats = _numbered([*(known for known in latest.repeats if known.started != run.started), repeat])


def _numbered(repeats: Sequence[Repeat]) -> list[Repeat]:
    """`repeats` in the order in which they ran, numbered from 2: the record's own run is the first."""
    ordered = sorted(repeats, key=lambda repeat: repeat.started)
    return [dataclasses.replace(repeat, number=number) for number, repeat in enumerate(ordered, start=2)]


def _agree(one: Any, other: Any) -> bool:
    """Whether two settings are equal wherever both say something: sources add settings, with defaults, over time."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_agree(one[key], other[key]) for key in one.keys() & other.keys())
    return one == other or one is None or other is None


def _write(new: Imported, path: Path) -> None:
    """Write the items before the record, so that every record has its items."""
    items = path.with_suffix(".items.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    if new.items is None:
        items.unlink(missing_ok=True)
    else:
        with record.replacing(items) as temporary:
            new.items.to_parquet(temporary, index=False)
        new.record.items_sha256 = record.sha256(items)
    record.write(new.record, path)


Reader = Callable[[dict[str, Any], Path, str], Imported]
"""Makes a record of a file's content, its path, and the SHA-256 of its bytes."""


def _read(project: str, read: Reader, path: Path, study: str) -> Imported:
    """The record of one file; raises UserError that names the file if its content is not as expected."""
    try:
        content = record.content_of(path)
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not complete JSON ({error}); get it again, or move it away.") from None
    try:
        found = read(value, path, hashlib.sha256(content).hexdigest())
        found.record.study = study
        # decode it as a reader will, so that nothing unreadable is written
        plain = json.loads(json.dumps(dataclasses.asdict(found.record), allow_nan=False))
        found.record = record.decode(Record, plain)
        check(found.record)
    except KeyError as error:
        reason = f"it has no {error.args[0]!r}"
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        reason = str(error)
    else:
        return found
    raise UserError(f"{path} is no result file of {project} ({reason}); move it away, or name another PATH.")


READERS: dict[str, tuple[str, Reader]] = {"peft": ("*.json", read_peft), "lm-eval": ("results_*.json", read_lm_eval)}
