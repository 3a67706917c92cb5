"""By how much the validation loss of a lower rank is higher than that of a higher one, at each number of rows.

    of_rows = RankedLosses.of({100: {1: records, 64: records}, 6400: {…}})
    of_rows[100].penalty(1, 64).among(1)  # Interval(1.08, 1.02, 1.14)

Three seeds of two ranks tell little of how much their ratio varies: by these alone its interval is 4.3 standard errors
wide on each side. Ranks at all numbers of rows together tell more, so their spread counts too
(`statistics.moderated`), unless a pair surely varies more than the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.plugins.articles.lora_without_regret.losses import last_losses
from harness.record import Record
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
    names of those behind it. others: of all numbers of rows together, what is left of the logs' squares when the means
    of ranks and of seeds are taken off, and its degrees of freedom.
    """

    ranks: tuple[int, ...]
    logs: np.ndarray
    records: tuple[str, ...]
    others: tuple[float, int]

    @classmethod
    def of(cls, by_rows: Mapping[int, ByRank]) -> dict[int, RankedLosses]:
        """Those of each number of rows at which all ranks share two seeds with losses."""
        tables = {rows: table for rows, by_rank in by_rows.items() if (table := _logs(by_rank)) is not None}
        square = sum(_residual(table) for table in tables.values())
        freedom = sum((len(table) - 1) * (table.shape[1] - 1) for table in tables.values())
        return {
            rows: cls(tuple(sorted(by_rows[rows])), table, _names(by_rows[rows]), (square, freedom))
            for rows, table in tables.items()
        }

    @property
    def seeds(self) -> int:
        return self.logs.shape[1]

    def penalty(self, rank: int, other: int) -> Penalty:
        """The loss of `rank` over that of `other`, seed by seed.

        Its variance over seeds is shrunk towards that of all other contrasts of ranks, at all numbers of rows.
        """
        gaps = self.logs[self.ranks.index(rank)] - self.logs[self.ranks.index(other)]
        own, degrees = float(np.var(gaps, ddof=1)), self.seeds - 1
        square, freedom = self.others
        rest = freedom - degrees
        variances, freedoms = np.array([own]), np.array([float(degrees)])
        if rest > 0:
            all_others = 2 * max(0.0, square - own * degrees / 2) / rest  # of a difference of two ranks
            variances, freedoms = statistics.moderated(
                np.array([own, all_others]), np.array([float(degrees), float(rest)])
            )
        error = math.sqrt(float(variances[0]) / self.seeds)
        return Penalty(Statistic(float(gaps.mean()), error, float(freedoms[0])))


def _logs(by_rank: ByRank) -> np.ndarray | None:
    """Logarithms of losses, (ranks, seeds); None without two seeds that all ranks have."""
    losses = [last_losses(by_rank[rank]) for rank in sorted(by_rank)]
    common = sorted(set.intersection(*map(set, losses)), key=str)
    if len(common) < 2:
        return None
    return np.log(np.maximum([[of_rank[seed] for seed in common] for of_rank in losses], KNOWN))


def _residual(table: np.ndarray) -> float:
    """The squares of what is left of a table when the means of its rows and columns are taken off."""
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    return float((rest**2).sum())


def _names(by_rank: ByRank) -> tuple[str, ...]:
    return tuple(record.cell.name for rank in sorted(by_rank) for record in by_rank[rank])
