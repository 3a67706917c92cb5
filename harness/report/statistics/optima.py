"""Where a loss is least over learning rates: a parabola in the logarithm of the rate, with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from harness.report.statistics.estimates import ALPHA, Interval, quantile

WINDOW = 2  # rates on each side of the best one that the wider of two parabolas takes

LEAST = 0.2  # the least half-width of an interval, in steps of the grid: a loss is no parabola


def optimum(losses: Mapping[float, Mapping[int, float]]) -> Interval | str:
    """The rate with the least loss and its 95% interval, or the reason why there is none.

    losses: by rate and seed. Seeds that have a loss at every rate count, and are paired: a seed's own level is no
    noise.

    A parabola in log(rate) goes through the mean losses of the best rate and its neighbours. The interval of its vertex
    -b / 2a is Fieller's (J. R. Stat. Soc. B 16, 1954), with an error from how curves differ between seeds. A loss is no
    parabola, so there are two, through three rates and through five: the interval covers both, and at least a fifth of
    a step of the grid to each side (half a step of three rates). Where an interval leaves the tried rates its end is 0
    or infinite.
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
    noise, freedom = _noise(table)
    found = []
    for reach in range(1, WINDOW + 1):
        at = slice(max(0, best - reach), best + reach + 1)
        found.append(_vertex(x[at], means[at], noise / len(seeds), freedom))
    value = found[0][0]
    step = (x[best + 1] - x[best - 1]) / 2 * (LEAST if len(rates) > 3 else 0.5)  # three rates can't show a misfit
    low, high = min(f[1] for f in found), max(f[2] for f in found)
    low, high = min(low, value - step), max(high, value + step)
    ends = (0.0 if low < x[0] else math.exp(low), math.inf if high > x[-1] else math.exp(high))
    return Interval(math.exp(value), *ends)


def ratio_of_optima(one: Interval, other: Interval) -> Interval:
    """The ratio of two rates, its interval from theirs: MOVER (Donner & Zou, Stat. Methods Med. Res. 21, 2012)."""
    (a, al, ah), (b, bl, bh) = (np.log(np.maximum(rates, 1e-300)) for rates in (one, other))
    low = a - b - math.hypot(a - al, bh - b)
    high = a - b + math.hypot(ah - a, b - bl)
    return Interval(math.exp(a - b), math.exp(low) if low > -690 else 0.0, math.exp(high) if high < 690 else math.inf)


def _noise(table: np.ndarray) -> tuple[float, float]:
    """The variance of a loss of one seed at one rate around its seed's level, and its degrees of freedom."""
    seeds, rates = table.shape
    if seeds < 2:
        return 0.0, math.inf
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    # A loss far from the best one varies more than those that matter: the median over rates keeps it out
    each = (rest**2).sum(axis=0) / (seeds - 1) * rates / (rates - 1)
    return max(float(np.median(each)), float(np.sort(each)[: max(3, rates // 2)].mean())), (seeds - 1.0) * (rates - 1)


def _vertex(x: np.ndarray, y: np.ndarray, variance: float, freedom: float) -> tuple[float, float, float]:
    """The vertex of the parabola through (x, y) and the ends of its interval; infinite ends where it may be none.

    variance: of each y.
    """
    middle = x.mean()
    design = np.stack([np.ones_like(x), x - middle, (x - middle) ** 2], axis=1)
    inverse = np.linalg.inv(design.T @ design)
    _, b, a = inverse @ design.T @ y
    t2 = variance * quantile(1 - ALPHA / 2, freedom) ** 2
    # Fieller: all v for which (b + 2 a v)² ≤ t² · Var(b + 2 a v)
    bb, ba, aa = inverse[1, 1] * t2, 2 * inverse[1, 2] * t2, 4 * inverse[2, 2] * t2
    lead, half, rest = 4 * a * a - aa, 2 * a * b - ba, b * b - bb
    if a <= 0 or lead <= 0:
        return middle - b / (2 * a) if a else middle, -math.inf, math.inf
    root = math.sqrt(max(0.0, half * half - lead * rest))
    return middle - b / (2 * a), middle + (-half - root) / lead, middle + (-half + root) / lead
