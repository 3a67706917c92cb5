"""Times the kernels of cells on the device that is here: `harness calibrate`.

Two decoder layers with random weights, of the model's dimensions, are loaded, adapted and trained as a run does it, in
micro-batches of a few sizes. Each operation is timed alone. The smallest micro-batch, run as a whole, tells what the
host takes to begin an operation.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from hydra.utils import instantiate
from torch import nn
from torch.optim import Optimizer
from transformers import AutoConfig, PretrainedConfig

from harness import env
from harness.errors import UserError
from harness.job import speedups
from harness.job.data.batching import Batch
from harness.job.measure import device
from harness.job.measure.flops import DECOMPOSITIONS
from harness.job.measure.kernels import Kernel, KernelTimes
from harness.job.measure.timing import synchronize
from harness.job.methods import optimizers
from harness.job.models import adapting, empty_weights, loading
from harness.job.predict.shapes import Shape
from harness.job.training import gradient_checkpointing, loop, objectives
from harness.protocol import CalibrateDevice, PlannedCell, Report
from harness.record import Calibration, Cell, TimedKernel, device_of
from harness.settings import plain

DEPTH = 2  # decoder layers
REPEATS = 3  # steps of a size, of which the least time of each operation counts
SMALL = 16  # tokens of the micro-batch whose time is the host's
MOMENTS = 7  # in which the host's time is looked at

DECOMPOSING = {operation._qualified_op_name.partition("::")[2] for operation in DECOMPOSITIONS}

Call = tuple[Kernel, float]


@dataclass
class Timings:
    """The kernels of steps, and the host's seconds for an operation by each cell."""

    kernels: dict[Kernel, list[float]]
    launches: list[float]


def answer(request: CalibrateDevice, report: Report) -> Calibration:
    """The calibration of this machine's device by the cells of `request`, each kind of which is timed once.

    report: told of each. Raises UserError if none can be timed.
    """
    on = device.here()
    timed = Timings({}, [])
    kinds = list({_kind(planned.cell): planned for planned in request.cells}.values())
    for number, planned in enumerate(kinds, start=1):
        report({"phase": "calibrate", "step": number, "of": len(kinds), "other": {"cell": planned.cell.name}})
        _time(planned, on, timed)
    AcceleratorState._reset_state(True)
    environment = env.describe() | device.describe(on)
    return Calibration(
        device=device_of(environment),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        torch=torch.__version__,
        launch=median(timed.launches),
        ahead=on.type == "cuda",
        kernels=[TimedKernel(**vars(kernel), seconds=mean(times)) for kernel, times in timed.kernels.items()],
    )


def _kind(cell: Cell) -> str:
    """What decides a cell's kernels."""
    train = replace(cell.settings.train, max_steps=None, max_tokens=None)
    return repr([plain(cell.settings.method), plain(cell.settings.model), plain(train), cell.settings.speedups])


def _time(planned: PlannedCell, on: torch.device, timed: Timings) -> None:
    """Add to `timed` what the steps of a cell take."""
    with tempfile.TemporaryDirectory() as folder:
        cell = _shallow(planned, Path(folder))
        step = _Step(cell, on)
        for shape in _shapes(cell):
            for kernel, seconds in step.kernels(shape):
                timed.kernels.setdefault(kernel, []).append(seconds)
        for kernel, seconds in step.decompositions:
            timed.kernels.setdefault(kernel, []).append(seconds)
        timed.launches.append(step.launch(on.type == "cuda"))
        del step
        gc.collect()  # accelerate's model refers to itself, and the next one needs its memory
        if on.type == "cuda":
            torch.cuda.empty_cache()


def _shallow(planned: PlannedCell, folder: Path) -> Cell:
    """The cell with a model of a few layers and random weights, which is written to `folder`."""
    cell = planned.cell
    if cell.settings.train.total_devices > 1:
        raise UserError(f"calibrate requires train.devices=1, got {cell.settings.train.total_devices}.")
    if cell.settings.train.paired:
        raise UserError("calibrate requires train.objective=sft: others train on pairs.")
    config = empty_weights.with_depth(_config(planned), DEPTH)
    set_seed(0)
    net = loading.auto_class(config).from_config(config, dtype=getattr(torch, loading.load_slot(cell)["dtype"]))
    with suppress(ValueError):  # of numbers for generation, which are not used
        net.save_pretrained(folder)
    model = replace(cell.settings.model, path=str(folder), revision=None, use_safetensors=True)
    return replace(cell, settings=replace(cell.settings, model=model))


