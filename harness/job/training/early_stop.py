"""What may end a cell's training before its last step: a rule of a plug-in's, which the loop asks after each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from accelerate import Accelerator

from harness import plugin
from harness.job.ended import CellEnded
from harness.protocol import RunCell
from harness.record import ValidationPoint

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
