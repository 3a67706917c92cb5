"""What to take under a limit: of methods that no score tells apart, the one that costs least or forgets least.

One is named only if it is told from each of the others. No correction for their number is due, as every pair must
say so (Gutmann & Maymin, Ann. Stat. 15, 1987). All limits of a sentence are corrected together (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from harness import units
from harness.grouping import grouped
from harness.record import losses_by_seed
from harness.report.costs import SAME, Ratios, memory_ratio, price_ratios, speed_ratios
from harness.report.frame import TRAIN_MEMORY
from harness.report.headline import FORGOTTEN
from harness.report.pairwise import Contest
from harness.report.statistics import ALPHA, Ratio, of_losses
from harness.report.tables.entries import rate
from harness.report.tables.rows import Row, Rows
from harness.score_names import task_label

MEMORY, TIME, PRICE, FORGETTING, LOSS = LIMITS = ("memory", "time", "price", "forgetting", "loss")


@dataclass(frozen=True)
class Advantage:
    """The method to take under one limit. text: what follows its label, such as "needs the least memory (…)"."""

    limit: str
    label: str
    text: str


def as_sentence(advantages: Sequence[Advantage], among: str = "") -> str:
    """Such as "qlora needs the least memory (…) and is the fastest (…); full forgets least (…)."

    among: what it begins with where not all methods are meant, such as "Of these, ".
    """
    by_label = grouped((each.label, each.text) for each in advantages)
    clauses = [f"{label} {units.listed(texts)}" for label, texts in by_label.items()]
    single = len(clauses) == len(advantages)  # "and" joins what one method has, else methods
    return f"{among}{units.listed(clauses) if single else '; '.join(clauses)}."


@dataclass(frozen=True)
class Limits:
    """The costs of the methods of one place.

    place_rows: the chosen row of each, by label. rows: all of the study. contests: those of the place.
    """

    place_rows: dict[str, Row]
    rows: Rows
    contests: Sequence[Contest]

    def told(self, labels: Sequence[str], forgetting: bool = False, loss: bool = False) -> list[Advantage]:
        """The advantages among `labels`, of several: in memory, time and price, and in forgetting or loss if wanted."""
        if len(labels) < 2:
            return []
        advantages = [
            self._loss(labels) if loss else None,
            self._memory(labels),
            self._time(labels),
            self._price(labels),
        ]
        advantages.append(self._forgetting(labels) if forgetting else None)
        return [each for each in advantages if each]

    def saving(self, cheap: str, than: str) -> float | None:
        """The share of the memory of `than` that `cheap` saves; None if that is not told."""
        ratio = memory_ratio(self.place_rows[cheap], self.place_rows[than], self._all)
        return 1 - ratio.value if ratio and ratio.among(len(LIMITS)).high < 1 and ratio.value < 1 - SAME else None

    @property
    def _all(self) -> list[Row]:
        return [*self.place_rows.values()]

    def _memory(self, labels: Sequence[str]) -> Advantage | None:
        clause = "needs the least memory ({}; {})"
        return self._least(MEMORY, clause, labels, self._means(labels, TRAIN_MEMORY), memory_ratio, units.size)

    def _time(self, labels: Sequence[str]) -> Advantage | None:
        speeds = self._means(labels, "tokens_per_second_steady")
        clause, text = "is the fastest ({}; {})", lambda speed: f"{rate(speed)} tokens/s"
        return self._least(TIME, clause, labels, speeds, self._speed_ratios, text, highest=True)

    def _price(self, labels: Sequence[str]) -> Advantage | None:
        if self.rows.price is None:
            return None
        by_cell = {label: [self.rows.cost(record) for record in self.place_rows[label].measured] for label in labels}
        costs = {label: [cost for cost in own if cost is not None] for label, own in by_cell.items()}
        means = {label: fmean(own) if own else None for label, own in costs.items()}
        ratios = price_ratios(self.rows.records, self.rows.cost)
        return self._least(PRICE, "is the cheapest ({} a run; {})", labels, means, ratios, units.dollars)

    def _loss(self, labels: Sequence[str]) -> Advantage | None:
        clause = "has the lowest validation loss ({}; {})"
        return self._least(LOSS, clause, labels, self._means(labels, "validation_loss"), _loss_ratio, units.significant)

    def _forgetting(self, labels: Sequence[str]) -> Advantage | None:
        """By a task that nothing here trains for. A task that is not told is followed by the next one."""
        for contest in self.contests:
            if contest.score not in FORGOTTEN:
                continue
            order = [s.choice.label for s in contest.standings if s.choice.label in labels]
            gaps = [contest.difference(order[0], other) for other in order[1:]] if order else []
            if len(order) < len(labels) or not all(gaps):
                continue
            signed = [gap if contest.higher_is_better else gap.turned for gap in gaps if gap]
            if all(gap.statistic.p_above(0) < ALPHA / 2 / len(LIMITS) for gap in signed):
                return Advantage(FORGETTING, order[0], f"forgets least ({task_label(*contest.score.split('/')[:2])})")
        return None

    def _means(self, labels: Sequence[str], measure: str) -> dict[str, float | None]:
        return {label: self.place_rows[label].mean(measure) for label in labels}

    @cached_property
    def _speed_ratios(self) -> Ratios:
        return speed_ratios(self.rows.records)

    def _least(
        self,
        limit: str,
        clause: str,
        labels: Sequence[str],
        values: dict[str, float | None],
        ratios: Ratios,
        text: Callable[[float], str],
        highest: bool = False,
    ) -> Advantage | None:
        """The label whose value is told to be the least (or the highest), with its value and the next one's.

        None if both read the same: so small a difference decides nothing.
        """
        measured_values = {label: value for label, value in values.items() if value}
        if len(measured_values) < len(labels):
            return None
        first, *others = sorted(measured_values, key=measured_values.__getitem__, reverse=highest)
        for other in others:
            ratio = ratios(self.place_rows[first], self.place_rows[other], self._all)
            if ratio is None or not _apart(ratio, highest):
                return None
        best, second = (text(measured_values[label]) for label in (first, others[0]))
        if best == second:
            return None
        bound = "at most" if highest else "at least"
        rest = f"{others[0]} {second}" if len(others) == 1 else f"the others {bound} {second}"
        return Advantage(limit, first, clause.format(best, rest))


def _apart(ratio: Ratio, above: bool) -> bool:
    """Whether a ratio is told to be above 1, or below, by more than SAME as it looks."""
    ends = ratio.among(len(LIMITS))
    return ends.low > 1 and ratio.value > 1 + SAME if above else ends.high < 1 and ratio.value < 1 - SAME


def _loss_ratio(row: Row, reference: Row, others: Sequence[Row]) -> Ratio | None:
    """None without two seeds of each."""
    one, other, *field = (losses_by_seed(side.measured) for side in (row, reference, *others))
    return of_losses([one], [other], [each for each in field if each not in (one, other)])
