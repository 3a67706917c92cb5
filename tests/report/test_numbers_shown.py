"""Numbers as people read them."""

from __future__ import annotations

import pytest

from harness import units


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
