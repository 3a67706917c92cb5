"""Scores by rank and losses by learning rate."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from harness.record import short
from harness.report.figures.messages import change_with_rank
from harness.report.figures.study_results import Estimated, StudyResults
from harness.report.figures.style import (
    PERCENT,
    Drawn,
    Look,
    Place,
    Style,
    add_legend,
    add_point,
    axis_scale,
    left_out,
    looks,
    place_panels,
)
from harness.report.select import Choice, select
from harness.report.statistics import Interval


def rank_sweep(study: StudyResults) -> Drawn | None:
    """Score of each method by rank, each rank at its chosen learning rate."""
    ranked: dict[tuple[Place, str], dict[int, Choice]] = defaultdict(dict)
    for choice in select(study.rows.records, ("method", "rank"), study.rows.settings):
        imported = any(study.rows.records[i].source for i in choice.index)  # single experiments, not a sweep
        if choice.rank is not None and not imported:
            ranked[choice.place, choice.method][choice.rank] = choice
    found: dict[Place, dict[str, dict[int, Estimated]]] = defaultdict(dict)
    ends: dict[Place, dict[str, Ends]] = defaultdict(dict)
    for (place, method), choices in ranked.items():
        score = study.headline(place)
        points = {rank: of for rank, choice in choices.items() if (of := study.estimate(choice, score))}
        if len(points) > 1:
            found[place][method] = points
            low, high = min(points), max(points)
            ends[place][method] = Ends(low, high, choices[low], choices[high])
    if not found:
        return None
    levels, scales = {}, {}
    for place, curves in found.items():
        score = study.headline(place)
        levels[place] = {
            choice.method: of[0]
            for choice in study.rows.choices
            if choice.place == place and choice.method in UNRANKED and (of := study.estimate(choice, score))
        }
        scales[place] = (f"validation loss\n({study.loss_unit(place)})", 1.0)
        if score:
            values = [value for points in curves.values() for value, _ in points.values()]
            scales[place] = axis_scale(score, [*values, *levels[place].values()])
    messages = {place: _message(study, place, methods, *scales[place]) for place, methods in ends.items()}
    made, panels = place_panels(messages, height=2.3)
    look = looks(study.methods)
    handles: dict[str, Any] = {}
    for (place, curves), axes in zip(found.items(), panels, strict=False):
        title, scale = scales[place]
        handles |= _curves(axes, curves, scale, look)
        for method, value in levels[place].items():
            colour, line = look[method].colour, look[method].line
            handles[method] = axes.axhline(scale * value, color=colour, linestyle=line, linewidth=1)
        axes.set(xlabel="rank", ylabel=title)
    add_legend(made, handles)
    return Drawn(
        made,
        "Score by rank, each rank at its learning rate with the least validation loss. Bars: 95% intervals. Level "
        "lines: methods without a rank." + left_out(found),
    )


UNRANKED = ("base", "full")


class Ends(NamedTuple):
    """The lowest and the highest rank of a method, and their choices."""

    low: int
    high: int
    lowest: Choice
    highest: Choice


def _message(study: StudyResults, place: Place, ends: dict[str, Ends], title: str, scale: float) -> str:
    """ends: by method."""
    score = study.headline(place)
    unit = "points" if scale == PERCENT else title.partition("(")[2].rstrip(")") if "(nats" in title else ""
    changes = {}
    for method, of in ends.items():
        if gap := study.gap(of.highest, of.lowest, score):
            changes[method] = Interval(scale * gap.value, scale * gap.low, scale * gap.high)
    return change_with_rank(changes, {method: (of.low, of.high) for method, of in ends.items()}, unit)


def _curves(axes: Axes, curves: dict[str, dict[int, Estimated]], scale: float, look: dict[str, Look]) -> dict[str, Any]:
    """Draws values by rank; returns the legend handle of each method."""
    handles = {}
    for i, (method, points) in enumerate(curves.items()):
        aside = 2 ** (0.06 * (i - (len(curves) - 1) / 2))  # so that intervals do not hide each other
        by_rank = sorted(points.items())
        x, y = [aside * rank for rank, _ in by_rank], [scale * value for _, (value, _) in by_rank]
        axes.plot(x, y, color=look[method].colour, linestyle=look[method].line)
        for rank, (value, interval) in by_rank:
            handles[method] = add_point(axes, aside * rank, value, interval, scale, look[method])
    ranks = sorted({rank for points in curves.values() for rank in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, labels=[str(rank) for rank in ranks])
    axes.minorticks_off()
    return handles


def lr_methods(study: StudyResults) -> Drawn | None:
    """Validation loss of each method by learning rate, at its best rank for that rate."""
    tried = defaultdict(list)
    for choice in select(study.rows.records, ("method", "lr"), study.rows.settings):
        if choice.key[1] is not None:
            tried[choice.place].append(choice)
    found = {
        place: choices
        for place, choices in tried.items()
        if len(choices) > len({choice.method for choice in choices}) and any(c.loss is not None for c in choices)
    }
    if not found:
        return None
    messages = {place: _best_rates(place, choices, study.rows.choices) for place, choices in found.items()}
    made, panels = place_panels(messages, height=2.3)
    look = looks(study.methods)
    handles: dict[str, Any] = {}
    for (place, choices), axes in zip(found.items(), panels, strict=False):
        handles |= _lr_methods(axes, choices, study.rows.choices, look)
        axes.set(xlabel="learning rate", ylabel=f"validation loss\n({study.loss_unit(place)})")
    add_legend(made, handles)
    return Drawn(
        made,
        "Validation loss by learning rate, mean over seeds, each method at its best rank for the rate. Ring: the rate "
        "chosen for the method. Cross at the upper edge: not every seed finished. Curves leave the panel where losses "
        "are far above the others." + left_out(found),
    )


def _best_rates(place: Place, choices: Sequence[Choice], best: Sequence[Choice]) -> str:
    """The learning rate that was chosen for each method that has several."""
    tried = Counter(choice.method for choice in choices)
    rates = {c.method: c.lr for c in best if c.place == place and c.lr is not None and tried[c.method] > 1}
    if not rates:
        return ""
    if len(rates) > 5:
        return f"The chosen rates lie from {short(min(rates.values()))} to {short(max(rates.values()))}"
    return "Chosen rates: " + ", ".join(f"{method} {short(lr)}" for method, lr in rates.items())


def _lr_methods(axes: Axes, choices: list[Choice], best: Sequence[Choice], look: dict[str, Look]) -> dict[str, Any]:
    """Draws losses by rate; returns the legend handle of each method."""
    handles, chosen = {}, {(choice.method, choice.lr) for choice in best if choice.place == choices[0].place}
    for method in dict.fromkeys(choice.method for choice in choices):
        own = sorted((c for c in choices if c.method == method), key=lambda choice: choice.key[1])
        known = {choice.key[1]: choice.loss for choice in own if choice.loss is not None}
        style: Style = {"color": look[method].colour, "marker": look[method].marker, "linestyle": look[method].line}
        (handles[method],) = axes.plot(list(known), list(known.values()), markersize=4, **style)
        for rate in (rate for rate in known if (method, rate) in chosen):
            axes.plot(rate, known[rate], "o", markersize=10, mfc="none", color=look[method].colour)
        for rate in (choice.key[1] for choice in own if choice.loss is None):
            above: Style = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            axes.plot(rate, 1.0, "x", color=look[method].colour, **above)
    finished = [(choice, choice.loss) for choice in choices if choice.loss is not None]
    losses = [loss for _, loss in finished]
    at_best = [loss for choice, loss in finished if (choice.method, choice.key[1]) in chosen]
    # up to the third quartile, so that a rate that nearly diverged does not make all others look alike
    low, high = min(losses), max([float(np.quantile(losses, 0.75)), *at_best])
    margin = 0.12 * (high - low) or 0.1 * low
    axes.set_ylim(low - margin, high + margin)
    rates = [choice.key[1] for choice in choices]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if max(rates) > 30 * min(rates) else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: short(rate)))
    axes.minorticks_off()
    return handles
