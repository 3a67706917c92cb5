"""Where a loss is least over learning rates: the least of a curve in the logarithm of the rate, with its interval."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
from numpy.polynomial import Polynomial

from harness.report.statistics.estimates import ALPHA, Interval, quantile

TINY = 1e-4  # logarithms of rates closer than this are equal
POINTS = 5  # rates around the best one through which the curve goes
DIVERGED = 3.0  # times the least mean loss: runs that lost their way there differ far more from seed to seed
# The least half-width of an interval, in steps of the grid, by the number of rates: what a curve through so few misses
LEAST = {3: 0.5, 4: 0.15, 5: 0.1}


Seed = TypeVar("Seed", bound=Hashable)


def optimum(losses: Mapping[float, Mapping[Seed, float]], alpha: float = ALPHA) -> Interval | str:
    """The rate with the least loss and its interval, of 95% by default, or the reason why there is none.

    losses: by rate and seed. Seeds that have a loss at every rate count, and are paired: a seed's own level is no
    noise.

    A polynomial in log(rate) goes through the mean losses of the best rate and its neighbours, five in all, or fewer
    where losses have trebled beyond the next ones. A parabola would be surer and wrong: a loss rises faster above its
    best rate than below. The interval has the rates around the
    least of the curve at which its slope can't be told from 0: Fieller's (J. R. Stat. Soc. B 16, 1954) of a parabola.
    The error is of how curves differ between seeds. Where the slope can't be told from 0 up to the last of the five
    rates the end is 0 or infinite.
    """
    rates = sorted(losses)
    seeds = sorted(set.intersection(*(set(losses[rate]) for rate in rates)), key=str) if rates else []
    if not seeds:
        return "No validation losses by learning rate"
    if len(rates) == 1:
        return "One rate"
    table = np.array([[losses[rate][seed] for rate in rates] for seed in seeds])
    means = table.mean(axis=0)
    best = int(means.argmin())
    if best in (0, len(rates) - 1):
        return "The best rate is at an end of the rates tried"
    x = np.log(rates)
    lost = [i for i in range(len(rates)) if means[i] >= DIVERGED * means[best]]
    first = max((i + 1 for i in lost if i < best - 1), default=0)
    beyond = min((i for i in lost if i > best + 1), default=len(rates))
    x, table, best = x[first:beyond], table[:, first:beyond], best - first
    start = min(max(0, best - POINTS // 2), max(0, len(x) - POINTS))
    near = slice(start, start + POINTS)
    value, low, high = _least(x[near], table[:, near], best - start, alpha)
    margin = LEAST[len(x[near])] * (x[best + 1] - x[best - 1]) / 2
    return Interval(math.exp(value), math.exp(min(low, value - margin)), math.exp(max(high, value + margin)))


def ratio_of_optima(one: Interval, other: Interval) -> Interval:
    """The ratio of two rates, its interval from theirs: MOVER (Donner & Zou, Stat. Methods Med. Res. 21, 2012).

    An end is 0 or infinite where it rests on one that is.
    """
    a, b = math.log(one.value), math.log(other.value)
    low, high = 0.0, math.inf
    if one.low > 0 and other.high < math.inf:
        low = math.exp(a - b - math.hypot(a - math.log(one.low), math.log(other.high) - b))
    if one.high < math.inf and other.low > 0:
        high = math.exp(a - b + math.hypot(math.log(one.high) - a, b - math.log(other.low)))
    return Interval(math.exp(a - b), low, high)


def _least(x: np.ndarray, table: np.ndarray, best: int, alpha: float) -> tuple[float, float, float]:
    """Where the curve through the means of `table` (seeds, rates) is least between the neighbours of rate `best`, and
    the ends of its interval, all as x is: logarithms."""
    seeds, n = table.shape
    means = table.mean(axis=0)
    rest = table - means - table.mean(axis=1, keepdims=True) + table.mean()
    freedom = (seeds - 1.0) * (n - 1) or math.inf
    t2 = quantile(1 - alpha / 2, freedom) ** 2 * float((rest**2).sum()) / freedom / seeds  # 0 of one seed
    ends = x - x[best]
    bases = [Polynomial(part) for part in np.linalg.inv(np.vander(ends, increasing=True)).T]  # 1 at one rate, else 0
    curve = sum(mean * basis for mean, basis in zip(means, bases, strict=True))
    slope = curve.deriv()
    inner = [root for root in _roots(slope) if ends[best - 1] < root < ends[best + 1]]
    value = min(inner, key=curve, default=0.0)
    level = _roots(slope**2 - t2 * sum(basis.deriv() ** 2 for basis in bases))
    low = max((root for root in level if ends[0] < root < value + TINY), default=-math.inf)
    high = min((root for root in level if value - TINY < root < ends[-1]), default=math.inf)
    return x[best] + value, x[best] + low, x[best] + high


def _roots(polynomial: Polynomial) -> list[float]:
    """Real roots, also those that are equal to another one, which rounding takes off the axis."""
    return [float(root.real) for root in polynomial.roots() if abs(root.imag) < TINY]
