"""Fixtures of the tests on several devices: a model that comes to harm, and what cells come to on one device."""

from __future__ import annotations

import pytest
from job_helpers import run_here, seen_by_jobs
from several_devices import HARM, short

from harness.record import Record


@pytest.fixture(scope="module")
def harmful(tmp_path_factory):
    """Lets this process, and jobs, find the module `harm`."""
    with seen_by_jobs(tmp_path_factory.mktemp("harm"), "harm", HARM):
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory, harmful):
    """alone(*overrides): the record of such a cell on one device."""
    known: dict[tuple[str, ...], Record] = {}

    def record(*overrides: str) -> Record:
        if overrides not in known:
            known[overrides] = run_here(tmp_path_factory.mktemp("alone"), short(*overrides))
        return known[overrides]

    return record
