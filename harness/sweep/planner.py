"""Plans a grid before anything runs: memory and FLOPs predicted by a job, times from records."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from harness import units
from harness.protocol import PlannedCell
from harness.record import Cell, Record, read_study, studies
from harness.sweep import runner
from harness.sweep.runner import BESIDE

REMEDIES = 8  # cells of which a plan says what would make them fit
LIKE = 4.0  # within this factor the sizes of models and of steps are alike enough to tell a time by


@dataclass
class Planned:
    """A point of the grid with its prediction.

    cell: None if its settings could not be composed. prediction: the job's figures; or one reason, under
    ``impossible`` if the cell can't run, under ``unknown`` if it can but its memory can't be predicted.
    """

    name: str
    cell: Cell | None
    prediction: dict[str, Any]

    @property
    def peak(self) -> int:
        """Peak of live tensors in bytes."""
        return sum(self.prediction["peak"].values())


@dataclass
class Plan:
    """The planned points of a grid.

    budget: bytes of memory that each cell must fit in. environment: this machine's, as in a record. kernels: whose
    kernels the prediction assumes, ``cpu`` or ``cuda``. remedies: where nothing fits, a sentence on each cell.
    """

    points: list[Planned]
    budget: int
    environment: dict[str, Any]
    kernels: str
    remedies: list[str] = field(default_factory=list)

    @property
    def predicted(self) -> list[Planned]:
        """The points whose memory is predicted."""
        return [point for point in self.points if not point.prediction.keys() & {"impossible", "unknown"}]

    def fits(self, point: Planned) -> bool:
        """Whether the point fits the budget. A point that can't be predicted counts as fitting."""
        return "unknown" in point.prediction or point.peak + BESIDE <= self.budget


def refusal(plan: Plan, point: Planned) -> str:
    """The sentence on a cell that does not fit, for its record."""
    return (
        f"Its predicted peak, {units.size(point.peak)} of tensors and {units.size(BESIDE)} of overhead, "
        f"exceeds the budget of {units.size(plan.budget)}."
    )


def make(
    points: Sequence[tuple[str, Cell | str]],
    architectures: dict[str, dict[str, Any]],
    data_root: str | None,
    budget: int | None,
    device: str | None = None,
) -> Plan:
    """Predict each of `points`: a name with a cell, or with the reason why there is none.

    architectures: dimensions by model name, of models whose own config need not be loaded. budget: bytes, also of a
    card in another machine (None: the memory of this machine's device). device: whose kernels to assume, ``cpu`` or
    ``cuda`` (None: CUDA's if the budget is a GPU's).
    """
    cells = [cell for _, cell in points if isinstance(cell, Cell)]
    answer = runner.plan(
        [PlannedCell(cell, architectures.get(cell.model)) for cell in cells], data_root, budget, device
    )
    predictions = iter(answer["predictions"])
    planned = [
        Planned(name, cell, next(predictions)) if isinstance(cell, Cell) else Planned(name, None, {"impossible": cell})
        for name, cell in points
    ]
    plan = Plan(planned, answer["budget"], answer["environment"], answer["kernels"])
    if plan.predicted and not any(map(plan.fits, plan.predicted)):
        plan.remedies = _remedies(plan, architectures, data_root)
    return plan


def _remedies(plan: Plan, architectures: dict[str, dict[str, Any]], data_root: str | None) -> list[str]:
    """Where nothing fits, what makes the smallest cells fit: smaller micro-batches, recomputed activations."""
    least = sorted(plan.predicted, key=lambda point: point.peak)[:REMEDIES]
    smaller = {point.name: _smaller(point) for point in least}
    tried = [PlannedCell(cell, architectures.get(cell.model)) for cells in smaller.values() for cell in cells]
    answers = runner.plan(tried, data_root, plan.budget, plan.kernels)["predictions"]
    found = iter([Planned(asked.cell.name, asked.cell, answer) for asked, answer in zip(tried, answers, strict=True)])
    return [_remedy(plan, name, [next(found) for _ in cells]) for name, cells in smaller.items()]


