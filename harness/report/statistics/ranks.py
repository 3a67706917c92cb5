"""How likely each method is the best one, and the rank to expect of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harness.report.statistics.accuracies import Answers, binary, cluster_sums, levels

DRAWS = 4_000


class MethodRank(NamedTuple):
    """The probability that a method is the best one (draws of equal methods are shared), and its expected rank from
    1."""

    best: float
    expected: float


def ranks(
    samples: Sequence[Answers], higher_is_better: bool = True, seed: int = 0, draws: int = DRAWS
) -> list[MethodRank]:
    """Of methods that answered the same items, by a bootstrap over clusters of items and over seeds.

    Clusters have random weights, the same for all methods (Bayesian bootstrap: Rubin, Ann. Stat. 9, 1981), so that
    methods stay paired. Three seeds have ten distinct resamples only, so a method's mean over seeds is drawn from
    Student's t instead, with the variance that `accuracies.levels` shrinks over methods; what of it comes from the
    items is in the items' weights already.

    Of right and wrong answers each method has half a right and half a wrong one beside its own, as in Jeffreys'
    interval: of methods that answer alike but for one item, the one that has it right is not surely the better.
    """
    draw = np.random.default_rng(seed)
    means = np.stack([sample.values.mean(axis=0) for sample in samples])
    sums, shares = cluster_sums(means, samples[0].clusters)
    weights = draw.standard_exponential((draws, len(shares)))
    right, items = weights @ sums.T, (weights @ shares)[:, None] * means.shape[1]
    if all(binary(sample.values) for sample in samples):
        halves = draw.standard_gamma(0.5, (2, *right.shape))
        right, items = right + halves[0], items + halves.sum(axis=0)
    drawn = right / items
    for j, level in enumerate(levels(samples)):
        own = max(0.0, level.variance - level.rest) ** 0.5
        if own:
            drawn[:, j] += own * draw.standard_t(max(1.0, level.freedom), draws)
    ordered = drawn if higher_is_better else -drawn
    top = ordered == ordered.max(axis=1, keepdims=True)
    best = (top / top.sum(axis=1, keepdims=True)).mean(axis=0)
    above = [
        (ordered > ordered[:, [j]]).sum(axis=1) + (ordered == ordered[:, [j]]).sum(axis=1) / 2
        for j in range(len(samples))
    ]
    return [MethodRank(float(p), float(np.mean(a)) + 0.5) for p, a in zip(best, above, strict=True)]
