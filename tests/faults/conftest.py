"""The sweep of grid.py when nothing disturbs it: what broken ones are held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from grid import CELLS, finish, results, start, study_in


@dataclass
class Calm:
    """results: by cell; before: seconds until the first cell began; a_cell: seconds that each took."""

    results: dict[str, tuple]
    before: float
    a_cell: float


@pytest.fixture
def tell(record_property) -> Callable[[str], None]:
    """tell(sentence) has what a test counted shown at the end (tests/conftest.py), whichever process ran it."""
    return lambda sentence: record_property("told", sentence)


@pytest.fixture(scope="session")
def calm(tmp_path_factory) -> Calm:
    folder: Path = tmp_path_factory.mktemp("calm")
    begun = time.monotonic()
    sweep = start(folder)
    while not study_in(folder).running():
        assert sweep.poll() is None, sweep.stderr.read()
        time.sleep(0.02)
    before = time.monotonic() - begun
    finish(sweep)
    return Calm(results(folder), before, (time.monotonic() - begun - before) / CELLS)
