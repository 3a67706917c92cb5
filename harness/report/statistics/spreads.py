"""Whether a quantity varies more from seed to seed in one group than in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from harness.report.statistics.estimates import ALPHA, Interval, Statistic

LEAST = 5  # of seeds in a group; of fewer its kurtosis, and with it the interval, is unknown


class SpreadRatio(NamedTuple):
    """A ratio of two standard deviations.

    freedoms: degrees of freedom of both. logs: the jackknife's estimates of its logarithm; None of few seeds.
    """

    value: float
    freedoms: tuple[float, float]
    logs: tuple[Statistic, ...] | None

    def among(self, comparisons: float) -> Interval:
        """The interval that covers, with `comparisons` like it, in 95% of studies; its ends are infinite if unknown."""
        if self.logs is None:
            return Interval(self.value, 0.0, np.inf)
        alpha = ALPHA / comparisons
        ends = np.log(self.value / special.fdtri(*self.freedoms, (1 - alpha / 2, alpha / 2)) ** 0.5)
        intervals = [log.interval(alpha) for log in self.logs]
        low, high = min(ends[0], *(own.low for own in intervals)), max(ends[1], *(own.high for own in intervals))
        return Interval(self.value, float(np.exp(low)), float(np.exp(high)))


def spread_ratio(ones: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> SpreadRatio | None:
    """The ratio of two standard deviations over seeds, each pooled over its groups, and its intervals.

    ones, others: groups (such as ranks) of one positive number a seed. None if a side has fewer than two seeds, or no
    variation. Few seeds (below LEAST) have the estimate alone.

    The interval of the F distribution holds for normal numbers only. That of the jackknife over seeds (Miller, Ann.
    Math. Stat. 39, 1968) is wider where tails are heavy. A side without one of its rare large numbers does not show its
    tail, so the larger error of the two sides stands for both. Losses are skewed, so it is made of the numbers and of
    their logarithms; the interval covers all three.
    """
    sides = [[np.asarray(group, dtype=float) for group in side if len(group) > 1] for side in (ones, others)]
    if not all(sides) or any(_variance(side) == 0 for side in sides):
        return None
    value = (_variance(sides[0]) / _variance(sides[1])) ** 0.5
    freedoms = sum(len(group) - 1 for group in sides[0]), sum(len(group) - 1 for group in sides[1])
    if min(len(group) for side in sides for group in side) < LEAST:
        return SpreadRatio(value, freedoms, None)
    logs = []
    for transform in (lambda group: group, np.log):
        parts = [_log_variance([transform(group) for group in side]) for side in sides]
        (a, va, na), (b, vb, nb) = parts
        error = (max(va, vb) * (1 / na + 1 / nb)) ** 0.5
        logs.append(Statistic((a - b) / 2, error / 2, na + nb - 2.0))
    return SpreadRatio(value, freedoms, tuple(logs))


def _variance(groups: Sequence[np.ndarray]) -> float:
    return sum(len(g) * float(np.var(g)) for g in groups) / sum(len(g) - 1 for g in groups)


def _log_variance(groups: Sequence[np.ndarray]) -> tuple[float, float, int]:
    """The jackknife's estimate of the logarithm of a pooled variance, the variance of its pseudo-values, and the number
    of seeds."""
    n = sum(map(len, groups))
    whole = np.log(_variance(groups))
    pseudo = []
    for i, group in enumerate(groups):
        for j in range(len(group)):
            left = [*groups[:i], np.delete(group, j), *groups[i + 1 :]]
            pseudo.append(n * whole - (n - 1) * np.log(max(_variance(left), 1e-300)))
    return float(np.mean(pseudo)), float(np.var(pseudo, ddof=1)), n
