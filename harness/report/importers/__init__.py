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
from datetime import datetime
from pathlib import Path

from harness import record
from harness.errors import UserError
from harness.record import Record
from harness.report.importers.lm_eval import read_lm_eval
from harness.report.importers.peft import read_peft
from harness.report.importers.records import Imported


@dataclass
class Summary:
    """The names of new, changed and unchanged records, and the files replaced by later results of the same settings."""

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    older: list[Path] = field(default_factory=list)


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

    The latest result of the same settings wins. Raises UserError, before anything is written, if a record has the name
    of a cell that the harness ran.
    """
    summary, latest = Summary(), dict[str, Imported]()
    for new in sorted(found, key=lambda imported: imported.record.started):
        name = new.record.cell.name
        summary.older += [latest[name].path] if name in latest else []
        latest[name] = new
    there = {name: record.read(path) for name in latest if (path := folder / f"{name}.json").exists()}
    for name, known in there.items():
        if known.source is None:
            raise UserError(f"{folder / name}.json is a cell that the harness ran; import into another --study.")
    for name, new in latest.items():
        known = there.get(name)
        if known and known.started > new.record.started:
            summary.older.append(new.path)
        elif known and known == dataclasses.replace(new.record, items_sha256=known.items_sha256):
            summary.unchanged.append(name)
        else:
            _write(new, folder / f"{name}.json")
            (summary.changed if known else summary.new).append(name)
    return summary


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


def _read(project: str, read: Callable[[dict, Path], Imported], path: Path, study: str) -> Imported:
    """The record of one file; raises UserError that names the file if its content is not as expected."""
    try:
        content = path.read_bytes()
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not complete JSON ({error}); get it again, or move it away.") from None
    try:
        found = read(value, path)
        found.record.study = study
        found.record.source.sha256 = hashlib.sha256(content).hexdigest()
        # decode it as a reader will, so that nothing unreadable is written
        plain = json.loads(json.dumps(dataclasses.asdict(found.record), allow_nan=False))
        found.record = record.decode(Record, plain)
        datetime.fromisoformat(found.record.started)
    except KeyError as error:
        reason = f"it has no {error.args[0]!r}"
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        reason = str(error)
    else:
        return found
    raise UserError(f"{path} is no result file of {project} ({reason}); move it away, or name another PATH.")


READERS: dict[str, tuple[str, Callable[[dict, Path], Imported]]] = {
    "peft": ("*.json", read_peft),
    "lm-eval": ("results_*.json", read_lm_eval),
}
