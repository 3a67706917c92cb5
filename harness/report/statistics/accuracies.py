"""Scores of items: means, differences and their errors, over seeds and over clusters of items.

The model is two-way: value = mean + seed + item + rest, each a random effect, since all seeds answer the same items;
items of one cluster (a subject, a passage, a template) share a part of theirs. So the variance of a mean is B + b: B,
that of the seeds' means over their number, which has the rest in it, and b, what items add to that: their
cluster-robust variance less the rest's share (Miller, arXiv:2411.00640; McCaffrey & Bell's correction for few
clusters). B is shrunk over the methods that are compared (`variances.moderated`). Seeds that both
methods have are paired in a difference (`pairing`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from harness.report.statistics import pairing
from harness.report.statistics.estimates import Difference, Interval, Statistic, share_interval
from harness.report.statistics.pairing import SeedEffect
from harness.report.statistics.variances import Level, combined_known, moderated, trust


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

    Items are paired: both methods answered the same. So are seeds that two methods share, which mean the same batches
    to both (`gaps`). The interval and the p-value are Student's; the p-value of one seed each, values 0 or 1 and
    independent items is McNemar's exact one. A correction for many comparisons is the caller's: `holm`.
    """
    shares = [binary(sample.values) for sample in samples]
    return {(i, j): _difference(*gap, shares[i] and shares[j]) for (i, j), gap in gaps(samples, pairs).items()}


def _difference(one: Answers, other: Answers, gap: Gap, shares: bool) -> Difference:
    """shares: whether both are of right and wrong answers."""
    statistic = Statistic(gap.value, gap.variance**0.5, gap.freedom, 1.0 if shares else math.inf)
    exact = shares and len(one.values) == len(other.values) == 1 and not one.clustered
    p = mcnemar(one.values[0], other.values[0]) if exact else statistic.p()
    alone = gap.items / statistic.error**2 if statistic.error else 1.0
    ends = statistic.interval()
    return Difference(*ends, p, statistic.error, statistic.freedom, alone, exact, gap.paired, statistic.most)


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
    """`seed_level` of each sample, with the variance of one seed shrunk over the samples of several seeds.

    Where seeds move methods alike, the others tell less of it (`pairing.told_by_others`).
    """
    return _shrunk(samples, pairing.told_by_others(*_scores(samples)))


def _shrunk(samples: Sequence[Answers], weight: float) -> list[Level]:
    """weight: how much the others' variance counts, 0 to 1."""
    estimates = [seed_level(sample) for sample in samples]
    repeated = [i for i, sample in enumerate(samples) if len(sample.values) > 1]
    if len(repeated) < 2:
        return estimates
    seeds = np.array([len(samples[i].values) for i in repeated])
    own = np.array([estimates[i].variance for i in repeated]) * seeds
    shrunk, freedom = moderated(own, seeds - 1.0, trust(seeds - 1.0) * weight)
    for i, variance, degrees in zip(repeated, shrunk / seeds, freedom, strict=True):
        estimates[i] = Level(float(variance), estimates[i].rest, float(degrees))
    return estimates


def _apart(samples: Sequence[Answers]) -> list[Level]:
    """`levels` for differences whose seeds are not paired: what seeds share widens these anyway, so all tell of it."""
    return _shrunk(samples, 1.0)


class Gap(NamedTuple):
    """The difference of two means, its variance with degrees of freedom, and what of the variance only items lessen.

    paired: whether seeds were.
    """

    value: float
    variance: float
    freedom: float
    items: float
    paired: bool


def gaps(
    samples: Sequence[Answers], pairs: Iterable[tuple[int, int]] | None = None
) -> dict[tuple[int, int], tuple[Answers, Answers, Gap]]:
    """For each pair i < j of samples, or for each of `pairs`, both of them, and the mean of i less that of j.

    Of paired seeds it is the mean over those that both have. They are paired if at least two are, and half of those
    that either has: a rule on which runs there are, so that no score has a part in it. Of right and wrong answers no
    error is below one item: a model that answers as another does may differ by one.
    """
    of, effects, shares = _apart(samples), _effects(samples), [binary(sample.values) for sample in samples]
    gap_of = {}
    for i, j in itertools.combinations(range(len(samples)), 2) if pairs is None else pairs:
        one, other = samples[i], samples[j]
        level, values = _together(of[i], of[j]), one.values.mean(axis=0) - other.values.mean(axis=0)
        paired = _common(one, other) if {i, j} <= effects.keys() else None
        if paired is not None:
            own, freedom = effects[i].own + effects[j].own, min(effects[i].freedom, effects[j].freedom)
            level = Level(own / len(paired), seed_level(Answers(paired, one.clusters)).rest, freedom)
            values = paired.mean(axis=0)
        least = one.values.shape[1] ** -2 if shares[i] and shares[j] else 0.0
        gap_of[i, j] = one, other, _gap(level, values, one.clusters, least, paired is not None)
    return gap_of


def _gap(level: Level, values: np.ndarray, clusters: np.ndarray, least: float, paired: bool) -> Gap:
    """values: the difference by item. least: its variance."""
    items, freedom = over_items(values, clusters)
    variance, degrees = combined_known(level, items, freedom)
    alone = max(0.0, items - float(level.rest))
    return Gap(float(values.mean()), max(float(variance), least), float(degrees), alone, paired)


def _common(one: Answers, other: Answers) -> np.ndarray | None:
    """The differences by seed and item, (seeds, items), of the seeds that both have; None if these are too few."""
    rows = {seed: row for row, seed in enumerate(other.seeds or ())}
    both = [(row, rows[seed]) for row, seed in enumerate(one.seeds or ()) if seed in rows]
    if len(both) < 2 or 2 * len(both) < max(len(one.values), len(other.values)):
        return None
    mine, others = zip(*both, strict=True)
    return one.values[list(mine)] - other.values[list(others)]


def compared_levels(samples: Sequence[Answers]) -> list[Level]:
    """Levels as differences have them: those of paired seeds, where most differences are paired."""
    of, effects = _apart(samples), _effects(samples)
    pairs = list(itertools.combinations(range(len(samples)), 2))
    paired = [pair for pair in pairs if {*pair} <= effects.keys() and _common(*(samples[i] for i in pair)) is not None]
    if 2 * len(paired) <= len(pairs):
        return of
    for i, effect in effects.items():
        of[i] = Level(effect.own / len(samples[i].values), of[i].rest, effect.freedom)
    return of


def _effects(samples: Sequence[Answers]) -> dict[int, SeedEffect]:
    """How seeds move each of the methods that have several; empty if they share none."""
    return pairing.seed_effects(*_scores(samples))


def _scores(samples: Sequence[Answers]) -> tuple[dict[int, np.ndarray], dict[int, tuple[int | None, ...]]]:
    """By position of the samples that have several known seeds: the score of each seed, and the seeds."""
    seeds = {i: sample.seeds for i, sample in enumerate(samples) if sample.seeds and len(sample.values) > 1}
    return {i: samples[i].values.mean(axis=1) for i in seeds}, seeds


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
