"""Others' published results as a forest plot: the effect of each source, and the mean of all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from harness.plugins.articles.claims import Decision
from harness.plugins.articles.forest import LOOKS, UNITS, Unit
from harness.plugins.articles.published_rules import PublishedPart, PublishedVerdict
from harness.record import short
from harness.report.figures import style
from harness.report.statistics import Interval

SOURCES = 2  # least number of sources of a panel
ROW, HEAD = 0.13, 0.55  # inches
SETTING: style.Style = {"color": "0.55", "marker": "|", "markersize": 4, "linestyle": "", "zorder": 1}
SOURCE: style.Style = {"color": "0.15", "marker": "o", "markersize": 3, "linestyle": "", "elinewidth": 0.8}
POOLED: style.Style = {"marker": "D", "markersize": 4, "linestyle": "", "elinewidth": 1.4}
LEAST, MOST = 0.2, 5.0  # ends of an axis of ratios at most: intervals of two sources go far beyond


@mpl.rc_context(style.STYLE)
def published_forest(verdicts: Sequence[PublishedVerdict]) -> style.Drawn | None:
    """A panel for each claim of one part with at least two sources; None if there is none."""
    panelled = [v for v in verdicts if len(v.parts) == 1 and len(v.part.votes) >= SOURCES and v.part.pooled is not None]
    if not panelled:
        return None
    heights = [HEAD + ROW * (len(verdict.part.votes) + 1) for verdict in panelled]
    figure = style.ShownFigure(figsize=(style.COLUMN, sum(heights)))
    panels = figure.subplots(len(panelled), height_ratios=heights, squeeze=False).flat
    for verdict, axes in zip(panelled, panels, strict=True):
        style.add_title(figure, axes, f"{verdict.claim.name}: {verdict.decision}")
        _panel(axes, verdict, UNITS[verdict.claim.shown])
    decisions: list[Decision] = list(dict.fromkeys(verdict.decision for verdict in panelled))
    points = {f"mean, {d}": style.legend_point(LOOKS[d][0], mfc=LOOKS[d][1]) for d in decisions}
    style.add_legend(figure, {"source": style.legend_point(LOOKS["not decided"][0], mfc="0.15"), **points})
    return style.Drawn(
        figure,
        "Effects that others published, by source, with 95% intervals of runs, and their mean by a random-effects "
        "meta-analysis. Ticks: single settings (models, tasks). The thin line of the mean is the 95% prediction "
        "interval. Grey: where the claim puts the effect. Light grey: where it is too small to matter.",
    )


def _panel(axes: Axes, verdict: PublishedVerdict, unit: Unit) -> None:
    part = verdict.part
    low, high = _limits(part, unit)
    for zone, shade in ((part.contrast.bounds.range, "0.86"), (part.contrast.bounds.small, "0.94")):
        if zone:
            begin, end = (min(max(unit.factor * bound, low), high) for bound in zone)
            axes.axvspan(begin, end, color=shade, linewidth=0, zorder=0)
    for y, vote in enumerate(part.votes):
        settings = [unit.factor * part.in_unit(effect.interval()).value for effect in vote.effects]
        axes.plot(settings, [y] * len(settings), **SETTING)
        _bar(axes, y, part.in_unit(vote.interval()), unit, (low, high), SOURCE)
    _mean(axes, len(part.votes), verdict, unit, (low, high))
    axes.axvline(unit.none if unit.none is not None else low, color="0.4", linewidth=0.6)
    axes.set_xscale(unit.scale)
    axes.set(xlim=(low, high), ylim=(len(part.votes) + 0.6, -0.6))
    names = [*(style.plain(vote.source, 30) for vote in part.votes), "mean"]
    axes.set_yticks(range(len(names)), labels=names, fontsize=6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("×" if part.contrast.bounds.ratio else unit.name, fontsize=6, labelpad=1)
    if unit.scale == "log":
        ticks = [tick for tick in (0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5) if low <= tick <= high]
        axes.set_xticks(ticks, labels=[short(tick) for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())


def _mean(axes: Axes, y: int, verdict: PublishedVerdict, unit: Unit, limits: tuple[float, float]) -> None:
    part, (look, fill) = verdict.part, LOOKS[verdict.decision]
    if part.pooled is None:
        return
    predicted = part.in_unit(part.pooled.prediction())
    if not math.isnan(predicted.low):
        ends = [min(max(unit.factor * end, limits[0]), limits[1]) for end in predicted[1:]]
        axes.plot(ends, [y, y], color=look.colour, linewidth=0.6)
    how: style.Style = {**POOLED, "color": look.colour, "mfc": fill}
    _bar(axes, y, part.in_unit(part.pooled.interval()), unit, limits, how)


def _bar(axes: Axes, y: int, effect: Interval, unit: Unit, limits: tuple[float, float], how: style.Style) -> None:
    """A point with its interval, cut at the ends of the axis."""
    value, low, high = (min(max(unit.factor * end, limits[0]), limits[1]) for end in effect)
    axes.errorbar(value, y, xerr=[[value - low], [high - value]], capsize=0, **how)


def _limits(part: PublishedPart, unit: Unit) -> tuple[float, float]:
    """The ends of the axis, with all effects and the mean's interval on it; of a ratio within LEAST and MOST."""
    intervals = [vote.interval() for vote in part.votes]
    scaled = [end for interval in intervals for end in interval] + [effect.value for effect in part.effects]
    scaled += [] if part.pooled is None else [*part.pooled.interval()]
    ends = [unit.factor * part.in_unit(Interval(end, end, end)).value for end in scaled]
    ends += [] if unit.none is None else [unit.none]
    if unit.scale == "log":
        return max(min(ends) / 1.05, LEAST), min(max(ends) * 1.05, MOST)
    beyond = 0.04 * (max(ends) - min(ends))
    return min(ends) - beyond, max(ends) + beyond
