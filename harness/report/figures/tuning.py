"""Scores by rank and losses by learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from harness.record import short
from harness.report.figures import charts, style
from harness.report.figures.charts import SweptCurve
from harness.report.figures.messages import change_with_rank
from harness.report.figures.study_results import StudyResults
from harness.report.select import Choice
from harness.report.statistics import Interval


def rank_sweep(study: StudyResults) -> style.Drawn | None:
    """Score of each method by rank, each rank at its chosen learning rate."""
    curves_of = _by_place(study.once(charts.ranks))
    if not curves_of:
        return None
    levels, scales = {}, {}
    for place, curves in curves_of.items():
        score = study.headline(place)
        levels[place] = {
            choice.method: of[0]
            for choice in study.rows.choices
            if choice.place == place and choice.method in UNRANKED and (of := study.estimate(choice, score))
        }
        scales[place] = (f"validation loss\n({study.loss_unit(place)})", 1.0)
        if score:
            values = [value for curve in curves for value in curve.known.values()]
            scales[place] = style.axis_scale(score, [*values, *levels[place].values()])
    messages = {place: _message(study, curves, *scales[place]) for place, curves in curves_of.items()}
    figure, panels = style.place_panels(messages, height=2.3)
    look = style.looks(study.methods)
    handles: dict[str, Any] = {}
    for (place, curves), axes in zip(curves_of.items(), panels, strict=False):
        title, scale = scales[place]
        handles |= _rank_sweep(axes, curves, scale, look)
        for method, value in levels[place].items():
            colour, line = look[method].colour, look[method].line
            handles[method] = axes.axhline(scale * value, color=colour, linestyle=line, linewidth=1)
        axes.set(xlabel="rank", ylabel=title)
    style.add_legend(figure, handles)
    return style.Drawn(
        figure,
        "Score by rank, each rank at its learning rate with the least validation loss. Bars: 95% intervals. Level "
        "lines: methods without a rank." + style.left_out(curves_of),
    )


UNRANKED = ("base", "full")


def _by_place(curves: Sequence[SweptCurve]) -> dict[style.Place, list[SweptCurve]]:
    places = dict.fromkeys(curve.place for curve in curves)
    return {place: [curve for curve in curves if curve.place == place] for place in places}


def _message(study: StudyResults, curves: Sequence[SweptCurve], title: str, scale: float) -> str:
    score = study.headline(curves[0].place)
    unit = "points" if scale == style.PERCENT else title.partition("(")[2].rstrip(")") if "(nats" in title else ""
    changes = {}
    for curve in curves:
        if gap := study.gap(curve.points[-1].choice, curve.points[0].choice, score):
            changes[curve.method] = Interval(scale * gap.value, scale * gap.low, scale * gap.high)
    ends = {curve.method: (int(curve.points[0].x), int(curve.points[-1].x)) for curve in curves}
    return change_with_rank(changes, ends, unit)


def _rank_sweep(axes: Axes, curves: Sequence[SweptCurve], scale: float, look: dict[str, style.Look]) -> dict[str, Any]:
    """Draws values by rank; returns the legend handle of each method."""
    handles = {}
    for i, curve in enumerate(curves):
        aside = 2 ** (0.06 * (i - (len(curves) - 1) / 2))  # so that intervals do not hide each other
        of = look[curve.method]
        x, y = [aside * rank for rank in curve.known], [scale * value for value in curve.known.values()]
        axes.plot(x, y, color=of.colour, linestyle=of.line)
        for rank, value, interval, *_ in curve.points:
            handles[curve.method] = style.add_point(axes, aside * rank, value, interval, scale, of)
    ranks = sorted({point.x for curve in curves for point in curve.points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, labels=[str(rank) for rank in ranks])
    axes.minorticks_off()
    return handles


def lr_methods(study: StudyResults) -> style.Drawn | None:
    """Validation loss of each method by learning rate, at its best rank for that rate."""
    curves_of = {
        place: curves
        for place, curves in _by_place(study.once(charts.rates)).items()
        if any(len(curve.points) > 1 for curve in curves) and any(curve.known for curve in curves)
    }
    if not curves_of:
        return None
    messages = {place: _best_rates(curves, study.rows.choices) for place, curves in curves_of.items()}
    figure, panels = style.place_panels(messages, height=2.3)
    look = style.looks(study.methods)
    handles: dict[str, Any] = {}
    for (place, curves), axes in zip(curves_of.items(), panels, strict=False):
        handles |= _lr_methods(axes, curves, look)
        axes.set(xlabel="learning rate", ylabel=f"validation loss\n({study.loss_unit(place)})")
    style.add_legend(figure, handles)
    return style.Drawn(
        figure,
        "Validation loss by learning rate, mean over seeds, each method at its best rank for the rate. Ring: the rate "
        "chosen for the method; where fresh seeds confirmed it, at their mean with its 95% interval, and lines are of "
        "the seeds that chose. Cross at the upper edge: not every seed finished. Curves leave the panel where losses "
        "are far above the others." + style.left_out(curves_of),
    )


def _best_rates(curves: Sequence[SweptCurve], best: Sequence[Choice]) -> str:
    """The learning rate that was chosen for each method that has several."""
    several = {(curve.place, curve.method) for curve in curves if len(curve.points) > 1}
    rates = {c.method: c.lr for c in best if c.lr is not None and (c.place, c.method) in several}
    if not rates:
        return ""
    if len(rates) > 5:
        return f"The chosen rates lie from {short(min(rates.values()))} to {short(max(rates.values()))}"
    return "Chosen rates: " + ", ".join(f"{method} {short(lr)}" for method, lr in rates.items())


def _lr_methods(axes: Axes, curves: Sequence[SweptCurve], look: dict[str, style.Look]) -> dict[str, Any]:
    """Draws losses by rate; returns the legend handle of each method."""
    handles = {}
    for curve in curves:
        of = look[curve.method]
        how: style.Style = {"color": of.colour, "marker": of.marker, "linestyle": of.line}
        (handles[curve.method],) = axes.plot(list(curve.known), list(curve.known.values()), markersize=4, **how)
        for point in curve.points:
            if point.value is None:
                above: style.Style = {"transform": axes.get_xaxis_transform(), "clip_on": False}
                axes.plot(point.x, 1.0, "x", color=of.colour, **above)
            elif point.chosen:
                y, interval = point.confirmed[:2] if point.confirmed else (point.value, None)
                if interval:
                    axes.errorbar(point.x, y, yerr=style.error_bar(y, interval, 1.0), color=of.colour, linestyle="")
                axes.plot(point.x, y, "o", markersize=10, mfc="none", color=of.colour)
    points = [point for curve in curves for point in curve.points]
    losses = [point.value for point in points if point.value is not None]
    at_best = [point.value for point in points if point.value is not None and point.chosen]
    at_best += [point.confirmed.value for point in points if point.confirmed]
    # up to the third quartile, so that a rate that nearly diverged does not make all others look alike
    low, high = min([*losses, *at_best]), max([float(np.quantile(losses, 0.75)), *at_best])
    margin = 0.12 * (high - low) or 0.1 * low
    axes.set_ylim(low - margin, high + margin)
    rates = [point.x for point in points]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if max(rates) > 30 * min(rates) else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: short(rate)))
    axes.minorticks_off()
    return handles
