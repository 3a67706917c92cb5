"""Holds the predictions of published programs against what they published, row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.job.models.empty_weights import NeedsValues
from programs import fms, litgpt, swift, torchtune
from programs.rows import UNKNOWN, Row, read
from programs.step import Predicted, Program, predict

# Files of published rows: of the data root, and of what the same repositories publish besides.
FILE = "published_memory/training_memory.csv"
FURTHER = Path(__file__).parents[1] / "measured" / "further_published.csv"


@dataclass(frozen=True)
class Reading:
    """How a repository's rows are read.

    unknown: what is not known of a row's settings, or null. Such a row is shown, but proves nothing.
    why: why a prediction differs from what was published, as far as established, or null.
    """

    program: Callable[[Row], Program[Any]]
    unknown: Callable[[Row, Predicted], str | None] = lambda *_: None
    why: Callable[[Row, Predicted], str | None] = lambda *_: None


READINGS = {
    "foundation-model-stack/fms-acceleration": Reading(fms.program),
    "Lightning-AI/litgpt": Reading(litgpt.program, litgpt.unknown, litgpt.why),
    "pytorch/torchtune": Reading(torchtune.program, torchtune.unknown),
    "modelscope/ms-swift": Reading(swift.program, why=swift.why),
}


@dataclass(frozen=True)
class Comparison:
    """A published row beside its prediction, in bytes.

    peak_kinds: the predicted peak by kind. part: the part of the step that has it.
    unknown: which setting is unknown, or why there is no prediction. why: why the two differ.
    """

    source: str
    model: str
    method: str
    settings: str
    hardware: str
    peak: int
    resident: int | None
    predicted_peak: int | None = None
    predicted_resident: int | None = None
    peak_kinds: dict[str, int] | None = None
    part: str | None = None
    unknown: str | None = None
    why: str | None = None


def compare(path: Path) -> list[Comparison]:
    """One comparison a row of the file `path`, in its order. Raises UserError if the file is malformed."""
    return [_compared(row) for row in read(path)]


def _compared(row: Row) -> Comparison:
    comparison = partial(
        Comparison,
        source=row.source,
        model=row.model,
        method=row.method,
        settings=settings_of(row),
        hardware=row.hardware,
        peak=row.peak_bytes,
        resident=row.resident_bytes,
    )
    try:
        if row.program not in READINGS:
            raise UserError(f"source must begin with one of {', '.join(READINGS)}, got {row.source}.")
        reading = READINGS[row.program]
        predicted = predict(reading.program(row))
    except UserError as error:
        return comparison(unknown=str(error))
    except NeedsValues:
        return comparison(unknown=f"method={row.method} depends on values of weights.")
    return comparison(
        predicted_peak=predicted.peak_bytes,
        predicted_resident=predicted.resident_bytes,
        peak_kinds=predicted.peak,
        part=predicted.window,
        unknown=reading.unknown(row, predicted),
        why=reading.why(row, predicted),
    )


def settings_of(row: Row) -> str:
    """What the row's document says of its settings, in words."""
    parts = []
    if row.rank is not None or row.targets is not None:
        parts.append(f"rank {row.rank or '?'} on {row.targets or 'all'}")
    parts.append(f"{row.micro_batch or '?'} × {row.tokens_per_row or '?'} tokens")
    if row.gradient_checkpointing:
        parts.append("checkpointing")
    notes = row.notes.rpartition(";")[2].strip()
    return ", ".join([*parts, notes] if notes and not notes.startswith(UNKNOWN) else parts)
