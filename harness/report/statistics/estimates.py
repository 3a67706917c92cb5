"""An estimate with its standard error, and what follows from it: intervals, tests, equivalence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special  # scipy.stats takes longer to import than most tables to make

from harness.report.statistics.luck import luck
from harness.report.statistics.variances import Level, combined_known

ALPHA = 0.05
TAILS = (ALPHA / 2, 1 - ALPHA / 2)


class Interval(NamedTuple):
    """An estimate and the ends of its 95% interval."""

    value: float
    low: float
    high: float


class Statistic(NamedTuple):
    """An estimate, its standard error, and the degrees of freedom of Student's t that the error has.

    most: the true value is known to lie within ± this.
    """

    value: float
    error: float
    freedom: float
    most: float = math.inf

    def interval(self, alpha: float = ALPHA) -> Interval:
        half = self.error * quantile(1 - alpha / 2, self.freedom)
        return Interval(self.value, max(self.value - half, -self.most), min(self.value + half, self.most))

    def p(self, null: float = 0.0) -> float:
        """The two-sided p-value of the hypothesis that the true value is `null`."""
        return min(1.0, 2 * min(self.p_above(null), self.p_below(null)))

    def p_above(self, bound: float) -> float:
        """The p-value of the hypothesis that the true value is at most `bound`: small if it is surely above."""
        return _tail((self.value - bound), self.error, self.freedom)

    def p_below(self, bound: float) -> float:
        """The p-value of the hypothesis that the true value is at least `bound`: small if it is surely below."""
        return _tail((bound - self.value), self.error, self.freedom)

    def p_within(self, margin: float) -> float:
        """The p-value of two one-sided tests (Schuirmann, 1987): small if the true value is within ± `margin`."""
        return max(self.p_above(-margin), self.p_below(margin))


class Difference(NamedTuple):
    """By how much one mean exceeds another, the ends of its 95% interval, and the two-sided p of no difference.

    exact: whether p is McNemar's exact one, else Student's. items: the share of the error's square that more seeds
    would not lessen. by_seed: whether it was taken seed by seed, not of the means alone. most: as of Statistic; 1 for
    two shares.
    """

    value: float
    low: float
    high: float
    p: float
    error: float
    freedom: float
    items: float
    exact: bool = False
    by_seed: bool = False
    most: float = math.inf

    @property
    def statistic(self) -> Statistic:
        return Statistic(self.value, self.error, self.freedom, self.most)

    def chosen(self, rivals: int) -> Difference:
        """That of means of which one or both were picked of up to `rivals` by the luck of the same seeds (`luck`).

        The error is taken as larger on both sides, so that all that is made of it pays for the choice.
        """
        times = luck(rivals, (1 - self.items) / 2)
        if times == 1:
            return self
        statistic = self.statistic._replace(error=self.error * times)
        _, low, high = statistic.interval()
        items = self.items / times**2
        return self._replace(low=low, high=high, p=statistic.p(), error=statistic.error, items=items)

    @property
    def turned(self) -> Difference:
        """That of the other mean less the one."""
        return self._replace(value=-self.value, low=-self.high, high=-self.low)


def quantile(level: float, freedom: float) -> float:
    """The quantile of Student's t, with `freedom` of at least 1; of the normal distribution where it is infinite."""
    return float(special.ndtri(level) if math.isinf(freedom) else special.stdtrit(max(freedom, 1.0), level))


def _tail(distance: float, error: float, freedom: float) -> float:
    if error == 0:
        return float(distance <= 0)
    ratio = -distance / error
    return float(special.ndtr(ratio) if math.isinf(freedom) else special.stdtr(max(freedom, 1.0), ratio))


def preference(wins: int, ties: int, losses: int, seed: int = 0, draws: int = 4_000) -> Interval:
    """The share of at least one comparison that was won, a tie counting half, and its 95% interval.

    By random shares of the three outcomes, with half of each added to what was counted: Jeffreys' interval, where there
    are no ties nearly that of a proportion.
    """
    value = (wins + ties / 2) / (wins + ties + losses)
    shares = np.random.default_rng(seed).dirichlet(np.array([wins, ties, losses]) + 0.5, draws)
    low, high = np.quantile(shares @ [1.0, 0.5, 0.0], TAILS)
    return Interval(value, min(float(low), value), max(float(high), value))


def seeds_interval(values: Sequence[float]) -> Interval | None:
    """The mean of one number a seed and its 95% interval by Student's t; None for fewer than two seeds."""
    return summary_interval(values, [0.0] * len(values)) if len(values) > 1 else None


def summary_interval(values: Sequence[float], stderrs: Sequence[float | None], n: int | None = None) -> Interval | None:
    """The mean of scores, one a seed, of which the items are not at hand, and its 95% interval.

    stderrs: the scores' standard errors over items; of one seed without any None is returned, unless n is known. The
    variance is that of the seeds' means plus the items', which all seeds share. Without items the rest (what differs by
    seed and item) can't be told from them and is counted twice.

    n: of scores that are shares, how many independent items or groups of items they are of. The interval is then
    `share_interval`. A share whose error is unknown is taken as one of right and wrong answers.
    """
    value = float(np.mean(values))
    if n is not None:
        stderrs = [(value * (1 - value) / n) ** 0.5 if error is None else error for error in stderrs]
    if len(values) == 1 and stderrs[0] is None:
        return None
    over_items = float(np.mean([(error or 0.0) ** 2 for error in stderrs]))
    over_seeds = float(np.var(values, ddof=1)) / len(values) if len(values) > 1 else 0.0
    level = Level(over_seeds, 0.0, len(values) - 1.0 if over_seeds else math.inf)
    variance, freedom = (float(part) for part in combined_known(level, over_items, math.inf))
    if n is not None:
        return share_interval(value, variance, freedom, n)
    return Statistic(value, variance**0.5, freedom).interval()


def share_interval(value: float, variance: float, freedom: float, n: float) -> Interval:
    """The 95% interval of a proportion of this variance with these degrees of freedom.

    Jeffreys' interval (Brown, Cai & DasGupta, Stat. Sci. 16, 2001) with as many items as would have that variance if
    they were independent (Korn & Graubard, Surv. Methodol. 24, 1998); so none right of 57 is not known to be 0. n:
    independent items or groups of items, which count where the variance is 0.
    """
    worth = n
    if variance > 0:
        worth = value * (1 - value) / variance * (quantile(TAILS[1], math.inf) / quantile(TAILS[1], freedom)) ** 2
    low, high = special.betaincinv(worth * value + 0.5, worth * (1 - value) + 0.5, TAILS)
    return Interval(value, min(float(low), value), max(float(high), value))
