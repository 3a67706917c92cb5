"""Scores of items: means, differences and their errors, over seeds and over clusters of items.

The model is two-way: value = mean + seed + item + rest, each a random effect, since all seeds answer the same items;
items of one cluster (a subject, a passage, a template) share a part of theirs. So the variance of a mean is B + b: B,
that of the seeds' means over their number, which has the rest in it, and b, what items add to that: their
cluster-robust variance less the rest's share (Miller, arXiv:2411.00640; McCaffrey & Bell's correction for few
clusters). B is shrunk over the methods that are compared (`variances.moderated`), or, of two methods with many seeds in
common, that of their differences seed by seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from harness.report.statistics.estimates import Difference, Interval, Statistic, share_interval
from harness.report.statistics.variances import Level, combined, combined_known, moderated

PAIRED_SEEDS = 10
"""From so many on, two methods are compared seed by seed. If a seed does not move both alike, that makes an interval at
most 8% wider (Student's t has half the degrees); of five seeds it would be 20%. If it does, as the same batches often
do, the interval is up to several times shorter."""


class Answers(NamedTuple):
    """Values of one method: (seeds, items), the cluster of each item as an integer, and the seeds of the rows.

    Methods that are compared must have answered the same items, in one order. Independent items are clusters of one.
    seeds: of the rows, in their order; None if unknown.
    """

    values: np.ndarray
    clusters: np.ndarray
    seeds: tuple[int | None, ...] | None = None

    @classmethod
    def independent(cls, values: np.ndarray) -> Answers:
        return cls(values, np.arange(values.shape[1]))

    @property
    def groups(self) -> int | None:
        """How many clusters are independent; None if items are."""
        count = int(self.clusters.max()) + 1
        return count if 1 < count < len(self.clusters) else None

    @property
    def clustered(self) -> bool:
        return self.groups is not None


def mean_intervals(samples: Sequence[Answers]) -> list[Interval]:
    """The mean of each method's values and its 95% interval, over seeds and items.

    samples: of at least 2 items; seeds may differ in number. Of one seed the interval is over items alone: how seeds
    differ is not in it. Of right and wrong answers it is `share_interval`.
    """
    return [_mean_interval(sample, level) for sample, level in zip(samples, levels(samples), strict=True)]


def differences(
    samples: Sequence[Answers], pairs: Iterable[tuple[int, int]] | None = None
) -> dict[tuple[int, int], Difference]:
    """For each pair i < j of samples, or for each of `pairs`, the mean of i less that of j; samples as in
    `mean_intervals`.

    Items are paired: both methods answered the same. Seeds, which mean the same batches to both, are paired where two
    methods alone are compared that share `PAIRED_SEEDS`. Elsewhere intervals are too wide if a seed moves both alike:
    of few seeds, and of more than two methods, the spread that all have tells more. The interval and the p-value are
    Student's; the p-value of one seed each, values 0 or 1 and independent items is McNemar's exact one. A correction
    for many comparisons is the caller's: `holm`.
    """
    of, means = compared_levels(samples), [sample.values.mean(axis=0) for sample in samples]
    shares, paired = [binary(sample.values) for sample in samples], by_seed(samples)
    found = {}
    for i, j in itertools.combinations(range(len(samples)), 2) if pairs is None else pairs:
        one, other = samples[i], samples[j]
        gap = means[i] - means[j]
        items, freedom = over_items(gap, one.clusters)
        seeds = _together(of[i], of[j])
        variance, freedom = (float(part) for part in combined(seeds, items, freedom))
        both_shares = shares[i] and shares[j]
        if both_shares:
            variance = max(variance, gap.size**-2)  # a model that answers alike may differ by an item
        statistic = Statistic(float(gap.mean()), variance**0.5, freedom, 1.0 if both_shares else math.inf)
        exact = both_shares and len(one.values) == len(other.values) == 1 and not one.clustered
        p = mcnemar(one.values[0], other.values[0]) if exact else statistic.p()
        alone = max(0.0, items - float(seeds.rest)) / statistic.error**2 if statistic.error else 1.0
        found[i, j] = Difference(
            *statistic.interval(), p, statistic.error, statistic.freedom, alone, exact, paired, statistic.most
        )
    return found


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """The exact two-sided p-value of McNemar's test: two models' right (1) and wrong (0) answers to the same items."""
    from scipy.stats import binomtest

    wins, losses = int(np.sum(one > other)), int(np.sum(one < other))
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def over_items(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """The variance of the mean of `values`, one an item, over clusters, and its degrees of freedom.

    Clusters of unequal size count for as many as equal ones would (Kish): 1 / the sum of their squared shares.
    """
    sums, shares = cluster_sums(values[None] - values.mean(), clusters)
    return float((sums[0] ** 2 / (1 - shares)).sum()) / values.size**2, 1 / float((shares**2).sum()) - 1


def cluster_sums(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, clusters) sums of `values` (rows, items), and each cluster's share of the items."""
    sizes = np.bincount(clusters)
    sums = np.stack([np.bincount(clusters, row, len(sizes)) for row in values])
    return sums, sizes / len(clusters)


def seed_level(sample: Answers) -> Level:
    """Of the mean over seeds and items, as this method's seeds alone tell it."""
    values = sample.values
    seeds, items = values.shape
    if seeds == 1:
        return Level(0.0, 0.0, np.inf)
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    sums, shares = cluster_sums(rest, sample.clusters)
    rest = float((sums**2 / (1 - shares)).sum()) / items**2 / seeds / (seeds - 1)
    return Level(float(np.var(values.mean(axis=1), ddof=1)) / seeds, rest, seeds - 1.0)


def levels(samples: Sequence[Answers]) -> list[Level]:
    """`seed_level` of each sample, with the variance of one seed shrunk over the samples of several seeds."""
    found = [seed_level(sample) for sample in samples]
    repeated = [i for i, sample in enumerate(samples) if len(sample.values) > 1]
    if len(repeated) < 2:
        return found
    seeds = np.array([len(samples[i].values) for i in repeated])
    own = np.array([found[i].variance for i in repeated]) * seeds
    shrunk, freedom = moderated(own, seeds - 1.0)
    for i, variance, degrees in zip(repeated, shrunk / seeds, freedom, strict=True):
        found[i] = Level(float(variance), found[i].rest, float(degrees))
    return found


def compared_levels(samples: Sequence[Answers]) -> list[Level]:
    """`levels`, for differences. Two methods alone that share `PAIRED_SEEDS` have half the level of theirs each."""
    if not by_seed(samples):
        return levels(samples)
    one, other = samples
    gap = seed_level(Answers(one.values - other.values, one.clusters))
    return [Level(gap.variance / 2, gap.rest / 2, gap.freedom)] * 2


def by_seed(samples: Sequence[Answers]) -> bool:
    """Whether differences of `samples` are taken seed by seed."""
    seeds = [sample.seeds for sample in samples]
    return len(samples) == 2 and seeds[0] == seeds[1] and len(seeds[0] or ()) >= PAIRED_SEEDS


def _together(one: Level, other: Level) -> Level:
    """The level of a difference of means; both variances may rest on the same methods, so the fewer degrees count."""
    return Level(one.variance + other.variance, one.rest + other.rest, min(one.freedom, other.freedom))


def binary(values: np.ndarray) -> bool:
    """Whether all values are 0 or 1: wrong and right answers."""
    return bool(((values == 0) | (values == 1)).all())


def _mean_interval(sample: Answers, level: Level) -> Interval:
    values = sample.values
    value = float(values.mean())
    items, freedom = over_items(values.mean(axis=0), sample.clusters)
    variance, freedom = (float(part) for part in combined_known(level, items, freedom))
    if not binary(values):
        return Statistic(value, variance**0.5, freedom).interval()
    exact = len(values) == 1 and not sample.clustered
    return share_interval(value, 0.0 if exact else variance, freedom, int(sample.clusters.max()) + 1)
