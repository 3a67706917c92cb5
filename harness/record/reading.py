"""Records and studies on disk: written, read, found. A file that is no record is named, with what is wrong in it."""

from __future__ import annotations

import hashlib
import json
import marshal
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from harness.errors import UserError
from harness.record.codec import Misfit, decode, encode
from harness.record.files import content_of, pending, replacing, sha256
from harness.record.names import names_a_file
from harness.record.ranges import LONGEST_LINE, check
from harness.record.schema import SCHEMA, Record

CONFIGS = ("adapter_config.json", "config.json")  # of which a saved model has one, beside its weights

# What a record may have at most. A study that was received may have more, which would take minutes and gigabytes.
MOST_BYTES = 2**28


class RecordError(Exception):
    """A file that should be a record is not; the message is one sentence for the user."""


def write(record: Record, path: Path) -> None:
    """Write `record` to `path` as JSON, all or nothing: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(sealed(encode(record)))


# The last member of a record's file: the SHA-256 of the file without it. It is of the bytes, so that a changed digit
# that gives the same number is seen too.
SEAL = b',\n "sha256": "%b"\n}\n'
SEAL_BYTES = len(SEAL % bytes(2 * hashlib.sha256().digest_size))


def sealed(value: dict[str, Any]) -> bytes:
    """The text of a record's file: `value` as JSON, with the hash of that text as its last member."""
    return _seal(json.dumps(value, indent=1, allow_nan=False).encode())


def _seal(text: bytes) -> bytes:
    return text.removesuffix(b"\n}") + SEAL % hashlib.sha256(text).hexdigest().encode()


def _intact(content: bytes) -> bool:
    """Whether the bytes of a record's file are those that `sealed` made."""
    return content == _seal(content[:-SEAL_BYTES] + b"\n}")


def settle(path: Path) -> None:
    """End what a process left that died between putting new items and the new record at `path` into place."""
    waiting, items = pending(path), path.with_suffix(".items.parquet")
    if not waiting.exists():
        return
    if items.exists() and read(waiting).items_sha256 == sha256(items):
        os.replace(waiting, path)
    else:
        waiting.unlink()


def read(path: Path) -> Record:
    """Read one record; RecordError says in a sentence why a file is not one."""
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise RecordError(f"{path} must have at most {MOST_BYTES:,} bytes to be read as a record, got {size:,}.")
        content = content_of(path)
        if (longest := max(map(len, content.split(b"\n")))) > LONGEST_LINE:
            raise RecordError(
                f"{path} must have at most {LONGEST_LINE:,} bytes in a line to be read as a record, got {longest:,}."
            )
        value = orjson.loads(content)  # refuses nan, infinities and halves of surrogate pairs
    except orjson.JSONDecodeError as error:
        raise RecordError(f"{path} is not complete JSON ({error}); delete it and run its cell again.") from None
    except OSError as error:
        raise RecordError(f"{path} can't be read ({error.strerror}).") from None
    if not isinstance(value, dict) or "schema" not in value or "cell" not in value:
        raise RecordError(f"{path} is JSON but not a record of this harness; move it out of the study's folder.")
    if value["schema"] != SCHEMA:
        raise RecordError(f"{path} has record schema {value['schema']!r}; this version of the harness reads {SCHEMA}.")
    value.pop("sha256", None)
    try:
        record = decode(Record, value)
        check(record)
        if not names_a_file(record.cell.name):
            raise Misfit(f"is {record.cell.name!r}, which names no file of the study", ".cell.name")
    except Misfit as error:
        raise RecordError(f"{path} is a damaged record ({error}); delete it and run its cell again.") from None
    if not _intact(content):
        raise RecordError(
            f"{path} is not as it was written: its hash differs; restore it from a copy, or delete it and run its cell "
            "again."
        )
    return record


def read_study(folder: Path) -> tuple[list[Record], list[str]]:
    """All records of a study's folder, by name, and one sentence for each JSON file that is not one.

    Equal parts of their environments are one object.
    """
    records, problems = [], []
    parts: dict[bytes, Any] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = read(path)
            record.environment = {
                name: parts.setdefault(marshal.dumps(part, 2), part) for name, part in record.environment.items()
            }
            records.append(record)
        except RecordError as error:
            problems.append(str(error))
    return records, problems


def require_one_folder_each(contents: Iterable[tuple[Path, Sequence[Record]]]) -> None:
    """Raise UserError if records of two folders are of a study of one name: copies would count twice.

    contents: folders, each with its records.
    """
    folders: dict[str, Path] = {}
    for folder, records in contents:
        for name in dict.fromkeys(record.study for record in records):
            if (other := folders.setdefault(name, folder)) != folder:
                raise UserError(
                    f"{other} and {folder} both have records of the study {name}; unite them by `harness merge`, or "
                    "read one of them."
                )


def studies(results: Path) -> list[str]:
    """Names of the studies below `results`: folders, at any depth, that hold a JSON file.

    Neither hidden ones nor saved models count.
    """
    names = []
    for folder, inner, files in os.walk(results):
        inner[:] = [name for name in inner if not name.startswith(".")]
        endings = {os.path.splitext(name)[1] for name in files}
        model = ".safetensors" in endings and any(name in files for name in CONFIGS)
        if ".json" in endings and not model and Path(folder) != results:
            names.append(Path(folder).relative_to(results).as_posix())
    return sorted(names)
