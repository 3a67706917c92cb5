"""Imported experiments of which only summaries were published: score against memory, with the spread between runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes

from harness.report.cost_fronts import pareto
from harness.report.figures import style
from harness.report.figures.accuracy import FRONT
from harness.report.figures.study_results import StudyResults
from harness.report.reruns import Experiment, best_on_validation, only_published, reruns
from harness.report.tables.rows import METHODS

NUMBERED = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#7F3C8D")
PANEL = 4.2  # inches: the height of the figure
NUMBER = 7.5  # points: from the middle of a number to what it must not hide
TURNS = [math.radians(degrees) for degrees in (45, -45, 135, -135, 20, -20, 160, -160)]


def experiments(study: StudyResults) -> style.Drawn | None:
    """Score of each imported experiment against the memory that its training reserved."""
    summary = reruns(study.rows.records) if only_published(study.rows.records) else None
    if summary is None:
        return None
    with_memory = [experiment for experiment in summary.experiments if _memory(experiment)]
    if not with_memory:
        return None
    figure, (axes,) = style.titled_panels([_message(with_memory)], PANEL)
    score = with_memory[0].runs[-1].score
    title, scale = style.axis_scale(score, [experiment.interval.value for experiment in with_memory])
    points = [(_memory(experiment)[-1], experiment.interval.value) for experiment in with_memory]
    front = pareto(points, score.higher_is_better)
    steps = [(points[i][0], scale * points[i][1]) for i in front]
    handles: dict[str, Any] = {"Pareto front": axes.plot(*zip(*steps, strict=True), **FRONT)[0]}
    best = best_on_validation(summary)
    familiar = [i for i, each in enumerate(with_memory) if each in [best.get(method) for method in METHODS]]
    named = list(dict.fromkeys([*(i for i in front if not with_memory[i].below), *familiar]))
    colours = dict(zip(named, cycle(NUMBERED), strict=False))
    looks = [style.Look(colours.get(i, "0.5"), "s" if i in familiar else "o", "") for i in range(len(with_memory))]
    fills: list[style.Style] = [
        {"mfc": "white" if each.below else looks[i].colour} for i, each in enumerate(with_memory)
    ]
    for i, (experiment, (memory, value)) in enumerate(zip(with_memory, points, strict=True)):
        if i not in named:
            style.add_point(axes, memory, value, None, scale, looks[i], **fills[i], ms=2.5, alpha=0.5, zorder=2)
            continue
        runs = _memory(experiment)
        spread = [[memory - min(runs)], [max(runs) - memory]]
        how: style.Style = {**fills[i], "capsize": 0, "elinewidth": 0.8, "zorder": 3}
        style.add_point(axes, memory, value, experiment.interval, scale, looks[i], xerr=spread, **how)
    axes.margins(x=0.06, y=0.06)
    at = [(memory, scale * value) for memory, value in (points[i] for i in named)]
    for number, (place, i, offset) in enumerate(zip(at, named, _offsets(axes, at), strict=True), 1):
        how = {"xytext": offset, "textcoords": "offset points", "ha": "center", "va": "center", "zorder": 4}
        axes.annotate(str(number), place, color=colours[i], fontweight="bold", **how)
    for number, i in enumerate(named, 1):
        cell = with_memory[i].record.cell
        handles[f"{number}  {cell.method} {cell.knobs.get('experiment', '')}"] = style.legend_point(
            looks[i], **fills[i]
        )
    axes.set_ylabel(title)
    axes.set_xlabel("memory reserved in 99% of training steps (GiB)")
    style.add_legend(figure, handles)
    return style.Drawn(
        figure,
        "Score of imported experiments against the memory that their training reserved, both of the latest run. "
        "Filled: no other experiment is significantly better. Hollow: at least one is. Line: Pareto front (no other "
        "experiment has both a higher score and less memory). Numbered circles: filled ones on it. Numbered squares: "
        "the best of a method by the source's validation items. Their bars: 95% intervals over items and runs, and the "
        "least to the most memory of all runs.",
    )


def _offsets(axes: Axes, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where the number of each point stands, in points from it: beside it, and free of other points and numbers."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    size = 72 * style.COLUMN * 0.85, 72 * PANEL * 0.5  # of the panel, without labels and legend
    spots = [(size[0] * (x - left) / (right - left), size[1] * (y - bottom) / (top - bottom)) for x, y in points]
    offsets: list[tuple[float, float]] = []
    occupied = list(spots)
    for x, y in spots:
        around = [(r * math.cos(turn), r * math.sin(turn)) for r in (8, 12, 17, 23) for turn in TURNS]

        def room(offset: tuple[float, float], x: float = x, y: float = y) -> float:
            return min(math.dist((x + offset[0], y + offset[1]), other) for other in occupied)

        free = next((offset for offset in around if room(offset) >= NUMBER), max(around, key=room))
        offsets.append(free)
        occupied.append((x + free[0], y + free[1]))
    return offsets


def _message(with_memory: Sequence[Experiment]) -> str:
    """How many experiments may be the best, and from which memory on."""
    best = [experiment for experiment in with_memory if not experiment.below]
    if not best:  # those lack memory
        return f"{len(with_memory)} experiments"
    reserved = [_memory(experiment)[-1] for experiment in best]
    return (
        f"No other experiment is significantly better than {len(best)} of these {len(with_memory)}, which reserve "
        f"{min(reserved):.0f} to {max(reserved):.0f} GiB"
    )


def _memory(experiment: Experiment) -> list[float]:
    """GiB reserved in 99% of the training steps of each run that has it, the record's own run last."""
    record = experiment.record
    if "train" not in record.phases or record.phases["train"].memory.reserved_p99 is None:
        return []
    windows = [again.memory for again in record.repeats if again.status == "ok"] + [record.phases["train"].memory]
    return [memory.reserved_p99 / 2**30 for memory in windows if memory and memory.reserved_p99]
