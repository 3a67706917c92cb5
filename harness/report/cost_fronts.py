"""What each chosen setting costs beside its score: the Pareto front, and the cheapest setting that no other beats.

    for front in cost_fronts(answer): front.sentence

A cost is the time of a cell's whole job × its devices. All cells ran on one kind of device, so the price of an hour
only scales it: `table --cost`, the Python API and the page each put theirs on the same front. Cells that ran beside
others or were resumed have no time of their own, as everywhere in a report, and so no cost.

A setting is on the front if none that is cheaper, or costs the same, scores higher, and none with the same score is
cheaper. That is about what was measured; whether a score is higher beyond chance is what `beaten_by` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from harness import units
from harness.errors import UserError
from harness.record import Record
from harness.report.answer import StudyAnswer
from harness.report.answer.place import place_prefix
from harness.report.answer.words import ScoreWords
from harness.report.costs import disturbed_cells
from harness.report.lint.environment import ran_with
from harness.report.pairwise import Contest, Standing
from harness.report.select import Place
from harness.report.statistics import ALPHA, Interval, seeds_interval
from harness.report.tables.rows import device_hours

UNTIMED = "other cells ran on the machine at the same time, or they were resumed, so times are not their own"


@dataclass(frozen=True)
class CostedSetting:
    """A setting with a score, and the device-hours of the job of each of its seeds that has a time of its own."""

    standing: Standing
    seeds: tuple[float, ...]

    @property
    def label(self) -> str:
        return self.standing.choice.label

    @cached_property
    def hours(self) -> float:
        """Device-hours of a cell, mean over seeds."""
        return fmean(self.seeds)

    @cached_property
    def interval(self) -> Interval | None:
        """Of `hours`, 95%; None of a single seed. No time is negative."""
        interval = seeds_interval(self.seeds)
        return interval and interval._replace(low=max(0.0, interval.low))


def pareto(points: Sequence[tuple[float, float]], higher_is_better: bool = True) -> list[int]:
    """The indices of the points (cost, score) that no other point beats in both, cheapest first."""
    sign = 1 if higher_is_better else -1
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -sign * points[i][1])):
        if not front or sign * points[i][1] > sign * points[front[-1]][1]:
            front.append(i)
    return front


@dataclass(frozen=True)
class CostFront:
    """The settings of a contest that have a cost, cheapest first.

    untimed: labels of those without one, as none of their cells has a time of its own. places: those of all fronts of
    the study.
    """

    contest: Contest
    settings: Sequence[CostedSetting]
    untimed: Sequence[str]
    places: Sequence[Place]

    @cached_property
    def front(self) -> list[CostedSetting]:
        """The Pareto front, cheapest first: each scores better than all that cost no more."""
        points = [(setting.hours, setting.standing.value) for setting in self.settings]
        return [self.settings[i] for i in pareto(points, self.contest.higher_is_better)]

    @cached_property
    def compared(self) -> list[str]:
        """Labels of the settings with the items that most of them answered, best first; without those of one seed, if
        others have several. Empty if no two settings answered the same items."""
        most = self.contest.paired[0] if self.contest.paired else []
        several = [label for label in most if label not in self.contest.one_seed]
        tuned = [label for label in several if label not in self.contest.untuned]
        return [] if len(most) < 2 else several if tuned else most

    def beaten_by(self, setting: CostedSetting) -> list[str]:
        """Labels of the settings in `compared` that are significantly better, best first."""
        ps = self.contest.corrected
        return [label for label in self.compared if ps.get((label, setting.label), 1.0) < ALPHA]

    @cached_property
    def cheapest(self) -> CostedSetting | None:
        """The cheapest in `compared` that no other one beats significantly; None if none of them has a cost."""
        unbeaten = (each for each in self.settings if each.label in self.compared and not self.beaten_by(each))
        return next(unbeaten, None)

    @cached_property
    def sentence(self) -> list[str | float]:
        """What is worth its cost, in parts that `text_of` joins: texts, and device-hours to write as amounts."""
        last = f". Without {units.listed(self.untimed)}: {UNTIMED}." if self.untimed else "."
        return [*self._worth, last]

    @property
    def _worth(self) -> list[str | float]:
        words, cheapest = ScoreWords(self.contest), self.cheapest
        prefix = " ".join([*place_prefix(self.contest.place, self.places), ""])
        if cheapest is None:
            why = f"No two settings answered the same items of {words.task}"
            if self.compared:
                why = f"No setting that is compared on {words.task} has a time of its own"
            return [f"{prefix}{why}: none is known to be worth its cost"]
        parts: list[str | float] = [
            f"{prefix}The cheapest setting that no other beats significantly on {words.task} is {cheapest.label}: "
            f"{words.value(cheapest.standing)} at",
            cheapest.hours,
        ]
        best = next((each for each in self.settings if each.label == self.compared[0]), None)
        if best is not None and best is not cheapest:
            parts += [f"; {best.label} scored {words.highest}, {words.value(best.standing)} at", best.hours]
        return parts


def cost_fronts(answer: StudyAnswer) -> list[CostFront]:
    """Of each place and primary score of `answer` the settings that have a cost; none without scores and times."""
    return [front for front in _fronts(answer) if front.settings]


def why_none(answer: StudyAnswer) -> str | None:
    """Why an `answer` with scores and times has no front; None if it has one, or lacks those."""
    fronts = _fronts(answer)
    untimed = any(front.untimed for front in fronts) and not any(front.settings for front in fronts)
    return f"No cell has a cost: {UNTIMED}." if untimed else None


def _fronts(answer: StudyAnswer) -> list[CostFront]:
    places, records = [contest.place for contest in answer.contests], answer.rows.records
    disturbed = disturbed_cells(records)
    return [_front(contest, records, disturbed, places) for contest in answer.contests if contest.primary]


def text_of(sentence: Iterable[str | float], amount: Callable[[float], str]) -> str:
    """The text of `CostFront.sentence`. amount: writes device-hours, such as in dollars."""
    return "".join(part if isinstance(part, str) else f" {amount(part)}" for part in sentence)


def require_one_device(records: Sequence[Record], subject: str) -> None:
    """Raise UserError if the records' devices are of several kinds: an hour of them has no single price.

    subject: what requires that, such as "--price".
    """
    local = [ran_with(record) for record in records if not record.cell.settings.behind_api]
    names = sorted({facts["device"] for facts in local if "device" in facts})
    if len(names) > 1:
        raise UserError(f"{subject} requires records of one kind of device, got {', '.join(names)}.")


def _front(contest: Contest, records: Sequence[Record], disturbed: set[str], places: Sequence[Place]) -> CostFront:
    """disturbed: names of cells that have no time of their own."""
    settings, untimed = [], []
    for standing in contest.standings:
        hours = {records[i].cell.name: spent for i in standing.choice.index if (spent := device_hours(records[i]))}
        own = tuple(spent for name, spent in hours.items() if name not in disturbed)
        if own:
            settings.append(CostedSetting(standing, own))
        elif hours:
            untimed.append(standing.choice.label)
    return CostFront(contest, sorted(settings, key=lambda each: each.hours), untimed, places)
