"""Times the decoding of a cell's model."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from peft import PeftModel
from torch import nn

from harness.job.evaluate import decoding, linear_weights
from harness.job.local_cell import LocalCell
from harness.job.measure import inference_speed
from harness.record import Record


def infer(cell: LocalCell, model: nn.Module, result: Record) -> None:
    """Time the forms that a model has before it is merged."""
    if isinstance(model, PeftModel):
        _time_decoding(cell, model, "infer", ["base", "unmerged"], result)
    elif not cell.tuned:
        _time_decoding(cell, model, "infer", ["base"], result)


def serve(cell: LocalCell, model: nn.Module, result: Record) -> None:
    """Time a tuned model as it is served, if its adapter is merged, or if it never had one."""
    if cell.tuned and not isinstance(model, PeftModel):
        _time_decoding(cell, model, "serve", ["merged"], result)


def _time_decoding(cell: LocalCell, model: nn.Module, phase: str, forms: list[str], result: Record) -> None:
    if not cell.settings.infer.repeats:
        return
    timed, measure = cell.settings.infer.timed(), partial(inference_speed.measure, model, forms)
    cell.reporter.enter(phase)
    with cell.meter.window(phase), cell.decoding_gpu, ExitStack() as undone:
        if cell.bf16:  # as a model is served that computes in it
            undone.callback(linear_weights.cast(model, torch.bfloat16))
        result.inference |= measure(timed, cell.accelerator, decoding.greedy)
        if timed.large_batch_size is not None and timed.large_batch_size != timed.batch_size:
            batched = replace(timed, batch_size=timed.large_batch_size)
            result.batched_inference |= measure(batched, cell.accelerator, decoding.greedy)
