"""Interval estimates, tests and ties: samples in, numbers out; nothing here knows what was measured.

What is uncertain has two levels: which seed a model was trained with, and which items it was asked. A hierarchical
bootstrap that redraws both covers too seldom where there are three seeds (in our simulation 86% instead of 95%): three
values hold no more than ten samples of themselves. So the levels are taken each by what is right for it, and put
together: the items by a bootstrap, the seeds by Student's t. `mean_intervals` says how; tests/test_stats.py holds
coverage and error rates against known truth.
"""

from __future__ import annotations

import functools
import itertools
import string
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import numpy as np
from scipy import special  # scipy.stats takes longer to import than most tables to make

RESAMPLES = 4_000
LEVEL = 0.95
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


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
    items. The two levels' intervals are put together by adding the squares of their half-widths, side by side (Howe,
    JASA 69, 1974; Zou & Donner, Stat. Med. 27, 2008, "MOVER"):

    items   2.5% and 97.5% quantiles of the mean under random weights of the items (Bayesian bootstrap: Rubin, Ann.
            Stat. 9, 1981), the same for every seed and method. Where all values are 0 or 1, half an item of each is
            added, which makes it Jeffreys' interval of a proportion (Brown, Cai & DasGupta, Stat. Sci. 16, 2001): none
            right of 57 is not known to be 0.
    seeds   t(S - 1) · sqrt(A), A = max(0, variance of the seeds' means - rest / items) / S. The rest's share is taken
            off because the bootstrap has it.
    """
    draws = _item_draws(samples, seed, resamples)
    return [_mean_interval(sample, draws[:, j]) for j, sample in enumerate(samples)]


def differences(
    samples: Sequence[np.ndarray], seed: int = 0, resamples: int = RESAMPLES
) -> dict[tuple[int, int], Difference]:
    """For each pair i < j of samples the mean of i less that of j; samples as in `mean_intervals`.

    Items are paired: both methods answered the same. Seeds are not: the same seed means the same batches, and if that
    makes two methods' results alike, the interval is a little too wide, never too narrow.

    The interval is made like that of a mean, A being the sum of both methods', floored at 0 as a whole, and t having
    the degrees of freedom of Welch (Biometrika 34, 1947) for the two variances over seeds.

    The p-value of one seed each and values 0 or 1 is McNemar's exact one. Any other is Student's t of difference / √V,
    V = A + s²/n with the sample variance s² of the items' differences, at the degrees of freedom of Satterthwaite
    (Biometrics Bull. 2, 1946), V² / (B²/(S - 1) + (s²/n)²/(n - 1)), where S are the fewer seeds and B is A without the
    rest taken off. It is more careful than the interval, because a correction reads it far out in the tail, where
    Welch's degrees of freedom of three seeds call noise a difference too often. Two seeds remain too few for many
    comparisons.
    Holm's correction is the caller's: `holm`.
    """
    draws = _item_draws(samples, seed, resamples)
    levels = [_seed_level(sample) for sample in samples]
    found = {}
    for i, j in itertools.combinations(range(len(samples)), 2):
        gap = samples[i].mean(axis=0) - samples[j].mean(axis=0)
        seeds = max(0.0, sum(levels[k].variance - levels[k].rest for k in (i, j)))
        spread = _t_squared(_welch([levels[i], levels[j]])) * seeds
        interval = _mover(float(gap.mean()), draws[:, i] - draws[:, j], spread)
        if len(samples[i]) == len(samples[j]) == 1 and _binary(samples[i]) and _binary(samples[j]):
            p = mcnemar(samples[i][0], samples[j][0])
        else:
            p = _p_value(gap, seeds, [level for k in (i, j) if (level := levels[k]).freedom])
        found[i, j] = Difference(*interval, p)
    return found


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """The exact two-sided p-value of McNemar's test: two models' right (1) and wrong (0) answers to the same items."""
    from scipy.stats import binomtest

    wins, losses = int(np.sum(one > other)), int(np.sum(one < other))
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def seeds_interval(values: Sequence[float]) -> Interval | None:
    """The mean of one number a seed and its 95% interval by Student's t; None for fewer than two seeds."""
    if len(values) < 2:
        return None
    value, level = float(np.mean(values)), _of_seeds(np.asarray(values, dtype=float))
    half = (_t_squared(level.freedom) * level.variance) ** 0.5
    return Interval(value, value - half, value + half)


def summary_interval(values: Sequence[float], stderrs: Sequence[float | None]) -> Interval | None:
    """The mean of scores, one a seed, of which the items are not at hand, and its 95% interval.

    stderrs: the scores' standard errors over items; of one seed without any None is returned. Like `mean_intervals`,
    but for normal items, and wider: without items the rest can't be told from them, and is counted twice.
    """
    seeds = seeds_interval(values)
    if seeds is None and stderrs[0] is None:
        return None
    items = special.ndtri(TAILS[1]) ** 2 * float(np.mean([(error or 0.0) ** 2 for error in stderrs]))
    half = (items + ((seeds.high - seeds.value) ** 2 if seeds else 0.0)) ** 0.5
    value = float(np.mean(values))
    return Interval(value, value - half, value + half)


def ratio_interval(values: Sequence[float], reference: Sequence[float]) -> Interval | None:
    """The ratio of two means of one positive number a seed, and its 95% interval; None without two seeds of each.

    By Welch's t on the logarithm, whose variance is that of the mean over its square (delta method).
    """
    if min(len(values), len(reference)) < 2:
        return None
    return _ratio([_log_of_seeds(values), _log_of_seeds(reference)], np.zeros(1))


def speed_ratio(seconds: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> Interval | None:
    """How many times as fast as the reference, with its 95% interval; None without two repeats of each.

    seconds, reference: groups (seeds) of repeats, each the seconds a unit of work took. A side's speed is the mean over
    its groups of 1 / median. Of several groups the interval is `ratio_interval`'s, the repeats' spread being in that of
    the groups; of one group it knows no more than how its repeats differ, by a bootstrap.
    """
    if not all(groups and min(map(len, groups)) > 1 for groups in (seconds, reference)):
        return None
    sides, draws = [], np.zeros(1)
    for side, groups in enumerate((seconds, reference)):
        sides.append(_log_of_seeds([1 / median(repeats) for repeats in groups]))
        if len(groups) == 1:
            draws = draws + (-1) ** side * _log_speed_draws(tuple(groups[0]), side)
    return _ratio(sides, draws)


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


class _Level(NamedTuple):
    """Of a mean over seeds its variance, what of that is the rest's, and the degrees of freedom: 0 for one seed."""

    variance: float
    rest: float
    freedom: int


def _of_seeds(values: np.ndarray) -> _Level:
    """Of one seed no variance is known, and none counted."""
    seeds = len(values)
    return _Level(float(values.var(ddof=1)) / seeds if seeds > 1 else 0.0, 0.0, seeds - 1)


def _seed_level(sample: np.ndarray) -> _Level:
    seeds, items = sample.shape
    level = _of_seeds(sample.mean(axis=1))
    if seeds == 1:
        return level
    rest = sample - sample.mean(axis=0) - sample.mean(axis=1, keepdims=True) + sample.mean()
    return level._replace(rest=float((rest**2).sum()) / ((seeds - 1) * (items - 1)) / items / seeds)


def _log_of_seeds(values: Sequence[float]) -> tuple[float, _Level]:
    """The mean, and the level of its logarithm."""
    values = np.asarray(values, dtype=float)
    value, level = float(values.mean()), _of_seeds(values)
    return value, level._replace(variance=level.variance / value**2)


def _welch(levels: Sequence[_Level]) -> float:
    """The degrees of freedom of a sum of variances; infinitely many where there is none."""
    total = sum(level.variance for level in levels)
    return total**2 / sum(level.variance**2 / level.freedom for level in levels if level.variance) if total else np.inf


def _t_squared(freedom: float) -> float:
    return float(special.stdtrit(freedom, TAILS[1])) ** 2


# Both together


def _mover(value: float, draws: np.ndarray, spread: float) -> Interval:
    """The interval around `value` of the items' `draws` and the squared half-width `spread` over seeds."""
    low, high = np.quantile(draws, TAILS)
    below, above = max(value - low, 0.0), max(high - value, 0.0)
    return Interval(value, float(value - (below**2 + spread) ** 0.5), float(value + (above**2 + spread) ** 0.5))


def _mean_interval(sample: np.ndarray, draws: np.ndarray) -> Interval:
    value, level = float(sample.mean()), _seed_level(sample)
    if len(sample) == 1 and _binary(sample):  # what the draws are of, without their noise
        low, high = special.betaincinv(sample.sum() + 0.5, sample.size - sample.sum() + 0.5, TAILS)
        return Interval(value, min(float(low), value), max(float(high), value))
    seeds = max(0.0, level.variance - level.rest)
    _, low, high = _mover(value, draws, _t_squared(level.freedom) * seeds if seeds else 0.0)
    return Interval(value, max(low, 0.0), min(high, 1.0)) if _binary(sample) else Interval(value, low, high)


def _ratio(sides: Sequence[tuple[float, _Level]], draws: np.ndarray) -> Interval:
    (one, one_level), (other, other_level) = sides
    levels = [one_level, other_level]
    _, low, high = _mover(0.0, draws, _t_squared(_welch(levels)) * sum(level.variance for level in levels))
    return Interval(one / other, one / other * float(np.exp(low)), one / other * float(np.exp(high)))


def _p_value(gap: np.ndarray, seeds: float, levels: Sequence[_Level]) -> float:
    """`differences` says how; gap: an item's difference; seeds: A; levels: of the methods of several seeds."""
    value, items = float(gap.mean()), float(gap.var(ddof=1)) / gap.size
    if seeds + items == 0:
        return float(value == 0)
    fewest = min((level.freedom for level in levels), default=gap.size - 1)
    doubt = sum(level.variance for level in levels) ** 2 / fewest + items**2 / (gap.size - 1)
    freedom = max(fewest, (seeds + items) ** 2 / doubt)
    return float(2 * special.stdtr(freedom, -abs(value) / (seeds + items) ** 0.5))
