"""What all importers share: an imported record with its items, and the cell for imported settings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness import record, redact
from harness.record import Cell, Record
from harness.settings import cell_id

PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass
class Imported:
    """A record, the items of its scores (None if the source has none), and the file it was read from."""

    record: Record
    items: pd.DataFrame | None
    path: Path


def finite_number(value: Any) -> float | None:
    """A finite number, else None: sources write NaN and "N/A" for missing values."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def imported_cell(settings: dict[str, Any], **fields: Any) -> Cell:
    """The cell of `settings`, with an id like the harness's own. Access tokens in the settings are redacted."""
    cell = record.decode(Cell, {"id": "", "name": "", "settings": redact.hide(settings), **fields})
    cell.id = cell_id(cell.settings)
    cell.name = record.cell_name(cell)
    return cell
