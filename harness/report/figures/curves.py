"""Loss against tokens and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

from harness.report.figures.study_results import StudyResults
from harness.report.figures.style import Drawn, Style, add_legend, label, left_out, looks, place_titles, titled_panels
from harness.report.tables.rows import Row
from harness.units import count, significant


class Curve(NamedTuple):
    tokens: np.ndarray
    seconds: np.ndarray
    losses: np.ndarray


def loss(study: StudyResults) -> Drawn | None:
    """Loss against tokens and against time, each method in its chosen setting."""
    kind = next((kind for kind, curve in LOSSES.items() if any(curve(row) for row in study.rows if row.finished)), None)
    if kind is None:
        return None
    curves = {place: [(row, of) for row in study.shown(place) if (of := LOSSES[kind](row))] for place in study.places}
    found = [place for place, drawn in curves.items() if drawn]
    titles = place_titles(found)
    messages = [_lowest(kind, curves[place]) for place in found]
    titled = [": ".join(filter(None, title)) for title in zip(titles, messages, strict=True)]
    made, panels = titled_panels([text for title in titled for text in (title, "")], 1.8)
    look = looks(study.methods)
    handles = {}
    for place, by_tokens, by_time in zip(found, panels[::2], panels[1::2], strict=False):
        rows = [row for row, _ in curves[place]]
        for i, (row, (tokens, seconds, losses)) in enumerate(curves[place]):
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
    add_legend(made, handles)
    return Drawn(
        made,
        f"{kind.capitalize()} loss, mean over seeds, against training tokens and training time. "
        f"{'It is that of held-out answers' if kind == 'validation' else 'Each point is the mean over several steps'}."
        + left_out(panels),
    )


def _lowest(kind: str, curves: Sequence[tuple[Row, Curve]]) -> str:
    """Whose loss ends lowest."""
    rows = [row for row, _ in curves]
    row, curve = min(curves, key=lambda of: of[1].losses[-1])
    return f"{label(row, rows)} ends with the least {kind} loss, {significant(curve.losses[-1], 3)}"


def validation_curve(row: Row) -> Curve | None:
    """Tokens, seconds and mean loss over seeds at each validation; None for fewer than three validations."""
    runs = [(r.validation, r.train.step_seconds) for r in row.measured if r.train and len(r.validation) > 2]
    runs = [(points, step_seconds) for points, step_seconds in runs if len(step_seconds) >= points[-1].step]
    if not runs:
        return None
    steps = [point.step for point in runs[0][0]]
    runs = [(points, step_seconds) for points, step_seconds in runs if [point.step for point in points] == steps]
    tokens = np.mean([[point.tokens for point in points] for points, _ in runs], axis=0)
    seconds = np.mean([np.concatenate([[0.0], np.cumsum(taken)])[steps] for _, taken in runs], axis=0)
    losses = np.mean([[point.loss for point in points] for points, _ in runs], axis=0)
    return Curve(tokens, seconds, losses)


def training_curve(row: Row, parts: int = 20) -> Curve | None:
    """Tokens and seconds at the end of each of up to `parts` stretches of steps, and their mean loss, over seeds.

    None if no seed has losses by step. Seeds with fewer steps than the others are left out.
    """
    trains = [record.train for record in row.measured if record.train and len(record.train.loss) > 1]
    steps = max((len(train.loss) for train in trains), default=0)
    trains = [train for train in trains if len(train.loss) == len(train.step_seconds) == steps]
    if not trains:
        return None
    stretches = np.array_split(np.arange(steps), min(parts, steps))
    ends = [stretch[-1] for stretch in stretches]
    tokens = np.mean([[train.loss[i].tokens for i in ends] for train in trains], axis=0)
    seconds = np.mean([np.cumsum(train.step_seconds)[ends] for train in trains], axis=0)
    losses = np.mean([[point.loss for point in train.loss] for train in trains], axis=0)
    return Curve(tokens, seconds, np.array([losses[stretch].mean() for stretch in stretches]))


LOSSES = {"validation": validation_curve, "training": training_curve}
