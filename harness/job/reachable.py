"""Refuses data that can't be read and models that can't be had, before the libraries of training are imported.

Those take longer than a user should wait for such a sentence. So this module may import none of them, and a test holds
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.job.data import cached
from harness.job.models import dequantised, hub
from harness.record import Cell
from harness.settings import ModelSettings


def check(cells: Sequence[Cell], data_root: str | None) -> None:
    """Raise UserError for the first data of `cells` that can't be read, or model that is not there."""
    check_data(cells, data_root)
    for model in dict.fromkeys(cell.settings.model for cell in cells):
        check_model(model)


def check_data(cells: Sequence[Cell], data_root: str | None) -> None:
    """Raise UserError for the first data of `cells` that can't be read. Those that are read are kept for the cells."""
    for data in dict.fromkeys(cell.settings.data for cell in cells):
        cached.splits(data, data_root)
        cached.own_data(data, data_root)


def check_model(model: ModelSettings) -> None:
    """Raise UserError if the model is to come from the hub and can't."""
    if model.path is None or model.path.startswith("embedded:") or Path(model.path).is_dir():
        return
    if not model.is_gguf:
        hub.config_file(model)
    elif not dequantised.cached(model):
        dequantised.file_of(model)
