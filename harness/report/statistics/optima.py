"""Where a loss is least over learning rates: the least of a curve in the logarithm of the rate, with its interval."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
from numpy.polynomial import Polynomial
from scipy import special

from harness.report.statistics.estimates import ALPHA, Interval, quantile

TINY = 1e-4  # imaginary parts below it are of rounding
FINE = 4001  # points between the lowest and the highest of these rates at which the slope is looked at
POINTS = 5  # rates around the best one through which the curve goes
LOST = math.log(2)  # above the least: rates beyond the next ones at which losses have doubled are left out
MOST = math.log(10)  # above the least: what a run that diverged, or has a higher loss, counts as
LEAST_LOSS = 0.05  # nats a token; below it logarithms enlarge what is next to nothing
ERRATIC = 0.05  # level of the F test by which a rate has a spread of its own
# Of one seed: the assumed standard deviation of a loss's logarithm by seed and rate. Of 36 curves of several seeds in
# results/reference 35 vary by less.
SINGLE_SEED_SPREAD = 0.1
# What a curve through so few rates misses where losses jump, in steps of the grid, by the number of rates
MISFIT = {3: 0.5, 4: 0.25, 5: 0.25}


Seed = TypeVar("Seed", bound=Hashable)


def optimum(losses: Mapping[float, Mapping[Seed, float]], alpha: float = ALPHA) -> Interval | str:
    """The rate with the least loss and its interval, of 95% by default, or the reason why there is none.

    losses: positive, by rate and seed; infinite of a run that diverged. Seeds that have a loss at every rate count, and
    are paired: a seed's own level is no noise.

    A polynomial in log(rate) goes through the mean logarithms of the losses of the best rate and its neighbours, five
    in all, or fewer where losses have doubled beyond the next ones. A parabola would be surer and wrong: a loss rises
    faster above its best rate than below. The interval has the rates around the least of the curve at which its slope
    can't be told from 0: Fieller's (J. R. Stat. Soc. B 16, 1954) of a parabola. The error is of how curves differ
    between seeds, for each rate (`_halves`); of one seed it is assumed (SINGLE_SEED_SPREAD). What the curve may miss
    (MISFIT) is added in quadrature. Where the slope can't be told from 0 up to the last of the five rates the end is 0
    or infinite.
    """
    rates = sorted(losses)
    seeds = sorted(set.intersection(*(set(losses[rate]) for rate in rates)), key=str) if rates else []
    if not seeds:
        return "No validation losses by learning rate"
    if len(rates) == 1:
        return "One rate"
    table = np.array([[losses[rate][seed] for rate in rates] for seed in seeds])
    if table.mean(axis=0).min() < LEAST_LOSS:
        return f"The best rate can't be told by losses below {LEAST_LOSS:g}"
    table = np.log(table)
    table = np.minimum(table, table.mean(axis=0).min() + MOST)
    means, x = table.mean(axis=0), np.log(rates)
    best = int(means.argmin())
    if best in (0, len(rates) - 1):
        return "The best rate is at an end of the rates tried"
    lost = [i for i in range(len(rates)) if means[i] >= means[best] + LOST]
    first = max((i + 1 for i in lost if i < best - 1), default=0)
    beyond = min((i for i in lost if i > best + 1), default=len(rates))
    x, table, best = x[first:beyond], table[:, first:beyond], best - first
    start = min(max(0, best - POINTS // 2), max(0, len(x) - POINTS))
    near = slice(start, start + POINTS)
    value, low, high = _least(x[near], table[:, near], best - start, alpha)
    misfit = MISFIT[len(x[near])] * (x[best + 1] - x[best - 1]) / 2
    low, high = value - math.hypot(value - low, misfit), value + math.hypot(high - value, misfit)
    return Interval(math.exp(value), math.exp(low), math.exp(high))


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
    means, ends = table.mean(axis=0), x - x[best]
    bases = [Polynomial(part) for part in np.linalg.inv(np.vander(ends, increasing=True)).T]  # 1 at one rate, else 0
    curve = sum(mean * basis for mean, basis in zip(means, bases, strict=True))
    slope = curve.deriv()
    inner = [root for root in _roots(slope) if ends[best - 1] < root < ends[best + 1]]
    value = min(inner, key=curve, default=0.0)
    points = np.linspace(ends[0], ends[-1], FINE)  # roots would be inexact where noise is small: they nearly meet
    errors = sum(half**2 * basis.deriv()(points) ** 2 for half, basis in zip(_halves(table, alpha), bases, strict=True))
    sloping = points[slope(points) ** 2 > errors]
    low, high = sloping[sloping < value].max(initial=-math.inf), sloping[sloping > value].min(initial=math.inf)
    return x[best] + value, x[best] + low, x[best] + high


def _halves(table: np.ndarray, alpha: float) -> np.ndarray:
    """Half of the interval of each rate's mean, without what a seed adds to all rates. table: (seeds, rates).

    Rates share one spread, from the lowest up. One that surely varies more than all below it (F test), as near
    divergence, has its own.
    """
    seeds, rates = table.shape
    if seeds == 1:
        return np.full(rates, quantile(1 - alpha / 2, math.inf) * SINGLE_SEED_SPREAD)
    alike, own = [0, 1], np.zeros(rates)
    for i in range(2, rates):
        variance = float(np.var(table[:, i] - table[:, alike].mean(axis=1), ddof=1))
        if _surely_more(variance, _pooled(table[:, alike]) * (1 + 1 / len(alike)), seeds - 1, len(alike)):
            own[i] = variance
        else:
            alike.append(i)
    shared = quantile(1 - alpha / 2, (seeds - 1) * (len(alike) - 1)) * math.sqrt(_pooled(table[:, alike]) / seeds)
    halves: np.ndarray = np.maximum(shared, quantile(1 - alpha / 2, seeds - 1) * np.sqrt(own / seeds))
    return halves


def _surely_more(variance: float, other: float, freedom: int, alike: int) -> bool:
    """Whether `variance`, of `freedom` degrees, is surely more than the `other`, which `alike` rates share."""
    ratio = variance / other if other > 0 else math.inf
    return variance > 0 and float(special.fdtrc(freedom, freedom * (alike - 1), ratio)) < ERRATIC


def _pooled(table: np.ndarray) -> float:
    """The variance in `table` beyond what its rows and columns add: two-way analysis of variance."""
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    rows, columns = table.shape
    return float((rest**2).sum()) / ((rows - 1) * (columns - 1))


def _roots(polynomial: Polynomial) -> list[float]:
    """Real roots, also those that are equal to another one, which rounding takes off the axis."""
    return [float(root.real) for root in polynomial.roots() if abs(root.imag) < TINY]
