"""The verdicts on the claims of articles: a forest plot of the effects that were measured."""

from __future__ import annotations

import math
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes

from harness import units
from harness.grouping import grouped
from harness.plugins.articles.article import judged_articles, tally
from harness.plugins.articles.claims import (
    DEPENDS,
    OPEN,
    REFUTED,
    SUPPORTED,
    TOO_SMALL,
    Decision,
    bits_per_byte,
    rate,
    times,
)
from harness.plugins.articles.merged import ArticleVerdicts, JudgedClaim, MergedVerdict
from harness.record import short
from harness.report.figures import style
from harness.report.figures.study_results import StudyResults
from harness.report.statistics import Interval


class Unit(NamedTuple):
    """What effects of one format are measured in.

    scale: of the axis. factor: from an effect to its axis. none: what stands for no effect, on that axis.
    """

    name: str
    scale: str
    factor: float
    none: float | None


UNITS: dict[Callable[[float], str], Unit] = {
    times: Unit("ratios", "log", 1.0, 1.0),
    units.points: Unit("points", "linear", style.PERCENT, 0.0),
    bits_per_byte: Unit("bits per byte", "linear", 1.0, 0.0),
    rate: Unit("learning rates", "log", 1.0, None),
}
LOOKS: dict[Decision, tuple[style.Look, str]] = {
    SUPPORTED: (style.Look("#0072B2", "o", ""), "#0072B2"),
    REFUTED: (style.Look("#D55E00", "X", ""), "#D55E00"),
    TOO_SMALL: (style.Look("#009E73", "s", ""), "#009E73"),
    DEPENDS: (style.Look("#CC79A7", "D", ""), "#CC79A7"),
    OPEN: (style.Look("#000000", "o", ""), "white"),
}
RARE = {TOO_SMALL, DEPENDS}  # not in the legend where no claim has the verdict
BAR = 0.13  # inches: the height of an effect
GROUND = {"facecolor": "white", "edgecolor": "none", "pad": 0.3}
LETTERS = 66  # of a claim that fit beside each other
MARGIN = 0.06  # of an axis beyond what is drawn on it, as a share


def verdicts(study: StudyResults) -> style.Drawn | None:
    """The effects on which the claims of each article are judged, with their intervals and what is claimed."""
    return forest({article.title: verdicts for article, verdicts in study.once(judged_articles)})


@mpl.rc_context(style.STYLE)
def forest(judged: Mapping[str, ArticleVerdicts], merged: bool = False) -> style.Drawn | None:
    """The same of any verdicts, by the title of the article; None if no effect is known.

    merged: one effect a claim, not one in each place.
    """
    rows = {title: _rows(verdicts, merged) for title, verdicts in judged.items()}
    panels = _panels(rows)
    if not panels:
        return None
    titles = [f"{title}, {unit.name}: {tally(_of_unit(judged[title], unit))}" for title, unit in panels]
    where = _places(rows)
    names = {}
    for (title, unit), effects in panels.items():
        judgements = Counter(verdict.claim.name for verdict in rows[title])
        several = {name for name, count in judgements.items() if count > 1}
        names[title, unit] = list(_names([verdict for verdict, _ in effects], where, several))
    figure, drawn = style.titled_panels(titles, *(0.75 + len(own) * _row_height(own) for own in names.values()))
    for ((title, unit), effects), axes in zip(panels.items(), drawn, strict=False):
        _forest(axes, unit, effects, names[title, unit])
    decisions = {verdict.decision for effects in panels.values() for verdict, _ in effects}
    looks = {decision: look for decision, look in LOOKS.items() if decision not in RARE - decisions}
    style.add_legend(figure, {decision: style.legend_point(look, mfc=fill) for decision, (look, fill) in looks.items()})
    missing = sum(len(verdicts.not_judged) for verdicts in judged.values())
    without = f" Not judged, since cells are missing: {units.plural(missing, 'claim')}." if missing else ""
    return style.Drawn(
        figure,
        "Effects on which claims are judged, with 95% intervals. Grey: where the claim puts the effect. Light grey: "
        "where it is too small to matter. A claim is supported if the whole interval is in the grey, too small to "
        "matter if it is in the light grey, refuted if it is beyond both." + without + style.left_out(panels),
    )


def _rows(verdicts: ArticleVerdicts, merged: bool) -> Sequence[JudgedClaim]:
    return verdicts.judged if merged else verdicts.places


