"""Precision is no speed-up: without speed-ups a cell computes as precisely as with them."""

from __future__ import annotations

import pytest
from job_helpers import tiny


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_switching_speedups_off_leaves_the_precision(precision):
    cells = [tiny("method=lora", f"train.precision={precision}", f"speedups={switch}") for switch in ("auto", "off")]
    assert [cell.settings.train.precision for cell in cells] == [precision, precision]
    assert [cell.settings.fast for cell in cells] == [True, False]
    assert cells[0].id != cells[1].id
