"""Numbers as people read them."""

from __future__ import annotations

import pytest

from harness import units
from harness.report.figures import messages
from harness.report.statistics import Interval
from harness.report.tables import published


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.75, 4, "0.7500"),
        (12.3, 4, "12.30"),
        (1234.5, 4, "1234"),
        (96, 2, "96"),
        (99.7, 2, "100"),
        (216.4, 2, "220"),
        (1613, 2, "1,600"),
        (-1613, 2, "-1,600"),
        (1e6, 3, "1,000,000"),
        (2.5e-5, 2, "2.5e-05"),
    ],
)
def test_significant_digits_have_no_exponent_above_one(value, digits, text):
    assert units.significant(value, digits) == text


@pytest.mark.parametrize("value", [0.0, -0.0, -0.4])
def test_a_zero_has_no_minus(value):
    assert units.count(value) == "0"
    assert units.significant(round(value)) == units.significant(0.0) == "0.000"


def test_a_change_that_is_written_as_zero_has_no_minus():
    change = Interval(-4e-4, -2e-3, -4e-4)
    assert published._points(change) == "+0.0 (−0.2 to +0.0)"
    assert messages._change(Interval(-0.04, -0.2, -0.04), "points") == "+0.0 points (−0.2 to +0.0)"
