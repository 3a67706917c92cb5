"""Seconds of work at what kernels reach of a card's rates, and how a range is told."""

from __future__ import annotations

import pytest

from harness.sweep import plan_view
from harness.sweep.estimates import card as cards
from harness.sweep.estimates import rates

NOTHING = {"products": 0.0, "attention": 0.0, "moved": 0.0, "launches": 0.0}


def test_a_device_takes_what_it_reaches_of_its_rates():
    assert rates.seconds(NOTHING | {"products": 1.0}) == pytest.approx(1 / rates.PRODUCTS)
    assert rates.seconds(NOTHING | {"products": 1.0}, reached=0.5) == pytest.approx(2.0)
    assert rates.seconds(NOTHING | {"attention": 1.0}) == pytest.approx(1 / rates.ATTENTION)
    assert rates.seconds(NOTHING | {"moved": 1.0}) == pytest.approx(1 / rates.BANDWIDTH)


def test_the_slower_of_host_and_device_decides():
    of = NOTHING | {"products": 0.08, "launches": 1e6}
    host = 1e6 * rates.LAUNCH
    assert host <= rates.seconds(of) < 1.05 * host
    assert rates.seconds(of, launch=0.0) == pytest.approx(0.08 / rates.PRODUCTS + 1e6 * rates.KERNEL)


def test_a_card_without_published_runs_has_the_spread_of_all():
    assert rates.spread("nobody's") == rates.SPREAD
    least, most = rates.SPREAD
    assert 0 < least < 1 < most
    assert all(least <= low <= high <= most for low, high in rates.SPREADS.values())
    assert all(cards.load(name) for name in rates.SPREADS)


@pytest.mark.parametrize(
    ("seconds", "between", "told"),
    [
        (10_000, None, "2.8 h"),
        (14_400, (10_800, 18_000), "3.0 to 5.0 h"),
        (3_600, (3_000, 9_000), "50 min to 2.5 h"),
        (60, (50, 70), "50 to 70 s"),
        (60, (60.1, 60.2), "60 s"),
        (0.34, None, "0.3 s"),
        (0.01, None, "<0.1 s"),
    ],
)
def test_a_range_is_told_as_one(seconds, between, told):
    assert plan_view.told_time(seconds, between) == told
