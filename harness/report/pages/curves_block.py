"""What the page draws beside single settings: curves over learning rates, ranks and tokens; axes and their weight."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from harness.record import Record
from harness.report.figures.curves import LOSSES
from harness.report.figures.study_results import StudyResults, loss_unit
from harness.report.figures.style import Place
from harness.report.frame import score_name
from harness.report.pages.importance import importance
from harness.report.pages.settings_block import short
from harness.report.select import Choice, select
from harness.report.statistics import Interval, seeds_interval

AXES = 8  # most axes that are drawn side by side
TEXTS = 24  # most texts on an axis


def curves_block(study: StudyResults) -> dict[str, Any]:
    """Points name settings by their positions in `settings_block`.

    rates: of each method its loss by learning rate, at the best rank for it. ranks: likewise its headline score (else
    its loss) by rank, at the best rate for it. losses: of the chosen settings against tokens and seconds. memory:
    groups of settings whose memory is comparable. axes: the grid's axes, and what of the outcome each explains.
    """
    at = {id(record): i for i, row in enumerate(study.rows) for record in row.records}
    return {
        "rates": list(_rates(study, at)),
        "ranks": list(_ranks(study, at)),
        "losses": _losses(study, at),
        "memory": [
            {"title": title, "settings": [at[id(row.records[0])] for row in rows]}
            for title, rows in study.alike("peak_weights").items()
        ],
        "axes": _axes(study),
    }


def _rates(study: StudyResults, at: dict[int, int]) -> Iterator[dict[str, Any]]:
    records = study.rows.records
    best = {(choice.place, choice.method): choice.lr for choice in study.rows.choices}
    found = defaultdict(list)
    for choice in select(records, ("method", "lr"), study.rows.settings):
        if choice.key[1] is not None:
            found[choice.place, choice.method].append(choice)
    for (place, method), choices in found.items():
        points = [_point(c, c.key[1], c.loss, _losses_of(c, records), records, at) for c in choices]
        if len(points) > 1 and any(point["y"] is not None for point in points):
            yield _curve(study, place, method, points, best.get((place, method)))


def _ranks(study: StudyResults, at: dict[int, int]) -> Iterator[dict[str, Any]]:
    records = study.rows.records
    best = {(choice.place, choice.method): choice.rank for choice in study.rows.choices}
    found = defaultdict(list)
    for choice in select(records, ("method", "rank"), study.rows.settings):
        imported = any(records[i].source for i in choice.index)  # single experiments, not a sweep
        if choice.rank is None or imported:
            continue
        score = study.headline(choice.place)
        if estimate := study.estimate(choice, score):
            value, interval = estimate
            point = _point(choice, choice.rank, value, interval, records, at)
            found[choice.place, choice.method].append(point)
    for (place, method), points in found.items():
        if len(points) > 1:
            score = study.headline(place)
            name = score_name(score) if score else "validation_loss"
            yield _curve(study, place, method, points, best.get((place, method))) | {"metric": name}


def _curve(
    study: StudyResults, place: Place, method: str, points: list[dict[str, Any]], best: float | None
) -> dict[str, Any]:
    for point in points:
        point["chosen"] = int(point["x"] == best)
    points.sort(key=lambda point: point["x"])
    return {"place": study.places.index(place), "method": study.methods.index(method), "points": points}


def _point(
    choice: Choice,
    x: float,
    y: float | None,
    interval: Interval | None,
    records: Sequence[Record],
    at: dict[int, int],
) -> dict[str, Any]:
    shown = interval if interval is not None and interval.low < interval.high else None
    return {
        "x": x,
        "y": short(y),
        "low": short(shown.low) if shown else None,
        "high": short(shown.high) if shown else None,
        "setting": at[id(records[choice.index[0]])] if choice.index else None,
        "lost": ", ".join(f"{n} {status}" for status, n in choice.lost.items()),
    }


def _losses_of(choice: Choice, records: Sequence[Record]) -> Interval | None:
    losses = [records[i].validation[-1].loss for i in choice.index if records[i].validation]
    return seeds_interval(losses) if len(losses) > 1 else None


def _losses(study: StudyResults, at: dict[int, int]) -> dict[str, Any] | None:
    """Of the chosen settings, as in the figure `loss`: validation losses, or else training losses."""
    rows = [row for place in study.places for row in study.shown(place)]
    for kind, of in LOSSES.items():
        curves = [(row, curve) for row in rows if (curve := of(row))]
        if curves:
            return {
                "kind": kind,
                "unit": loss_unit(row for row, _ in curves),
                "curves": [
                    {"setting": at[id(row.records[0])]}
                    | {name: list(map(short, part)) for name, part in curve._asdict().items()}
                    for row, curve in curves
                ],
            }
    return None


# Axes


def _axes(study: StudyResults) -> list[dict[str, Any]]:
    """Of each place the axes that vary, with each setting's value; and their importance over records.

    The outcome is the validation loss, by which settings are chosen, or the headline score where there is none.
    """
    found = []
    rows = list(study.rows)
    for number, place in enumerate(study.places):
        members = [i for i, row in enumerate(rows) if row.place == place and row.records[0].cell.seed is not None]
        records = [record for i in members for record in rows[i].records]
        values = _varying(records)
        score = study.headline(place)
        outcomes = [r.validation[-1].loss if r.validation and r.status == "ok" else None for r in records]
        outcome = "validation_loss"
        if score and sum(value is not None for value in outcomes) < 2:
            outcome = score_name(score)
            outcomes = [next((s.value for s in r.scores if score_name(s) == outcome), None) for r in records]
        weights = importance(values, outcomes)
        axes = {name: of for name, of in _varying([rows[i].records[0] for i in members]).items() if name != "seed"}
        if weights:
            order = list(weights.axes)
            axes = dict(sorted(axes.items(), key=lambda axis: order.index(axis[0]) if axis[0] in order else len(order)))
        if len(axes) > 1:
            found.append(
                {
                    "place": number,
                    "settings": members,
                    "axes": dict(list(axes.items())[:AXES]),
                    "outcome": outcome,
                    "explained": weights and short(weights.explained),
                    "records": weights and weights.records,
                    "importance": weights and {name: short(value) for name, value in weights.axes.items()},
                }
            )
    return found


def _varying(records: Sequence[Record]) -> dict[str, list[Any]]:
    """The axes on which `records` have several values, each with the value of every record, None where it has none.

    A knob or setting with more than TEXTS texts is a name of single runs, such as that of an imported experiment.
    """
    points = [_point_of(record) for record in records]
    found = {
        name: [point.get(name) for point in points] for name in dict.fromkeys(n for point in points for n in point)
    }
    texts = {name: {value for value in values if isinstance(value, str)} for name, values in found.items()}
    return {
        name: values
        for name, values in found.items()
        if len(set(values)) > 1 and (name == "method" or len(texts[name]) <= TEXTS)
    }


def _point_of(record: Record) -> dict[str, str | float | None]:
    """A record's place in the grid: method, rank, alpha, lr, seed, knobs, settings of the training loop."""
    cell = record.cell
    point = {name: getattr(cell, name) for name in ("method", "rank", "alpha", "lr", "seed")}
    point |= {f"method.knobs.{name}": value for name, value in cell.knobs.items()}
    point |= {f"train.{name}": value for name, value in cell.settings.train_dict().items() if name != "seed"}
    return {name: of if of is None or isinstance(of, str | int | float) else str(of) for name, of in point.items()}
