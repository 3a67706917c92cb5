"""Random-effects meta-analysis: effects of several sources, with their errors, as one effect.

    pooled = random_effects([0.012, -0.004, 0.021], [0.006, 0.005, 0.009])
    pooled.interval(), pooled.prediction(), pooled.tau, pooled.i_squared

Effects differ truly from source to source by τ², which Paule and Mandel's method estimates (1982): the τ² at which the
weighted squares of deviations sum to their degrees of freedom. The interval is that of Hartung and Knapp (2001) and of
Sidik and Jonkman (2002), whose factor is kept from falling below 1 (Röver, Knapp and Friede, 2015): without that a few
effects that agree by chance would be too sure. The prediction interval is that of Higgins, Thompson and Spiegelhalter
(2009).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from harness.report.statistics import ALPHA, Interval

NOT_KNOWN = math.nan
STEPS = 200  # halvings of the interval that holds τ²: more than a float has digits


@dataclass(frozen=True)
class RandomEffects:
    """The mean of the sources' true effects.

    error: its standard error, by Hartung and Knapp. tau: standard deviation of the true effects. i_squared: the share
    of the effects' variance that is no error. sources: their number. Effects, errors and tau have one unit.
    """

    value: float
    error: float
    tau: float
    i_squared: float
    sources: int

    def interval(self, alpha: float = ALPHA) -> Interval:
        """Of the mean; its ends are nan for one source."""
        return self._interval(self.error, self.sources - 1, alpha)

    def prediction(self, alpha: float = ALPHA) -> Interval:
        """Of the true effect of one more source; its ends are nan for fewer than three sources."""
        return self._interval(math.hypot(self.error, self.tau), self.sources - 2, alpha)

    def _interval(self, error: float, freedom: int, alpha: float) -> Interval:
        if freedom < 1:
            return Interval(self.value, NOT_KNOWN, NOT_KNOWN)
        half = error * float(special.stdtrit(freedom, 1 - alpha / 2))
        return Interval(self.value, self.value - half, self.value + half)


def random_effects(effects: Sequence[float], errors: Sequence[float]) -> RandomEffects:
    """The meta-analysis of `effects`, at least one, with their standard errors, each positive."""
    values, variances = np.asarray(effects, float), np.square(np.asarray(errors, float))
    tau_squared = paule_mandel(values, variances)
    weights = 1 / (variances + tau_squared)
    mean = float(weights @ values / weights.sum())
    freedom = len(values) - 1
    if not freedom:
        return RandomEffects(mean, float(np.sqrt(variances[0])), 0.0, 0.0, 1)
    scale = max(1.0, _squares(values, weights) / freedom)
    squares = _squares(values, 1 / variances)
    return RandomEffects(
        mean,
        math.sqrt(scale / float(weights.sum())),
        math.sqrt(tau_squared),
        max(0.0, 1 - freedom / squares) if squares > 0 else 0.0,
        len(values),
    )


def paule_mandel(values: np.ndarray, variances: np.ndarray) -> float:
    """τ²: 0 if the effects differ by no more than their errors explain.

    values: (sources,). variances: (sources,), squared standard errors.
    """
    freedom = len(values) - 1

    def excess(tau_squared: float) -> float:
        return _squares(values, 1 / (variances + tau_squared)) - freedom

    if freedom < 1 or excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, float(np.ptp(values)) ** 2  # there the squares sum to less than the degrees of freedom
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return (low + high) / 2


def _squares(values: np.ndarray, weights: np.ndarray) -> float:
    """Cochran's Q: the weighted squares of deviations from the weighted mean."""
    return float(weights @ np.square(values - weights @ values / weights.sum()))
