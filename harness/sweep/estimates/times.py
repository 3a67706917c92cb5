"""How long a planned cell trains: by records of the same device, its calibration, or the rates of a card."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from harness.record import Cell, Record, Train, device_of, overlapping, read_study, studies
from harness.sweep.estimates import rates
from harness.sweep.estimates.card import Card
from harness.sweep.planner import Planned

LIKE = 4.0  # within this factor the sizes of models and of steps are alike enough to tell a time by


@dataclass(frozen=True)
class Timing:
    """A record whose training was timed: its optimizer steps, and raw tokens/s in the steady ones."""

    record: Record
    train: Train
    steps: int
    tokens_per_second: float

    @property
    def step_tokens(self) -> float:
        """Raw tokens of a step."""
        return self.train.tokens.raw / self.steps

    @property
    def first_excess(self) -> float:
        """Seconds by which the first step, in which an optimizer makes its state, was longer than the steady ones."""
        first = self.train.step_seconds[0] - sum(self.train.compile_seconds[:1])
        return max(0.0, first - self.step_tokens / self.tokens_per_second)

    @property
    def flops_per_second(self) -> float | None:
        """FLOP/s per device in the steady steps; None if the record has no probe, or does not count padding."""
        probe, tokens = self.record.probe, self.train.tokens
        if probe is None or tokens.padded is None:
            return None
        padded = self.tokens_per_second * tokens.padded / tokens.raw
        flops = probe.flops_per_token + probe.recomputed_flops_per_token
        return flops * padded / self.record.cell.settings.train.total_devices


@dataclass(frozen=True)
class Estimate:
    """Seconds, and what they rest on."""

    seconds: float
    basis: Literal["throughput", "records", "calibration", "rates"]


class Times:
    """Training times and their price, estimated from records of the same device that ran undisturbed.

    Without such records, from the calibration of the device, or from the rates of a card. The device is that of `card`,
    or this machine's as in `environment`. kernels: of the planned cells; those of another kind than the device have no
    time. throughput: raw tokens/s to assume for every cell. price: dollars for a device and hour (None: the card's, or
    unknown).
    """

    def __init__(
        self,
        results: Path,
        environment: dict[str, Any],
        kernels: str,
        card: Card | None = None,
        throughput: float | None = None,
        price: float | None = None,
    ):
        self.throughput = throughput
        self.price = card.price if price is None and card is not None else price
        records = [r for name in studies(results) for r in read_study(results / name)[0]] if results.is_dir() else []
        here = {_device(environment)} if card is None else {("cuda", name) for name in card.devices}
        devices = {device for device in here if device[0] == kernels}
        crowded = overlapping(record for record in records if record.environment.get("boot"))
        self._timed = [
            Timing(record, record.train, record.train.steps, record.train.tokens_per_second_steady)
            for record in records
            if record.train and not record.source and _device(record.environment) in devices
            if id(record) not in crowded and not record.train.resumed_at and record.train.tokens_per_second_steady
        ]
        self.used: set[int] = set()  # the records that a time rests on, by identity
        self._card = card
        self.by_rates = False  # whether a time rests on a card's rates
        self.calibrated = False  # whether a time rests on the device's timed kernels
        self.undecomposed: set[str] = set()  # methods whose times lack the decompositions of their gradients

    def dollars(self, point: Planned) -> float | None:
        """The price of `seconds` on all devices; None if either is unknown."""
        seconds = self.seconds(point)
        if seconds is None or self.price is None:
            return None
        return self.price * seconds / 3600 * point.cell.settings.train.total_devices

    def seconds(self, point: Planned) -> float | None:
        """Seconds of a point's training steps, and of the pass of the base that its objective refers to, by its FLOPs.

        None without records, a calibration or a card's rates, or without trained weights.
        """
        p, steps = point.prediction, self._steps(point)
        return None if steps is None else steps.seconds * (1 + p["reference_flops"] / p["flops"])

    def range(self, point: Planned) -> tuple[float, float] | None:
        """Seconds between which published runs of the card lie, where `seconds` rests on its rates; None elsewhere."""
        seconds, steps = self.seconds(point), self._steps(point)
        if seconds is None or steps is None or steps.basis != "rates" or self._card is None:
            return None
        least, most = rates.spread(self._card.name)
        return least * seconds, most * seconds

    def _steps(self, point: Planned) -> Estimate | None:
        """The time of the training steps alone.

        Tokens at the given throughput, else at the median rate of the same kind of cell (`_kind`) in steps of a like
        size, else by the kernels that were timed, else FLOPs at the median FLOP/s per device of models and steps of a
        like size in the same arithmetic, else the work at what kernels reach of the card's rates.
        """
        p, decompositions = point.prediction, _decompositions(point)
        if not p["trainable"] or p["shape"]["steps"] is None:
            return None
        if self.throughput is not None:
            return Estimate(p["shape"]["raw"] / self.throughput, "throughput")
        step = p["shape"]["raw"] / p["shape"]["steps"]
        like = [timed for timed in self._timed if _alike(timed.step_tokens, step)]
        if same := [timed for timed in like if _kind(timed.record.cell) == _kind(point.cell)]:
            self.used |= {id(timed.record) for timed in same}
            seconds = p["shape"]["raw"] / median(timed.tokens_per_second for timed in same)
            each = median(timed.first_excess for timed in same)
            return Estimate(seconds + decompositions * each, "records")
        estimate = self._by_kernels(p, decompositions) or self._by_size(point, like) or self._by_rates(p)
        if estimate and decompositions and (estimate.basis != "calibration" or p["decomposition_seconds"] is None):
            self.undecomposed.add(point.cell.method)
        return estimate

    def _by_kernels(self, prediction: dict[str, Any], decompositions: int) -> Estimate | None:
        """By the calibration."""
        seconds, each = prediction["calibrated_seconds"], prediction["decomposition_seconds"]
        if seconds is None:
            return None
        self.calibrated = True
        return Estimate(seconds + decompositions * (each or 0.0), "calibration")

    def _by_size(self, point: Planned, like: list[Timing]) -> Estimate | None:
        """By records of models of a like size. like: those with steps of a like size."""
        p = point.prediction
        sized = [
            (timed, rate)
            for timed in like
            if timed.record.parameters and _alike(timed.record.parameters.total, p["total"])
            if _arithmetic(timed.record.cell) == _arithmetic(point.cell)
            if (rate := timed.flops_per_second) is not None
        ]
        self.used |= {id(timed.record) for timed, _ in sized}
        if not sized:
            return None
        rate = median(rate for _, rate in sized)
        return Estimate(p["flops"] / rate / point.cell.settings.train.total_devices, "records")

    def _by_rates(self, prediction: dict[str, Any]) -> Estimate | None:
        if prediction["work"] is None or self._card is None:
            return None
        self.by_rates = True
        return Estimate(rates.seconds(prediction["work"], self._card.reached), "rates")


def _decompositions(point: Planned) -> int:
    """How often a point's training decomposes gradients, as GaLore does; APOLLO's projections are random."""
    optimizer, steps = point.cell.settings.method.optim, point.prediction["shape"]["steps"]
    matrices = (optimizer or {}).get("matrices") or {}
    if not steps or "update_proj_gap" not in matrices or matrices.get("proj") == "random":
        return 0
    return math.ceil(steps / matrices["update_proj_gap"])


def _alike(a: float, b: float) -> bool:
    return b / LIKE <= a <= b * LIKE


def _kind(cell: Cell) -> tuple[Any, ...]:
    """What cells share whose token rates are comparable."""
    train = cell.settings.train
    work = train.packing, train.gradient_checkpointing, train.activation_offload
    return cell.model, cell.method, train.devices, train.nodes, *work, *_arithmetic(cell)


def _arithmetic(cell: Cell) -> tuple[Any, ...]:
    """What cells share whose FLOP/s are comparable: number formats, and by which kernels they compute."""
    settings = cell.settings
    formats = settings.model.dtype, settings.model.upcast, settings.train.precision
    return *formats, settings.train.compile, settings.fast


def _device(environment: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(device_of(environment))
