"""What the figures need from records, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from harness.grouping import grouped
from harness.record import Record, Score, losses_by_seed
from harness.report.answer import StudyAnswer, advice
from harness.report.figures.style import Place, place_titles
from harness.report.frame import score_name
from harness.report.headline import BASES, FORGOTTEN, LEARNED, base_of
from harness.report.pairwise import Contest, Standing, items, of_summaries, ordered_scores
from harness.report.select import Choice
from harness.report.statistics import Interval, differences, mean_intervals, seeds_interval
from harness.report.tables.rows import Row, group

BARS = 40
Estimated = tuple[float, Interval | None]
T = TypeVar("T")


def loss_unit(rows: Iterable[Row]) -> str:
    """What the losses of `rows` are in: nats per token, pair or single answer; nats where that differs."""
    units = {f"nats per {row.records[0].cell.settings.loss_term}" for row in rows}
    return units.pop() if len(units) == 1 else "nats"


class StudyResults:
    """The records of a study, with the results that several figures share."""

    def __init__(self, records: Sequence[Record], folder: Path | None):
        self.rows, self.folder = group(records), folder
        self._computed: dict[Callable[[StudyResults], Any], Any] = {}

    @cached_property
    def places(self) -> list[Place]:
        return list(dict.fromkeys(row.place for row in self.rows))

    @cached_property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(row.method for row in self.rows))

    @cached_property
    def answer(self) -> StudyAnswer:
        return StudyAnswer(self.rows, self.folder)

    @cached_property
    def contests(self) -> dict[tuple[Place, str], Contest]:
        """By place and score."""
        return {(contest.place, contest.score): contest for contest in self.answer.contests}

    @cached_property
    def labels(self) -> dict[int, str]:
        """By the id of the row, the labels of the rows that are compared."""
        labelled = zip(self.answer.choices, self.answer.settled, strict=True)
        return {id(row): choice.label for choice, row in labelled if row}

    def once(self, compute: Callable[[StudyResults], T]) -> T:
        """What `compute` returns of this study, computed once: what a figure and the page share."""
        if compute not in self._computed:
            self._computed[compute] = compute(self)
        return self._computed[compute]

    @cached_property
    def chosen(self) -> dict[int, Row]:
        """By the id of the row, the rows chosen for their methods."""
        row_of = [row for row in self.rows for _ in row.records]
        rows = [row_of[choice.index[0]] for choice in self.rows.choices if choice.index]
        return {id(row): row for row in rows}

    def loss_unit(self, *places: Place) -> str:
        """What the losses of cells in `places` are in."""
        return loss_unit(row for row in self.rows if row.place in places)

    def finished(self, place: Place) -> list[Row]:
        return [row for row in self.rows if row.place == place and row.finished]

    def shown(self, place: Place) -> list[Row]:
        """Each method's chosen row, or all of its finished rows if none could be chosen."""
        settled = {row.method for row in self.chosen.values() if row.place == place}
        return [row for row in self.finished(place) if id(row) in self.chosen or row.method not in settled]

    def alike(self, *measures: str) -> dict[str, list[Row]]:
        """By title, the finished rows that have any of `measures`, grouped by the training settings that were swept.

        Settings that cost memory or time, such as the batch size, must be equal within a group. A method is represented
        by its chosen row, or by the first row of each rank if its chosen row is in another group.
        """
        groups = {}
        for place in self.places:
            rows = [row for row in self.finished(place) if any(row.values(name) for name in measures)]
            tuned = [row for row in rows if not is_untuned(row)] or rows
            swept = _swept([(row.method, _train_settings(row)) for row in tuned])
            settings = {
                id(row): {name: of for name, of in _train_settings(row).items() if name in swept} for row in rows
            }
            for setup in sorted({tuple(sorted(settings[id(row)].items())) for row in tuned}):
                # an untuned model has fewer settings, and belongs to every group that agrees with them
                groups[place, setup] = [row for row in rows if settings[id(row)].items() <= dict(setup).items()]
        titles = place_titles([place for place, _ in groups])
        return {
            ", ".join(filter(None, [title, *(f"train.{name}={of}" for name, of in setup)])): self._one_each(rows)[:BARS]
            for title, ((_, setup), rows) in zip(titles, groups.items(), strict=True)
        }

    def _one_each(self, rows: list[Row]) -> list[Row]:
        by_method = {row.method: row for row in rows if id(row) in self.chosen}
        first = {(row.method, row.rank): row for row in reversed(rows) if row.method not in by_method}
        ids = {id(row) for row in (*by_method.values(), *first.values())}
        return [row for row in rows if id(row) in ids]

    def scores(self, place: Place) -> dict[str, Score]:
        """One score of each name, from finished rows, in the order of tables."""
        one = {score_name(s): s for row in self.finished(place) for record in row.measured for s in record.scores}
        return {name: one[name] for name in ordered_scores([*one], place[2])}

    def headline(self, place: Place) -> Score | None:
        """The score that shows what was learned: that of the data's own task, else the first."""
        scores = self.scores(place)
        order = [LEARNED.get(place[2]), *(name for name in scores if name not in FORGOTTEN), *scores]
        return next((scores[name] for name in order if name in scores), None)

    def deciding(self, place: Place) -> Score | None:
        """The score by which the answer compares methods; where it compares none, the headline."""
        contest = advice.headline(self.answer.contests, place)
        return self.scores(place).get(contest.score) if contest else self.headline(place)

    def aside(self, place: Place, gained: Score | None) -> Score | None:
        """The score of another task that best shows what was forgotten."""
        scores = {name: s for name, s in self.scores(place).items() if gained and s.task != gained.task}
        return next((scores[name] for name in (*FORGOTTEN, *scores) if name in scores), None)

    def values(self, place: Place, score: Score) -> list[float]:
        contest = self.contests.get((place, score_name(score)))
        return [standing.value for standing in contest.standings] if contest else []

    def change(self, place: Place, score: Score, method: str) -> Interval | None:
        """The score of `method` minus that of its untuned base; ends are nan if unpaired, None if one lacks the score.

        What quantising costs is not forgotten: a quantised method's base is quantised alike, where the study has it.
        """
        contest = self.contests.get((place, score_name(score)))
        _, base = self._bases(place, score, method)
        if contest is None or base is None:
            return None
        if gap := contest.difference(method, base):
            return Interval(gap.value, gap.low, gap.high)
        values = {standing.choice.label: standing.value for standing in contest.standings}
        return Interval(values[method] - values[base], np.nan, np.nan)

    def counts_quantising(self, place: Place, score: Score, method: str) -> bool:
        """Whether `change` of `method`, which is quantised, is from a model that is not."""
        own, base = self._bases(place, score, method)
        return base is not None and base != own

    def _bases(self, place: Place, score: Score, method: str) -> tuple[str | None, str | None]:
        """The untuned model that `method` is held against, and the one that is there: it, or the unquantised one."""
        contest = self.contests.get((place, score_name(score)))
        standings = {standing.choice.label: standing for standing in contest.standings} if contest else {}
        if method not in standings:
            return None, None
        own = base_of(self.records(standings[method].choice)[0])
        return own, next((name for name in (own, BASES[None]) if name in standings), None)

    def standing(self, row: Row, name: str) -> Standing | None:
        contest, label = self.contests.get((row.place, name)), self.labels.get(id(row))
        return next((s for s in contest.standings if s.choice.label == label), None) if contest else None

    def interval(self, row: Row, name: str) -> Interval | None:
        """The interval of a row's score: for rows of the table as there, for others without the items."""
        if standing := self.standing(row, name):
            return standing.interval
        scores = [score for record in row.measured for score in record.scores if score_name(score) == name]
        return of_summaries(scores)

    def estimate(self, choice: Choice, score: Score | None) -> Estimated | None:
        """The choice's `score` (None: its validation loss) with its interval; None if a seed lacks it."""
        records = self.records(choice)
        if score is None:
            losses = list(losses_by_seed(records).values())
            return (choice.loss, seeds_interval(losses)) if choice.loss is not None else None
        name = score_name(score)
        scores = [s for record in records for s in record.scores if score_name(s) == name]
        if len(scores) < len(records):
            return None
        answered = items(self.folder, records, name) if self.folder else None
        interval = mean_intervals([answered[0]])[0] if answered else of_summaries(scores)
        return float(np.mean([s.value for s in scores])), interval

    def gap(self, one: Choice, other: Choice, score: Score | None) -> Interval | None:
        """The `score` of `one` minus that of `other` (None: of validation losses), paired by item (losses: by seed).

        The ends are nan if it can't be tested: scores without the same items, losses without two seeds that both have.
        None if one lacks it.
        """
        if score is None:
            losses = [losses_by_seed(self.records(choice)) for choice in (one, other)]
            common = losses[0].keys() & losses[1].keys()
            if change := seeds_interval([losses[0][seed] - losses[1][seed] for seed in common]):
                return change
        elif self.folder:
            ones, others = (items(self.folder, self.records(choice), score_name(score)) for choice in (one, other))
            if ones and others and ones[1] == others[1]:
                difference = differences([ones[0], others[0]])[0, 1]
                return Interval(difference.value, difference.low, difference.high)
        estimates = self.estimate(one, score), self.estimate(other, score)
        if estimates[0] is None or estimates[1] is None:
            return None
        return Interval(estimates[0][0] - estimates[1][0], np.nan, np.nan)

    def records(self, choice: Choice) -> list[Record]:
        """Those of the chosen setting, one a seed."""
        return [self.rows.records[i] for i in choice.index]


def is_untuned(row: Row) -> bool:
    parameters = row.measured[0].parameters
    return parameters is not None and parameters.trainable == 0


def _swept(tries: Sequence[tuple[str, dict[str, str]]]) -> list[str]:
    """The settings that some method was tried with in several values."""
    values = grouped(((name, method), value) for method, settings in tries for name, value in settings.items())
    return sorted({name for (name, _), of in values.items() if len(set(of)) > 1})


def _train_settings(row: Row) -> dict[str, str]:
    """The training settings but the seed, as text."""
    train = row.records[0].cell.settings.train_dict()
    return {name: str(of) for name, of in train.items() if name != "seed"}
