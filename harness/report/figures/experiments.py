"""Imported experiments of which only summaries were published: score against memory, with the spread between runs."""

from __future__ import annotations

from matplotlib.lines import Line2D

from harness.report.figures.accuracy import pareto
from harness.report.figures.study_results import StudyResults
from harness.report.figures.style import Drawn, add_legend, axis_scale, error_bar, titled_panels
from harness.report.reruns import Experiment, best_on_validation, only_published, reruns
from harness.report.tables.rows import METHODS


def experiments(study: StudyResults) -> Drawn | None:
    """Score of each imported experiment against the memory that its training reserved."""
    found = reruns(study.rows.records) if only_published(study.rows.records) else None
    shown = [experiment for experiment in found.experiments if _memory(experiment)] if found else []
    if not shown:
        return None
    made, (axes,) = titled_panels([f"{len(shown)} experiments"], width=7.2, height=4.4)
    score = shown[0].runs[-1].score
    title, scale = axis_scale(score, [experiment.interval.value for experiment in shown])
    points = [(_memory(experiment)[-1], experiment.interval.value) for experiment in shown]
    front = pareto(points, score.higher_is_better)
    steps = [(points[i][0], scale * points[i][1]) for i in front]
    (line,) = axes.plot(*zip(*steps, strict=True), drawstyle="steps-post", color="0.4", linewidth=1, zorder=1)
    best = best_on_validation(found)
    familiar = [i for i, each in enumerate(shown) if each in [best.get(method) for method in METHODS]]
    named = list(dict.fromkeys([*(i for i in front if not shown[i].below), *familiar]))
    handles, names = [line], ["Pareto front"]
    for i, (experiment, (memory, value)) in enumerate(zip(shown, points, strict=True)):
        runs = _memory(experiment)
        look = {"color": "0.6" if experiment.below else "black", "marker": "s" if i in familiar else "o"}
        size = (6, 1.2) if i in named else (3, 0.5)
        axes.errorbar(
            memory,
            scale * value,
            xerr=[[memory - min(runs)], [max(runs) - memory]],
            yerr=error_bar(value, experiment.interval, scale),
            **look,
            linestyle="",
            markersize=size[0],
            elinewidth=size[1],
            capsize=0,
            zorder=3 if i in named else 2,
        )
        if i in named:
            number = str(named.index(i) + 1)
            axes.annotate(number, (memory, scale * value), xytext=(5, 4), textcoords="offset points", zorder=4)
    for number, i in enumerate(named, 1):
        look = {"color": "0.6" if shown[i].below else "black", "marker": "s" if i in familiar else "o"}
        handles.append(Line2D([], [], **look, linestyle=""))
        names.append(f"{number}  {shown[i].record.cell.method} {shown[i].record.cell.knobs.get('experiment', '')}")
    axes.set_ylabel(title)
    axes.set_xlabel("memory reserved in 99% of training steps (GiB)")
    add_legend(axes, handles, names)
    return Drawn(
        made,
        "Score of imported experiments against the memory that their training reserved, both of the latest run. "
        "Vertical bars: 95% intervals over items and runs. Horizontal bars: smallest to largest of all runs. Black: no "
        "other experiment is significantly better. Grey: at least one is. Line: Pareto front (no other experiment "
        "has both a higher score and less memory). Numbered circles: black ones on it. Numbered squares: the best of a "
        "method by the source's validation items.",
    )


def _memory(experiment: Experiment) -> list[float]:
    """GiB reserved in 99% of the training steps of each run that has it, the record's own run last."""
    record = experiment.record
    if "train" not in record.phases or record.phases["train"].memory.reserved_p99 is None:
        return []
    windows = [again.memory for again in record.repeats if again.status == "ok"] + [record.phases["train"].memory]
    return [memory.reserved_p99 / 2**30 for memory in windows if memory and memory.reserved_p99]
