"""How scores of one contest and their differences are written in an answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness import units
from harness.report.pairwise import MARGIN, Contest, Standing
from harness.report.statistics import Interval
from harness.score_names import task_label


@dataclass(frozen=True)
class ScoreWords:
    """The words of one contest's score."""

    contest: Contest

    @property
    def shares(self) -> bool:
        """Whether values are shares of items, which are shown in percent and points."""
        return self.contest.proportions

    @property
    def task(self) -> str:
        return task_label(*self.contest.score.split("/")[:2])

    @property
    def lower(self) -> str:
        """What a worse score is."""
        return "lower" if self.contest.higher_is_better else "higher (worse)"

    @property
    def higher(self) -> str:
        """What a better score is."""
        return "higher" if self.contest.higher_is_better else "lower (better)"

    @property
    def highest(self) -> str:
        """What the best score is."""
        return "highest" if self.contest.higher_is_better else "lowest"

    def range(self, standings: Sequence[Standing]) -> str:
        """The lowest and the highest score, such as "64.9 to 67.5%"."""
        values = [standing.value for standing in standings]
        low, high = min(values), max(values)
        if not self.shares:
            ends = [units.significant(value, 3) for value in (low, high)]
            return f"{' to '.join(dict.fromkeys(ends))} {self._unit}"
        ends = [f"{100 * value:z.{int(round(high - low, 6) < 0.1)}f}" for value in (low, high)]
        return f"{' to '.join(dict.fromkeys(ends))}%"

    def value(self, standing: Standing) -> str:
        """Such as "49% (34–64)"."""
        values = [standing.value, *(standing.interval or ())[1:]]
        if self.shares:
            close = len(values) > 1 and values[2] - values[1] < 2 * MARGIN
            numbers, unit = [f"{100 * value:z.{int(close)}f}" for value in values], "%"
        else:
            numbers, unit = [units.significant(value, 3) for value in values], f" {self._unit}"
        interval = f" ({numbers[1]}–{numbers[2]})" if len(numbers) > 1 else ""
        return f"{numbers[0]}{unit}{interval}"

    def points(self, value: float, rounded: Callable[[float], float] = round) -> str:
        """A difference of scores. rounded: to whole points, or to tenths below one; of no shares, to two digits."""
        if not self.shares:
            digit = 10.0 ** (math.floor(math.log10(value)) - 1) if value > 0 else 1.0
            return f"{units.significant(rounded(round(value / digit, 6)) * digit, 2)} {self._unit}"
        points = rounded(100 * value) if value >= 0.01 else rounded(1000 * value) / 10
        return f"{points:g} point{'s' * (points != 1)}"

    def amount(self, gap: Interval) -> str:
        """The interval of a difference that is not 0."""
        low, high = (max(0.0, end) for end in gap[1:])
        if not self.shares:
            return f"{units.significant(low, 2)} to {units.significant(high, 2)} {self._unit}"
        digits = int(high < 2 * MARGIN)
        return f"{100 * low:z.{digits}f} to {100 * high:z.{digits}f} points"

    def at_least(self, low: float) -> str:
        """Such as "at least 5 points ", of a difference that is more than `low`; empty if that says too little."""
        return f"at least {self.points(low, math.floor)} " if low > (0.001 if self.shares else 0) else ""

    @property
    def _unit(self) -> str:
        return self.contest.score.split("/")[1].replace("_", " ")
