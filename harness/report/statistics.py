"""Interval estimates, tests and ties: samples in, numbers out; nothing here knows what was measured.

Uncertainty has two levels: the seed of a model, and the evaluation items. A hierarchical bootstrap that resamples both
has too little coverage with three seeds that differ, since three values have only ten distinct resamples. So items are
resampled by a bootstrap, seeds are handled by Student's t, and both are combined: see `mean_intervals`.
tests/report/test_statistics.py checks coverage, error rates and power against known truth, and shows that the plain
bootstrap fails.
"""

from __future__ import annotations

import functools
import itertools
import math
import string
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import numpy as np
from scipy import special  # scipy.stats takes longer to import than most tables to make

RESAMPLES = 4_000
ALPHA = 0.05
TAILS = (ALPHA / 2, 1 - ALPHA / 2)


class Interval(NamedTuple):
    """An estimate and the ends of its 95% interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """By how much one mean exceeds another, the ends of its 95% interval, and the two-sided p of no difference."""

    value: float
    low: float
    high: float
    p: float


def mean_intervals(samples: Sequence[np.ndarray], seed: int = 0, resamples: int = RESAMPLES) -> list[Interval]:
    """The mean of each sample and its 95% interval, over seeds and items.

    samples: arrays (seeds, items) of at least 2 items, one a method, whose columns are the same items; seeds may differ
    in number. Of one seed the interval is over items alone: how seeds differ is not in it.

    The model is two-way: value = mean + seed + item + rest, each a random effect, since all seeds answer the same
    items. So the mean's variance is B + b: B, that of the seeds' means over S, which has the rest in it, and b, what
    items add to that: the variance over items less the rest's share. The half-width is that of Cochran (Biometrics 20,
    1964), (B·t + b·z) / √(B + b), with t of S - 1 degrees of freedom and a z, to either side, from a bootstrap:

    z·√(variance over items) is the distance to the 2.5% or 97.5% quantile of the mean under random weights of the items
    (Bayesian bootstrap: Rubin, Ann. Stat. 9, 1981), the same for every seed and method. Where all values are 0 or 1,
    half an item of each is added, which makes it Jeffreys' interval of a proportion (Brown, Cai & DasGupta, Stat. Sci.
    16, 2001): none right of 57 is not known to be 0.
    """
    draws = _item_draws(samples, seed, resamples)
    return [_mean_interval(sample, draws[:, j]) for j, sample in enumerate(samples)]


def differences(
    samples: Sequence[np.ndarray], seed: int = 0, resamples: int = RESAMPLES
) -> dict[tuple[int, int], Difference]:
    """For each pair i < j of samples the mean of i less that of j; samples as in `mean_intervals`.

    Items are paired: both methods answered the same. Seeds are not: one seed means the same batches to both, and where
    that makes their results alike, intervals are too wide and p-values too large.

    The interval is made like that of a mean, B being the sum of both methods', and t having the degrees of freedom of
    Welch (Biometrika 34, 1947) for the two. The p-value of one seed each and values 0 or 1 is McNemar's exact one, any
    other the level at which such an interval ends at 0, its z by Student's t of n - 1 degrees of freedom. A correction
    for many comparisons is the caller's: `holm`.
    """
    draws = _item_draws(samples, seed, resamples)
    levels = [seed_level(sample) for sample in samples]
    found = {}
    for i, j in itertools.combinations(range(len(samples)), 2):
        gap = samples[i].mean(axis=0) - samples[j].mean(axis=0)
        value, over_items = float(gap.mean()), float(gap.var(ddof=1)) / gap.size
        seeds = welch([levels[i], levels[j]])
        if len(samples[i]) == len(samples[j]) == 1 and _binary(samples[i]) and _binary(samples[j]):
            p = mcnemar(samples[i][0], samples[j][0])
        else:
            p = _p_value(value, seeds, over_items, gap.size - 1)
        found[i, j] = Difference(*_around(value, draws[:, i] - draws[:, j], seeds, over_items), p)
    return found


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """The exact two-sided p-value of McNemar's test: two models' right (1) and wrong (0) answers to the same items."""
    from scipy.stats import binomtest

    wins, losses = int(np.sum(one > other)), int(np.sum(one < other))
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def preference(wins: int, ties: int, losses: int, seed: int = 0) -> Interval:
    """The share of at least one comparison that was won, a tie counting half, and its 95% interval.

    By random shares of the three outcomes, with half of each added to what was counted: Jeffreys' interval, where there
    are no ties nearly that of a proportion.
    """
    value = (wins + ties / 2) / (wins + ties + losses)
    shares = np.random.default_rng(seed).dirichlet(np.array([wins, ties, losses]) + 0.5, RESAMPLES)
    low, high = np.quantile(shares @ [1.0, 0.5, 0.0], TAILS)
    return Interval(value, min(float(low), value), max(float(high), value))


def seeds_interval(values: Sequence[float]) -> Interval | None:
    """The mean of one number a seed and its 95% interval by Student's t; None for fewer than two seeds."""
    return summary_interval(values, [0.0] * len(values)) if len(values) > 1 else None


