"""The data of settings, read once: the cells of a sweep share them, until the files behind them change."""

from __future__ import annotations

import functools

from harness.job.data import sources
from harness.job.data.columns import Item
from harness.record import OwnData
from harness.settings import DataSettings

HELD = 8  # settings that are cached at a time
Root = tuple[str | None, str]  # data_root, and a text that changes with the data


def root_of(data: DataSettings, data_root: str | None) -> Root:
    """Where the files behind `data` lie, and a text that changes with them."""
    return data_root, sources.data_state(data, data_root)


def splits(data: DataSettings, data_root: str | None) -> dict[str, list[Item]]:
    """As sources.splits."""
    return _splits(data, root_of(data, data_root))


def own_data(data: DataSettings, data_root: str | None) -> OwnData | None:
    """As sources.own_data."""
    return _own_data(data, root_of(data, data_root))


@functools.lru_cache(HELD)
def _splits(data: DataSettings, root: Root) -> dict[str, list[Item]]:
    return sources.splits(data, root[0])


@functools.lru_cache(HELD)
def _own_data(data: DataSettings, root: Root) -> OwnData | None:
    return sources.own_data(data, root[0])
