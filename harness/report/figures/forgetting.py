"""What tuning gained on its task and lost on others."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes

from harness.record import Score
from harness.report.answer.advice import few
from harness.report.figures import style
from harness.report.figures.messages import lost_elsewhere
from harness.report.figures.study_results import StudyResults, is_untuned
from harness.report.forgetting import Comparison, Forgetting, Tally, named
from harness.report.statistics import ALPHA, Interval
from harness.score_names import task_label

BothChanges = dict[str, tuple[Interval, Interval]]  # by method, on the trained task and on the other one


def forgetting(study: StudyResults) -> style.Drawn | None:
    """Change on another task against change on the trained task, for each method."""
    by_place: dict[style.Place, tuple[Score, Score, BothChanges]] = {}
    for place in study.places:
        gained = study.headline(place)
        if gained is None or (other := study.aside(place, gained)) is None:
            continue
        if changes := _changes(study, place, gained, other):
            by_place[place] = gained, other, changes
    if not by_place:
        return None
    messages = {
        place: lost_elsewhere(
            {method: change for method, (_, change) in changes.items()},
            task_label(other.task, other.metric),
            other.higher_is_better,
        )
        for place, (_, other, changes) in by_place.items()
    }
    figure, panels = style.place_panels(messages, height=2.4)
    handles: dict[str, Any] = {}
    for (place, (gained, other, changes)), axes in zip(by_place.items(), panels, strict=False):
        handles |= _forgetting(axes, study, place, gained, other, changes)
    style.add_legend(figure, handles)
    return style.Drawn(
        figure,
        "Change from the untuned base, of quantised methods from the quantised one where it is there. Right: gained on "
        "the trained task. Down: forgotten on another. Bars: 95% intervals, paired by item." + style.left_out(by_place),
    )


def _changes(study: StudyResults, place: style.Place, gained: Score, other: Score) -> BothChanges:
    """The changes of both scores, of the methods that have both."""
    changes = {}
    for method in dict.fromkeys(row.method for row in study.finished(place) if not is_untuned(row)):
        x, y = study.change(place, gained, method), study.change(place, other, method)
        if x is not None and y is not None:
            changes[method] = x, y
    return changes


def _forgetting(
    axes: Axes, study: StudyResults, place: style.Place, gained: Score, other: Score, changes: BothChanges
) -> dict[str, Any]:
    """Draws a panel; returns what the legend says."""
    look, handles = style.looks(study.methods), {}
    names, scales = zip(
        *(style.axis_scale(score, study.values(place, score)) for score in (gained, other)), strict=True
    )
    for method, (x, y) in changes.items():
        of = look[method]
        how: style.Style = {"color": of.colour, "marker": of.marker, "mfc": "none", "elinewidth": 0.7}
        how |= {"xerr": style.error_bar(x.value, x, scales[0]), "yerr": style.error_bar(y.value, y, scales[1])}
        handles[method] = axes.errorbar(x.value * scales[0], y.value * scales[1], linestyle="", **how)
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.axvline(0, color="0.4", linewidth=0.8)
    x_name, y_name = (name.replace("(%)", "(points)") for name in names)
    axes.set(xlabel=f"change of {x_name}", ylabel=f"change of\n{y_name}")
    if not gained.higher_is_better:
        axes.invert_xaxis()
    if not other.higher_is_better:
        axes.invert_yaxis()
    return handles


def lost_won(balance: Forgetting) -> style.Drawn | None:
    """The share of items that each method lost and won against the base; None without comparisons."""
    scores = dict.fromkeys((c.place, c.score) for c in balance.comparisons)
    if not scores:
        return None
    wheres = style.place_titles([place for place, _ in scores])
    titles = [f"{where}: {named(of)}" if where else named(of) for where, (_, of) in zip(wheres, scores, strict=True)]
    grouped = [[c for c in balance.comparisons if (c.place, c.score) == of] for of in scores]
    with mpl.rc_context(style.STYLE):
        titled = [f"{title}: {_losing(of_it)}" for title, of_it in zip(titles, grouped, strict=True)]
        figure, panels = style.bar_panels(dict(zip(titled, grouped, strict=True)), per_bar=0.2)
        handles: dict[str, Any] = {}
        for of_it, axes in zip(grouped, panels, strict=False):
            handles |= _lost_won(axes, of_it)
        style.add_legend(figure, handles)
    return style.Drawn(
        figure,
        "Lost: items that the untuned base answers correctly and the tuned model does not. Won: the reverse. Change: "
        "won minus lost, with its 95% interval, paired by item." + style.left_out(scores),
    )


def _losing(compared: list[Comparison]) -> str:
    """The methods that are shown to lose more items than they win: by the corrected test, or where a score is not
    tested by an interval below 0."""
    totals = {c.label: c.total for c in compared if c.total.change}
    lost = [label for label, total in totals.items() if _loses(total)]
    if not lost:
        return "no method is shown to lose" if totals else "changes are not tested"
    return f"{few(lost)} {'loses' if len(lost) == 1 else 'lose'}"


def _loses(total: Tally) -> bool:
    change = total.change
    if change is None:
        return False
    return change.high < 0 if total.corrected is None else total.corrected < ALPHA and change.value < 0


def _lost_won(axes: Axes, compared: list[Comparison]) -> dict[str, Any]:
    """Draws a panel; returns what the legend says."""
    at, shares = range(len(compared)), [style.PERCENT / c.total.items for c in compared]
    lost = [-c.total.lost * share for c, share in zip(compared, shares, strict=True)]
    won = [c.total.won * share for c, share in zip(compared, shares, strict=True)]
    handles: dict[str, Any] = {"lost": axes.barh(at, lost, color="#D55E00", **style.EDGE)}
    handles["won"] = axes.barh(at, won, color="#56B4E9", hatch="..", **style.EDGE)
    how: style.Style = {"marker": "D", "color": "black", "mfc": "white", "ms": 4, "linestyle": ""}
    for y, change in enumerate(c.total.change for c in compared):
        if change:
            value, *ends = (style.PERCENT * end for end in change[:3])
            handles["change"] = axes.errorbar(value, y, xerr=[[abs(value - end)] for end in ends], **how)
    axes.axvline(0, color="0.4", linewidth=0.8)
    style.label_bars(axes, [c.label for c in compared])
    axes.set_xlabel("% of the items")
    return handles
