"""The first table of the page: of each method its score, memory, speed and what it forgot, a number and a bar each.

Only what fits a screen beside the decision; settings, ranks, letters and all other scores are in the tables below it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

from harness import units
from harness.record import Score
from harness.report.answer.place import Decision
from harness.report.figures.study_results import StudyResults
from harness.report.figures.style import Place, place_titles
from harness.report.frame import TRAIN_MEMORY, score_name
from harness.report.select import Choice
from harness.report.statistics import Interval, seeds_interval
from harness.report.tables.entries import ABSENT, rate, score_style
from harness.report.tables.rows import Row
from harness.score_names import task_label

MOST = 12  # tuned methods of one place that are shown; the table of all columns has the others
MEMORY = {
    TRAIN_MEMORY: ("Memory", "peak in training"),
    "train_reserved_p99": ("Memory reserved", "in 99% of steps"),
    "job_reserved_peak": ("Memory of the job", "reserved in the whole job"),
}
SPEED = ("tokens_per_second_steady", "tokens_per_second_amortised")


@dataclass(frozen=True)
class OverviewCell:
    """A number and how it is drawn, in percent of the width of its column.

    interval: the 95% interval as text. start, width: of the bar, or of the interval. dot: where the value is; None
    for a bar. Nothing is drawn without a width.
    """

    text: str
    interval: str = ""
    start: float = 0.0
    width: float | None = None
    dot: float | None = None


@dataclass(frozen=True)
class OverviewRow:
    """setting: its position in `settings_block`; None without one. setting_text: where settings of one method are
    compared. tinted: whether the answer takes it, or it is one of several that tie."""

    method: str
    setting_text: str
    untuned: bool
    tinted: bool
    setting: int | None
    cells: Sequence[OverviewCell]


@dataclass(frozen=True)
class Overview:
    """One place of a study.

    columns: a header and what it says below it, such as ("Memory", "peak in training, lower is better"). rows: the best
    first, untuned models last. tint: what the tint of `tinted` rows means; empty without any. more: how many methods
    more there are.
    """

    title: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[OverviewRow]
    tint: str
    more: int

    @property
    def several(self) -> bool:
        """Whether settings of one method are compared."""
        return any(row.setting_text for row in self.rows)


@dataclass(frozen=True)
class Candidate:
    """A chosen setting as the overview compares it."""

    choice: Choice
    row: Row

    @property
    def untuned(self) -> bool:
        return self.row.records[0].cell.seed is None


Estimate = tuple[float, Interval | None]


def overviews(study: StudyResults) -> list[Overview]:
    """An overview for each place of which a setting is compared."""
    labelled = zip(study.answer.choices, study.answer.settled, strict=True)
    candidates = [Candidate(choice, row) for choice, row in labelled if row is not None]
    places = [place for place in study.places if any(each.choice.place == place for each in candidates)]
    return [
        _overview(study, place, title, [each for each in candidates if each.choice.place == place])
        for place, title in zip(places, place_titles(places), strict=True)
    ]


def _overview(study: StudyResults, place: Place, title: str, candidates: Sequence[Candidate]) -> Overview:
    score = study.deciding(place)
    estimates = [_outcome(study, each, score) for each in candidates]
    sign = -1 if score is not None and score.higher_is_better else 1

    def order(i: int) -> tuple[bool, float]:
        estimate = estimates[i]
        return candidates[i].untuned, float("inf") if estimate is None else sign * estimate[0]

    best_first = sorted(range(len(candidates)), key=order)
    tuned = [i for i in best_first if not candidates[i].untuned][:MOST]
    shown_at = [i for i in best_first if i in tuned or candidates[i].untuned]
    leading = [candidates[i] for i in shown_at]
    columns = [
        _outcome_column(score, leading, [estimates[i] for i in shown_at]),
        _memory_column(leading),
        _speed_column(leading),
        _forgotten_column(study, place, score, leading),
    ]
    present = [column for column in columns if column is not None]
    at = {id(row): i for i, row in enumerate(study.rows)}
    answer = study.answer.places.get(place)
    tinted, tint = _tinted(answer.decision if answer else Decision())
    rows = [
        OverviewRow(
            method=each.choice.method,
            setting_text=each.choice.label.removeprefix(each.choice.method).strip(),
            untuned=each.untuned,
            tinted=each.choice.label in tinted,
            setting=at.get(id(each.row)),
            cells=[cells[i] for _, _, cells in present],
        )
        for i, each in enumerate(leading)
    ]
    return Overview(
        title=title,
        columns=[(header, note) for header, note, _ in present],
        rows=rows,
        tint=tint if any(row.tinted for row in rows) else "",
        more=len(candidates) - len(leading),
    )


def _tinted(decision: Decision) -> tuple[Sequence[str], str]:
    """The labels that are tinted, and what that says: the one that the answer takes, or several that tie, or none."""
    if decision.take:
        return [decision.take], "Tinted: better than the rest."
    return (decision.tied, "Tinted: they tie by this score.") if len(decision.tied) > 1 else ((), "")


# Columns


Column = tuple[str, str, list[OverviewCell]]


def _outcome(study: StudyResults, candidate: Candidate, score: Score | None) -> Estimate | None:
    """The score with its interval, as in the tables; without a score the validation loss."""
    row = candidate.row
    if score is None:
        losses = row.values("validation_loss")
        return (sum(losses) / len(losses), seeds_interval(losses)) if losses else None
    name = score_name(score)
    if standing := study.standing(row, name):
        return standing.value, standing.interval
    return (row.scores[name].value, study.interval(row, name)) if name in row.scores else None


def _outcome_column(
    score: Score | None, candidates: Sequence[Candidate], estimates: Sequence[Estimate | None]
) -> Column | None:
    """The axis holds the tuned models: an untuned one may be so far off that it would squeeze their intervals."""
    estimated = [estimate for estimate in estimates if estimate is not None]
    if not estimated:
        return None
    tuned = [e for each, e in zip(candidates, estimates, strict=True) if e is not None and not each.untuned]
    ends = [end for estimate in tuned or estimated for end in _ends(estimate)]
    if score is None:
        return "Validation loss", "lower is better", _on_axis(estimates, ends, units.significant)
    header, text = score_style(score, [value for value, _ in estimated])
    header = header.removesuffix(" ↓")
    better = "higher is better" if score.higher_is_better else "lower is better"
    ours = task_label(score.task, score.metric) != score.task  # names of lm-eval stay as they are
    return header[0].upper() + header[1:] if ours else header, better, _on_axis(estimates, ends, text)


def _on_axis(
    estimates: Sequence[Estimate | None], axis: Sequence[float], text: Callable[[float], str]
) -> list[OverviewCell]:
    """Values as dots with intervals, between the least and the greatest of `axis`; nothing is drawn of those beyond."""
    low, span = min(axis), (max(axis) - min(axis)) or 1.0

    def place(value: float) -> float:
        return round(100 * (value - low) / span, 2)

    def cell(estimate: Estimate | None) -> OverviewCell:
        if estimate is None:
            return OverviewCell(ABSENT)
        value, first, last = estimate[0], *_ends(estimate)
        interval = f"{text(first)}–{text(last)}" if first < last else ""
        if not low <= value <= low + span:
            return OverviewCell(text(value), interval)
        start, end = max(0.0, place(first)), min(100.0, place(last))
        return OverviewCell(text(value), interval, start, round(end - start, 2), place(value))

    return list(map(cell, estimates))


def _ends(estimate: Estimate) -> tuple[float, float]:
    value, interval = estimate
    if interval is None or not isfinite(interval.low) or not isfinite(interval.high):
        return value, value
    return interval.low, interval.high


def _bars(values: Sequence[float | None], text: Callable[[float], str], comparable: bool = True) -> list[OverviewCell]:
    """Values as bars from 0; negative ones, which are none of what is drawn, have no bar."""
    most = max((value for value in values if value is not None), default=0.0)

    def cell(value: float | None) -> OverviewCell:
        if value is None:
            return OverviewCell(ABSENT)
        width = round(100 * max(0.0, value) / most, 2) if comparable and most > 0 else None
        return OverviewCell(text(value), width=width)

    return list(map(cell, values))


def _memory_column(candidates: Sequence[Candidate]) -> Column | None:
    for measure, (header, what) in MEMORY.items():
        values = [each.row.mean(measure) for each in candidates]
        if any(value is not None for value in values):
            instruments = set[str]().union(*(each.row.instruments for each in candidates))
            alike = len(instruments) < 2 if measure == TRAIN_MEMORY else True
            return header, f"{what}, lower is better", _bars(values, units.size, alike)
    return None


def _speed_column(candidates: Sequence[Candidate]) -> Column | None:
    for measure in SPEED:
        values = [each.row.mean(measure) for each in candidates]
        if any(value is not None for value in values):
            one_device = len(set[str]().union(*(each.row.devices for each in candidates))) < 2
            return "Tokens/s", "in training, higher is better", _bars(values, rate, one_device)
    return None


def _forgotten_column(
    study: StudyResults, place: Place, score: Score | None, candidates: Sequence[Candidate]
) -> Column | None:
    """How much worse than the untuned model in a task that nothing here trains for."""
    aside = study.aside(place, score)
    if aside is None:
        return None
    changes = [None if each.untuned else study.change(place, aside, each.choice.label) for each in candidates]
    sign = -1 if aside.higher_is_better else 1
    losses = [sign * change.value if change else None for change in changes]
    if all(loss is None for loss in losses):
        return None
    header, _ = score_style(aside, [0.0])
    points = 100 if aside.higher_is_better and "(%)" in header else 1

    def text(loss: float) -> str:
        amount = f"{points * abs(loss):.1f}" if points > 1 else units.significant(abs(loss), 2)
        return f"{'−' if (loss > 0) == aside.higher_is_better else '+'}{amount}"

    unit = "points" if points > 1 else aside.metric.replace("_", " ")
    labels = [each.choice.label for each in candidates if not each.untuned]
    quantised = [label for label in labels if study.counts_quantising(place, aside, label)]
    cost = f"; of {units.listed(quantised)} with what quantising costs" if quantised else ""
    loss = "−" if aside.higher_is_better else "+"
    note = f"{task_label(aside.task, aside.metric)}, {unit} against its base, {loss} is a loss{cost}"
    return "Forgotten", note, _bars(losses, text)
