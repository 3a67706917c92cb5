"""What the page draws beside single settings: curves over learning rates, ranks and tokens; axes and their weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.record import Record
from harness.report.answer.place import by_status
from harness.report.figures import charts
from harness.report.figures.charts import Confirmed, SweptCurve, SweptPoint
from harness.report.figures.study_results import StudyResults, loss_unit
from harness.report.frame import score_name
from harness.report.pages.importance import importance
from harness.report.pages.settings_block import short

AXES = 8  # most axes that are drawn side by side
TRAININGS = 200  # most settings whose losses are on the page
TEXTS = 24  # most texts on an axis


def curves_block(study: StudyResults) -> dict[str, Any]:
    """Points name settings by their positions in `settings_block`.

    rates: of each method its loss by learning rate, at the best rank for it. ranks: likewise its headline score (else
    its loss) by rank, at the best rate for it. losses: of the chosen settings against tokens and seconds. trainings:
    the losses of every setting, to compare two of them; of at most TRAININGS. memory:
    groups of settings whose memory is comparable. axes: the grid's axes, and what of the outcome each explains.
    """
    at = {id(record): i for i, row in enumerate(study.rows) for record in row.records}
    return {
        "rates": [
            _curve(study, curve, at) for curve in study.once(charts.rates) if len(curve.points) > 1 and curve.known
        ],
        "ranks": [_curve(study, curve, at) | {"metric": _outcome(study, curve)} for curve in study.once(charts.ranks)],
        "losses": _losses(study, at),
        "trainings": _trainings(study),
        "memory": [
            {"title": title, "settings": [at[id(row.records[0])] for row in rows]}
            for title, rows in study.once(charts.memory).items()
        ],
        "axes": _axes(study),
    }


def _outcome(study: StudyResults, curve: SweptCurve) -> str:
    score = study.headline(curve.place)
    return score_name(score) if score else "validation_loss"


def _curve(study: StudyResults, curve: SweptCurve, at: dict[int, int]) -> dict[str, Any]:
    points = [_point(point, study.rows.records, at) for point in curve.points]
    return {"place": study.places.index(curve.place), "method": study.methods.index(curve.method), "points": points}


def _point(point: SweptPoint, records: Sequence[Record], at: dict[int, int]) -> dict[str, Any]:
    choice, interval = point.choice, point.interval
    bar = interval if interval is not None and interval.low < interval.high else None
    return {
        "x": point.x,
        "y": short(point.value),
        "low": short(bar.low) if bar else None,
        "high": short(bar.high) if bar else None,
        "setting": at[id(records[choice.index[0]])] if choice.index else None,
        "lost": by_status(choice.lost),
        "chosen": int(point.chosen),
        "fresh": _fresh(point.confirmed, records, at),
    }


def _fresh(confirmed: Confirmed | None, records: Sequence[Record], at: dict[int, int]) -> dict[str, Any] | None:
    """The mean of the fresh seeds that confirmed a choice, with its interval."""
    if confirmed is None:
        return None
    value, interval, positions = confirmed
    ends = {"low": short(interval.low), "high": short(interval.high)} if interval else {"low": None, "high": None}
    return {"y": short(value), **ends, "setting": at[id(records[positions[0]])]}


def _losses(study: StudyResults, at: dict[int, int]) -> dict[str, Any] | None:
    """Of the chosen settings, as in the figure `loss`."""
    kind, curves = study.once(charts.losses)
    if not curves:
        return None
    rows_and_curves = [row_and_curve for own in curves.values() for row_and_curve in own]
    return {
        "kind": kind,
        "unit": loss_unit(row for row, _ in rows_and_curves),
        "curves": [
            {"setting": at[id(row.records[0])]}
            | {name: list(map(short, part)) for name, part in curve._asdict().items()}
            for row, curve in rows_and_curves
        ],
    }


def _trainings(study: StudyResults) -> list[dict[str, Any]]:
    """Of each setting its validation losses, or else its training losses, by tokens."""
    trainings = []
    for setting, row in enumerate(study.rows):
        curves = ((kind, curve_of(row)) for kind, curve_of in charts.LOSSES.items())
        kind, curve = next(((kind, curve) for kind, curve in curves if curve), ("", None))
        if curve:
            losses = {"tokens": list(map(short, curve.tokens)), "losses": list(map(short, curve.losses))}
            trainings.append({"setting": setting, "kind": kind, **losses})
    return trainings[:TRAININGS]


# Axes


def _axes(study: StudyResults) -> list[dict[str, Any]]:
    """Of each place the axes that vary, with each setting's value; and their importance over records.

    The outcome is the validation loss, by which settings are chosen, or the headline score where there is none.
    """
    blocks = []
    rows = list(study.rows)
    for number, place in enumerate(study.places):
        members = [i for i, row in enumerate(rows) if row.place == place and row.records[0].cell.seed is not None]
        records = [record for i in members for record in rows[i].records]
        values = _varying(records)
        score = study.headline(place)
        outcomes = [r.validation_loss if r.status == "ok" else None for r in records]
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
            blocks.append(
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
    return blocks


def _varying(records: Sequence[Record]) -> dict[str, list[Any]]:
    """The axes on which `records` have several values, each with the value of every record, None where it has none.

    An axis with one value beside none, such as a knob of a single method that was not varied, says no more than the
    method does, and is left out.
    A knob or setting with more than TEXTS texts is a name of single runs, such as that of an imported experiment.
    """
    points = [_point_of(record) for record in records]
    values_by_axis = {
        name: [point.get(name) for point in points] for name in dict.fromkeys(n for point in points for n in point)
    }
    texts = {name: {value for value in values if isinstance(value, str)} for name, values in values_by_axis.items()}
    return {
        name: values
        for name, values in values_by_axis.items()
        if len(set(values) - {None}) > 1 and (name == "method" or len(texts[name]) <= TEXTS)
    }


def _point_of(record: Record) -> dict[str, str | float | None]:
    """A record's place in the grid: method, rank, alpha, lr, seed, knobs, settings of the training loop."""
    cell = record.cell
    point = {name: getattr(cell, name) for name in ("method", "rank", "alpha", "lr", "seed")}
    point |= {f"method.knobs.{name}": value for name, value in cell.knobs.items()}
    point |= {f"train.{name}": value for name, value in cell.settings.train_dict().items() if name != "seed"}
    return {name: of if of is None or isinstance(of, str | int | float) else str(of) for name, of in point.items()}
