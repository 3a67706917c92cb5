"""Probes a cell's memory and FLOPs before anything is timed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from harness.job.local_cell import LocalCell
from harness.job.measure.live_memory import LiveBytes
from harness.job.measure.timing import matmul_peak
from harness.job.phases.load import Loaded
from harness.job.phases.prepare import TrainingPlan
from harness.job.training import probe
from harness.record import Probe


def probe_steps(cell: LocalCell, model: nn.Module, loaded: Loaded, plan: TrainingPlan) -> Probe:
    """The probe of the steps over the largest micro-batches."""
    layout, objective, settings = loaded.layout, cell.objective, plan.settings
    largest = max(plan.steps, key=lambda step: max(map(layout.tokens, step)))
    micro = [objective.batch(layout, examples).to(cell.accelerator.device) for examples in largest]
    measure = partial(
        probe.steps,
        *(model, plan.adapters, plan.build, micro, settings.max_grad_norm, cell.accelerator),
        busy=not settings.compile,  # the probe's model is not compiled, so its kernels are others
        objective=objective,
    )
    return _probed(cell, measure)


def probe_forward(cell: LocalCell, model: nn.Module, loaded: Loaded) -> Probe:
    """The probe of an untuned model: a forward pass over the largest validation batch."""
    cell.reporter.enter("probe")
    largest = max(loaded.validation, key=lambda batch: batch.padded).to(cell.accelerator.device)
    return _probed(cell, lambda live: probe.forward(model, largest, cell.accelerator, live, cell.objective))


def _probed(cell: LocalCell, measure: Callable[[LiveBytes], Probe]) -> Probe:
    on = cell.accelerator.device
    peak = matmul_peak(on, torch.bfloat16 if cell.bf16 else torch.float32)
    cell.device_facts["matmul_flops_per_second"] = peak
    live = LiveBytes(on)
    # Random numbers are drawn from a copy: training begins as if the probe had not been.
    with cell.meter.window("probe", counter=live) as memory, torch.random.fork_rng():
        measured = measure(live)
    if memory.allocated_peak is None:
        memory.allocated_peak = live.peak
    return measured
