"""Interval estimates: samples in, numbers out; nothing here knows what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000


def speed_ratio(
    seconds: Sequence[Sequence[float]], reference: Sequence[Sequence[float]], seed: int = 0
) -> tuple[float, float, float] | None:
    """How many times as fast as the reference, and the ends of a 95% interval; None without two repeats of each.

    seconds, reference: groups (seeds) of repeats, each the seconds a unit of work took. A side's speed is the mean over
    its groups of 1 / median. The interval is a percentile bootstrap that resamples the groups, and the repeats within
    each; of one group it knows no more than how its repeats differ.
    """
    if not all(groups and min(map(len, groups)) > 1 for groups in (seconds, reference)):
        return None
    draw = np.random.default_rng(seed)

    def resampled(groups: Sequence[Sequence[float]]) -> np.ndarray:
        drawn = [draw.choice(group, (RESAMPLES, len(group))) for group in groups]
        speeds = np.stack([1 / np.median(repeats, axis=1) for repeats in drawn], axis=1)
        of = draw.integers(len(groups), size=speeds.shape)
        return np.take_along_axis(speeds, of, axis=1).mean(axis=1)

    def measured(groups: Sequence[Sequence[float]]) -> float:
        return float(np.mean([1 / np.median(group) for group in groups]))

    low, high = np.quantile(resampled(seconds) / resampled(reference), [0.025, 0.975])
    return measured(seconds) / measured(reference), float(low), float(high)
