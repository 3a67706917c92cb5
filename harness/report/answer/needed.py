"""What would decide what a study leaves open: more seeds, or more items."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy import special

from harness.record import Record
from harness.report.pairwise import MARGIN, score_of
from harness.report.statistics import ALPHA, Difference
from harness.settings import HELD_OUT

FEWEST_SEEDS, MOST_SEEDS = 3, 100
MOST_TIMES = 100  # as many items
POWER = float(special.ndtri(0.8))  # standard errors beyond those of a test: then 80% of studies find a difference
FEWEST_DIFFERING = next(n for n in itertools.count() if 2 ** (1 - n) < ALPHA)
"""Items on which two models must differ, all in favour of one, for McNemar's exact test to tell them apart."""

Critical = Callable[[float], float]
"""The standard errors that a difference must reach to be told by a test, from its degrees of freedom."""


def seeds_needed(gap: Difference, seeds: int, critical: Critical) -> int | None:
    """Seeds that would find a difference, or show it to be within MARGIN, if it is as large as it looks with `seeds`.

    critical: of the test that is to find it. None if what the items add to its error, which seeds do not lessen, is too
    much, or if MOST_SEEDS are not enough.
    """

    def enough(count: int) -> bool:
        variance = gap.error**2 * (gap.items + (1 - gap.items) * seeds / count)
        return variance <= _wanted(gap, critical(gap.freedom * count / seeds))

    counts = range(max(seeds + 1, FEWEST_SEEDS), MOST_SEEDS + 1)
    index = bisect.bisect_left(counts, True, key=enough)
    return counts[index] if index < len(counts) else None


def times_as_many_items(gap: Difference, over_seeds: float, critical: Critical) -> float | None:
    """Likewise, how many times as many items with the same seeds; None if MOST_TIMES are not enough.

    over_seeds: the part of the difference's variance that items do not lessen.
    """
    left = _wanted(gap, critical(math.inf if gap.exact else gap.freedom)) - over_seeds
    if left <= 0:
        return None
    times = max(1.1, (gap.error**2 - over_seeds) / left)
    return times if times <= MOST_TIMES else None


def _wanted(gap: Difference, critical: float) -> float:
    """The variance with which 80% of studies would find a difference, or show it to be within MARGIN."""
    return (max(abs(gap.value), MARGIN - abs(gap.value)) / (critical + POWER)) ** 2


@dataclass(frozen=True)
class ItemSupply:
    """The items of a score. more: where more of them come from, in words. extensible: whether a setting gives more."""

    items: int
    more: str
    extensible: bool = False

    def end(self, values: Sequence[float]) -> tuple[str, str] | None:
        """Whether all `values`, shares of right items, are so near 0 or 1 that no two models can be told apart.

        "floor" or "ceiling", and how near, in words; None if not.
        """
        for end, shares, what in (("floor", values, "right"), ("ceiling", [1 - v for v in values], "wrong")):
            most = self.items * max(shares)
            if most < FEWEST_DIFFERING:
                count = "none" if most == 0 else f"at most {math.ceil(round(most, 6))}"
                return end, f"{count} of {self.items:,} items {what}"
        return None


def item_supply(record: Record, name: str) -> ItemSupply:
    """Those of the score `name` of a record that has it."""
    score, settings = score_of(record, name), record.cell.settings
    if score is None:
        raise ValueError(f"{record.cell.name} has no score {name}")
    if settings.eval.limit is not None and score.n >= settings.eval.limit:
        more = f"a larger `eval.limit` ({settings.eval.limit:,} now)"
    elif score.task == HELD_OUT and settings.data.test_share:
        more = f"a larger `data.test_share` ({settings.data.test_share:g} now)"
    else:
        return ItemSupply(score.n, f"a task with more than its {score.n:,}")
    return ItemSupply(score.n, more, extensible=True)
