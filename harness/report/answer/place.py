"""What one place of a study answers: its best methods, what is said of them, and what is left open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness import units
from harness.report.answer.advice import few
from harness.report.frame import TRAIN_MEMORY
from harness.report.memory import comparable, instruments
from harness.report.pairwise import Standing
from harness.report.select import Choice, Place
from harness.report.tables.entries import rate
from harness.report.tables.rows import Row


@dataclass(frozen=True)
class Doubt:
    """What one place leaves open. seeds: how many would decide `method` (None: more seeds alone would not).

    method: null if it is all of them.
    """

    text: str
    seeds: int | None
    method: str | None = None


@dataclass(frozen=True)
class PlaceAnswer:
    """What the records say of the methods of one place.

    best: the method with the best score, then those that no test tells apart from it, each with its score and interval;
        empty if no tuned model is scored. A method without a chosen setting stands there by its experiments.
    sentences: the answer in words, the best method first. doubt: what is left open; None if nothing is.
    """

    best: tuple[Standing, ...]
    sentences: tuple[str, ...]
    doubt: Doubt | None = None


def without_result(choices: Sequence[Choice]) -> Iterator[str]:
    """The methods of which no setting finished."""
    lost = {c.label: c.lost for c in choices if c.lost and not c.index}
    if lost:
        each = [f"{label} ({', '.join(f'{n} {s}' for s, n in of.items())})" for label, of in lost.items()]
        yield f"No result: {few(each)}."


def unscored(rows: Mapping[str, Row]) -> Iterator[str]:
    """What is known of a place without scores: its losses, memory and speed, of which no difference is tested."""
    trained = {label: row for label, row in rows.items() if row.finished and row.records[0].cell.seed is not None}
    if not trained:
        return
    yield "No score is recorded, so none of the methods is recommended."
    records = [record for row in trained.values() for record in row.records]
    sentences = []
    texts: dict[str, Callable[[str, float], str]] = {
        "validation_loss": lambda name, loss: f"{name} has the lowest validation loss ({units.significant(loss)})",
        TRAIN_MEMORY: lambda name, peak: f"{name} needs the least memory ({units.size(peak)})",
        "tokens_per_second_steady": lambda name, speed: f"{name} is the fastest ({rate(speed)} tokens/s)",
    }
    for measure, text in texts.items():
        values = {label: value for label, row in trained.items() if (value := row.mean(measure)) is not None}
        if len(values) > 1 and comparable(instruments(records), measure):
            best = (max if measure.startswith("tokens") else min)(values, key=values.__getitem__)
            sentences.append(text(best, values[best]))
    if sentences:
        yield f"{', '.join(sentences)}."


def place_prefix(place: Place, places: Sequence[Place]) -> list[str]:
    """What tells a place from the others, such as "wordmath:"."""
    parts = [part for part, each in zip(place, zip(*places, strict=True), strict=True) if len(set(each)) > 1]
    return [f"{'/'.join(parts)}:"] if parts else []
