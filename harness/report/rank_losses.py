"""By how much the validation loss of a lower rank is higher than that of a higher one.

    losses = RankedLosses.from_records({1: records, 16: records, 64: records})
    losses.penalty(1, 64).among(1)  # Interval(1.08, 1.02, 1.14)

Three seeds of two ranks tell little of how much their ratio varies: by these alone its interval is 4.3 standard errors
wide on each side. The ranks of one method on the same rows vary alike, so the spread of all of them counts
(`statistics.moderated`), unless a pair surely varies more than the others. In simulated studies of three seeds and four
ranks 95% of intervals cover, 92% of those of a rank that varies twice as much as the others, and 89% at four times.
Ranks at other numbers of rows do not count: few rows vary more, and only 87% of their intervals would cover.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.record import Record, losses_by_seed
from harness.report import statistics
from harness.report.statistics import ALPHA, Interval, Statistic

KNOWN = 0.05  # nats per token; losses below it count as it: what is trained is known, and ratios are of noise

ByRank = Mapping[int, Sequence[Record]]


@dataclass(frozen=True)
class Penalty:
    """A ratio of two ranks' losses. log: of its logarithm."""

    log: Statistic

    @property
    def value(self) -> float:
        return math.exp(self.log.value)

    def among(self, comparisons: float) -> Interval:
        """The ratio with its 95% interval, as one of so many comparisons (Bonferroni)."""
        value, low, high = map(math.exp, self.log.interval(ALPHA / comparisons))
        return Interval(value, low, high)


@dataclass(frozen=True)
class RankedLosses:
    """The losses of several ranks at one number of rows.

    logs: of the losses, (ranks, seeds), of the seeds that all ranks have: at least two. ranks: ascending. records:
    names of those behind it.
    """

    ranks: tuple[int, ...]
    logs: np.ndarray
    records: tuple[str, ...] = ()

    @classmethod
    def from_records(cls, by_rank: ByRank) -> RankedLosses | None:
        """Those of the records of each rank, which differ in seeds; None without two seeds that all ranks have."""
        ranks = tuple(sorted(by_rank))
        losses = [losses_by_seed(by_rank[rank]) for rank in ranks]
        common = sorted(set.intersection(*map(set, losses)), key=str)
        if len(common) < 2:
            return None
        logs = np.log(np.maximum([[of_rank[seed] for seed in common] for of_rank in losses], KNOWN))
        return cls(ranks, logs, tuple(record.cell.name for rank in ranks for record in by_rank[rank]))

    @property
    def seeds(self) -> int:
        return self.logs.shape[1]

    @property
    def best(self) -> int:
        """The rank with the least mean of log losses."""
        return self.ranks[int(self.logs.mean(axis=1).argmin())]

    def penalty(self, rank: int, other: int) -> Penalty:
        """The loss of `rank` over that of another one, seed by seed."""
        pair = [self.ranks.index(rank), self.ranks.index(other)]
        others = [i for i in range(len(self.ranks)) if i not in pair]
        return Penalty(statistics.within(self.logs[[*pair, *others]], [1, -1]))
