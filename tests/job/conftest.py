"""A fixture of the tests that run cells in this process."""

from __future__ import annotations

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture
def own_precision():
    """Lets this process train in another precision: accelerate keeps one for a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
