"""The data of each chart that both a figure and the page draw: prepared here once, they only draw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from harness.record import Record
from harness.report.figures.study_results import StudyResults
from harness.report.select import Choice, Place, select
from harness.report.statistics import Interval, seeds_interval
from harness.report.tables.rows import Row


class SweptPoint(NamedTuple):
    """What `choice`, the best setting of a method at one value of an axis, reached.

    x: the learning rate or rank. value, interval: its validation loss or score with its 95% interval; None if it did
    not finish, or if the error is unknown. chosen: whether it is the value chosen for the method. confirmed: the same
    of the fresh seeds that confirmed the choice, of which `value` has none; None without.
    """

    x: float
    value: float | None
    interval: Interval | None
    chosen: bool
    choice: Choice
    confirmed: Confirmed | None = None


class Confirmed(NamedTuple):
    """What the fresh seeds of a chosen setting reached: as of SweptPoint, and the positions of their records."""

    value: float
    interval: Interval | None
    positions: tuple[int, ...]


@dataclass(frozen=True)
class SweptCurve:
    """A method in one place over the values of an axis, lowest first."""

    place: Place
    method: str
    points: list[SweptPoint]

    @property
    def known(self) -> dict[float, float]:
        """The values by x, of the points that have one."""
        return {point.x: point.value for point in self.points if point.value is not None}


class LossCurve(NamedTuple):
    """Mean losses over seeds, after so many raw tokens and seconds of training steps."""

    tokens: np.ndarray
    seconds: np.ndarray
    losses: np.ndarray


def rates(study: StudyResults) -> list[SweptCurve]:
    """Validation loss of each method by learning rate, at its best rank for that rate.

    By the seeds with which all rates were tried: the fresh seeds that confirmed a choice are of one rate alone, and
    would stand apart from the others by their luck.
    """
    records = study.rows.records
    best = {(choice.place, choice.method): choice for choice in study.rows.choices}
    swept = {(record.study, record.cell.method) for record in records if not record.confirmation}
    sweep = [i for i, r in enumerate(records) if not r.confirmation or (r.study, r.cell.method) not in swept]
    points: dict[tuple[Place, str], list[SweptPoint]] = defaultdict(list)
    for choice in select([records[i] for i in sweep], ("method", "lr"), [study.rows.settings[i] for i in sweep]):
        method, lr = choice.key
        if lr is None:
            continue
        choice = replace(choice, index=tuple(sweep[i] for i in choice.index))
        overall = best.get((choice.place, method))
        at_best = overall is not None and overall.lr == lr
        confirmed = _confirmed(overall, records) if overall and at_best else None
        point = SweptPoint(lr, choice.loss, _loss_interval(choice, records), at_best, choice, confirmed)
        points[choice.place, method].append(point)
    return _curves(points)


def _confirmed(choice: Choice, records: Sequence[Record]) -> Confirmed | None:
    if not choice.confirmed or choice.loss is None:
        return None
    return Confirmed(choice.loss, _loss_interval(choice, records), choice.index)


def _loss_interval(choice: Choice, records: Sequence[Record]) -> Interval | None:
    return seeds_interval([loss for i in choice.index if (loss := records[i].validation_loss) is not None])


def ranks(study: StudyResults) -> list[SweptCurve]:
    """Score (else validation loss) of each method with several ranks, each rank at its best learning rate."""
    records = study.rows.records
    best = {(choice.place, choice.method): choice.rank for choice in study.rows.choices}
    points: dict[tuple[Place, str], list[SweptPoint]] = defaultdict(list)
    for choice in select(records, ("method", "rank"), study.rows.settings):
        imported = any(records[i].source for i in choice.index)  # single experiments, not a sweep
        if choice.rank is None or imported:
            continue
        if estimate := study.estimate(choice, study.headline(choice.place)):
            at = choice.place, choice.method
            points[at].append(SweptPoint(choice.rank, *estimate, choice.rank == best.get(at), choice))
    return [curve for curve in _curves(points) if len(curve.points) > 1]


def _curves(points: dict[tuple[Place, str], list[SweptPoint]]) -> list[SweptCurve]:
    return [SweptCurve(*at, sorted(own, key=lambda point: point.x)) for at, own in points.items()]


def memory(study: StudyResults) -> dict[str, list[Row]]:
    """By title, groups of settings whose tensors at the peak of a training step, by kind, are comparable."""
    return study.alike("peak_weights")


def losses(study: StudyResults) -> tuple[str, dict[Place, list[tuple[Row, LossCurve]]]]:
    """The kind of loss, and of each place the compared settings with their losses; none if no setting has several.

    Validation losses, or else training losses.
    """
    for kind, curve_of in LOSSES.items():
        curves = {
            place: [(row, curve) for row in study.shown(place) if (curve := curve_of(row))] for place in study.places
        }
        if any(curves.values()):
            return kind, {place: own for place, own in curves.items() if own}
    return "", {}


def validation_curve(row: Row) -> LossCurve | None:
    """Tokens, seconds and mean loss over seeds at each validation; None for fewer than three validations."""
    runs = [(r.validation, r.train.step_seconds) for r in row.measured if r.train and len(r.validation) > 2]
    runs = [(points, step_seconds) for points, step_seconds in runs if len(step_seconds) >= points[-1].step]
    if not runs:
        return None
    steps = [point.step for point in runs[0][0]]
    runs = [(points, step_seconds) for points, step_seconds in runs if [point.step for point in points] == steps]
    tokens = np.mean([[point.tokens for point in points] for points, _ in runs], axis=0)
    seconds = np.mean([np.concatenate([[0.0], np.cumsum(step_seconds)])[steps] for _, step_seconds in runs], axis=0)
    losses = np.mean([[point.loss for point in points] for points, _ in runs], axis=0)
    return LossCurve(tokens, seconds, losses)


def training_curve(row: Row, parts: int = 20) -> LossCurve | None:
    """Tokens and seconds at the end of each of up to `parts` stretches of steps, and their mean loss, over seeds.

    None if no seed has losses by step. Seeds with fewer steps than the others are left out.
    """
    trains = [record.train for record in row.measured if record.train and len(record.train.loss) > 1]
    steps = max((len(train.loss) for train in trains), default=0)
    trains = [train for train in trains if len(train.loss) == len(train.step_seconds) == steps]
    if not trains:
        return None
    stretches = np.array_split(np.arange(steps), min(parts, steps))
    ends = [stretch[-1] for stretch in stretches]
    tokens = np.mean([[train.loss[i].tokens for i in ends] for train in trains], axis=0)
    seconds = np.mean([np.cumsum(train.step_seconds)[ends] for train in trains], axis=0)
    losses = np.mean([[point.loss for point in train.loss] for train in trains], axis=0)
    return LossCurve(tokens, seconds, np.array([losses[stretch].mean() for stretch in stretches]))


LOSSES = {"validation": validation_curve, "training": training_curve}
