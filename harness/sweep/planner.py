"""What a grid would take, before any of it runs: predictions by a job, times from records, and the table of both."""

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
    """A point of the grid: its cell (null where composing it failed), and what was predicted, or why nothing was.

    ``impossible``: it can't be run; ``unknown``: it can, but what it takes can't be told.
    """

    name: str
    cell: Cell | None
    prediction: dict[str, Any]

    @property
    def peak(self) -> int:
        """Bytes of tensors at the highest moment."""
        return sum(self.prediction["peak"].values())


@dataclass
class Plan:
    """All points, the bytes they should fit in, this machine (``environment`` of a record), and whose kernels compute
    there (``cpu`` or ``cuda``)."""

    points: list[Planned]
    budget: int
    environment: dict[str, Any]
    kernels: str

    def fits(self, point: Planned) -> bool:
        """Whether it does, or may: of some methods it can't be told."""
        return "unknown" in point.prediction or point.peak + BESIDE <= self.budget


def make(
    points: Sequence[tuple[str, Cell | str]],
    architectures: dict[str, dict[str, Any]],
    data_root: str | None,
    budget: int | None,
    device: str | None = None,
) -> Plan:
    """Predict each of `points`, a name and a cell or the reason why there is none.

    architectures: dimensions by model path, where a model's own config need not be asked. budget: bytes, of a card that
    may be elsewhere; null for the memory of this machine's device. device: whose kernels compute, ``cpu`` or ``cuda``;
    null for CUDA's where the budget is a GPU's.
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
    """Why a cell that does not fit is not run."""
    return (
        f"Its predicted peak of {units.size(point.peak)} of tensors and {units.size(BESIDE)} beside them "
        f"exceeds the budget of {units.size(plan.budget)}."
    )


def lines(plan: Plan, results: Path, throughput: float | None) -> list[str]:
    """The table for a terminal, and what it rests on.

    throughput: raw tokens/s to take for every cell (null: from records of the same device, where there are any).
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
    """How long cells would take, by records of this machine's device."""

    def __init__(self, results: Path, environment: dict[str, Any]):
        self._tokens: dict[tuple[str, str, int], list[float]] = {}
        self._flops: list[float] = []
        self.records = 0
        found = [r for name in studies(results) for r in read_study(results / name)[0]] if results.is_dir() else []
        for record in found:
            if record.train and not record.source and _device(record.environment) == _device(environment):
                self.records += 1
                self._tokens.setdefault(_alike(record.cell), []).append(record.train.tokens_per_second_steady)
                self._flops += _achieved(record)

    def seconds(self, point: Planned, throughput: float | None) -> float | None:
        """Of the training steps: tokens at the rate of the same model and method, else FLOPs at any cell's rate.

        That rate is of one device; of several the same is expected of each.
        """
        p = point.prediction
        if not p["trainable"]:
            return None
        known = self._tokens.get(_alike(point.cell))
        if throughput is None and known:
            throughput = median(known)
        if throughput is not None:
            return p["shape"]["raw"] / throughput
        return p["flops"] / median(self._flops) / point.cell.settings.train.devices if self._flops else None


def _alike(cell: Cell) -> tuple[str, str, int]:
    return cell.model, cell.method, cell.settings.train.devices


def _achieved(record: Record) -> list[float]:
    """FLOP/s of a device in the steady steps, if the record tells."""
    train = record.train
    if record.probe is None or train is None:
        return []
    padded = train.tokens_per_second_steady * train.tokens.padded / train.tokens.raw
    flops = record.probe.flops_per_token + record.probe.recomputed_flops_per_token
    return [flops * padded / record.cell.settings.train.devices]


def _device(environment: dict[str, Any]) -> tuple[Any, ...]:
    device, cpu = environment.get("device") or {}, environment.get("cpu") or {}
    where = (cpu.get("name"), environment.get("threads")) if device.get("type") == "cpu" else (device.get("name"),)
    return (device.get("type"), *where)


def _fit(plan: Plan, point: Planned) -> str:
    if not plan.fits(point):
        return "no"
    return "yes" if point.peak + BESIDE <= TIGHT * plan.budget else "tight"


def _batch(point: Planned) -> str:
    """The largest batch that fits, or of a cell that asks for it the micro-batches that its steps would be taken in."""
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
        told = "as the data has it" if real else "every sequence at train.max_length, with a loss on all its tokens"
        notes.append(f"Largest batch: {sequences} sequences, {tokens} tokens, {told}.")
    if possible:
        precisions = ", ".join(sorted({p.prediction["precision"] for p in possible}))
        notes.append(
            f"Memory is of tensors, computed in {precisions} by {NAMES[plan.kernels]} kernels; a cell fits if they and "
            f"{units.size(BESIDE)} beside them are within {units.size(plan.budget)}, tight above {TIGHT:.0%}. "
            "batch ≤ is the largest train.batch_size that fits; of auto it is the micro-batch × the accumulation."
        )
        if (plan.environment.get("versions") or {}).get("liger-kernel"):
            notes.append("The loss is counted in this harness's chunks; on CUDA liger-kernel takes chunks of its own.")
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
            notes.append(f"Time is of the training steps at {throughput:g} tokens/s.")
        elif speed.records:
            notes.append(f"Time is of the training steps, by {speed.records} records of this device.")
        else:
            notes.append("No time: there are no records of this device yet, and no --throughput was given.")
    return [line for note in notes for line in textwrap.wrap(note, 110)]


def _short(n: float) -> str:
    """Bytes without a space, for lists of them."""
    return "0" if not n else units.size(n).replace(" GiB", "G").replace(" MiB", "M").replace(" KiB", "K")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
