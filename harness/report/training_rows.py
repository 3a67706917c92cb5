"""How many rows of data a cell was trained on."""

from __future__ import annotations

from harness.record import Record, micro_batches


def training_rows(record: Record) -> int | None:
    """The different rows that training read: those of a file of the user's own are counted, of other data they are
    `data.limit`, or fewer if the steps end before; None if neither is known, or nothing was trained."""
    if record.cell.seed is None:
        return None
    if record.lengths is not None:
        return record.lengths.records
    limit, settings = record.cell.settings.data.limit, record.cell.settings.train
    size, accumulated = micro_batches(record) or (None, None)
    if limit is None or record.train is None or size is None or accumulated is None or settings.packing:
        return limit
    return min(limit, record.train.steps * size * accumulated)
