"""The user's own files of data: what is said about how each is read, and which of its records fit a cell."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import suppress

from harness.errors import UserError
from harness.job.data import cached, lengths
from harness.job.data.cached import HELD, Root
from harness.job.models import loading
from harness.record import Cell
from harness.settings import DataSettings, ModelSettings, Settings


def notes(cells: list[Cell], data_root: str | None) -> list[str]:
    """A sentence on each file of the user's own that can be read: as what it is, and what is left out."""
    sentences: dict[DataSettings, str] = {}
    for data in dict.fromkeys(cell.settings.data for cell in cells):
        with suppress(UserError):  # which the cell says
            if (own := cached.own_data(data, data_root)) is not None:
                sentences[data] = own.sentence
    return list(dict.fromkeys([*sentences.values(), *_on_long_records(cells, data_root)]))


def _on_long_records(cells: list[Cell], data_root: str | None) -> Iterator[str]:
    """A sentence on the long records of each cell that has some, which are cut or dropped."""
    for cell in cells:
        if cell.settings.data.own:
            with suppress(UserError):
                fits = fitted(cell.settings, data_root)
                if fits.lengths is not None:
                    yield from fits.lengths.notes(cell.settings.train.validated().max_length)


def fitted(settings: Settings, data_root: str | None) -> lengths.FittedItems:
    """The records of the cell's data that may be drawn. Raises UserError for long ones that may not be there."""
    root = cached.root_of(settings.data, data_root)
    return _fitted(settings.data, root, settings.model, loading.state(settings.model), *_room(settings))


def _room(settings: Settings) -> tuple[int, bool, int | None]:
    train = settings.train.validated()
    return train.max_length, train.paired, train.validation_items


@functools.lru_cache(HELD)
def _fitted(
    data: DataSettings,
    root: Root,
    model: ModelSettings,
    model_state: str,
    max_length: int,
    pairs: bool,
    validation_items: int | None,
) -> lengths.FittedItems:
    splits = cached.splits(data, root[0])
    return lengths.fitted(splits, data, loading.tokenizer(model), max_length, pairs, validation_items, root[0])
