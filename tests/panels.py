"""The panels of a drawn figure, and what stands on them."""

from __future__ import annotations

from harness.report.figures import FIGURES


def draw(name, records):
    """The panels of a figure."""
    drawn = FIGURES[name](records, None)
    drawn.figure.canvas.draw()
    return drawn.figure.axes


def legend(panel):
    """The labels of the figure's one legend."""
    (found,) = panel.get_figure().legends
    return [text.get_text() for text in found.get_texts()]


def points(panel):
    """(x, y) of the single markers of error bars."""
    lines = [bar.lines[0] for bar in panel.containers if hasattr(bar, "lines")]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines]
