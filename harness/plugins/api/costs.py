"""Estimates what models behind an API cost before any request is sent, and refuses a sweep above its budget."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness import units
from harness.errors import UserError
from harness.plugins.api.requests import ApiAccess
from harness.protocol import RunCell


@dataclass(frozen=True)
class CostEstimate:
    """The remaining requests of a cell.

    sentence: for the user. dollars: their price; None without prices in the settings.
    """

    sentence: str
    dollars: float | None


def estimate(request: RunCell, count: Mapping[str, Any]) -> CostEstimate:
    """What remains to ask for the cell of `request`. count: as run_api_cell.estimate returns it."""
    cell, access = request.cell, ApiAccess.from_extra(request.extra)
    read, written = count["read"], count["written"]
    about = "" if count["counted"] else "about "  # without a tokenizer
    sentence = (
        f"{cell.name} ({cell.model}): {units.plural(count['requests'], 'request')}, "
        f"{about}{units.count(read)} tokens read, at most {units.count(written)} written"
    )
    prices = access.price_read, access.price_written
    if prices[0] is None or prices[1] is None:
        return CostEstimate(f"{sentence}; set model.price.read= and model.price.written= to see their cost.", None)
    cost = (prices[0] * read + prices[1] * written) / 1e6
    return CostEstimate(f"{sentence}: {about or 'at most '}{units.dollars(cost)}.", cost)


def check(estimates: Sequence[CostEstimate], budget: float | None) -> None:
    """Print the `estimates`. Raises UserError if their sum exceeds `budget`, in dollars, or a price is missing."""
    for cost in estimates:
        print(cost.sentence, file=sys.stderr)
    if budget is None or not estimates:
        return
    costs = [cost.dollars for cost in estimates if cost.dollars is not None]
    if len(costs) < len(estimates):
        raise UserError(
            f"A budget of {budget:g}USD requires model.price.read= and model.price.written=, dollars per million "
            "tokens."
        )
    if sum(costs) > budget:
        raise UserError(
            f"Nothing was requested: the cost may reach {units.dollars(sum(costs))}, above the budget of "
            f"{budget:g}USD; raise it, or evaluate fewer items with eval.limit=."
        )
