"""How likely each method is the best one, and the rank to expect of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from harness.report.statistics.accuracies import Answers, binary, cluster_sums, compared_levels, over_items
from harness.report.statistics.variances import Level, beyond_rest

DRAWS = 4_000
WEIGHTS = 2**24  # numbers in memory at a time


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
    methods stay paired. Of right and wrong answers each method has half a right and half a wrong one beside its own, as
    in Jeffreys' interval: of methods that answer alike but for one item, the one that has it right is not surely the
    better.

    Two seeds have three distinct resamples only, so a method's mean over seeds is drawn from Student's t instead, with
    the variance and degrees of freedom of `accuracies.compared_levels`. That variance has the rest (by seed and item)
    in it, so of what methods differ over items the rest's share is left out. What is drawn so varies as the tests of
    `accuracies.differences` have it: of two methods the better one is the best with a probability of about 1 - p / 2.
    """
    draw = np.random.default_rng(seed)
    means = np.stack([sample.values.mean(axis=0) for sample in samples])
    sums, shares = cluster_sums(means, samples[0].clusters)
    items, scores = _bootstrapped(draw, draws, sums, shares)
    items = items[:, None] * means.shape[1]
    scores = scores / items
    scores -= scores.mean(axis=1, keepdims=True)  # what methods share ranks none
    centre, of = scores.mean(axis=0), compared_levels(samples)
    parts, freedom = _rest_parts(means, samples[0].clusters, of)
    scores = centre + _items_own(parts, freedom, draw, draws) * (scores - centre)
    if all(binary(sample.values) for sample in samples):
        halves, mean = draw.standard_gamma(0.5, (2, *scores.shape)), means.mean()
        scores = ((scores + mean) * items + halves[0]) / (items + halves.sum(axis=0))
    luck = draw.random(draws)  # of the seeds' variances, which rest on all methods
    for j, (level, part) in enumerate(zip(of, parts, strict=True)):
        if level.variance or level.rest:
            degrees = max(1.0, float(level.freedom))
            beyond = beyond_rest(level, level.rest / part if part else math.inf, freedom)
            scale = (level.rest + beyond * degrees / special.chdtri(degrees, luck)) ** 0.5
            scores[:, j] += scale * draw.standard_normal(draws)
    ordered = scores if higher_is_better else -scores
    top = ordered == ordered.max(axis=1, keepdims=True)
    best = (top / top.sum(axis=1, keepdims=True)).mean(axis=0)
    above = [
        (ordered > ordered[:, [j]]).sum(axis=1) + (ordered == ordered[:, [j]]).sum(axis=1) / 2
        for j in range(len(samples))
    ]
    return [MethodRank(float(p), float(np.mean(a)) + 0.5) for p, a in zip(best, above, strict=True)]


def _bootstrapped(
    draw: np.random.Generator, draws: int, sums: np.ndarray, shares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The shares, (draws,), and the sums, (draws, methods), over clusters with random weights.

    Clusters alike in both are many where there are very many: of right and wrong answers of two methods, four kinds.
    The weight of k of them together has the gamma distribution of shape k, as k exponential ones have.
    """
    if draws * len(shares) <= WEIGHTS:
        weights = draw.standard_exponential((draws, len(shares)))
        return weights @ shares, weights @ sums.T
    codes = np.zeros(len(shares), dtype=int)  # equal for clusters that are alike, by first appearance
    for row in (shares, *sums):
        of_row, kinds = pd.factorize(row)
        codes, _ = pd.factorize(codes * len(kinds) + of_row)
    counts = np.bincount(codes)
    first = np.empty(len(counts), dtype=int)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    table = np.stack([row[first] for row in (shares, *sums)], axis=1)
    step = max(1, WEIGHTS // len(counts))
    chunks = [
        draw.standard_gamma(counts, (min(step, draws - begin), len(counts))) @ table for begin in range(0, draws, step)
    ]
    whole = np.concatenate(chunks)
    return whole[:, 0], whole[:, 1:]


def _rest_parts(means: np.ndarray, clusters: np.ndarray, of: Sequence[Level]) -> tuple[np.ndarray, float]:
    """The part, 0 to 1, that the rest (by seed and item) has in what each method's score differs over items from the
    mean of all, (methods,), and the items' degrees of freedom."""
    m, spreads = len(means), [over_items(gap, clusters) for gap in means - means.mean(axis=0)]
    total = np.array([variance for variance, _ in spreads])
    rest = np.array([level.rest for level in of])
    rest = rest * (1 - 2 / m) + rest.sum() / m**2  # of the difference from the mean of all
    return np.minimum(1.0, rest / np.where(total > 0, total, np.inf)), max(1.0, spreads[0][1])


def _items_own(parts: np.ndarray, freedom: float, draw: np.random.Generator, draws: int) -> np.ndarray:
    """Factors, (draws, methods), of what a method differs over items from the mean of all: without the rest's share,
    and for few clusters as Student's t. parts, freedom: of `_rest_parts`.

    By the bootstrap's weights alone differences over `freedom` + 1 clusters vary less than their error says.
    """
    return ((1 - parts) * ((freedom + 2) / draw.chisquare(freedom, draws))[:, None]) ** 0.5
