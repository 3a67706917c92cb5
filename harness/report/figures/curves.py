"""Loss against tokens and time."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from harness.report.figures import charts
from harness.report.figures.charts import LossCurve
from harness.report.figures.study_results import StudyResults
from harness.report.figures.style import Drawn, Style, add_legend, label, left_out, looks, place_titles, titled_panels
from harness.report.tables.rows import Row
from harness.units import count, significant


def loss(study: StudyResults) -> Drawn | None:
    """Loss against tokens and against time, each method in its chosen setting."""
    kind, curves = study.once(charts.losses)
    if not curves:
        return None
    titles = place_titles(list(curves))
    messages = [_lowest(kind, own) for own in curves.values()]
    titled = [": ".join(filter(None, title)) for title in zip(titles, messages, strict=True)]
    figure, panels = titled_panels([text for title in titled for text in (title, "")], 1.8)
    look = looks(study.methods)
    handles = {}
    for (place, own), by_tokens, by_time in zip(curves.items(), panels[::2], panels[1::2], strict=False):
        rows = [row for row, _ in own]
        for i, (row, (tokens, seconds, losses)) in enumerate(own):
            colour, marker, line = look[row.method]
            every = (i % 5, 5) if len(losses) > 10 else 1
            style: Style = {"color": colour, "linestyle": line, "marker": marker, "markevery": every, "markersize": 4}
            (handles[label(row, rows)],) = by_tokens.plot(tokens, losses, **style)
            by_time.plot(seconds, losses, **style)
        by_tokens.xaxis.set_major_locator(MaxNLocator(5))
        by_tokens.xaxis.set_major_formatter(lambda tokens, _: count(tokens))
        title = f"{kind} loss\n({study.loss_unit(place)})"
        by_tokens.set(xlabel="raw tokens", ylabel=title)
        by_time.set(xlabel="seconds of training steps", ylabel=title)
    add_legend(figure, handles)
    return Drawn(
        figure,
        f"{kind.capitalize()} loss, mean over seeds, against training tokens and training time. "
        f"{'It is that of held-out answers' if kind == 'validation' else 'Each point is the mean over several steps'}."
        + left_out(panels),
    )


def _lowest(kind: str, curves: Sequence[tuple[Row, LossCurve]]) -> str:
    """Whose loss ends lowest."""
    rows = [row for row, _ in curves]
    row, curve = min(curves, key=lambda of: of[1].losses[-1])
    return f"{label(row, rows)} ends with the least {kind} loss, {significant(curve.losses[-1], 3)}"
