"""Cells of the tiny model on a file of one's own, mine.jsonl, that are scored on its test part."""

from __future__ import annotations

import json
from pathlib import Path

from job_helpers import composed

from harness.job import prepared_inputs
from harness.job.evaluate import scoring
from harness.record import Cell

TINY = (
    *("model=tiny", "rank=4", "train.precision=fp32", "train.max_steps=2", "train.batch_size=2"),
    *("train.validation_items=2", "infer.repeats=0", "eval.tasks=[held_out]", "eval.batch_size=4"),
    *("data=local", "data.path=mine.jsonl"),
)


def cell(rows: list[dict], *overrides: str) -> Cell:
    """Its file, which has `rows`, is written to the working folder."""
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return composed(*TINY, *overrides)


def tasks(rows: list[dict], *overrides: str) -> scoring.Tasks:
    settings = cell(rows, *overrides).settings
    return prepared_inputs.tasks(settings.eval, settings.data, None)
