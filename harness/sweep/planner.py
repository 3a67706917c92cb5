"""Plans a grid before anything runs: memory and FLOPs predicted by a job, times from records, and their table."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from harness import units
from harness.protocol import PlannedCell
from harness.record import Cell, Record, read_study, studies
from harness.sweep import micro_batch, runner
from harness.sweep.runner import BESIDE, TIGHT

HELD = ("weights", "adapters", "optimizer")  # between steps, and as much at the peak
PASSING = ("gradients", "activations")
NAMES = {"cpu": "the CPU's", "cuda": "CUDA's"}


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
    kernels the prediction assumes, ``cpu`` or ``cuda``.
    """

    points: list[Planned]
    budget: int
    environment: dict[str, Any]
    kernels: str

    def fits(self, point: Planned) -> bool:
        """Whether the point fits the budget. A point that can't be predicted counts as fitting."""
        return "unknown" in point.prediction or point.peak + BESIDE <= self.budget


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
    return Plan(planned, answer["budget"], answer["environment"], answer["kernels"])


def refusal(plan: Plan, point: Planned) -> str:
    """The sentence on a cell that does not fit, for its record."""
    return (
        f"Its predicted peak, {units.size(point.peak)} of tensors and {units.size(BESIDE)} of overhead, "
        f"exceeds the budget of {units.size(plan.budget)}."
    )


def lines(plan: Plan, results: Path, throughput: float | None) -> list[str]:
    """The table for a terminal, with notes on how its figures were obtained.

    throughput: raw tokens/s to assume for every cell (None: from records of the same device).
    """
    speed = Speed(results, plan.environment)
    possible = [p for p in plan.points if not p.prediction.keys() & {"impossible", "unknown"}]
    header = ["cell", "trainable", "resident", " / ".join(HELD), "peak", "+ " + " / ".join(PASSING), "FLOPs", "time"]
    header += ["fits", "batch ≤"]
    rows = []
    for point in possible:
        p = point.prediction
        seconds = speed.seconds(point, throughput)
        rows.append(
            [
                point.name,
                f"{units.count(p['trainable'])} ({100 * p['trainable'] / p['total']:.3g}%)",
                units.size(sum(p["resident"].values())),
                " / ".join(_short(p["resident"][kind]) for kind in HELD),
                units.size(point.peak),
                " / ".join(_short(p["peak"][kind]) for kind in PASSING),
                units.count(p["flops"]),
                "–" if seconds is None else _duration(seconds),
                _fit(plan, point),
                _batch(point),
            ]
        )
    out = tabulate(rows, header, "simple", disable_numparse=True).splitlines() if rows else []
    out += [""] if rows else []
    for point in plan.points:
        if "impossible" in point.prediction:
            out.append(f"Impossible: {point.name}: {point.prediction['impossible']}")
        if "unknown" in point.prediction:
            out.append(f"Not predicted: {point.name}: {point.prediction['unknown']}")
    return out + _notes(plan, possible, speed, throughput)


class Speed:
    """Estimates training time from the records of this machine's device."""

    def __init__(self, results: Path, environment: dict[str, Any]):
        self._tokens: dict[tuple[str, str, int], list[float]] = {}
        self._flops: list[float] = []
        self.records = 0
        found = [r for name in studies(results) for r in read_study(results / name)[0]] if results.is_dir() else []
        for record in found:
            if record.train and not record.source and _device(record.environment) == _device(environment):
                self.records += 1
                self._tokens.setdefault(_kind(record.cell), []).append(record.train.tokens_per_second_steady)
                self._flops += _flops_per_second(record)

    def seconds(self, point: Planned, throughput: float | None) -> float | None:
        """Seconds of a point's training steps; None without records, or without trained weights.

        Tokens at `throughput`, else at the median rate of the same model, method and number of devices, else FLOPs at
        the median FLOP/s per device of all records.
        """
        p = point.prediction
        if not p["trainable"]:
            return None
        known = self._tokens.get(_kind(point.cell))
        if throughput is None and known:
            throughput = median(known)
        if throughput is not None:
            return p["shape"]["raw"] / throughput
        return p["flops"] / median(self._flops) / point.cell.settings.train.total_devices if self._flops else None


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


def _fit(plan: Plan, point: Planned) -> str:
    if not plan.fits(point):
        return "no"
    return "yes" if point.peak + BESIDE <= TIGHT * plan.budget else "tight"


def _batch(point: Planned) -> str:
    """The largest train.batch_size that fits; with train.batch_size=auto the micro-batch × the accumulation."""
    size = point.prediction["micro_batch"]
    if size is not None:
        taken = micro_batch.planned(point.cell, point.prediction)
        return f"auto: {taken.batch_size} × {taken.grad_accum}"
    largest = point.prediction["largest_batch"]
    return "–" if largest is None else str(largest)


def _notes(plan: Plan, possible: list[Planned], speed: Speed, throughput: float | None) -> list[str]:
    notes = []
    shapes = {tuple(p.prediction["shape"][k] for k in ("sequences", "tokens", "real")) for p in possible}
    for sequences, tokens, real in sorted(shapes):
        source = "from the data" if real else "assumed: each sequence of train.max_length tokens, all in the loss"
        notes.append(f"Largest batch: {sequences} sequences, {tokens} tokens ({source}).")
    if possible:
        precisions = ", ".join(sorted({p.prediction["precision"] for p in possible}))
        notes.append(
            f"Memory: live tensors, in {precisions} with {NAMES[plan.kernels]} kernels. A cell fits if they and "
            f"{units.size(BESIDE)} of overhead are within {units.size(plan.budget)}; above {TIGHT:.0%} it is tight. "
            "batch ≤: the largest train.batch_size that fits; for auto, the micro-batch × the accumulation."
        )
        if plan.kernels == "cuda":
            notes.append("Tables show the allocator's peak, which has kernels' workspaces and rounding beside tensors.")
        if (plan.environment.get("versions") or {}).get("liger-kernel"):
            notes.append("The loss is predicted in the harness's own chunks; on CUDA, liger-kernel chooses others.")
        if any(p.cell.settings.train.compile for p in possible):
            notes.append(
                "Cells with train.compile=true are counted as uncompiled: torch.compile may change their activations "
                "and their time."
            )
        if any(p.cell.settings.method.paged for p in possible):
            notes.append(
                "Moments in paged memory are left out, as CUDA moves them to the host when memory is short: 8 bytes "
                "per trained weight, about 2 with method.adamw=paged_8bit."
            )
        if throughput is not None:
            notes.append(f"Time: training steps, at {throughput:g} tokens/s.")
        elif speed.records:
            notes.append(f"Time: training steps, estimated from {speed.records} records of this device.")
        else:
            notes.append("Time: unknown without records of this device; --throughput sets a rate.")
    return [line for note in notes for line in textwrap.wrap(note, 110)]


def _short(n: float) -> str:
    """Bytes in short form, such as 1.5G, for lists."""
    return "0" if not n else units.size(n).replace(" GiB", "G").replace(" MiB", "M").replace(" KiB", "K")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
