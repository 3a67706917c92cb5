"""Validates in the course of training, and tells when training has failed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.job.ended import CellEnded
from harness.job.training.early_stop import EarlyStop
from harness.record import LossPoint, PairRewards, ValidationPoint

UNLEARNED, FORGOT = 0.99, 1.5  # shares of a uniform guess's loss, and of the first step's, that a final loss exceeds


class Diverged(CellEnded):
    """The loss or the norm of its gradient is not finite, or the model that was trained knows nothing any more.

    what: a predicate's subject and verb, such as "The loss became nan".
    """

    status = "diverged"

    def __init__(self, step: int, what: str):
        super().__init__(f"{what} at step {step}; a lower lr or stronger clipping may help.", step)


class Divergence:
    """Raises Diverged when training has failed.

    guess: loss of a uniform guess over the vocabulary, in nats. A model that ends there and began well below has
    diverged; with `at_once` it need not be the end.
    """

    def __init__(self, guess: float = math.inf, at_once: bool = False):
        self._guess, self._at_once = guess, at_once

    def check(self, point: LossPoint) -> None:
        """Raise Diverged if the loss of a step, or its gradient's norm, is not finite."""
        for what, value in (("loss", point.loss), ("gradient's norm", point.grad_norm)):
            if value is not None and not math.isfinite(value):
                raise Diverged(point.step, f"The {what} became {value}")

    def suspects(self, losses: Sequence[LossPoint]) -> bool:
        """Whether a validation has to show at once if the model knows anything, after these losses of its steps."""
        return self._at_once and losses[-1].loss > self._lost(losses)

    def check_held_out(self, held_out: float, losses: Sequence[LossPoint], last: bool) -> None:
        """Raise Diverged if the validation loss `held_out` says so. last: whether the last step was taken."""
        step, began = losses[-1].step, losses[0].loss
        if not math.isfinite(held_out):
            raise Diverged(step, f"The validation loss became {held_out}")
        if (last or self._at_once) and held_out > self._lost(losses):
            raise Diverged(
                step,
                f"The validation loss is {held_out:.2f}, no better than a uniform guess ({self._guess:.2f}), after a "
                f"training loss of {began:.2f} at step 1,",
            )

    def _lost(self, losses: Sequence[LossPoint]) -> float:
        """The loss above which a model that began with the first of `losses` knows nothing."""
        return max(UNLEARNED * self._guess, FORGOT * losses[0].loss)


@dataclass(frozen=True)
class HeldOutLoss:
    """A validation loss in nats, and of pairs the rewards of their answers."""

    loss: float
    rewards: PairRewards | None = None


class Validation:
    """Validates at intervals, where `early_stop` needs it, when `divergence` suspects, and after the last step.

    measure: validates. every: steps from one to the next; None for the last one alone. total: steps
    of the training.
    """

    def __init__(
        self,
        measure: Callable[[], HeldOutLoss],
        every: int | None,
        total: int,
        divergence: Divergence,
        early_stop: EarlyStop | None = None,
    ):
        self._measure, self._every, self._total = measure, every, total
        self._divergence, self._early_stop = divergence, early_stop

    def after(self, losses: Sequence[LossPoint]) -> ValidationPoint | None:
        """The validation after the last of `losses`, if one is due. Raises Diverged."""
        point = losses[-1]
        last = point.step == self._total
        if last or (self._every and point.step % self._every == 0):
            held_out = self._measure()
        elif self._early_stop is not None and (
            self._early_stop.decides_at(point.step) or self._divergence.suspects(losses)
        ):
            with self._early_stop.meter.aside():  # it is not the training's cost
                held_out = self._measure()
        else:
            return None
        self._divergence.check_held_out(held_out.loss, losses, last)
        return ValidationPoint(point.step, point.tokens, held_out.loss, held_out.rewards)