def summary_interval(values: Sequence[float], stderrs: Sequence[float | None]) -> Interval | None:
    """The mean of scores, one a seed, of which the items are not at hand, and its 95% interval.

    stderrs: the scores' standard errors over items; of one seed without any None is returned. Like `mean_intervals`,
    but for normal items, and wider: without items the rest can't be told from them, and is counted twice.
    """
    seeds = _of_seeds(values)
    if len(values) == 1 and stderrs[0] is None:
        return None
    over_items = float(np.mean([(error or 0.0) ** 2 for error in stderrs]))
    value, half = float(np.mean(values)), float(half_width(ALPHA, seeds, over_items, special.ndtri(TAILS[1])))
    return Interval(value, value - half, value + half)


def ratio_interval(values: Sequence[float], reference: Sequence[float]) -> Interval | None:
    """The ratio of two means of one positive number a seed, and its 95% interval; None without two seeds of each.

    By Welch's t on the logarithm, whose variance is that of the mean over its square (delta method).
    """
    return products_ratio([values], [reference])


def products_ratio(values: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> Interval | None:
    """The ratio of two products of means of one positive number a seed, and its 95% interval, as `ratio_interval`'s.

    None without two seeds of each factor.
    """
    if min(map(len, [*values, *reference])) < 2:
        return None
    return _ratio(values, reference, np.zeros(1))


def speed_ratio(seconds: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> Interval | None:
    """How many times as fast as the reference, with its 95% interval; None without two repeats of each.

    seconds, reference: groups (seeds) of repeats, each the seconds a unit of work took. A side's speed is the mean over
    its groups of 1 / median. Of several groups the interval is `ratio_interval`'s, the repeats' spread being in that of
    the groups; of one group it knows no more than how its repeats differ, by a bootstrap.
    """
    if not all(groups and min(map(len, groups)) > 1 for groups in (seconds, reference)):
        return None
    draws = np.zeros(1)
    for side, groups in enumerate((seconds, reference)):
        if len(groups) == 1:
            draws = draws + (-1) ** side * _log_speed_draws(tuple(groups[0]), side)
    return _ratio(*([[1 / median(repeats) for repeats in groups]] for groups in (seconds, reference)), draws)


@functools.lru_cache  # many are compared with one
def _log_speed_draws(repeats: tuple[float, ...], seed: int) -> np.ndarray:
    """(RESAMPLES,) logarithms of 1 / median of resampled repeats, over that of the repeats themselves."""
    drawn = np.random.default_rng(seed).choice(repeats, (RESAMPLES, len(repeats)))
    return np.log(median(repeats) / np.median(drawn, axis=1))


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values corrected for how many there are (Holm, Scand. J. Stat. 6, 1979): below 0.05 is a difference.

    The test holds it against statsmodels', which takes a second to import and collects garbage at every call.
    """
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected


def letters(different: np.ndarray) -> list[str]:
    """A compact letter display: two members share a letter if and only if they are not `different`.

    different: (n, n) symmetric booleans, members best first. By insertion and absorption (Piepho, J. Comput. Graph.
    Stat. 13, 2004). A letter stands for a set of which no two are different, so as displayed ties are transitive: who
    has the same letter as two others ties them to each other. Not being told apart is itself not transitive, so a
    member may have two letters: it is tied with the members of two sets that differ.
    """
    columns = [set(range(len(different)))]
    for i, j in np.argwhere(np.triu(different)).tolist():
        split = [column for column in columns if {i, j} <= column]
        columns = [column for column in columns if not {i, j} <= column]
        columns += [column - {one} for column in split for one in (i, j)]
        columns = list({frozenset(column): column for column in columns}.values())
        columns = [column for column in columns if not any(column < other for other in columns)]
    columns.sort(key=sorted)
    names = [string.ascii_lowercase[k % 26] + "'" * (k // 26) for k in range(len(columns))]
    return [
        "".join(name for name, column in zip(names, columns, strict=True) if i in column) for i in range(len(different))
    ]


# The level of items


def _binary(sample: np.ndarray) -> bool:
    return bool(np.isin(sample, (0, 1)).all())


def _item_draws(samples: Sequence[np.ndarray], seed: int, resamples: int) -> np.ndarray:
    """(resamples, samples) means over items under random weights, each row's the same for all samples."""
    means = np.stack([sample.mean(axis=0) for sample in samples], axis=1)
    draw = np.random.default_rng(seed)
    rows = max(1, 2**22 // len(means))  # 32 MiB of weights at a time
    sums, weights = [], []
    for start in range(0, resamples, rows):
        drawn = draw.standard_exponential((min(rows, resamples - start), len(means)))
        sums.append(drawn @ means)
        weights.append(drawn.sum(axis=1, keepdims=True))
    total, weight = np.concatenate(sums), np.concatenate(weights)
    binary = np.array([_binary(sample) for sample in samples])
    right, wrong = (draw.gamma(0.5, size=total.shape) * binary for _ in range(2))
    return (total + right) / (weight + right + wrong)


# The level of seeds


class Level(NamedTuple):
    """Of a mean over seeds its variance B, what of that is the rest's, and B's degrees of freedom; arrays or numbers.

    Of one seed no variance is known, and none counted.
    """

    variance: float
    rest: float
    freedom: float


def _of_seeds(values: Sequence[float]) -> Level:
    seeds = len(values)
    return Level(float(np.var(values, ddof=1)) / seeds, 0.0, seeds - 1.0) if seeds > 1 else Level(0.0, 0.0, np.inf)


def seed_level(sample: np.ndarray) -> Level:
    """Of the mean of an array (seeds, items)."""
    seeds, items = sample.shape
    level = _of_seeds(sample.mean(axis=1))
    if seeds == 1:
        return level
    rest = sample - sample.mean(axis=0) - sample.mean(axis=1, keepdims=True) + sample.mean()
    return level._replace(rest=float((rest**2).sum()) / ((seeds - 1) * (items - 1)) / items / seeds)


def welch(levels: Sequence[Level]) -> Level:
    """The level of a sum or difference of means."""
    variance = sum(level.variance for level in levels)
    doubt = sum(level.variance**2 / level.freedom for level in levels)
    return Level(variance, sum(level.rest for level in levels), variance**2 / doubt if np.any(doubt) else np.inf)


# Both together


def half_width(alpha: float, seeds: Level, over_items: float, z: float) -> float:
    """Half of an interval at 1 - `alpha`, as `mean_intervals` makes it; numbers or arrays alike.

    over_items: the variance of the mean over items; z: how many roots of it an interval over items alone would take.
    """
    items = np.maximum(0.0, over_items - seeds.rest)
    total = seeds.variance + items
    t = -special.stdtrit(seeds.freedom, alpha / 2)
    return (seeds.variance * t + items * z) / np.where(total > 0, total, 1.0) ** 0.5


def _around(value: float, draws: np.ndarray, seeds: Level, over_items: float) -> Interval:
    """The interval around `value`, the items' part by the quantiles of its `draws`."""
    low, high = np.quantile(draws, TAILS)
    if seeds.variance == 0:
        return Interval(value, min(value, float(low)), max(value, float(high)))
    root = over_items**0.5 or 1.0
    below, above = (half_width(ALPHA, seeds, over_items, max(0.0, d) / root) for d in (value - low, high - value))
    return Interval(value, float(value - below), float(value + above))


def _mean_interval(sample: np.ndarray, draws: np.ndarray) -> Interval:
    value = float(sample.mean())
    if len(sample) == 1 and _binary(sample):  # what the draws are of, without their noise
        low, high = special.betaincinv(sample.sum() + 0.5, sample.size - sample.sum() + 0.5, TAILS)
        return Interval(value, min(float(low), value), max(float(high), value))
    items = sample.mean(axis=0)
    _, low, high = _around(value, draws, seed_level(sample), float(items.var(ddof=1)) / items.size)
    return Interval(value, max(low, 0.0), min(high, 1.0)) if _binary(sample) else Interval(value, low, high)


def _ratio(values: Sequence[Sequence[float]], reference: Sequence[Sequence[float]], draws: np.ndarray) -> Interval:
    """values, reference: the factors of each product. draws: of the logarithm of the ratio, around 0, for one seed."""
    factors = [*values, *reference]
    means = [float(np.mean(factor)) for factor in factors]
    levels = [_of_seeds(factor) for factor in factors]
    logs = [level._replace(variance=level.variance / mean**2) for level, mean in zip(levels, means, strict=True)]
    ratio = math.prod(means[: len(values)]) / math.prod(means[len(values) :])
    _, low, high = _around(0.0, draws, welch(logs), float(draws.var()))
    return Interval(ratio, ratio * float(np.exp(low)), ratio * float(np.exp(high)))


def _p_value(value: float, seeds: Level, over_items: float, freedom: int) -> float:
    """The two-sided p-value of no difference, between e⁻²⁰⁰ and 1; `freedom`: of the items."""
    if seeds.variance + over_items == 0:
        return float(value == 0)
    low, high = -200.0, 0.0  # of its logarithm
    for _ in range(50):
        middle = (low + high) / 2
        alpha = np.exp(middle)
        inside = half_width(alpha, seeds, over_items, -special.stdtrit(freedom, alpha / 2)) > abs(value)
        low, high = (middle, high) if inside else (low, middle)
    return float(np.exp(high))