def _smaller(point: Planned) -> list[Cell]:
    """The cell in steps of the same size that take less memory: with the largest micro-batch that may fit, then one
    sequence a device, then recomputed activations."""
    train, method = point.cell.settings.train, point.cell.settings.method
    devices, step = train.total_devices, train.micro_batch * (train.grad_accum or 1)
    most = point.prediction["largest_batch"] or devices
    even = [size for size in range(devices, most + 1, devices) if train.micro_batch % size == 0]
    sizes = list(dict.fromkeys([max(even, default=devices), devices]))
    if (method.optim or {}).get("per_layer"):  # it can't accumulate
        sizes = [train.micro_batch]
    found: list[dict[str, Any]] = [{"batch_size": size} for size in sizes]
    if method.tuned:
        found = [one | {"grad_accum": step // one["batch_size"], "global_batch": None} for one in found]
    if method.tuned and not train.gradient_checkpointing:
        found.append(found[-1] | {"gradient_checkpointing": True})
    return [_training(point.cell, changes) for changes in found]


def _training(cell: Cell, changes: dict[str, Any]) -> Cell:
    train = dataclasses.replace(cell.settings.train, **changes)
    return dataclasses.replace(cell, settings=dataclasses.replace(cell.settings, train=train))


def _remedy(plan: Plan, name: str, smaller: Sequence[Planned]) -> str:
    """The first of the `smaller` cells that fits, as what to type; if none does, what else there is."""
    predicted = [point for point in smaller if "peak" in point.prediction]
    for point in predicted:
        if plan.fits(point):
            train = point.cell.settings.train
            typed = [f"train.batch_size={train.batch_size}"]
            typed += [f"train.grad_accum={train.grad_accum}"] if train.grad_accum else []
            typed += ["train.gradient_checkpointing=true"] if train.gradient_checkpointing else []
            return f"{name} fits with {' '.join(typed)}."
    least = min((point.peak for point in predicted), default=None)
    takes = "" if least is None else f": one sequence takes {units.size(least + BESIDE)}"
    return (
        f"{name} fits with no batch size{takes}. Take a method with a quantised base (qlora), a smaller model or more "
        "memory."
    )


class Speed:
    """Estimates training time from records of this machine's device that ran undisturbed.

    kernels: of the planned cells; those of another kind than this machine's device have no time.
    """

    def __init__(self, results: Path, environment: dict[str, Any], kernels: str):
        found = [r for name in studies(results) for r in read_study(results / name)[0]] if results.is_dir() else []
        device = _device(environment)
        crowded = _overlapping(found)
        self._records = [
            record
            for record in found
            if record.train and not record.source and _device(record.environment) == device and device[0] == kernels
            if id(record) not in crowded and not record.train.resumed_at
        ]
        self.used: set[int] = set()  # the records that a time rests on, by identity

    def seconds(self, point: Planned, throughput: float | None) -> float | None:
        """Seconds of a point's training steps; None without records, or without trained weights.

        Tokens at `throughput`, else at the median rate of the same model, method and number of devices in steps of a
        like size, else FLOPs at the median FLOP/s per device of models and steps of a like size.
        """
        p = point.prediction
        if not p["trainable"] or p["shape"]["steps"] is None:
            return None
        if throughput is not None:
            return p["shape"]["raw"] / throughput
        train = point.cell.settings.train
        step = p["shape"]["raw"] / p["shape"]["steps"]
        like = [r for r in self._records if _alike(r.train.tokens.raw / r.train.steps, step)]
        if same := [r for r in like if _kind(r.cell) == _kind(point.cell)]:
            self.used |= set(map(id, same))
            return p["shape"]["raw"] / median(r.train.tokens_per_second_steady for r in same)
        sized = [r for r in like if r.parameters and _alike(r.parameters.total, p["total"]) and _flops_per_second(r)]
        self.used |= set(map(id, sized))
        rates = [rate for r in sized for rate in _flops_per_second(r)]
        return p["flops"] / median(rates) / train.total_devices if rates else None


def _alike(a: float, b: float) -> bool:
    return b / LIKE <= a <= b * LIKE


def _overlapping(records: Iterable[Record]) -> set[int]:
    """The records, by identity, that ran while another one did on the same GPU (or CPU): neither time counts."""
    found: set[int] = set()
    before: dict[Any, tuple[float, Record]] = {}  # by device, the end of the one that ends last, and that one
    for record in sorted((r for r in records if r.seconds and r.environment.get("boot")), key=_start):
        start, gpus = _start(record), str((record.environment.get("device") or {}).get("id"))
        for device in [(record.environment["boot"], gpu) for gpu in gpus.split("+")]:
            end, running = before.get(device, (0.0, None))
            if start + 1 < end:  # starts are in whole seconds
                found |= {id(record), id(running)}
            if start + record.seconds > end:
                before[device] = start + record.seconds, record
    return found


def _start(record: Record) -> float:
    return datetime.fromisoformat(record.started).timestamp()


def _kind(cell: Cell) -> tuple[str, str, int, int]:
    """What cells share whose token rates are comparable."""
    return cell.model, cell.method, cell.settings.train.devices, cell.settings.train.nodes


def _flops_per_second(record: Record) -> list[float]:
    """FLOP/s per device in the steady steps; empty if the record has no probe."""
    train = record.train
    if record.probe is None or train is None:
        return []
    padded = train.tokens_per_second_steady * train.tokens.padded / train.tokens.raw
    flops = record.probe.flops_per_token + record.probe.recomputed_flops_per_token
    return [flops * padded / record.cell.settings.train.total_devices]


def _device(environment: dict[str, Any]) -> tuple[Any, ...]:
    device, cpu = environment.get("device") or {}, environment.get("cpu") or {}
    where = (cpu.get("name"), environment.get("threads")) if device.get("type") == "cpu" else (device.get("name"),)
    return (device.get("type"), *where)
