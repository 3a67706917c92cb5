"""Shares of runs, such as those that diverged, where runs of a setting are alike."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from harness.report.statistics.estimates import ALPHA, Interval, quantile


class Outcomes(NamedTuple):
    """How many runs of one setting had an outcome, of how many."""

    hits: int
    runs: int


Sides = tuple[Sequence[Outcomes], Sequence[Outcomes]]


Stratum = TypeVar("Stratum", bound=Hashable)


def difference_of_shares(strata: Mapping[Stratum, Sides], alpha: float = ALPHA) -> tuple[Interval, float]:
    """The share on the first side less that on the second, its interval, and how many runs the smaller side is worth.

    strata: by what must be equal on both sides (such as the learning rate), the settings of each. Shares are compared
    within strata, so that unequal numbers of runs can't mix the strata's own differences in; strata weigh as in Mantel
    & Haenszel.

    Runs of a setting may diverge together. How much so is estimated from settings of one side whose runs all ended
    alike, and n runs then count as n / (1 + (n - 1)·ρ). If all runs of all settings ended alike, a setting counts as
    one. The interval of each stratum is Newcombe's (Stat. Med. 17, 1998, method 10); strata add up by their squares.
    """
    alike = _alike(list(strata.values()))
    value = total = below = above = 0.0
    sizes = [0.0, 0.0]
    for sides in strata.values():
        worths = [[o.runs / (1 + (o.runs - 1) * alike) for o in side] for side in sides]
        counts = [sum(worth) for worth in worths]
        shares = [
            sum(w * o.hits / o.runs for w, o in zip(worth, side, strict=True)) / n
            for worth, side, n in zip(worths, sides, counts, strict=True)
        ]
        ends = [_wilson(share, n, alpha) for share, n in zip(shares, counts, strict=True)]
        weight = counts[0] * counts[1] / sum(counts)
        value += weight * (shares[0] - shares[1])
        below += weight**2 * ((shares[0] - ends[0][0]) ** 2 + (ends[1][1] - shares[1]) ** 2)
        above += weight**2 * ((ends[0][1] - shares[0]) ** 2 + (shares[1] - ends[1][0]) ** 2)
        total += weight
        sizes = [size + n for size, n in zip(sizes, counts, strict=True)]
    value /= total
    return Interval(value, value - math.sqrt(below) / total, value + math.sqrt(above) / total), min(sizes)


def _alike(strata: Sequence[Sides]) -> float:
    """The correlation of the outcomes of two runs of a setting, from 0 to 1; 1 if no outcome differs anywhere."""
    within = expected = 0.0
    for side in range(2):
        settings = [outcomes for sides in strata for outcomes in sides[side] if outcomes.runs > 1]
        if not settings:
            continue
        share = sum(o.hits / o.runs for o in settings) / len(settings)
        within += sum(o.hits * (o.runs - o.hits) / o.runs / (o.runs - 1) for o in settings)
        expected += len(settings) * share * (1 - share)
    if expected == 0:
        return 1.0
    return min(1.0, max(0.0, 1 - within / expected))


def _wilson(share: float, n: float, alpha: float) -> tuple[float, float]:
    """Wilson's interval (J. Am. Stat. Assoc. 22, 1927), of a number of runs that need not be whole."""
    z2 = quantile(1 - alpha / 2, math.inf) ** 2
    middle = (share + z2 / 2 / n) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / 4 / n**2)) / (1 + z2 / n)
    return middle - half, middle + half
