"""The decision on one place whose methods are compared by a score: which method to take, or which tie and what then.

The decision names no maximum: what scored highest by luck changes with the seeds. A method is taken if it is told from
all others, as the letters say (`statistics.stepwise`). Otherwise methods that are not told from the best one tie, and
costs decide between them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from harness import units
from harness.report.answer.advice import few
from harness.report.answer.limits import Advantage, Limits, as_sentence
from harness.report.answer.needed import ItemSupply, item_supply, seeds_needed, times_as_many_items
from harness.report.answer.place import Decision, Doubt, PlaceAnswer, by_cost, sentence
from harness.report.answer.words import ScoreWords
from harness.report.frame import TRAIN_MEMORY
from harness.report.pairwise import MARGIN, Contest, Standing
from harness.report.statistics import ALPHA, Difference, Interval, Statistic
from harness.report.statistics.ranges import range_quantile

FEW_SEEDS = 3  # what a study of one seed is repeated with


@dataclass(frozen=True)
class ComparedMethods:
    """What the contest of one place says of its tuned methods.

    limits: of the place, with its rows. tests: differences that are tested in the whole report. places: of the report,
    in which methods are compared.
    """

    contest: Contest
    limits: Limits
    tests: int
    places: int = 1

    def answer(self) -> PlaceAnswer:
        if not self._trained:
            untuned = f"No tuned model is scored on {self._words.task}. {self._highest(self.contest.standings)}."
            place_answer = PlaceAnswer((), (untuned,))
        elif len(self._trained) > 1 and (end := self._end):
            place_answer = self._at_end(*end)
        elif not self._tested:
            place_answer = self._untested()
        elif not self._others:
            place_answer = self._alone()
        elif self._first in self.contest.one_seed:
            place_answer = self._single_runs()
        else:
            place_answer = self._at_one_rate(self._methods())
        return place_answer.noting([*self._unjudged()])

    @cached_property
    def _words(self) -> ScoreWords:
        return ScoreWords(self.contest)

    # The methods, by how they stand against the best tuned one

    @cached_property
    def _trained(self) -> list[Standing]:
        rows = self.limits.place_rows
        return [s for s in self.contest.standings if rows[s.choice.label].records[0].cell.seed is not None]

    @cached_property
    def _paired(self) -> list[str]:
        """The models that answered the same items, of the items that most tuned ones answered."""
        trained = {s.choice.label for s in self._trained}
        return max(self.contest.paired, key=lambda labels: len(trained & {*labels}), default=[])

    @cached_property
    def _tested(self) -> list[Standing]:
        return [s for s in self._trained if s.letters is not None and s.choice.label in self._paired]

    @cached_property
    def _judged(self) -> list[Standing]:
        """Those of several seeds, where there are any: only they stand for methods."""
        return [s for s in self._tested if s.choice.label not in self.contest.one_seed] or self._tested

    @cached_property
    def _first(self) -> str:
        return self._judged[0].choice.label

    @cached_property
    def _others(self) -> list[str]:
        return [s.choice.label for s in self._judged[1:]]

    @cached_property
    def _base(self) -> str | None:
        """The best untuned model, if the tuned ones are tested against it."""
        trained = {s.choice.label for s in self._trained}
        return next((label for label in self._paired if label not in trained), None)

    @cached_property
    def _elsewhere(self) -> list[str]:
        """The models that answered other items than those that are tested; untuned ones if none answered the same."""
        if not self._tested:
            return []
        untuned = [] if self._base else [s for s in self.contest.standings if s not in self._trained]
        return self._labels([*(s for s in self._trained if s not in self._tested), *untuned])

    @cached_property
    def _unscored(self) -> list[str]:
        """The methods of which not every seed has the score."""
        scored = {s.choice.label for s in self.contest.standings}
        rows = self.limits.place_rows.items()
        return [label for label, row in rows if label not in scored and row.records[0].cell.seed is not None]

    @cached_property
    def _among(self) -> str:
        """Which methods a decision is about, where it is not about all: what its sentence begins with."""
        if self._elsewhere or self._unscored:
            return "Of the methods that are compared, "
        return "Of the methods with several seeds, " if self._judged != self._tested else ""

    @cached_property
    def _near(self) -> list[str]:
        """Equivalent ones, even if they are surely a little worse. The tests of that are against the best of all."""
        if self.contest.standings[0].choice.label != self._first:
            return []
        return [label for label in self.contest.equivalent if label in self._others]

    @cached_property
    def _leads(self) -> bool:
        """Whether the best one is told from each of the others, and none is equivalent to it."""
        return not self._near and all(self._better(self._first, other) for other in self._others)

    @cached_property
    def _worse(self) -> list[str]:
        if self._leads:
            return self._others
        return [label for label in self._others if self._better(self._first, label) and label not in self._near]

    @cached_property
    def _tied(self) -> list[Standing]:
        """Those that are not told from the best one, or equivalent to it; the cheapest first."""
        return self._cheapest_first([s for s in self._judged if s.choice.label not in self._worse])

    def _cheapest_first(self, standings: Sequence[Standing]) -> list[Standing]:
        by_label = {standing.choice.label: standing for standing in standings}
        rows = self.limits.place_rows
        return [by_label[label] for label in by_cost({label: rows[label].mean(TRAIN_MEMORY) for label in by_label})]

    # Answers

    def _alone(self) -> PlaceAnswer:
        """Of the one method that is tested."""
        single = "A single run: " if self._first in self.contest.one_seed else ""
        scored = f"{single}{self._scored(self._judged[0])}"
        notes = []
        if base := self._base:
            if self._better(self._first, base):
                gained = f"{self._words.amount(self._ahead(self._first, base).interval())} better than {base}"
                scored = f"{scored}, {gained}" if not single else scored
                notes = [f"On these items {base} scored significantly {self._words.lower}."] if single else []
            else:
                notes = [sentence([self._no_gain(base, "It is not")])]
        decision = Decision(tied=(self._first,))
        return PlaceAnswer((self._judged[0],), (f"{scored}.", *notes), None, decision)

    def _untested(self) -> PlaceAnswer:
        if len(self._trained) == 1:
            missing = "Answers to single items are missing or too few, so no difference is tested."
            notes = (missing,) if len(self.contest.standings) > 1 else ()
            return PlaceAnswer((self._trained[0],), (f"{self._scored(self._trained[0])}.", *notes))
        methods = self._cheapest_first(self._trained)
        lines = [
            "No method is recommended: answers to single items are missing or too few to test a difference.",
            f"{self._named(methods)} scored {self._words.range(methods)} on {self._words.task}.",
        ]
        advantages = self.limits.told(self._labels(self._trained))
        return PlaceAnswer(
            tuple(methods),
            (*lines, *([as_sentence(advantages)] if advantages else [])),
            None,
            Decision(under=_by_limit(advantages)),
        )

    def _at_end(self, end: str, text: str) -> PlaceAnswer:
        """Of scores that are all at an end of their range."""
        advantages = self.limits.told(self._labels(self._trained))
        kind = "easier" if end == "floor" else "harder"
        which = "all that are compared" if self._elsewhere or self._unscored else "all models"
        lines = [f"No method is recommended: {which} are at the {end} of {self._words.task} ({text})."]
        remedy = f"use {kind} items, or more of them: {self._test.more}; seeds will not help"
        doubt = Doubt("compare methods", None, remedy)
        decision = Decision(under=_by_limit(advantages))
        lines += [as_sentence(advantages)] if advantages else []
        return PlaceAnswer(tuple(self._cheapest_first(self._trained)), tuple(lines), doubt, decision)

    def _single_runs(self) -> PlaceAnswer:
        """Of methods with one seed each: what is true of these trained models alone."""
        lines = ["No method is recommended: one seed compares trained models, not methods."]
        tied = self._tied
        worse = self._cheapest_first([s for s in self._judged if s.choice.label in self._worse])
        clauses = [f"of these models {self._named(tied)} {self._tie(tied)}"]
        if len(tied) == 1:
            significantly = f"scored significantly {self._words.higher} than the others"
            clauses = [f"of these models {self._named(tied)} {significantly} on {self._words.task}"]
        elif worse:
            clauses.append(f"{self._named(worse)} scored significantly {self._words.lower} than {self._first}")
        if base := self._base:
            better = [s.choice.label for s in tied if self._better(s.choice.label, base)]
            if len(better) < len(tied):
                clauses.append(self._no_gain(base, "none is" if not better else f"only {few(better)} {_is(better)}"))
        lines.append(f"{clauses[0][0].upper()}{'; '.join(clauses)[1:]}.")
        advantages = self.limits.told(self._labels(self._trained))
        lines += [as_sentence(advantages)] if advantages else []
        doubt = Doubt("compare methods", FEW_SEEDS)
        return PlaceAnswer(tuple(tied), tuple(lines), doubt, Decision(under=_by_limit(advantages)))

    def _methods(self) -> PlaceAnswer:
        """Of methods with several seeds."""
        tied, base = self._tied, self._base
        labels = self._labels(tied)
        judged = self._labels(self._judged)
        if base and all(self._better(base, label) for label in judged):
            least = self._at_least([(base, label) for label in judged])
            take = f"{self._among}take" if self._among else "Take"
            every = "all of them" if self._among else "every method"
            line = f"{take} {base}, untuned: {least}better than {every} on {self._words.task}."
            return PlaceAnswer(tuple(tied), (line,), self._doubt_of_others, Decision(take=base))
        gained = self._gained(labels)
        if len(tied) == 1 and (gained or not base):
            return self._take(tied[0])
        advantages = self.limits.told(labels, forgetting=True)
        above_base = not base or bool(gained)
        tie = f"{self._named(tied)} {self._tie(tied, above_base)}"
        if len(tied) == 1:
            tie = (
                f"{labels[0]} is {self._at_least([(labels[0], other) for other in self._others])}better than the others"
            )
        if not above_base:
            none = f"{self._among}none" if self._among else "No method"
            tie = f"{none} is shown to be better than {base} on {self._words.task}; {tie}"
        lines = [f"{tie}.", *([as_sentence(advantages, "Of these, ")] if advantages else [])]
        clauses = [*self._apart(labels), *self._gains(labels, gained), *self._losing(labels)]
        lines += [sentence(clauses)] if clauses else []
        of_all = [*labels, base] if base and len(tied) == 1 else labels  # one that no test tells from the untuned model
        decision = Decision(tied=tuple(sorted(of_all)), under=_by_limit(advantages))
        return PlaceAnswer(tuple(tied), tuple(lines), self._doubt(), decision)

    def _at_one_rate(self, place_answer: PlaceAnswer) -> PlaceAnswer:
        """With the condition that some methods had one learning rate, as the best ones of methods lie far apart."""
        single = [s.choice.label for s in self._judged if s.choice.rates == 1]
        if not single:
            return place_answer
        first, *rest = place_answer.sentences
        whose = "each method" if len(single) == len(self._judged) else few(sorted(single))
        word, _, end = first.partition(" ")
        word = word.lower() if word in ("Take", "No", "Of") else word  # else it names a method
        return replace(place_answer, sentences=(f"At the one learning rate tried of {whose}, {word} {end}", *rest))

    def _gained(self, labels: Sequence[str]) -> list[str]:
        """Those of `labels` that are better than the untuned model."""
        base = self._base
        return [] if base is None else [label for label in labels if self._better(label, base)]

    def _take(self, best: Standing) -> PlaceAnswer:
        """Of a method that is told from all others."""
        label = best.choice.label
        rest = [*self._others, *([self._base] if self._base else [])]
        least = self._at_least([(label, other) for other in rest])
        take = f"{self._among}take" if self._among else "Take"
        line = f"{take} {best.choice.described}: {least}better than the rest on {self._words.task}."
        memory = self.limits.place_rows[label].mean(TRAIN_MEMORY)
        score = f"It scores {self._words.value(best)}" + (f" at {units.size(memory)}." if memory else ".")
        clauses = [*self._losing([label])]
        lines = (line, score, *([sentence(clauses)] if clauses else []))
        return PlaceAnswer((best,), lines, self._doubt_of_others, Decision(take=label))

    # Clauses

    def _apart(self, labels: Sequence[str]) -> Iterator[str]:
        """How far apart methods that tie may be."""
        if len(labels) < 2 or self._within(labels):
            return
        pairs = itertools.combinations(labels, 2)
        ends = [end for pair in pairs if (gap := self._interval(*pair)) for end in (gap.high, -gap.low)]
        yield f"differences of up to {self._words.points(max(ends), math.ceil)} between them are possible"

    def _gains(self, labels: Sequence[str], gained: Sequence[str]) -> Iterator[str]:
        """Against the untuned model."""
        base = self._base
        if not base or not gained:
            return
        if len(gained) < len(labels):
            yield f"only {few(gained)} {_is(gained)} shown to be better than {base}"
        elif least := self._at_least([(label, base) for label in labels]):
            yield f"each is {least}better than {base}"

    def _losing(self, labels: Sequence[str]) -> Iterator[str]:
        """The methods that are worse: one that saves memory even over the cheapest of `labels` with its loss.

        Only against the best method is a loss tested, which need not be the cheapest.
        """
        worse = self._labels(self._cheapest_first([s for s in self._judged if s.choice.label in self._worse]))
        if worse and (saving := self.limits.saving(worse[0], labels[0])):
            cheap, gap = worse[0], self._interval(self._first, worse[0])
            loses = self._words.amount(gap) if gap else "score"
            than = "" if labels[0] == self._first else f" against {self._first}"
            yield f"{cheap} saves {saving:.0%} of the memory of {labels[0]} and loses {loses}{than}"
            worse = worse[1:]
        if worse and len(labels) > 1:
            yield f"significantly worse than {self._first}: {few(worse)}"

    def _unjudged(self) -> Iterator[str]:
        if self._tested and (single := [s.choice.label for s in self._tested if s not in self._judged]):
            yield f"not judged, as of one seed: {few(sorted(single))}"
        if self._elsewhere:
            yield f"not compared, as items are missing or differ: {few(sorted(self._elsewhere))}{self._which_lead}"
        if self._unscored and self._trained:
            yield f"no score on {self._words.task} with every seed: {few(sorted(self._unscored))}"

    @property
    def _which_lead(self) -> str:
        """Those of `_elsewhere` that scored better, on their items, than the best one that is compared."""
        ahead = itertools.takewhile(lambda s: s.choice.label != self._first, self.contest.standings)
        better = [s.choice.label for s in ahead if s.choice.label in self._elsewhere]
        if not better:
            return ""
        if len(better) == len(self._elsewhere):
            return f", which scored {self._words.higher}"
        return f" ({few(better)} scored {self._words.higher})"

    def _no_gain(self, base: str, subject: str) -> str:
        if self._better(base, self._first):
            return f"untuned, {base} is significantly better"
        return f"{subject} shown to be better than {base}"

    # What would decide

    @cached_property
    def _doubt_of_others(self) -> Doubt | None:
        """What would compare methods of one seed with those of several."""
        return Doubt("compare all methods", FEW_SEEDS) if self._judged != self._tested else None

    def _doubt(self) -> Doubt | None:
        """What tells apart the pair that takes least: seeds, or items where these take less."""
        first = self._first
        others = [s.choice.label for s in self._tied if s.choice.label not in (first, *self._near)]
        gaps = {label: gap for label in others if (gap := self._gap(first, label))}
        if not others:
            return None
        critical, spread = self._critical, self.contest.seed_spread or 0.0
        runs = {label: len(self.limits.place_rows[label].records) for label in (first, *gaps)}
        fewer = {label: min(runs[first], runs[label]) for label in gaps}
        seeds = {label: n for label, gap in gaps.items() if (n := seeds_needed(gap, fewer[label], critical))}
        stays = {label: spread**2 * (1 / runs[first] + 1 / runs[label]) for label in gaps}
        times = {label: t for label, gap in gaps.items() if (t := times_as_many_items(gap, stays[label], critical))}
        if not self._test.extensible and seeds:
            times = {}
        if times and min(times.values()) <= min((n / runs[label] for label, n in seeds.items()), default=math.inf):
            label = min(times, key=times.__getitem__)
            count = units.significant(times[label] * self._test.items, 2)
            return Doubt(f"tell {label} from {first}", None, f"use about {count} items: {self._test.more}")
        if seeds:
            label = min(seeds, key=seeds.__getitem__)
            return Doubt(f"tell {label} from {first}", seeds[label])
        return Doubt(f"tell {few(sorted(others))} from {first}", None)

    def _critical(self, freedom: float) -> float:
        """The standard errors by which the best one must lead to be told from one that ties, among all that tie."""
        return range_quantile(ALPHA / self.places, freedom, len(self._tied))

    @cached_property
    def _test(self) -> ItemSupply:
        rows = self.limits.place_rows
        first = (self._tested or self._trained)[0]
        return item_supply(rows[first.choice.label].measured[0], self.contest.score)

    @property
    def _end(self) -> tuple[str, str] | None:
        """`ItemSupply.end` of all models, or of those that answered the same items."""
        standings = self.contest.standings
        if self._tested:
            standings = [s for s in standings if s.choice.label in self._paired]
        return self._test.end([s.value for s in standings]) if self._words.shares else None

    # Numbers

    def _gap(self, one: str, other: str) -> Difference | None:
        """By how much `one` is better than `other`; None if they are not paired."""
        pair = (one, other) if self.contest.higher_is_better else (other, one)
        return self.contest.difference(*pair)

    def _ahead(self, one: str, other: str) -> Statistic:
        """`_gap` of a pair that is paired."""
        pair = (one, other) if self.contest.higher_is_better else (other, one)
        return self.contest.gap(*pair).statistic

    def _interval(self, one: str, other: str) -> Interval | None:
        """That of `_gap`. Where all of several must hold, as the least of their ends, each holds alone."""
        gap = self._gap(one, other)
        return gap.statistic.interval(ALPHA / self.places) if gap else None

    def _at_least(self, pairs: Sequence[tuple[str, str]]) -> str:
        """Such as "at least 5 points ", of the first of each pair over the other; empty if less than is shown."""
        ends = [interval.low for pair in pairs if (interval := self._interval(*pair))]
        return self._words.at_least(min(ends, default=0.0))

    def _better(self, one: str, other: str) -> bool:
        return self._p(one, other) < ALPHA and self._ahead(one, other).value > 0

    def _p(self, one: str, other: str) -> float:
        """Corrected with all of the report: by the contest, or of a pair that it does not test by Bonferroni."""
        tested = self.contest.corrected
        for pair in ((one, other), (other, one)):
            if pair in tested:
                return tested[pair]
        gap = self._gap(one, other)
        return min(1.0, gap.p * self.tests) if gap else 1.0

    def _within(self, labels: Sequence[str]) -> bool:
        return all(label in self._near for label in labels if label != self._first)

    # Words

    def _tie(self, standings: Sequence[Standing], on_task: bool = True) -> str:
        """Such as "tie on gsm8k (61 to 64%)". on_task: whether the task is named."""
        within = f" within {self._words.points(MARGIN)}" if self._within(self._labels(standings)) else ""
        task = f" on {self._words.task}" if on_task else ""
        return f"tie{within}{task} ({self._words.range(standings)})"

    def _named(self, standings: Sequence[Standing]) -> str:
        return few(self._labels(standings))

    def _labels(self, standings: Sequence[Standing]) -> list[str]:
        return [standing.choice.label for standing in standings]

    def _highest(self, standings: Sequence[Standing]) -> str:
        """The best of untuned models, which no seed changes; or all of them, if none is better than another."""
        first = standings[0]
        if first.value == standings[-1].value and len(standings) > 1:
            return f"{units.listed(self._labels(standings))} scored the same: {self._on_task(first)}"
        return self._scored(first, f"scored {self._words.highest}" if len(standings) > 1 else "")

    def _scored(self, standing: Standing, verb: str = "") -> str:
        """Such as "lora r=16 lr=1e-3: 49% (34–64) on gsm8k at 1.35 GiB". verb: such as "scored highest"."""
        name = " ".join(filter(None, (standing.choice.described, verb)))
        memory = self.limits.place_rows[standing.choice.label].mean(TRAIN_MEMORY)
        return f"{name}: {self._on_task(standing)}" + (f" at {units.size(memory)}" if memory else "")

    def _on_task(self, standing: Standing) -> str:
        return f"{self._words.value(standing)} on {self._words.task}"


def _by_limit(advantages: Sequence[Advantage]) -> dict[str, str]:
    return {each.limit: each.label for each in advantages}


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