def _panels(rows: Mapping[str, Sequence[JudgedClaim]]) -> dict[tuple[str, Unit], list[tuple[JudgedClaim, Interval]]]:
    """The verdicts, and their effects, by the article's title and the effect's unit."""
    return grouped(
        ((title, UNITS[verdict.claim.shown]), (verdict, effect))
        for title, verdicts in rows.items()
        for verdict in verdicts
        if (effect := verdict.judgement.effect) is not None
    )


def _of_unit(verdicts: ArticleVerdicts, unit: Unit) -> list[MergedVerdict]:
    return [merged for merged in verdicts.judged if UNITS[merged.claim.shown] == unit]


def _places(rows: Mapping[str, Sequence[JudgedClaim]]) -> dict[style.Place, str]:
    places = list(dict.fromkeys(verdict.place for verdicts in rows.values() for verdict in verdicts))
    return dict(zip(places, style.place_titles(places), strict=True))


def _forest(axes: Axes, unit: Unit, effects: Sequence[tuple[JudgedClaim, Interval]], names: Sequence[str]) -> None:
    """effects: verdicts, each with its effect at a whole number. names: what stands above each effect."""
    below = BAR / 2 / _row_height(names)  # of a row of height 1; what is claimed stands in the rest
    low, high = _limits(unit, [effect for _, effect in effects])
    for y, (verdict, effect) in enumerate(effects):
        for zone, shade in ((verdict.judgement.range, "0.86"), (verdict.judgement.small, "0.94")):
            if zone:
                begin, end = (min(max(unit.factor * bound, low), high) for bound in zone)
                axes.barh(y, end - begin, left=begin, height=1.6 * below, color=shade, zorder=0)
        look, fill = LOOKS[verdict.decision]
        value = unit.factor * effect.value
        ends = Interval(value, *(min(max(unit.factor * bound, low), high) for bound in effect[1:]))
        how: style.Style = {"color": look.colour, "marker": look.marker, "mfc": fill, "ms": 3.5, "elinewidth": 0.8}
        error = None if math.isnan(effect.low) else style.error_bar(value, ends, 1.0)
        axes.errorbar(value, y, xerr=error, linestyle="", capsize=0, **how)
    if unit.none is not None:
        axes.axvline(unit.none, color="0.4", linewidth=0.6)
    axes.set_xscale(unit.scale)
    axes.set(xlim=(low, high), ylim=(len(effects) - 1 + below, below - 1))
    for y, name in enumerate(names):
        axes.text(0.01, y - below, name, transform=axes.get_yaxis_transform(), va="bottom", fontsize=6, bbox=GROUND)
    axes.set_yticks([])
    axes.grid(axis="y", visible=False)
    if unit.scale == "log":
        ticks = _log_ticks(low, high)
        axes.set_xticks(ticks, labels=[short(tick) for tick in ticks])
        axes.set_xticks([], minor=True)


def _names(verdicts: Sequence[JudgedClaim], where: Mapping[style.Place, str], several: set[str]) -> Iterator[str]:
    """The claim as a sentence, in lines; of a claim in several places each with its place, and the claim at the first
    one."""
    before = None
    for verdict in verdicts:
        claim = _sentence(verdict.claim.text) if verdict.claim is not before else ""
        before = verdict.claim
        place = where[verdict.place] if verdict.claim.name in several else ""
        yield "\n".join(textwrap.wrap(style.plain(": ".join(filter(None, [claim, place])), 3 * LETTERS), LETTERS))


def _sentence(text: str) -> str:
    """A claim without what makes its vague words exact, which its verdict's table has."""
    return re.sub(r" \([^()]*\)", "", text)


def _row_height(names: Sequence[str]) -> float:
    """Inches of a row: its bar, below the lines of its name."""
    return BAR + 0.105 * max((name.count("\n") + 1 for name in names if name), default=0)


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between `low` and `high`: powers of ten, or finer where these are few."""
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**exponent for exponent in exponents for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) > 2:
            break
    return ticks


def _limits(unit: Unit, effects: Sequence[Interval]) -> tuple[float, float]:
    """The ends of an axis with all finite ends of `effects` on it, and no effect."""
    known = [unit.factor * end for effect in effects for end in effect if math.isfinite(end)]
    known += [] if unit.none is None else [unit.none]
    if unit.scale == "linear":
        low, high = min(known), max(known)
        beyond = MARGIN * (high - low) or 1.0
        return low - beyond, high + beyond
    low, high = min(end for end in known if end > 0), max(known)
    beyond = 1.1 * (high / low) ** MARGIN
    return low / beyond, high * beyond
