"""A fixture of the tests on several devices: what cells come to on one device."""

from __future__ import annotations

import pytest
from job_helpers import run_here
from several_devices import short

from harness.record import Record


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """alone(*overrides): the record of such a cell on one device."""
    known: dict[tuple[str, ...], Record] = {}

    def record(*overrides: str) -> Record:
        if overrides not in known:
            known[overrides] = run_here(tmp_path_factory.mktemp("alone"), short(*overrides))
        return known[overrides]

    return record
