"""Mistakes in prices and budgets: one sentence each, and exit status 2."""

from __future__ import annotations

import pytest

from harness.errors import UserError, require_positive
from harness.units import Dollars, parse_budget


@pytest.mark.parametrize("text", ["5EUR", "5 eur", "€5", "5€", "3GBP", "10 CHF", "-5EUR"])
def test_money_is_in_dollars(text):
    with pytest.raises(UserError, match=r"^A budget in money must be in dollars, such as 5USD, got .+\.$"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["0USD", "$0", "-5USD", "-$2", "0.0usd"])
def test_a_budget_of_nothing_is_refused(text):
    with pytest.raises(UserError, match=r"^A budget must be positive, got .+\.$"):
        parse_budget(text)


def test_budgets_are_read():
    assert parse_budget("24GiB") == 24 * 2**30
    assert parse_budget("24GB") == parse_budget("24 gb") == 24 * 10**9
    assert parse_budget("5USD") == parse_budget("$5") == parse_budget(" 5 usd") == Dollars(5)
    assert isinstance(parse_budget("$0.50"), Dollars)
    with pytest.raises(UserError, match="is no size in bytes"):
        parse_budget("much")


@pytest.mark.parametrize(
    ("value", "said"),
    [(-1, "positive, got -1"), (float("nan"), "positive, got nan"), (float("inf"), "finite, got inf")],
)
def test_a_price_is_a_positive_number(value, said):
    with pytest.raises(UserError, match=rf"^--price must be {said}\.$"):
        require_positive("--price", value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--price", "-2"), "--price must be positive, got -2."),
        (("--price", "abc"), "argument --price: invalid float value: 'abc'"),
        (("--price", "inf"), "--price must be finite, got inf."),
        (("--budget", "5EUR", "--price", "2"), "A budget in money must be in dollars, such as 5USD, got 5EUR."),
        (("--budget=-5USD", "--price", "2"), "A budget must be positive, got -5USD."),
    ],
)
def test_a_plan_refuses_them(harness, arguments, said):
    run = harness("plan", "model=tiny", "method=lora", *arguments)
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {said}")
    assert len(run.stderr.splitlines()) == 1
