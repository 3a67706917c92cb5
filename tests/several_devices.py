"""Short cells on several devices, whose model may come to harm in the second rank, and what they come to."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from job_helpers import run_leased, tiny

from harness.record import Cell, Record
from harness.sweep.store import Study

SHORT = ("rank=4", "lr=0.01", "train.batch_size=4", "train.max_steps=4", "train.validate_every=2", "infer.repeats=0")


def short(*overrides: str, harm: str = "none") -> Cell:
    return tiny(*SHORT, "method.optim._target_=harm.build", f"+method.optim.harm={harm}", *overrides)


def go(folder: Path, cell: Cell, on_event: Callable[[dict], None] = lambda event: None, **keywords) -> Record:
    """Run `cell` in a job, as a sweep does; of none of its ranks may anything be left."""
    study = Study(folder, "study")
    try:
        return run_leased(cell, study, None, on_event, **keywords)
    finally:
        if study.log(cell).exists():
            pids = re.findall(r"is process (\d+)", study.log(cell).read_text())
            assert pids
            assert not [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists()]


def alike(record: Record, one: Record) -> None:
    assert (record.status, one.status) == ("ok", "ok"), record.failure
    assert record.cell.id != one.cell.id
    assert record.train.batches == one.train.batches
    assert (record.train.tokens.raw, record.train.tokens.supervised) == (
        one.train.tokens.raw,
        one.train.tokens.supervised,
    )
    for name in ("loss", "grad_norm", "lr", "tokens"):
        values = ([getattr(point, name) for point in of.train.loss] for of in (record, one))
        assert next(values) == pytest.approx(next(values), rel=2e-6 if name == "loss" else 1e-4), name
    assert [v.loss for v in record.validation] == pytest.approx([v.loss for v in one.validation], rel=2e-6)
    assert len(record.validation) == 2
    assert [(s.task, s.value, s.n) for s in record.scores] == [(s.task, s.value, s.n) for s in one.scores]
    assert record.parameters == one.parameters
    assert record.items == one.items
    assert record.environment["threads"] == one.environment["threads"]
    total = record.train.tokens.raw / sum(record.train.step_seconds)
    assert record.train.tokens_per_second_amortised == pytest.approx(total)
