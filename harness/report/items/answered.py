"""The answers to single items, as NAME.items.parquet beside a record has them, without holding a whole file in memory.

A file may have gigabytes of questions and predictions. It is read in batches of some MiB, of each column that is needed
the numbers are kept, and texts are read again where some of them are shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from harness.record import Record, Score, check_items

Items = Path | Mapping[str, pa.Table]
"""Where the answers to single items are: the folder of the study, or tables by the name of the cell."""

BATCH = 2**23  # bytes of columns in memory at a time
ROWS = 2**14  # and the most rows
SURPLUS = 2**16  # rows beyond the items that a score counts, from which on a file is none of its items
WHICH = ["task", "metric", "filter"]


@dataclass(frozen=True, eq=False)
class AnsweredItems:
    """One record's answers to the items of a score, sorted by subject and index.

    subjects: the number of items of each, in order. numbers: the items' indices. rows: their positions in the file.
    hashed: 64 bits of each item's hash; None if they were not read. cluster_codes: equal for items of one value in the
    column `cluster`, -1 without one; None without the column.
    """

    subjects: dict[str | None, int]
    numbers: np.ndarray
    values: np.ndarray
    rows: np.ndarray
    hashed: np.ndarray | None
    cluster_codes: np.ndarray | None
    source: Path | pa.Table

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def identity(self) -> tuple[Any, ...]:
        """Equal for answers to the same items."""
        parts = (self.numbers, *(() if self.hashed is None else (self.hashed,)))
        digests = [hashlib.sha256(part.tobytes()).digest() for part in parts]
        return tuple(self.subjects.items()), *digests

    @property
    def hashes(self) -> bytes:
        """Those of all items; empty if they were not read."""
        return b"" if self.hashed is None else self.hashed.tobytes()

    @property
    def binary(self) -> bool:
        """Whether all values are right or wrong."""
        return bool(np.isin(self.values, (0.0, 1.0)).all())

    @property
    def places(self) -> dict[str | None, slice]:
        """Where the items of each subject are."""
        ends = np.cumsum([*self.subjects.values()]).tolist()
        return {name: slice(end - n, end) for (name, n), end in zip(self.subjects.items(), ends, strict=True)}

    def subject_of(self, at: np.ndarray) -> list[str | None]:
        """The subjects of the items at these positions."""
        names, ends = list(self.subjects), np.cumsum([*self.subjects.values()])
        return [names[i] for i in np.searchsorted(ends, at, side="right")]

    def clusters(self, part: slice = slice(None)) -> np.ndarray:
        """As `record.cluster_numbers`, of the items in `part`."""
        size = len(self.values[part])
        if self.cluster_codes is None and len(self.subjects) == 1:
            return np.arange(size)
        subjects = np.repeat(np.arange(len(self.subjects)), [*self.subjects.values()])[part]
        keys = subjects
        if self.cluster_codes is not None and (named := self.cluster_codes[part]).max(initial=-1) >= 0:
            most = int(named.max()) + 1
            alone = len(self.subjects) * most + np.arange(size)  # an item without a name is like no other
            keys = np.where(named < 0, alone, subjects * most + named)
        numbers, kinds = pd.factorize(keys)
        return np.arange(size) if len(kinds) == 1 else numbers

    def texts(self, column: str, at: np.ndarray, convert: Callable[[Any], Any] = lambda text: text) -> list[Any]:
        """What `convert` makes of each text of a column, of the items at these positions; None without the column."""
        texts: list[Any] = [None] * len(at)
        if column not in _names(self.source):
            return texts
        order = np.argsort(self.rows[at], kind="stable")
        rows, begin = self.rows[at][order], 0
        for batch in batches(self.source, [column]):
            first, last = np.searchsorted(rows, (begin, begin + len(batch)))
            for i, text in zip(order[first:last], batch[column].take(pa.array(rows[first:last] - begin)), strict=True):
                texts[i] = convert(text.as_py())
            begin += len(batch)
            if last == len(rows):
                break
        return texts


def answers(folder: Items, record: Record, score: Score, texts: bool = False) -> AnsweredItems | None:
    """The answers of `record` to the items of one of its scores.

    texts: whether texts will be asked for, and the items' hashes are read. None if the file is missing, is none of
    items, has far more than the score counts or more than any record may have, or lacks a column.
    """
    try:
        source = _source(folder, record)
        if source is None:
            return None
        needed = [*WHICH, "subject", "item", "value", *(["hash"] if texts else [])]
        names = _names(source)
        if not names.issuperset([*needed, *(["prediction", "target"] if texts else [])]):
            return None
        optional = ["cluster"] if "cluster" in names else []
        return _sorted(source, batches(source, [*needed, *optional]), score)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):  # missing, not Parquet, or of other types
        return None


def _source(folder: Items, record: Record) -> Path | pa.Table | None:
    if isinstance(folder, Mapping):
        return folder.get(record.cell.name)
    path = folder / f"{record.cell.name}.items.parquet"
    return path if path.is_file() else None  # a pipe would be waited for


def _names(source: Path | pa.Table) -> set[str]:
    return set(source.column_names if isinstance(source, pa.Table) else pq.read_schema(source).names)


def batches(source: Path | pa.Table, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a file of items, or of a table of them, in order and some at a time."""
    if isinstance(source, pa.Table):
        yield from source.select(columns).to_batches(max_chunksize=ROWS)
        return
    with pq.ParquetFile(source, buffer_size=2**20, pre_buffer=False) as file:
        check_items(file.metadata.num_rows)
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        sizes = [
            group.column(i).total_uncompressed_size
            for group in groups
            for i in range(group.num_columns)
            if group.column(i).path_in_schema in columns
        ]
        rows = max(1, min(ROWS, BATCH * max(1, file.metadata.num_rows) // max(1, sum(sizes))))
        yield from file.iter_batches(batch_size=rows, columns=list(columns), use_threads=False)


def _sorted(source: Path | pa.Table, batches: Iterator[pa.RecordBatch], score: Score) -> AnsweredItems:
    subjects: dict[Any, int] = {}
    clusters: dict[Any, int] = {"": -1, None: -1}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("subject", "item", "value", "row", "hash", "cluster")}
    begin = of_this = 0
    for batch in batches:
        wanted = np.ones(len(batch), dtype=bool)
        for name in WHICH:
            wanted &= pc.equal(batch[name], getattr(score, name)).fill_null(False).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(wanted)
        of_this += len(rows)
        if of_this > score.n + SURPLUS:
            raise ValueError("more items than the score counts")
        of_score = batch if len(rows) == len(batch) else batch.take(pa.array(rows))
        parts["row"].append((rows + begin).astype(np.int32))
        parts["subject"].append(_codes(of_score["subject"], subjects))
        parts["item"].append(of_score["item"].to_numpy(zero_copy_only=False))
        parts["value"].append(of_score["value"].to_numpy(zero_copy_only=False).astype(float))
        if "hash" in batch.schema.names:
            hashes = of_score["hash"].to_numpy(zero_copy_only=False)
            parts["hash"].append(pd.util.hash_array(hashes.astype(object), categorize=False))
        if "cluster" in batch.schema.names:
            parts["cluster"].append(_codes(of_score["cluster"], clusters))
        begin += len(batch)
    whole = {name: np.concatenate(of) for name, of in parts.items() if of}
    ordered = sorted(subjects, key=lambda name: (name is None, name))
    places = np.empty(len(subjects), dtype=np.int32)
    places[[subjects[name] for name in ordered]] = np.arange(len(subjects))
    subject = places[whole.pop("subject")] if subjects else np.zeros(0, dtype=np.int32)
    sorting = np.lexsort((whole["item"], subject)) if whole else np.zeros(0, dtype=int)
    in_order = (sorting[1:] > sorting[:-1]).all()  # as nearly always
    order: np.ndarray | slice = slice(None) if in_order else sorting
    counts = np.bincount(subject, minlength=len(ordered)).tolist()
    if (whole.get("cluster", np.zeros(0)) < 0).all():  # none has a name
        whole.pop("cluster", None)
    return AnsweredItems(
        subjects=dict(zip(ordered, counts, strict=True)),
        numbers=whole["item"][order] if whole else np.zeros(0, dtype=int),
        values=whole["value"][order] if whole else np.zeros(0),
        rows=whole["row"][order] if whole else np.zeros(0, dtype=np.int32),
        hashed=whole["hash"][order] if "hash" in whole else None,
        cluster_codes=whole["cluster"][order] if "cluster" in whole else None,
        source=source,
    )


def _codes(column: pa.Array, codes: dict[Any, int]) -> np.ndarray:
    """A number for each text, the same for equal ones; new ones are added to `codes`."""
    encoded = column.dictionary_encode()
    values = [*encoded.dictionary.to_pylist(), None]  # null has no place in the dictionary
    if encoded.null_count == 0:
        values.pop()
    of = np.array([codes.setdefault(value, len(codes)) for value in values], dtype=np.int32)
    return of[encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False)]
