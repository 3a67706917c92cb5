"""Which cells still have to run, by the records that are there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from harness.record import Record
from harness.sweep import micro_batch
from harness.sweep.store import Study


def study_of(config: DictConfig) -> Study:
    return Study(Path(config.results_dir).expanduser(), config.study)


def to_run(found: Record | None, config: DictConfig) -> bool:
    """Whether a cell with this record is to run. A cell that --fit skipped is: another budget may hold it."""
    if config.repeat and found is not None and found.status == "ok":
        return True
    if found is None or found.status in (*config.retry.statuses, "unfit"):
        return True
    return (config.retry.on_oom or found.cell.settings.train.sizes_itself) and micro_batch.smaller(found) is not None


def lacks_weights(found: Record, study: Study, save: str) -> bool:
    """Whether `save` asks for the tuned weights of a recorded cell, and they are not there in that form."""
    if save == "none" or found.status != "ok" or found.train is None or found.source is not None:
        return False
    return study.weights(found) is None or found.saved.form not in (save, "model")


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
