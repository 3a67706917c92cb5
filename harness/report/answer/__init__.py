"""What a study answers: in each place which method to take, or which tie, and what would decide the rest.

    answer(records, folder).sentences

`table`, `report`, `view`, the end of a sweep and the Python API all take it from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.record import Record
from harness.report.answer.advice import ahead, headline
from harness.report.answer.compared import ComparedMethods
from harness.report.answer.contaminated import cautions
from harness.report.answer.limits import Limits
from harness.report.answer.next_run import with_seeds
from harness.report.answer.place import PlaceAnswer, place_prefix, unequal_training, unfinished, unscored
from harness.report.answer.published import experiment_choices, experiment_contests, published_ahead, published_answer
from harness.report.answer.rank_ties import rank_sentences
from harness.report.pairwise import Contest, contests
from harness.report.planned import PlanState, study_plan
from harness.report.reruns import Reruns, only_published, reruns
from harness.report.select import Choice, Place
from harness.report.tables.rows import Row, Rows, group

LEADING = 2  # sentences of the decision that stand first
BEYOND = "neither seeds nor items within reach are enough; let costs decide"


def answer(records: Sequence[Record], folder: Path | None) -> StudyAnswer:
    """What `records`, of one study, answer. folder: of the study, where the items lie and its commands are noted; None:
    intervals cover less, nothing is tested and no command is known."""
    return StudyAnswer(group(records), folder)


@dataclass(frozen=True)
class StudyAnswer:
    """The answer of a study, each part of which is computed once, when it is first read."""

    rows: Rows
    folder: Path | None

    @cached_property
    def untuned(self) -> bool:
        """Whether no cell trains: there are models as they are, and no methods to compare."""
        return all(record.cell.seed is None for record in self.rows.records)

    @cached_property
    def reruns(self) -> Reruns | None:
        """The experiments, where others published a score of each and nothing to choose settings by."""
        return reruns(self.rows.records) if only_published(self.rows.records) else None

    @cached_property
    def choices(self) -> list[Choice]:
        """What is compared: the chosen setting of each method, or each of its settings if none could be chosen.

        By place; best first where there are too many in one place to find one's way by their names.
        """
        choices = self._choices
        places = list(dict.fromkeys(choice.place for choice in choices))
        of_many = [contest for place in places if (contest := headline(self.contests, place)) and contest.many]
        if not of_many:
            return choices
        ranks = {(c.place, s.choice.label): rank for c in of_many for rank, s in enumerate(c.standings)}
        return sorted(choices, key=lambda c: (places.index(c.place), ranks.get((c.place, c.label), len(choices))))

    @cached_property
    def _choices(self) -> list[Choice]:
        """`choices` in the order of the rows."""
        if self.reruns:
            return experiment_choices(self.rows, self.reruns)
        return [each for choice in self.rows.choices for each in choice.experiments or [choice]]

    @cached_property
    def contests(self) -> list[Contest]:
        """A contest for each place and score between `choices`."""
        if self.reruns:
            return experiment_contests(self.rows.records, self._choices, self.reruns)
        return contests(self.rows.records, self.folder, self._choices)

    @cached_property
    def settled(self) -> list[Row | None]:
        """The row of each of `choices`; None where nothing could be chosen."""
        row_of = [row for row in self.rows for _ in row.records]
        return [row_of[choice.index[0]] if choice.index else None for choice in self.choices]

    @cached_property
    def plan(self) -> PlanState:
        """Whether what is compared was planned, and whether the plan is finished."""
        records = self.rows.records
        return study_plan(records, self.folder).state(records[i] for choice in self.choices for i in choice.index)

    @cached_property
    def places(self) -> dict[Place, PlaceAnswer]:
        """The answer of each place."""
        return {place: self._place(place) for place in dict.fromkeys(choice.place for choice in self.choices)}

    def _place(self, place: Place) -> PlaceAnswer:
        if self.reruns:
            return published_answer(self.choices, self.contests, self.reruns)
        contest = headline(self.contests, place)
        choices = [choice for choice in self.choices if choice.place == place]
        labelled = zip(self.choices, self.settled, strict=True)
        rows = {choice.label: row for choice, row in labelled if choice.place == place and row}
        limits = Limits(rows, self.rows, [each for each in self.contests if each.place == place])
        tests = sum(len(each.differences) for each in self.contests if each.primary)
        if contest is None:
            place_answer = PlaceAnswer((), tuple(unscored(rows, limits)))
        else:
            places = len({each.place for each in self.contests if each.differences})
            place_answer = ComparedMethods(contest, limits, tests, max(1, places)).answer()
        records = [r for r in self.rows.records if (r.study, r.cell.model, r.cell.data) == place]
        return place_answer.noting([*unequal_training(rows), *unfinished(choices, records)])

    @cached_property
    def sentences(self) -> list[str]:
        """A line for each place, the decision first, then what would decide what they leave open, if anything; none if
        nothing was tuned. Before all a caution, if the plan is not finished or test items were trained on."""
        if self.untuned:
            return []
        return [*(" ".join(filter(None, line)) for line in self.decisions), *self.advice]

    @cached_property
    def decisions(self) -> list[tuple[str, str]]:
        """The cautions, and for each place the decision in at most two sentences and what else is said of it."""
        if self.untuned:
            return []
        places = list(self.places)
        lines = [(place_prefix(place, places), each.sentences) for place, each in self.places.items()]
        said = [
            (" ".join([*prefix, *sentences[:LEADING]]), " ".join(sentences[LEADING:]))
            for prefix, sentences in lines
            if sentences
        ]
        interim = self.plan.interim if said else []
        return [*((caution, "") for caution in [*interim, *cautions(self.rows.records)]), *said]

    @cached_property
    def advice(self) -> list[str]:
        """Which ranks tie in each place, and what would decide what is left open; first of all that is the plan."""
        if self.untuned:
            return []
        return [*self.ranks, *(() if self.plan.interim else self._advice())]

    @cached_property
    def ranks(self) -> list[str]:
        """What is known of the ranks of each place's methods, a line each."""
        places = list(self.places)
        lines = [(place, rank_sentences(self.rows.records, self.folder, place)) for place in places if not self.reruns]
        return [" ".join([*place_prefix(place, places), sentences]) for place, sentences in lines if sentences]

    def _advice(self) -> Iterator[str]:
        """What would decide: more items where they are the remedy, then the least number of seeds.

        With the command that runs these, where the study notes the commands that made it.
        """
        places = list(self.places)
        doubts = [(place_prefix(place, places), each.doubt) for place, each in self.places.items() if each.doubt]
        if len({doubt for _, doubt in doubts}) == 1:
            doubts = [([], doubts[0][1])]
        aims = {
            id(doubt): doubt.aim + "".join(f" in {name.rstrip(':')}" for name in prefix) for prefix, doubt in doubts
        }
        for _, doubt in doubts:
            if doubt.seeds is None:
                yield f"To {aims[id(doubt)]}, {doubt.remedy or BEYOND}."
        decidable = [(doubt.seeds, aims[id(doubt)]) for _, doubt in doubts if doubt.seeds]
        if decidable:
            seeds, aim = min(decidable)
            records = [record for row in self.settled if row for record in row.records]
            count, command = with_seeds(records, self.folder, seeds)
            yield f"To {aim}, run about {count} seeds: {command}."

    @cached_property
    def standings(self) -> list[str]:
        """How the methods stand by each score, a line each."""
        several = len(self.places) > 1
        return [
            published_ahead(contest, self.reruns)
            if self.reruns and contest.score == self.reruns.score
            else ahead(contest, several)
            for contest in self.contests
        ]
