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
HARM = '''
import os, signal, sys

import torch
from peft.optimizers import create_lorafa_optimizer

import harness.job.run_cell
from harness.job.methods import optimizers

harness.job.run_cell.matmul_peak = lambda *_: 1e9  # the look at the device's speed takes longer than all else here


def build(model, harm="none", **slot):
    """An optimizer's factory whose model comes to `harm` in the second rank, in the third step of training."""
    print(f"rank {os.environ.get('RANK')} is process {os.getpid()}", file=sys.stderr)
    made, passes = optimizers.build(model, **slot), []

    def hook(model, args, keywords):
        passes.append(model.training)
        if harm == "hungry" and int((keywords["position_ids"] == 0).sum()) > 1:
            torch.empty(2**50)
        if passes.count(True) == 5:  # two in the probe
            if harm == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if harm == "raises":
                raise RuntimeError("as it was told")

    if os.environ.get("RANK") == "1":
        model.register_forward_pre_hook(hook, with_kwargs=True)
        if harm == "drifts":
            made.register_step_post_hook(lambda *_: next(model.parameters()).data.add_(1e-3))
    return made
'''


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


def alike(record: Record, one: Record, rel: float = 2e-6) -> None:
    """rel: how far losses may lie apart."""
    assert (record.status, one.status) == ("ok", "ok"), record.failure
    assert record.cell.id != one.cell.id
    assert record.train.batches == one.train.batches
    assert (record.train.tokens.raw, record.train.tokens.supervised) == (
        one.train.tokens.raw,
        one.train.tokens.supervised,
    )
    for name in ("loss", "grad_norm", "lr", "tokens"):
        values = ([getattr(point, name) for point in of.train.loss] for of in (record, one))
        assert next(values) == pytest.approx(next(values), rel=rel if name == "loss" else max(1e-4, 10 * rel)), name
    assert [v.loss for v in record.validation] == pytest.approx([v.loss for v in one.validation], rel=rel)
    assert len(record.validation) == 2
    assert [(s.task, s.value, s.n) for s in record.scores] == [(s.task, s.value, s.n) for s in one.scores]
    assert record.parameters == one.parameters
    assert record.items == one.items
    assert record.environment["threads"] == one.environment["threads"]
    total = record.train.tokens.raw / sum(record.train.step_seconds)
    assert record.train.tokens_per_second_amortised == pytest.approx(total)
