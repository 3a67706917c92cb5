"""Reads the rows of a file, of all files of a folder, or of an entry of LLaMA-Factory's index."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import data_files
from harness.data_files import PACKED, TEXTS, WIDE, IndexEntry, suffix_of
from harness.errors import UserError
from harness.job.data.places import by_record, naming

Row = dict[str, Any]
DELIMITERS = ",;\t|"
ACCENTED = re.compile(r"[^\x00-\x7f]+")
MOST_ACCENTED = 2  # letters in a row, in languages that cp1252 is for, as in Größe and créée
SAMPLE = 50  # lines of a table by which its delimiter is found
SAVED = ("state.json", "dataset_dict.json")  # of folders that `datasets` saved
TAGS = {  # LLaMA-Factory's tags of turns and their defaults, by the fields and roles that they mean
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
INDEXED = {  # LLaMA-Factory's names of columns, by those of the formats that it reads
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "messages": "conversations",
    "system": "system",
    "tools": "tools",
    "chosen": "chosen",
    "rejected": "rejected",
    "kto_tag": "kto_tag",
}


@dataclass
class FileRows:
    """The rows that were read.

    notes: how, where that was found out. unread: files of a folder that were left out. lines: of each row the line on
    which it ends (null: the file has no lines). parts: of a folder the rows of each of its files, by name.
    """

    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    lines: list[int] | None = None
    parts: dict[str, FileRows] = field(default_factory=dict)

    def place(self, position: int) -> str:
        """The place of the row at `position`, such as "line 7" or "part.jsonl, line 7"."""
        for name, part in self.parts.items():
            if position < len(part.rows):
                return f"{name}, {part.place(position)}"
            position -= len(part.rows)
        return by_record(position) if self.lines is None else f"line {self.lines[position]}"


def read(path: str) -> FileRows:
    """The rows of `path`. Raises UserError if nothing is there, or if it has another format."""
    place = Path(path)
    if (listed := data_files.entry(place)) is not None:
        content = _of_place(listed.file, str(listed.file))
        content.rows = [_renamed(row, listed) for row in content.rows]
        return content
    return _of_place(place, path)


def _of_place(place: Path, path: str) -> FileRows:
    if place.is_dir():
        return _of_folder(place, path)
    if not place.is_file():
        raise UserError(f"data.path must be a file or folder below data_root, or the working folder, got {path}.")
    data_files.require_suffix(place, path)
    return _of_file(place, path)


def _of_folder(folder: Path, path: str) -> FileRows:
    """The rows of all files of a folder in the order of their names, or of a folder that `datasets` saved."""
    if any((folder / name).is_file() for name in SAVED):
        return _saved(folder, path)
    whole = FileRows([])
    readable = data_files.read_in(folder)
    for file in data_files.behind(folder):
        name = str(file.relative_to(folder))
        if file not in readable:
            whole.unread.append(name)
            continue
        part = whole.parts[name] = _of_file(file, f"{path}/{name}")
        whole.rows += part.rows
        whole.notes += [note for note in part.notes if note not in whole.notes]
    if not readable:
        raise data_files.without_records(path)
    return whole


def _saved(folder: Path, path: str) -> FileRows:
    """The rows of a folder by `save_to_disk`; of several splits those of train."""
    import datasets  # late, as in sources.py

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # datasets raises a dozen kinds
        raise UserError(f"data.path={path} can't be read as saved by datasets: {error}") from error
    if not isinstance(saved, datasets.DatasetDict):
        return FileRows(saved.to_list())
    if "train" not in saved:
        raise UserError(f"data.path={path} has no split train; it has: {', '.join(saved)}.")
    return FileRows(saved["train"].to_list(), ["split train"], [f"split {name}" for name in saved if name != "train"])


def _of_file(file: Path, path: str) -> FileRows:
    """The rows of a file by its suffix. Raises UserError if it has another format."""
    suffix = suffix_of(file)
    try:
        content = READERS[suffix](file)
    except UnicodeDecodeError:
        raise UserError(
            f"data.path={path} is not UTF-8; save it as UTF-8 (iconv -f ENCODING -t UTF-8 {path}, where ENCODING is "
            "CP1252, GB18030, SHIFT_JIS or whatever wrote it)."
        ) from None
    except RecursionError:
        raise UserError(f"data.path={path} can't be read as {suffix[1:]}: it is nested too deeply.") from None
    except (ValueError, OSError, csv.Error) as error:  # pyarrow's and json's are ValueErrors
        raise UserError(f"data.path={path} can't be read as {suffix[1:]}: {str(error).splitlines()[0]}") from error
    if not isinstance(content.rows, list):
        raise UserError(f"data.path={path} must hold a list of records, each an object of columns.")
    for position, row in enumerate(content.rows):
        if not isinstance(row, dict):
            error = UserError(f"data.path={path} must hold a list of records, each an object of columns.")
            raise naming(error, content.place(position))
    return content


def _bytes(file: Path) -> bytes:
    """What a file holds, uncompressed."""
    if file.suffix == ".gz":
        return gzip.decompress(file.read_bytes())
    if file.suffix == ".zst":
        import pyarrow as pa

        return pa.input_stream(str(file), compression="zstd").read()
    return file.read_bytes()


def _encoding(content: bytes) -> str:
    """UTF-16 where its mark says so, else UTF-8."""
    return "utf-16" if content.startswith(WIDE) else "utf-8-sig"


def _decoded(content: bytes) -> str:
    return content.decode(_encoding(content))


def _text(file: Path) -> str:
    """The whole text of a file. Raises UserError if it is binary."""
    content = _bytes(file)
    data_files.require_text(content, str(file))
    return _decoded(content)


def _json_lines(file: Path) -> FileRows:
    rows, numbers = [], []
    lines = _decoded(_bytes(file)).split("\n")  # text may hold U+2028
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_json(line))
            numbers.append(number)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}, column {error.colno}: {error.msg}.") from None
        except RecursionError:
            raise ValueError(f"line {number} is nested too deeply.") from None
        except UnicodeEncodeError as error:
            raise _torn(error, f"line {number}") from None
    return FileRows(rows, lines=numbers)


def _whole_json(file: Path) -> FileRows:
    try:
        return FileRows(_json(_decoded(_bytes(file))))
    except UnicodeEncodeError as error:
        raise _torn(error, "a text") from None


def _json(text: str) -> Any:
    """What `text` holds as JSON. Raises UnicodeEncodeError for half a character, which no tokenizer reads."""
    value = json.loads(text)
    if "\\u" in text:  # nothing else writes one
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _torn(error: UnicodeEncodeError, where: str) -> ValueError:
    half = ascii(error.object[error.start])[1:-1]
    return ValueError(f"{where} has half of a character, {half}, as where a text was cut in an emoji; remove it.")


def _table(file: Path, usual: str) -> FileRows:
    """The rows of a table, in the encoding and with the delimiter that it has. usual: where several would do."""
    content = _bytes(file)
    encoding = _encoding(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        encoding = "cp1252"
        text = content.decode(encoding)
        if _is_of_another_alphabet(text):
            raise
    csv.field_size_limit(sys.maxsize)
    delimiter = _delimiter(text, usual)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    _require_different(reader.fieldnames or ())
    numbered = [*_whole(reader)]
    notes = [] if encoding == "utf-8-sig" else [encoding]
    notes += [] if delimiter == usual else [f"delimiter {delimiter!r}"]
    return FileRows([row for row, _ in numbered], notes, lines=[number for _, number in numbered])


def _is_of_another_alphabet(text: str) -> bool:
    """Whether a text that was read as cp1252 is Chinese, Cyrillic or the like: its letters are none of cp1252's."""
    runs = [len(run) for run in ACCENTED.findall(text)]
    return 2 * sum(run for run in runs if run > MOST_ACCENTED) > sum(runs)


