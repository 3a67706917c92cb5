"""The rank that a number of rows needs: the smallest one that no larger rank beats by 10% of the validation loss."""

from __future__ import annotations

from itertools import takewhile

from harness.report.rank_losses import Penalty, RankedLosses
from harness.report.statistics import Interval

TIE = 1.1  # a loss that is higher by less than 10% is no reason for a larger rank


def needed_rank(losses: RankedLosses, comparisons: float) -> Interval:
    """The needed rank and its 95% interval, as one of so many comparisons; its ends are ranks that were run.

    Each end is tested rank by rank, until the first one that is not sure (fixed-sequence tests), so no end needs a
    correction for the number of ranks. Below the interval are ranks that some larger one surely beats: of several
    larger ones that is corrected (Bonferroni). At its upper end is the smallest rank that surely no larger one beats,
    and of all above it the same is sure.
    """

    def larger(rank: int) -> list[Penalty]:
        return [losses.penalty(rank, other) for other in losses.ranks if other > rank]

    def beaten(rank: int) -> bool:
        each = larger(rank)
        return any(penalty.among(comparisons * len(each)).low > TIE for penalty in each)

    def enough(rank: int) -> bool:
        return all(penalty.among(comparisons).high < TIE for penalty in larger(rank))

    value = next(rank for rank in losses.ranks if all(penalty.value < TIE for penalty in larger(rank)))
    low = losses.ranks[sum(1 for _ in takewhile(beaten, losses.ranks))]
    *_, high = takewhile(enough, reversed(losses.ranks))  # the largest rank has none above it, so it is enough
    return Interval(value, low, high)
