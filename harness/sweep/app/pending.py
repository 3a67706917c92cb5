"""Which cells still have to run, by the records that are there."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from harness.record import Record
from harness.sweep import micro_batch
from harness.sweep.app.point import Point
from harness.sweep.store import Study


def to_run(earlier: Record | None, point: Point) -> bool:
    """Whether the cell of `point`, of which `earlier` is recorded, is to run.

    A cell that --fit skipped is: another budget may hold it.
    """
    if earlier is None or earlier.status in (*point.statuses, "unfit"):
        return True
    if point.repeat and earlier.status == "ok":
        return True
    halves = point.request.precautions.on_oom or earlier.cell.settings.train.sizes_itself
    return halves and micro_batch.smaller(earlier) is not None


def lacks_weights(recorded: Record, study: Study, save: str) -> bool:
    """Whether `save` asks for the tuned weights of a recorded cell, and they are not there in that form."""
    if save == "none" or recorded.status != "ok" or recorded.train is None or recorded.source is not None:
        return False
    saved = recorded.saved
    return saved is None or study.weights(recorded) is None or saved.form not in (save, "model")


def warn_of_missing_weights(records: Sequence[Record], study: Study, save: str) -> None:
    """Name recorded cells whose weights `save` asks for in vain; no cell is trained again just for its weights."""
    if not records:
        return
    first, others = records[0], f" and {len(records) - 1} more" if len(records) > 1 else ""
    print(
        f"save={save} does not apply to recorded cells: {first.cell.name}{others} left no such weights. "
        f"To train a cell again: {study.anew(first)}.",
        file=sys.stderr,
    )
