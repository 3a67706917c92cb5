"""Score against memory, with the Pareto front."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from harness.record import Score
from harness.report.answer.advice import headline
from harness.report.cost_fronts import pareto
from harness.report.figures import style
from harness.report.figures.messages import score_and_memory
from harness.report.figures.study_results import StudyResults, is_untuned
from harness.report.frame import TRAIN_MEMORY, score_name
from harness.report.memory import comparable, meaning
from harness.report.reruns import only_published
from harness.report.tables.rows import Row


def accuracy_memory(study: StudyResults) -> style.Drawn | None:
    """Score of each setting against its training memory, with the Pareto front of the chosen settings.

    None also for records that `experiments` draws.
    """
    if only_published(study.rows.records):
        return None
    measure = next((name for name in MEMORY if any(row.finished and row.mean(name) for row in study.rows)), None)
    if measure is None:
        return None
    by_place: dict[style.Place, tuple[list[Row], Score]] = {}
    for place in study.places:
        if score := study.headline(place):
            tuned = [row for row in study.finished(place) if row.mean(measure) and score_name(score) in row.scores]
            tuned = _of_one_instrument(tuned, measure)
            by_place |= {place: (tuned, score)} if tuned else {}
    if not by_place:
        return None
    messages = {place: _message(study, place, score) for place, (_, score) in by_place.items()}
    figure, panels = style.place_panels(messages, height=3.0)
    distinguishable = len({row.method for tuned, _ in by_place.values() for row in tuned}) <= style.LEGEND
    handles: dict[str, Any] = {}
    numbers = itertools.count(1)
    for (tuned, score), axes in zip(by_place.values(), panels, strict=False):
        handles |= _accuracy_memory(study, axes, tuned, score, measure, None if distinguishable else numbers)
        axes.set_xlabel(f"{MEMORY[measure]} (GiB)")
    style.add_legend(figure, handles)
    records = [record for tuned, _ in by_place.values() for row in tuned for record in row.records]
    what = f": {meaning(records)}" if measure == TRAIN_MEMORY else ""
    return style.Drawn(
        figure,
        f"Score against {MEMORY[measure]}{what}. Bars: 95% intervals of the chosen settings. Small, faint markers: "
        "settings that were not chosen. Line: Pareto front (no other chosen setting is better in both). Dashed: "
        "untuned model." + style.left_out(by_place),
    )


FAINT: style.Style = {"mfc": "white", "alpha": 0.35, "ms": 3}
MEMORY = {TRAIN_MEMORY: "peak train memory", "train_reserved_p99": "memory reserved in 99% of training steps"}


def _of_one_instrument(rows: list[Row], measure: str) -> list[Row]:
    """The rows whose measure is comparable with that of most others."""

    measured_by = set().union(*(row.instruments for row in rows))
    if comparable(measured_by, measure):
        return rows
    of = [[row for row in rows if row.instruments <= {one}] for one in sorted(measured_by)]
    return max(of, key=len)


def _message(study: StudyResults, place: style.Place, score: Score) -> str:
    """The decision by the score that is shown; empty if the answer compares by another one, or by none."""
    contest = headline(study.answer.contests, place)
    if contest is None or contest.score != score_name(score):
        return ""
    return study.answer.plan.title(score_and_memory(study.answer.places[place].decision))


def _accuracy_memory(
    study: StudyResults, axes: Axes, rows: list[Row], score: Score, measure: str, numbers: Iterator[int] | None
) -> dict[str, Any]:
    """Draws a panel; returns what the legend says. numbers: names the front by them instead of all methods by looks."""
    name = score_name(score)
    untuned = [row for row in study.finished(rows[0].place) if is_untuned(row) and name in row.scores]
    title, scale = style.axis_scale(score, [row.scores[name].value for row in [*rows, *untuned]])
    look = style.looks(study.methods)
    measured = [(row, peak) for row in rows if (peak := row.mean(measure)) is not None]
    rows = [row for row, _ in measured]
    points = [(peak / 2**30, row.scores[name].value) for row, peak in measured]
    # only chosen settings: another would be on the front because of its test score alone
    judged = {id(row) for row in study.shown(rows[0].place)}
    candidates = [i for i, row in enumerate(rows) if id(row) in judged]
    front = [candidates[i] for i in pareto([points[i] for i in candidates], score.higher_is_better)]
    steps = [(points[i][0], scale * points[i][1]) for i in front]
    handles: dict[str, Any] = {"Pareto front": axes.plot(*zip(*steps, strict=True), **FRONT)[0]}
    bold = [i for i in candidates if numbers is None or i in front]
    for method in dict.fromkeys(row.method for row in rows):
        of = look[method] if numbers is None else PLAIN
        own = [i for i, row in enumerate(rows) if row.method == method]
        if faint := [points[i] for i in own if i not in bold]:  # in one call: there may be thousands
            memory, scores = np.transpose(faint)
            handle = style.add_point(axes, memory, scores, None, scale, of, **FAINT)
        for i in own:
            if i in bold:
                handle = style.add_point(axes, *points[i], study.interval(rows[i], name), scale, of)
        if numbers is None:
            handles[method] = handle
    if numbers is not None:
        for i, step in zip(front, steps, strict=True):
            number = next(numbers)
            right: style.Style = {"xytext": (5, 0), "ha": "left"}
            left: style.Style = {"xytext": (-5, 0), "ha": "right"}
            side = right if i == front[-1] else left
            axes.annotate(str(number), step, textcoords="offset points", va="center", **side)
            handles[f"{number}  {style.label(rows[i], rows)}"] = style.legend_point(PLAIN)
        handles["others"] = style.legend_point(PLAIN, **FAINT)
    for row in untuned:
        of = look[row.method]
        level = scale * row.scores[name].value
        handles[row.method] = axes.axhline(level, color=of.colour, linestyle=of.line)
    axes.set_ylabel(title)
    axes.margins(x=0.12, y=0.1)
    return handles


FRONT: style.Style = {"drawstyle": "steps-post", "color": "0.4", "linewidth": 0.8, "zorder": 1}
PLAIN = style.Look("black", "o", "-")
