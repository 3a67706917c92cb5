"""Items that share something, such as a subject, and the standard error of a mean over such items."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence


def cluster_numbers(subjects: Sequence[str], named: Sequence[str | None] | None) -> list[int]:
    """The cluster of each item, from 0 by first appearance. Without groups, or with a single one, each item is its own.

    named: what an item shares with others of its subject, if that is known; without any, subjects are the clusters.
    """
    keys: list[Hashable]
    if named and any(named):
        keys = [(subject, name or i) for i, (subject, name) in enumerate(zip(subjects, named, strict=True))]
    else:
        keys = list(subjects)
    order = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return list(range(len(keys))) if len(order) == 1 else [order[key] for key in keys]


def subject_weights(subjects: Sequence[str]) -> list[float]:
    """Weights of items, 1 on average, by which their mean is the mean of the subjects' means (`weight_by_size: false`
    of an lm-eval group)."""
    sizes: dict[str, int] = defaultdict(int)
    for subject in subjects:
        sizes[subject] += 1
    return [len(subjects) / len(sizes) / sizes[subject] for subject in subjects]


def clustered_error(values: Sequence[float], clusters: Sequence[int], weights: Sequence[float] | None = None) -> float:
    """The standard error of the (weighted) mean of at least two values.

    Cluster-robust (Miller, arXiv:2411.00640, eq. 4) with McCaffrey & Bell's correction for few clusters. Of independent
    items it is the usual sqrt(s² / n).
    """
    n = len(values)
    weights = weights or [1.0] * n
    mean = sum(w * v for w, v in zip(weights, values, strict=True)) / n
    sums: dict[int, float] = defaultdict(float)
    shares: dict[int, float] = defaultdict(float)
    for value, cluster, weight in zip(values, clusters, weights, strict=True):
        sums[cluster] += weight * (value - mean)
        shares[cluster] += weight / n
    return math.sqrt(sum(sums[cluster] ** 2 / (1 - shares[cluster]) for cluster in sums)) / n
