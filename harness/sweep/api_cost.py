"""Estimates what models behind an API cost before any request is sent, and refuses a sweep above its budget."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from harness import units
from harness.errors import UserError
from harness.protocol import ApiAccess
from harness.record import Cell
from harness.sweep.store import Study


@dataclass(frozen=True)
class CostEstimate:
    """The remaining requests of a cell.

    sentence: for the user. dollars: their price; None without prices in the settings.
    """

    sentence: str
    dollars: float | None


def access(cell: Cell, config: DictConfig, study: Study) -> ApiAccess | None:
    """How to reach the cell's model; None if it is not behind an API."""
    if not cell.settings.behind_api:
        return None
    price, asked = config.model.price, config.api
    return ApiAccess(
        concurrency=asked.concurrency,
        per_minute=asked.per_minute,
        timeout=asked.timeout,
        retries=asked.retries,
        backoff=asked.backoff,
        key_env=config.model.key_env,
        price_read=price.read,
        price_written=price.written,
        answers=str(study.answers(cell).absolute()),
    )


def estimates(cells: Sequence[Cell], access: dict[str, ApiAccess], counts: dict[str, dict]) -> list[CostEstimate]:
    """The estimates of those `cells` that have `counts`, which a job made.

    access, counts: by the cell's id.
    """
    return [_estimate(cell, access[cell.id], counts[cell.id]) for cell in cells if cell.id in counts]


def _estimate(cell: Cell, access: ApiAccess, count: dict[str, Any]) -> CostEstimate:
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


def check(found: Sequence[CostEstimate], budget: float | None) -> None:
    """Print the estimates. Raises UserError if their sum exceeds `budget`, in dollars, or a price is missing."""
    for estimate in found:
        print(estimate.sentence, file=sys.stderr)
    if budget is None or not found:
        return
    costs = [estimate.dollars for estimate in found if estimate.dollars is not None]
    if len(costs) < len(found):
        raise UserError(
            f"--budget {budget:g}USD requires model.price.read= and model.price.written=, dollars per million tokens."
        )
    if sum(costs) > budget:
        raise UserError(
            f"Nothing was requested: the cost may reach {units.dollars(sum(costs))}, above --budget {budget:g}USD; "
            "raise the budget, or evaluate fewer items with eval.limit=."
        )
