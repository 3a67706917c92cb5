"""What may end a cell's training before its last step, which the loop asks after each step.

It is the rule of a plug-in's, which ends hopeless cells, or train.early_stopping, after which the best weights go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from harness import plugin
from harness.job.ended import CellEnded
from harness.job.training.checkpoints import trainable
from harness.protocol import RunCell
from harness.record import BestStep, ValidationPoint
from harness.settings import TrainSettings

if TYPE_CHECKING:
    from harness.job.data.encoding import Drawn
    from harness.job.measure.phases import Meter


class EarlyStop(Protocol):
    """The rule of one running cell, by its validation losses.

    meter: its open window leaves out what deciding takes. ended: the early end; None as long as there is none.
    """

    @property
    def meter(self) -> Meter: ...

    @property
    def ended(self) -> CellEnded | None: ...

    def decides_at(self, step: int) -> bool:
        """Whether `step` may be the last one, and is validated for that."""

    def stops(self, step: int, validations: Sequence[ValidationPoint], accelerator: Accelerator) -> bool:
        """Whether training ends after `step`, the last of `validations` if it decides there. All processes ask."""


def of_cell(request: RunCell, steps: Sequence[Sequence[Sequence[Drawn]]], meter: Meter) -> EarlyStop | None:
    """That of the cell of `request`, with the examples of each step's micro-batches; None if no rule may end it."""
    if request.early_stopping is None:
        return None
    step_tokens = [sum(len(example.ids) for micro in step for example in micro) for step in steps]
    stop: EarlyStop = plugin.load(request.early_stopping.target)(
        request.cell, request.early_stopping, step_tokens, meter
    )
    return stop


class PatientStop:
    """Ends training after so many validations in a row without a gain, and keeps the weights of the lowest loss.

    They are kept on the host, outside of the meter's open window. patience: those validations. gain: the least fall of
    the loss, in nats, below the lowest so far.
    """

    ended: CellEnded | None = None  # the cell goes on, with its best weights

    def __init__(self, patience: int, gain: float, model: nn.Module, meter: Meter):
        self.patience, self.gain, self.model, self.meter = patience, gain, model, meter
        self.best: ValidationPoint | None = None
        self._weights: dict[str, torch.Tensor] = {}
        self._waited = 0

    def decides_at(self, step: int) -> bool:
        """Never: it decides where the cell is validated anyway."""
        return False

    def stops(self, step: int, validations: Sequence[ValidationPoint], accelerator: Accelerator) -> bool:
        if not validations or validations[-1].step != step:
            return False
        point = validations[-1]
        gains = self.best is None or point.loss < self.best.loss - self.gain
        self._waited = 0 if gains else self._waited + 1
        if self.best is None or point.loss < self.best.loss:
            self.best = point
            with self.meter.aside(), torch.no_grad():
                self._weights = {name: p.detach().to("cpu", copy=True) for name, p in trainable(self.model)}
        return self._waited >= self.patience

    @torch.no_grad()
    def restore(self, validations: Sequence[ValidationPoint], steps: int) -> BestStep | None:
        """Give the model its best weights. None if it was never validated. steps: of the whole training, as planned."""
        if self.best is None:
            return None
        for name, p in trainable(self.model):
            p.copy_(self._weights[name])
        later = [point for point in validations if point.step > self.best.step]
        return BestStep(self.best.step, validations[-1].step < steps, later)


def patient(train: TrainSettings, model: nn.Module, meter: Meter) -> PatientStop | None:
    """That of the settings `train`; None without train.early_stopping."""
    if train.early_stopping is None:
        return None
    return PatientStop(train.early_stopping, train.early_stopping_gain, model, meter)