def _require_different(names: Sequence[str]) -> None:
    """Raise ValueError for the first column whose name another one has: only one of them could be read."""
    for name, number in Counter(names).items():
        if name and number > 1:
            raise ValueError(f"{number} columns are called {name!r}; give each a name of its own.")


def _whole(reader: csv.DictReader[str]) -> Iterator[tuple[Row, int]]:
    """The rows of a table, each with the line on which it ends. Raises ValueError for one that has more fields than
    the header."""
    for row in reader:
        if None in row:
            raise ValueError(f"line {reader.line_num} has more fields than the header.")
        yield dict(row), reader.line_num


def _delimiter(text: str, usual: str) -> str:
    """The one by which the first rows have most columns, all as many as the header."""
    head = [*itertools.islice(io.StringIO(text, newline=""), SAMPLE + 1)]  # a field may hold U+2028

    def columns(delimiter: str) -> int:
        # The last line may be a part of a quoted field
        sizes = [len(row) for row in csv.reader(head[:SAMPLE], delimiter=delimiter) if row]
        whole = sizes[:-1] if len(head) > SAMPLE else sizes
        return sizes[0] if sizes and sizes[0] > 1 and set(whole) <= {sizes[0]} else 0

    return max(sorted(DELIMITERS, key=lambda one: one != usual), key=columns)


def _parquet(file: Path) -> FileRows:
    import pyarrow.parquet as pq

    packed = file.suffix in PACKED
    table = pq.read_table(io.BytesIO(_bytes(file)) if packed else file)
    _require_different(table.column_names)
    return FileRows(table.to_pylist())


READERS: dict[str, Callable[[Path], FileRows]] = {
    ".jsonl": _json_lines,
    ".json": _whole_json,
    ".csv": lambda file: _table(file, ","),
    ".tsv": lambda file: _table(file, "\t"),
    ".parquet": _parquet,
    **dict.fromkeys(TEXTS, lambda file: FileRows([{"text": _text(file)}])),
}


# LLaMA-Factory's index


def _renamed(row: Row, listed: IndexEntry) -> Row:
    """A row with the columns, and the fields and roles of turns, that the index says are meant."""
    names = {listed.columns.get(name, usual): usual for name, usual in INDEXED.items() if name in listed.columns}
    named = {names.get(name, name): value for name, value in row.items()}
    tags = {name: tag for name, tag in listed.tags.items() if name in TAGS}
    for name in ("conversations", "chosen", "rejected") if tags else ():
        turns = named.get(name)
        named |= {name: [_turn(turn, tags) for turn in turns]} if isinstance(turns, list) else {}
        named |= {name: _turn(turns, tags)} if isinstance(turns, dict) else {}
    return named


def _turn(turn: Any, tags: dict[str, str]) -> Any:
    """A turn in ShareGPT's fields and roles."""
    if not isinstance(turn, dict):
        return turn
    fields = {tags.get(name, TAGS[name]): TAGS[name] for name in ("role_tag", "content_tag")}
    roles = {tags.get(name, usual): usual for name, usual in TAGS.items() if name not in ("role_tag", "content_tag")}
    turn = {fields.get(name, name): value for name, value in turn.items()}
    return turn | {"from": roles.get(turn.get("from"), turn.get("from"))}
