"""The sentences on one place whose methods are compared by a score: which method to take, and what the others cost.

A method is recommended only if no other can be better by more than CLOSE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from scipy import special

from harness import units
from harness.report.answer.advice import few
from harness.report.answer.place import Doubt, PlaceAnswer
from harness.report.frame import TRAIN_MEMORY
from harness.report.pairwise import MARGIN, Contest, Standing
from harness.report.statistics import ALPHA, Interval, Statistic
from harness.report.tables.rows import Row

CLOSE = 0.05  # of a score from 0 to 1
WIDE = 0.1  # a bound beyond this, of such a score, says nothing that one could act on
FEW_SEEDS = 3  # what a study of one seed is repeated with
MOST_SEEDS = 100
POWERED = float(special.ndtri(1 - ALPHA / 2) + special.ndtri(0.8))  # standard errors that 80% of studies find
SAME_MEMORY = 0.02  # ratios of memory that are closer to 1 than this are not worth a word


@dataclass(frozen=True)
class ComparedMethods:
    """What the contest of one place says of its tuned methods.

    rows: the chosen row of each method. tests: differences that are tested in the whole report.
    """

    contest: Contest
    rows: Mapping[str, Row]
    tests: int

    def answer(self) -> PlaceAnswer:
        return PlaceAnswer(tuple(self._best()), tuple(self._sentences()), self._doubt())

    def _best(self) -> Iterator[Standing]:
        """The tuned method that the sentences put first, and those that are not told apart from it."""
        if not self._tested:
            yield from (s for s in self._trained if s.value == self._trained[0].value)
            return
        yield self._tested[0]
        yield from (s for s in self._tested[1:] if self._p(s.choice.label) >= ALPHA)

    def _sentences(self) -> Iterator[str]:
        if not self._trained:
            yield f"No tuned model is scored. {self._highest(self.contest.standings)}."
        elif not self._tested:
            yield f"{self._highest(self._trained)}."
            if len(self.contest.standings) > 1:
                yield "Answers to single items are missing or too few, so no difference is tested."
        else:
            yield from self._single_runs() if self._first in self.contest.one_seed else self._methods()
            if apart := [s.choice.label for s in self._trained if s not in self._tested]:
                yield f"Not compared, as items are missing or differ: {few(apart)}."

    def _doubt(self) -> Doubt | None:
        if not self._others:
            return None
        if self._first in self.contest.one_seed:
            return Doubt("one seed is not enough to choose between methods", FEW_SEEDS)
        if not (left := [*self._open, *self._single]):
            return None
        text = f"undecided: {self._first} against {few(left)}"
        needed = {label: n for label in left if (n := self._seeds_needed(label)) is not None}
        if not needed:
            return Doubt(text, None)
        easiest = min(needed, key=needed.__getitem__)
        return Doubt(text, needed[easiest], easiest)

    # The methods, by how they stand against the best tuned one

    @cached_property
    def _trained(self) -> list[Standing]:
        return [s for s in self.contest.standings if self.rows[s.choice.label].records[0].cell.seed is not None]

    @cached_property
    def _paired(self) -> list[str]:
        """The models that answered the same items, of the items that most tuned ones answered."""
        trained = {s.choice.label for s in self._trained}
        return max(self.contest.paired, key=lambda labels: len(trained & {*labels}), default=[])

    @cached_property
    def _tested(self) -> list[Standing]:
        return [s for s in self._trained if s.letters is not None and s.choice.label in self._paired]

    @cached_property
    def _first(self) -> str:
        return self._tested[0].choice.label

    @cached_property
    def _others(self) -> list[str]:
        return [s.choice.label for s in self._tested[1:]]

    @cached_property
    def _base(self) -> str | None:
        """The best untuned model, if the tuned ones are tested against it."""
        trained = {s.choice.label for s in self._trained}
        return next((label for label in self._paired if label not in trained), None)

    @cached_property
    def _single(self) -> list[str]:
        """Those of one seed, where the best one has several."""
        one_seed = self.contest.one_seed
        return [] if self._first in one_seed else [label for label in self._others if label in one_seed]

    @cached_property
    def _near(self) -> list[str]:
        """Equivalent ones, even if they are surely a little worse. The tests of that are against the best of all."""
        if self.contest.standings[0].choice.label != self._first:
            return []
        return [label for label in self.contest.equivalent if label in self._others and label not in self._single]

    @cached_property
    def _worse(self) -> list[str]:
        known = [*self._near, *self._single]
        return [label for label in self._others if self._p(label) < ALPHA and label not in known]

    @cached_property
    def _open(self) -> list[str]:
        return [label for label in self._others if label not in (*self._worse, *self._near, *self._single)]

    # Sentences

    def _methods(self) -> Iterator[str]:
        """Of methods with several seeds."""
        base = self._base
        tuning_helps = base is None or (self._p(base) < ALPHA and self._ahead(base).value > 0)
        gained = f", {self._amount(self._ahead(base))} better than {base}" if base and tuning_helps else ""
        bounds = {label: -self._together(label).low for label in self._open}
        enough = CLOSE if self._shares else 0
        certain = tuning_helps and self._others and not self._single and max(bounds.values(), default=0) <= enough
        head = f"Take {self._scored(self._tested[0])}" if certain else self._highest(self._tested)
        yield f"{head}{gained}."
        if base and not tuning_helps:
            yield self._no_gain(base)
        cheap = self._cheapest
        if cheap:
            yield f"{cheap} {self._saving(cheap)}{self._price(cheap)}."
        if near := [label for label in self._near if label != cheap]:
            yield f"Within {self._points(MARGIN)} of it: {few(near)}."
        if bounded := [label for label in self._open if self._telling(bounds[label])]:
            more = self._points(max(bounds[label] for label in bounded), math.ceil)
            is_are = "is" if len(bounded) == 1 else "are"
            yield f"{few(bounded)} {is_are} not better than {self._first} by more than {more}."
        if apart := [label for label in self._open if label not in bounded]:
            yield f"No clear difference from {self._first}: {few(apart)}."
        if worse := [label for label in self._worse if label != cheap]:
            yield f"Significantly worse: {few(worse)}."

    def _single_runs(self) -> Iterator[str]:
        """Of methods with one seed each: what is true of these trained models alone."""
        yield f"{'Of these single runs, ' if self._others else 'A single run: '}{self._highest(self._tested)}."
        lower = "lower" if self.contest.higher_is_better else "higher"
        if cheap := self._cheapest:
            gap = self._ahead(cheap).value
            yield f"{cheap} {self._saving(cheap)} and scored {f'{self._points(gap)} {lower}' if gap else 'the same'}."
        models = [*self._others, *([self._base] if self._base else [])]
        worse = [label for label in models if self._p(label) < ALPHA and self._ahead(label).value > 0]
        if worse:
            yield f"On these items {few(worse)} scored significantly {lower}."
        if self._base and self._base not in worse:
            yield self._no_gain(self._base)

    def _price(self, cheap: str) -> str:
        """What the method with the least memory loses in the score, as far as that is known."""
        if cheap in self._worse:
            return f" and loses {self._amount(self._ahead(cheap))}"
        if cheap in self._near:
            return f" and scores within {self._points(MARGIN)} of it"
        most = self._together(cheap).high
        return f" and loses at most {self._points(most, math.ceil)}" if self._telling(most) else ""

    def _no_gain(self, base: str) -> str:
        if self._p(base) < ALPHA:
            return f"Untuned, {base} is significantly better."
        return f"It is not shown to be better than {base}."

    def _telling(self, bound: float) -> bool:
        return not self._shares or bound <= WIDE

    # Numbers

    def _ahead(self, other: str) -> Statistic:
        """By how much the best tuned method is better than `other`; negative if it is worse."""
        pair = (self._first, other) if self.contest.higher_is_better else (other, self._first)
        return self.contest.gap(*pair).statistic

    def _together(self, other: str) -> Interval:
        """The interval of `_ahead` that holds together with those of all differences of the report (Bonferroni).

        Which method is the best is itself observed, so all pairs count.
        """
        return self._ahead(other).interval(ALPHA / max(1, self.tests))

    def _p(self, other: str) -> float:
        tested = self.contest.corrected
        return tested.get((self._first, other), tested.get((other, self._first), 1.0))

    def _seeds_needed(self, other: str) -> int | None:
        """Seeds that would find this difference, or show it to be within MARGIN, if it is as large as it looks."""
        gap = self._ahead(other)
        seeds = min(len(self.rows[label].records) for label in (self._first, other))
        target = max(abs(gap.value), MARGIN - abs(gap.value))
        needed = max(seeds + 1, FEW_SEEDS, math.ceil(seeds * (POWERED * gap.error / target) ** 2))
        return needed if needed <= MOST_SEEDS else None

    @cached_property
    def _cheapest(self) -> str | None:
        """The method that needs the least memory, if that is less than the best one needs."""
        ratios = self._memory_ratios
        least = min(ratios, key=ratios.__getitem__, default=None)
        return least if least and ratios[least] < 1 - SAME_MEMORY else None

    @cached_property
    def _memory_ratios(self) -> dict[str, float]:
        """The memory of other methods over that of the best one."""
        labels = [label for label in self._others if label not in self._single]
        ratios = ((label, self.rows[label].over(self.rows[self._first], TRAIN_MEMORY)) for label in labels)
        return {label: ratio for label, ratio in ratios if ratio}

    # Words

    @cached_property
    def _shares(self) -> bool:
        return self.contest.higher_is_better and all(0 <= s.value <= 1 for s in self.contest.standings)

    def _saving(self, cheap: str) -> str:
        return f"saves {1 - self._memory_ratios[cheap]:.0%} of the memory"

    def _highest(self, standings: Sequence[Standing]) -> str:
        """The best of `standings`, which are best first; or all of them, if none is better than another."""
        first = standings[0]
        if first.value == standings[-1].value and len(standings) > 1:
            return f"{few([s.choice.label for s in standings])} scored the same: {self._value(first)}"
        highest = f"scored {'highest' if self.contest.higher_is_better else 'lowest'}"
        return self._scored(first, highest if len(standings) > 1 else "")

    def _scored(self, standing: Standing, verb: str = "") -> str:
        """Such as "lora r=16 lr=1e-3: 49% (34–64) on gsm8k at 1.35 GiB". verb: such as "scored highest"."""
        name = " ".join(filter(None, (standing.choice.described, verb)))
        memory = self.rows[standing.choice.label].mean(TRAIN_MEMORY)
        return f"{name}: {self._value(standing)}" + (f" at {units.size(memory)}" if memory else "")

    def _value(self, standing: Standing) -> str:
        """Such as "49% (34–64) on gsm8k"."""
        task, metric = self.contest.score.split("/")[:2]
        values = [standing.value, *(standing.interval or ())[1:]]
        if self._shares:
            close = len(values) > 1 and values[2] - values[1] < 2 * MARGIN
            numbers, unit = [f"{100 * value:.{int(close)}f}" for value in values], "%"
        else:
            numbers, unit = [units.significant(value, 3) for value in values], f" {metric.replace('_', ' ')}"
        interval = f" ({numbers[1]}–{numbers[2]})" if len(numbers) > 1 else ""
        return f"{numbers[0]}{unit}{interval} on {task}"

    def _points(self, value: float, rounded: Callable[[float], float] = round) -> str:
        """A difference of scores. rounded: to whole points, or to tenths below one."""
        if not self._shares:
            return f"{units.significant(value, 2)} {self._unit}"
        shown = rounded(100 * value) if value >= 0.01 else rounded(1000 * value) / 10
        return f"{shown:g} point{'s' * (shown != 1)}"

    def _amount(self, gap: Statistic) -> str:
        """The 95% interval of a difference that is not 0."""
        low, high = (max(0.0, end) for end in gap.interval()[1:])
        if not self._shares:
            return f"{units.significant(low, 2)} to {units.significant(high, 2)} {self._unit}"
        digits = int(high < 2 * MARGIN)
        return f"{100 * low:.{digits}f} to {100 * high:.{digits}f} points"

    @property
    def _unit(self) -> str:
        return self.contest.score.split("/")[1].replace("_", " ")
