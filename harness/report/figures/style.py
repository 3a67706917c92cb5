"""One style for all figures: colours, markers, panels, legends, error bars."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence, Sized
from itertools import cycle
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.record import Score
from harness.report.statistics import Interval
from harness.report.tables.entries import score_style
from harness.report.tables.rows import METHODS, Row

STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "errorbar.capsize": 3,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.color": "0.9",
    "hatch.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 3,
    "lines.linewidth": 1.4,
    "lines.markersize": 6,
    "savefig.dpi": 150,
    "svg.fonttype": "none",  # keep text as text, for search and screen readers
    "svg.hashsalt": "harness",
    "text.parse_math": False,  # names may contain dollar signs
}
COLOURS = ["#000000", "#999999", "#D55E00", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7"]
MARKERS = ["_", "|", "s", "o", "D", "^", "v", "P", "X", "*", "<", ">", "p", "h", "d"]
LINES = [(0, (6, 3)), (0, (1, 2)), "-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2))]
HATCHES = ["", "///", "..", "xx", "\\\\\\"]
PANELS = 6  # most panels in a readable figure
LEGEND = 10  # most methods that a legend can distinguish


class Drawn(NamedTuple):
    """A figure and its caption; notebooks display it as an image."""

    figure: Figure
    caption: str

    def svg(self) -> str:
        """An SVG document without XML declaration, ready to embed in HTML."""
        text = self._saved("svg", {"Title": self.caption, "Creator": None, "Date": None, "Format": None}).decode()
        return text[text.index("<svg") :]

    def png(self) -> bytes:
        return self._saved("png", {"Software": None})

    def _repr_png_(self) -> bytes:
        return self.png()

    def _saved(self, kind: str, metadata: dict[str, str | None]) -> bytes:
        file = io.BytesIO()
        with mpl.rc_context(STYLE):
            self.figure.savefig(file, format=kind, metadata=metadata)
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
    return {method: Look(*look) for method, *look in parts}


def plain(text: str, most: int = 36) -> str:
    """`text` without control characters (XML forbids them), cut to `most` characters."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def place_panels(places: Sequence[Place], width: float = 6.4, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """A figure with one panel per place."""
    return titled_panels(place_titles(places), width, height)


def place_titles(places: Sequence[Place]) -> list[str]:
    """Titles of places: study, model and data, without the parts that all places share."""
    varies = [len(set(parts)) > 1 for parts in zip(*places, strict=True)]
    return [", ".join(part for part, shown in zip(place, varies, strict=True) if shown) for place in places]


def titled_panels(titles: Sequence[str], width: float = 6.4, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    titles = titles[:PANELS]
    across = min(2, len(titles))
    down = -(-len(titles) // across)
    made = Figure(figsize=(width * across, height * down))
    axes = list(made.subplots(down, across, squeeze=False).flat)
    for panel in axes[len(titles) :]:
        panel.remove()
    for panel, title in zip(axes, titles, strict=False):
        panel.set_title(plain(title))
    return made, axes[: len(titles)]


def left_out(panels: Sized) -> str:
    """The caption's note on panels that did not fit."""
    return f" Only the first {PANELS} of {len(panels)} panels are shown." if len(panels) > PANELS else ""


def add_legend(axes: Axes, handles: Sequence, labels: Sequence[str]) -> None:
    """A legend beside the panel."""
    axes.legend(handles, list(map(plain, labels)), loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)


def add_point(axes: Axes, x: float, y: float, interval: Interval | None, scale: float, look: Look, **style: Any) -> Any:
    """A marker with an error bar for its interval, both multiplied by `scale`."""
    error = error_bar(y, interval, scale) if interval else None
    return axes.errorbar(x, scale * y, yerr=error, marker=look.marker, color=look.colour, linestyle="", **style)


def error_bar(value: float, interval: Interval, scale: float) -> list[list[float]] | None:
    """The distances to the interval's ends in matplotlib's form; None if the ends are unknown."""
    if np.isnan(interval.low):
        return None
    # Student's t may exceed the range of a proportion
    least, most = (0.0, 1.0) if scale == PERCENT else (-np.inf, np.inf)
    ends = (value - max(least, interval.low), min(most, interval.high) - value)
    return [[scale * max(0.0, end)] for end in ends]  # rounding may make it negative


def axis_scale(score: Score, values: Sequence[float]) -> tuple[str, float]:
    """The axis label of `score`, and the factor for its values: 100 if they are proportions."""
    header, _ = score_style(score, values)
    return plain(header, 60), PERCENT if "(%)" in header else 1.0


def label(row: Row, rows: Sequence[Row]) -> str:
    """The method, with its setting if `rows` have several of it."""
    several = sum(other.method == row.method for other in rows) > 1
    return f"{row.method} {row.setting}" if several and row.setting else row.method


PERCENT = 100.0  # of a share
EDGE = {"edgecolor": "black", "linewidth": 0.5}


def bar_panels(found: dict[str, list], per_bar: float) -> tuple[Figure, list[Axes]]:
    """Titled panels of horizontal bars, tall enough for the panel with the most bars."""
    most = max(map(len, found.values()))
    return titled_panels(list(found), height=max(2.0, 0.8 + per_bar * most))


def label_bars(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels=list(map(plain, labels)))
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
