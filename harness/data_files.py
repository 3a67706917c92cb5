"""The files behind data.path: one file, all of a folder, or an entry of LLaMA-Factory's index of files.

Standard library alone: the sweep looks at them before a job loads its libraries.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UserError, one_of

INDEX = "dataset_info.json"
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md")
TEXTS = (".txt", ".md")  # each such file is one document
PACKED = (".gz", ".zst")  # after one of these
WIDE = (b"\xff\xfe", b"\xfe\xff")  # what UTF-16 begins with
BEGIN = 8192  # bytes of a file that tell a text from another file
FEWEST_DOCUMENTS = 3  # one to train on, one for the validation, one for the test
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)  # which no command takes for an option


@dataclass(frozen=True)
class IndexEntry:
    """A file of LLaMA-Factory's index.

    file: where it lies. columns: the file's own names of columns, by those of the format. tags: the fields and roles of
    its turns, as in the index.
    """

    name: str
    file: Path
    columns: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


def entry(path: Path) -> IndexEntry | None:
    """The entry that `path` names: its index, the index's folder, or INDEX/NAME; None if that is no index.

    Raises UserError if an index has several files and none is named, or if the named one is not in it.
    """
    index, name = (path.parent, path.name) if path.parent.name == INDEX else (path, None)
    index = index / INDEX if index.is_dir() else index
    entries = _entries(index) if index.name == INDEX and index.is_file() else {}
    if not entries:
        return None
    if name is None and len(entries) > 1:
        where = path / INDEX if path.is_dir() else path
        raise UserError(f"{where} is an index of files; name one as data.path={where}/NAME: {', '.join(entries)}.")
    name = name or next(iter(entries))
    one_of("data.path", name, entries)
    described = entries[name]
    if "file_name" not in described:
        remote = described.get("hf_hub_url") or "another place"
        raise UserError(
            f"{name} of {index} is not a file here but {remote}; name that by data.path, if it is a hub id."
        )
    columns, tags = described.get("columns") or {}, described.get("tags") or {}
    return IndexEntry(name, _below(index, name, described["file_name"]), columns, tags)


def _below(index: Path, name: str, file_name: Any) -> Path:
    """The file that an entry names. Raises UserError unless it lies below the index's folder, as no other is meant."""
    file = index.parent / str(file_name)
    if not file.resolve().is_relative_to(index.parent.resolve()):
        link = ", a link to elsewhere; name the file itself by data.path" if file.is_symlink() else ""
        raise UserError(
            f"file_name of {name} in {index} must lie below the folder of the index, got {file_name}{link}."
        )
    return file


def _entries(index: Path) -> dict[str, dict[str, Any]]:
    """The entries of an index; none of another file of that name, such as one by `datasets`."""
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError):
        return {}
    entries = content if isinstance(content, dict) else {}
    places = ("file_name", "hf_hub_url", "ms_hub_url", "script_url", "cloud_file_name")
    listed = all(isinstance(one, dict) and any(place in one for place in places) for one in entries.values())
    return entries if listed else {}


def behind(path: Path) -> list[Path]:
    """All files that are read for `path`, in order; none if nothing is there."""
    if (listed := entry(path)) is not None:
        path = listed.file
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file, path))
    return [path] if path.is_file() else []


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)


def read_in(folder: Path) -> list[Path]:
    """The files of a folder that are read: those with records, or where there are none, its texts."""
    files = [file for file in behind(folder) if suffix_of(file) in SUFFIXES]
    return [file for file in files if suffix_of(file) not in TEXTS] or files


def suffix_of(file: Path) -> str:
    """The suffix by which a file is read, without that of its compression."""
    return Path(file.stem).suffix if file.suffix in PACKED else file.suffix


def require_suffix(file: Path, path: str) -> None:
    """Raise UserError if `file`, which data.path has as `path`, is of a kind that is not read."""
    if suffix_of(file) not in SUFFIXES:
        raise UserError(f"data.path must have one of the suffixes {', '.join(SUFFIXES)}, got {path}.")


def require_documents(path: Path, name: str) -> None:
    """Raise UserError if the texts behind `path`, which data.path has as `name`, are too few, or are not text.

    Looks at the files alone that need no library: texts, and the lines of a jsonl.
    """
    files = read_in(path) if path.is_dir() else behind(path)
    if path.is_dir() and not files:
        raise without_records(name)
    if not files or any(suffix_of(file) not in (*TEXTS, ".jsonl") or file.suffix in PACKED for file in files):
        return
    documents = 0
    for file in files:
        with file.open("rb") as stream:
            begin = stream.read(BEGIN)
            if suffix_of(file) in TEXTS:
                require_text(begin, f"{name}/{file.relative_to(path)}" if path.is_dir() else name)
                documents += 1
            elif documents < FEWEST_DOCUMENTS:
                stream.seek(0)
                documents += sum(bool(line.strip()) for line in stream)
    if documents < FEWEST_DOCUMENTS:
        raise too_few(name, documents)


def no_path(*, documents: bool) -> UserError:
    """The refusal of a user's own data without data.path. documents: whether they are texts without questions."""
    if documents:
        return UserError("data=text requires data.path=FOLDER of texts, or FILE with a column of texts.")
    return UserError(f"data=local requires data.path=FILE with one of the suffixes {', '.join(SUFFIXES)}.")


def without_records(folder: str) -> UserError:
    """The refusal of a folder without a file that can be read."""
    return UserError(f"The folder data.path={folder} has no file with one of the suffixes {', '.join(SUFFIXES)}.")


def too_few(name: str, documents: int) -> UserError:
    """The refusal of so few texts that no part can be held out."""
    count = "one document" if documents == 1 else f"{documents} documents"
    return UserError(
        f"{name} has {count}; data=text requires three: to train on, for the validation and for the test. Put each "
        "into a file, or a line of a jsonl, of its own."
    )


def require_text(content: bytes, name: str) -> None:
    """Raise UserError if the `content` of the file `name` is binary."""
    if b"\0" in content and not content.startswith(WIDE):
        raise UserError(f"data.path={name} is binary, not text; remove it, or take another path.")


def names_hub(path: str, root: Path) -> bool:
    """Whether `path` names a data set of the hub: nothing of that name is here, not even its first part."""
    if HUB_ID.fullmatch(path) is None:
        return False
    return not path.endswith((*SUFFIXES, *PACKED)) and not (root / path).parent.exists()


def digest(path: str | None, data_root: str | None) -> str | None:
    """The sha256 of the files behind `path`, below `data_root`, with their names in a folder; None if none is there."""
    if path is None:
        return None
    place = Path(data_root or ".", path).expanduser()
    files = behind(place)
    if not files:
        return None
    whole = hashlib.sha256()
    for part in _parts(files, place):
        whole.update(part)
    return f"sha256:{whole.hexdigest()}"


def _parts(files: list[Path], place: Path) -> Iterator[bytes]:
    for file in files:
        if place.is_dir() and file.is_relative_to(place):
            yield str(file.relative_to(place)).encode(errors="surrogateescape")
        with file.open("rb") as stream:
            yield hashlib.file_digest(stream, "sha256").digest()