def _config(planned: PlannedCell) -> PretrainedConfig:
    if planned.architecture is None:
        return loading.config_of(planned.cell.settings.model)
    dimensions = dict(planned.architecture)
    return AutoConfig.for_model(dimensions.pop("model_type"), **dimensions)


def _shapes(cell: Cell) -> Iterator[Shape]:
    """Micro-batches as the cell's, with shorter sequences, with a single one, and with a few tokens."""
    train = cell.settings.train.validated()
    rows, length = train.micro_batch, train.max_length
    sizes = [(rows, length), (rows, max(SMALL, length // 4)), (1, max(SMALL, length // 2)), (1, SMALL)]
    for count, tokens in dict.fromkeys(sizes):
        yield Shape([[(tokens, 0)] * count], 1, count * tokens, count * tokens, real=False)


class _Step:
    """Steps of the shallow `cell` on the device `on`, as a run takes them.

    decompositions: what a step decomposed as it made the optimizer's state. All of them count, not the least: a wide
    matrix takes longer than a tall one of the same size.
    """

    def __init__(self, cell: Cell, on: torch.device):
        self._train = cell.settings.train.tuned()
        bf16 = device.compute_dtype(self._train.precision) is torch.bfloat16
        AcceleratorState._reset_state(True)  # accelerate keeps one precision for a process
        self._accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=on.type == "cpu")
        self._objective, self._on = objectives.objective_of(self._train), on
        net: nn.Module = adapting.adapt(loading.load(cell, on), cell)
        self._layout, _ = speedups.enable(net, cell.settings.speedups, 0, self._accelerator)
        if self._train.gradient_checkpointing:
            gradient_checkpointing.enable(net)
        build = instantiate(cell.settings.method.optim, _convert_="all")
        self._net = self._accelerator.prepare_model(net)
        self._net.train()
        self._optimizer: Optimizer = build(self._accelerator.unwrap_model(self._net))
        if cell.settings.fast:
            optimizers.group_steps(self._optimizer)
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0
        self.decompositions: list[Call] = []
        torch.linalg.svd(torch.eye(SMALL, device=on))  # loads the library of decompositions

    def kernels(self, shape: Shape) -> list[Call]:
        """Each operation of a step over `shape`, with its seconds."""
        batch = self._batch(shape)
        first = self._timed(batch)  # which chooses kernels, and makes the optimizer's state
        self.decompositions += [call for call in first if call[0].name in DECOMPOSING]
        return _least([self._timed(batch) for _ in range(REPEATS)])

    def launch(self, ahead: bool) -> float:
        """Seconds in which the host begins an operation.

        ahead: whether operations run meanwhile. Then a step has taken the host's time once all of it is queued, and the
        device may have more to do: AdamW moves all weights of a model, whatever the micro-batch.
        Whole steps and steps of timed operations take turns, and are compared within a moment: a machine that is faster
        for a while is so for both. The median of all moments counts.
        """
        batch = self._batch(Shape([[(SMALL, 0)]], 1, SMALL, SMALL, real=False))
        self._take(batch)
        costs = []
        for _ in range(MOMENTS):
            whole, runs = [], []
            for _ in range(REPEATS):
                synchronize()
                start = time.perf_counter()
                self._take(batch)
                if not ahead:
                    synchronize()
                whole.append(time.perf_counter() - start)
                runs.append(self._timed(batch))
            calls = _least(runs)
            busy = 0.0 if ahead else sum(seconds for _, seconds in calls)
            costs.append((min(whole) - busy) / len(calls))
        return max(0.0, median(costs))

    def _timed(self, batch: Batch) -> list[Call]:
        with KernelTimes(self._on) as times:
            self._take(batch)
        return times.calls

    def _batch(self, shape: Shape) -> Batch:
        batch = self._objective.batch(self._layout, shape.drawn(self._layout, 1)[0])
        return batch.to(self._on)

    def _take(self, batch: Batch) -> None:
        norm, objective = self._train.max_grad_norm, self._objective
        loop.take_step(self._net, self._optimizer, [batch], norm, self._accelerator, lambda part: None, objective)


def _least(runs: Sequence[list[Call]]) -> list[Call]:
    """The operations of `runs` in their order, each with the least of its seconds."""
    if len({len(run) for run in runs}) > 1:  # an operation that is not in every step
        return min(runs, key=lambda run: sum(seconds for _, seconds in run))
    return [(calls[0][0], min(seconds for _, seconds in calls)) for calls in zip(*runs, strict=True)]
