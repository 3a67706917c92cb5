"""One style for all figures: colours, markers, panels, legends, error bars."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory

from harness.record import Score
from harness.report.statistics import Interval
from harness.report.tables.entries import score_style
from harness.report.tables.rows import METHODS, Row

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

Style = dict[str, Any]  # keyword arguments of a drawing call

STYLE: dict[RcKeyType, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.linewidth": 0.6,
    "axes.titlesize": 8,
    "errorbar.capsize": 2,
    "figure.constrained_layout.use": True,
    "font.size": 7,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.5,
    "legend.columnspacing": 1.2,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "lines.linewidth": 1.1,
    "lines.markersize": 5,
    "savefig.dpi": 200,
    "svg.fonttype": "none",  # keep text as text, for search and screen readers
    "svg.hashsalt": "harness",
    "text.parse_math": False,  # names may contain dollar signs
}
COLOURS = ["#000000", "#999999", "#D55E00", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7"]
MARKERS = ["_", "|", "s", "o", "D", "^", "v", "P", "X", "*", "<", ">", "p", "h", "d"]
LINES: list[Any] = [(0, (6, 3)), (0, (1, 2)), "-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2))]
HATCHES = ["", "///", "..", "xx", "\\\\\\"]
COLUMN = 3.3  # inches: the width of a column of a paper, in which texts of 7 points can be read
LINE = 54  # letters of a title that fit into it
PANELS = 6  # most panels in a readable figure
LEGEND = 10  # most methods that a legend can distinguish


class ShownFigure(Figure):
    """A figure that a notebook displays as an image, also where pyplot is not imported."""

    def _repr_png_(self) -> bytes:
        return saved(self, "png", {"Software": None})


class Drawn(NamedTuple):
    """A figure and its caption; notebooks display it as an image."""

    figure: Figure
    caption: str

    def svg(self) -> str:
        """An SVG document without XML declaration, ready to embed in HTML."""
        text = saved(
            self.figure, "svg", {"Title": self.caption, "Creator": None, "Date": None, "Format": None}
        ).decode()
        return text[text.index("<svg") :]

    def png(self) -> bytes:
        return saved(self.figure, "png", {"Software": None})

    def _repr_png_(self) -> bytes:
        return self.png()


def saved(figure: Figure, kind: str, metadata: dict[str, str | None]) -> bytes:
    """`figure` as a file of this kind, in the style of all figures."""
    file = io.BytesIO()
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # Of names in Chinese, once for each letter: an SVG has them as text, a PNG as boxes.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        figure.savefig(file, format=kind, metadata=metadata)
    return file.getvalue()


Place = tuple[str, str, str]


class Look(NamedTuple):
    colour: str
    marker: str
    line: Any


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """A look for each method: known methods look the same in every figure, others follow by name."""
    others = sorted(set(methods) - set(METHODS))
    parts = zip([*METHODS, *others], cycle(COLOURS), cycle(MARKERS), cycle(LINES), strict=False)
    return {method: Look(colour, marker, line) for method, colour, marker, line in parts}


def plain(text: str, most: int = 36) -> str:
    """`text` without control characters (XML forbids them), cut to `most` characters."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def place_panels(messages: Mapping[Place, str], height: float) -> tuple[Figure, list[Axes]]:
    """A figure with one panel per place, titled with its message: a sentence of what the panel shows."""
    titles = zip(place_titles(list(messages)), messages.values(), strict=True)
    return titled_panels([": ".join(filter(None, title)) for title in titles], height)


def place_titles(places: Sequence[Place]) -> list[str]:
    """Titles of places: study, model and data, without the parts that all places share."""
    varies = [len(set(parts)) > 1 for parts in zip(*places, strict=True)]
    return [", ".join(part for part, varying in zip(place, varies, strict=True) if varying) for place in places]


def titled_panels(titles: Sequence[str], *heights: float) -> tuple[Figure, list[Axes]]:
    """A figure as wide as a column with a panel below each title. heights: of each in inches, or one for all."""
    titles = titles[:PANELS]
    heights = heights[:PANELS] if len(heights) > 1 else heights * len(titles)
    figure = ShownFigure(figsize=(COLUMN, sum(heights)))
    axes = list(figure.subplots(len(titles), height_ratios=heights, squeeze=False).flat)
    for panel, title in zip(axes, titles, strict=True):
        add_title(figure, panel, title)
    return figure, axes


def add_title(figure: Figure, axes: Axes, text: str) -> None:
    """A title in lines as wide as the figure, from its left edge: labels beside the panel leave the panel less."""
    title = axes.set_title(textwrap.fill(plain(text, 4 * LINE), LINE), loc="left", x=0.02)
    title.set_transform(blended_transform_factory(figure.transFigure, title.get_transform()))


def left_out(panels: Sized) -> str:
    """The caption's note on panels that did not fit."""
    return f" Only the first {PANELS} of {len(panels)} panels are shown." if len(panels) > PANELS else ""


def add_legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    """The figure's one legend, below its panels, in as many columns as its labels leave room for."""
    labels = list(map(plain, handles))
    across = max(1, min(4, LINE // (max(map(len, labels), default=0) + 5)))
    figure.legend(list(handles.values()), labels, loc="outside lower center", ncols=across)


def add_point(axes: Axes, x: Any, y: Any, interval: Interval | None, scale: float, look: Look, **style: Any) -> Any:
    """A marker with an error bar for its interval, both multiplied by `scale`. x, y: arrays for several without one."""
    error = error_bar(y, interval, scale) if interval else None
    return axes.errorbar(x, scale * y, yerr=error, marker=look.marker, color=look.colour, linestyle="", **style)


def legend_point(look: Look, **style: Any) -> Line2D:
    """The marker alone, as a legend shows it."""
    return Line2D([], [], marker=look.marker, color=look.colour, linestyle="", **style)


def error_bar(value: float, interval: Interval, scale: float) -> list[list[float]] | None:
    """The distances to the interval's ends in matplotlib's form; None if the ends are unknown."""
    if np.isnan(interval.low):
        return None
    # Student's t may exceed the range of a proportion
    least, most = (0.0, 1.0) if scale == PERCENT else (-np.inf, np.inf)
    ends = (value - max(least, interval.low), min(most, interval.high) - value)
    return [[scale * max(0.0, end)] for end in ends]  # rounding may make it negative


def axis_scale(score: Score, values: Sequence[float]) -> tuple[str, float]:
    """The axis label of `score` in short lines, and the factor for its values: 100 if they are proportions."""
    header, _ = score_style(score, values)
    return textwrap.fill(plain(header, 60), 24, break_on_hyphens=False), PERCENT if "(%)" in header else 1.0


def label(row: Row, rows: Sequence[Row]) -> str:
    """The method, with its setting if `rows` have several of it."""
    several = sum(other.method == row.method for other in rows) > 1
    return f"{row.method} {row.setting}" if several and row.setting else row.method


PERCENT = 100.0  # of a share
EDGE: Style = {"edgecolor": "black", "linewidth": 0.5}


def bar_panels(bars_by_title: Mapping[str, Sequence[Any]], per_bar: float) -> tuple[Figure, list[Axes]]:
    """Titled panels of horizontal bars, each as tall as its bars need."""
    return titled_panels(list(bars_by_title), *(0.9 + per_bar * max(2, len(bars)) for bars in bars_by_title.values()))


def label_bars(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels=[plain(label, 24) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
