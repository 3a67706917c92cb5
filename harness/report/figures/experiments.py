"""Imported experiments of which only summaries were published: score against memory, with the spread between runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.report.figures.accuracy import FRONT, pareto
from harness.report.figures.study_results import StudyResults
from harness.report.figures.style import (
    Drawn,
    Look,
    Style,
    add_legend,
    add_point,
    axis_scale,
    legend_point,
    titled_panels,
)
from harness.report.reruns import Experiment, best_on_validation, only_published, reruns
from harness.report.tables.rows import METHODS


def experiments(study: StudyResults) -> Drawn | None:
    """Score of each imported experiment against the memory that its training reserved."""
    found = reruns(study.rows.records) if only_published(study.rows.records) else None
    if found is None:
        return None
    shown = [experiment for experiment in found.experiments if _memory(experiment)]
    if not shown:
        return None
    made, (axes,) = titled_panels([_message(shown)], 4.2)
    score = shown[0].runs[-1].score
    title, scale = axis_scale(score, [experiment.interval.value for experiment in shown])
    points = [(_memory(experiment)[-1], experiment.interval.value) for experiment in shown]
    front = pareto(points, score.higher_is_better)
    steps = [(points[i][0], scale * points[i][1]) for i in front]
    handles: dict[str, Any] = {"Pareto front": axes.plot(*zip(*steps, strict=True), **FRONT)[0]}
    best = best_on_validation(found)
    familiar = [i for i, each in enumerate(shown) if each in [best.get(method) for method in METHODS]]
    named = list(dict.fromkeys([*(i for i in front if not shown[i].below), *familiar]))
    looks = [Look("black", "s" if i in familiar else "o", "") for i in range(len(shown))]
    fills: list[Style] = [{"mfc": "white" if experiment.below else "black"} for experiment in shown]
    for i, (experiment, (memory, value)) in enumerate(zip(shown, points, strict=True)):
        if i not in named:
            add_point(axes, memory, value, None, scale, looks[i], **fills[i], ms=2.5, alpha=0.5, zorder=2)
            continue
        runs = _memory(experiment)
        spread = [[memory - min(runs)], [max(runs) - memory]]
        style: Style = {**fills[i], "capsize": 0, "elinewidth": 0.8, "zorder": 3}
        add_point(axes, memory, value, experiment.interval, scale, looks[i], xerr=spread, **style)
        text = str(named.index(i) + 1)
        axes.annotate(text, (memory, scale * value), xytext=(4, 3), textcoords="offset points", zorder=4)
    for number, i in enumerate(named, 1):
        cell = shown[i].record.cell
        handles[f"{number}  {cell.method} {cell.knobs.get('experiment', '')}"] = legend_point(looks[i], **fills[i])
    axes.set_ylabel(title)
    axes.set_xlabel("memory reserved in 99% of training steps (GiB)")
    add_legend(made, handles)
    return Drawn(
        made,
        "Score of imported experiments against the memory that their training reserved, both of the latest run. "
        "Filled: no other experiment is significantly better. Hollow: at least one is. Line: Pareto front (no other "
        "experiment has both a higher score and less memory). Numbered circles: filled ones on it. Numbered squares: "
        "the best of a method by the source's validation items. Their bars: 95% intervals over items and runs, and the "
        "least to the most memory of all runs.",
    )


def _message(shown: Sequence[Experiment]) -> str:
    """How many experiments may be the best, and from which memory on."""
    best = [experiment for experiment in shown if not experiment.below]
    if not best:  # those lack memory
        return f"{len(shown)} experiments"
    reserved = [_memory(experiment)[-1] for experiment in best]
    return (
        f"No other experiment is significantly better than {len(best)} of these {len(shown)}, which reserve "
        f"{min(reserved):.0f} to {max(reserved):.0f} GiB"
    )


def _memory(experiment: Experiment) -> list[float]:
    """GiB reserved in 99% of the training steps of each run that has it, the record's own run last."""
    record = experiment.record
    if "train" not in record.phases or record.phases["train"].memory.reserved_p99 is None:
        return []
    windows = [again.memory for again in record.repeats if again.status == "ok"] + [record.phases["train"].memory]
    return [memory.reserved_p99 / 2**30 for memory in windows if memory and memory.reserved_p99]
