"""A running cell with weights: what its phases share, and what its record says beside them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from harness.job import preflight, prepared_inputs, shortage
from harness.job.measure import device, nvml
from harness.job.measure.gpu_state import GpuSampler
from harness.job.measure.phases import Meter
from harness.job.models import checks
from harness.job.reporter import Reporter
from harness.job.tracker import Tracker
from harness.job.training import distributed, objectives
from harness.protocol import Report, RunCell
from harness.record import Record, Shortage


class LocalCell:
    """What the phases in run_cell.py share. Raises UserError if the cell can't run on this machine.

    weights: the folder that tuned weights are saved in, if that is asked for. rank: this process's part in a cell on
    several devices.

    batch_size: sequences, pairs or packs of one device's micro-batch. model_facts, speedups, device_facts: what the
    phases learn for the record's environment; speedups by name, "on", or "off: " and the reason. divided_over: how many
    devices the whole model lies on after it was trained; null for one.
    """

    def __init__(self, request: RunCell, report: Report, weights: Path, rank: distributed.LaunchedRank | None):
        self.request, self.cell, self.settings, self.weights = request, request.cell, request.cell.settings, weights
        preflight.check_cell(self.cell, request.local)
        self.inputs = prepared_inputs.inputs_of(self.settings, request.data_root, request.local.include_path)
        checks.check_length(self.settings, self.inputs.longest)
        self.train = self.settings.train.validated()
        self.tuned, self.objective = self.settings.method.tuned, objectives.objective_of(self.train)
        micro_batch = request.smaller.batch_size if request.smaller else self.train.micro_batch
        self.batch_size = micro_batch // self.train.total_devices
        self.bf16 = device.compute_dtype(self.train.precision) is torch.bfloat16
        self.sharded = rank is not None and self.train.sharded
        self.accelerator = _alone(self.bf16) if rank is None else rank.accelerator(self.sharded, self.bf16)
        on = self.accelerator.device
        device.keep_to_its_memory(on)
        self.meter = Meter(on)
        tracker = None
        if request.tracker is not None and (rank is None or rank.number == 0):
            tracker = Tracker(request.tracker, self.cell, request.study, Path(request.path).parent)
            if rank is None:  # a rank ends at once, as a collective may hold it
                signal.signal(signal.SIGTERM, _stop)  # otherwise a tracker shows a stopped run as running for ever
        self.reporter = Reporter(report, self.meter, tracker)
        self.holders = shortage.Holders()
        idle_watts = nvml.watts(on) if on.type == "cuda" else None
        self.gpu, self.decoding_gpu = GpuSampler(on, idle_watts), GpuSampler(on, idle_watts)
        self.model_facts: dict[str, Any] = {}
        self.speedups: dict[str, str] = {}
        self.divided_over: int | None = None
        self.device_facts: dict[str, Any] = {"matmul_flops_per_second": None}

    @property
    def phase(self) -> str:
        return self.reporter.phase

    @property
    def step(self) -> int | None:
        return self.reporter.step

    @property
    def precision(self) -> str:
        return "bf16" if self.bf16 else "fp32"

    @contextmanager
    def entered(self, phase: str) -> Iterator[Callable[[Any], None]]:
        """A phase with its window. Yields a function to call with tensors that no operation made, such as weights."""
        self.reporter.enter(phase)
        with self.meter.window(phase) as memory, self.meter.live(memory) as see:
            yield see

    def leave(self, rank: distributed.LaunchedRank) -> None:
        """Leave the other ranks: from here on this process works on one device."""
        rank.leave()
        self.accelerator = _alone(self.bf16)

    # What the record says beside the phases

    def describe(self, result: Record) -> None:
        """Add the phases' costs, the GPUs, and the environment that only the job knows, to `result`."""
        result.phases = self.meter.phases
        result.gpus = result.gpus or self.gpu.states()
        result.decoding_gpus = self.decoding_gpu.states()
        result.environment |= device.describe(self.accelerator.device)
        result.environment["precision"] = self.precision
        result.environment["device"] |= self.device_facts
        result.environment |= self.model_facts | {"speedups": self.speedups}
        if self.divided_over is not None:
            result.environment["divided_over"] = self.divided_over

    def shortage(self) -> Shortage:
        """What the device holds. Ask while the exception still holds what was in use."""
        return self.holders.shortage(self.meter)

    def end(self, result: Record | None) -> None:
        """End the tracker, if there is one."""
        self.reporter.end(result)


def _stop(number: int, _: object) -> None:
    """End this process in order, with the status that a shell gives to one that a signal ended."""
    sys.exit(128 + number)


def _alone(bf16: bool) -> Accelerator:
    return Accelerator(mixed_precision="bf16" if bf16 else "no")
