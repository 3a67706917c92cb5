"""What a sweep's models behind an API would cost, before any is asked: told, and refused above a budget."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness import units
from harness.errors import UserError
from harness.protocol import ApiAccess
from harness.record import Cell
from harness.sweep.store import Study


@dataclass(frozen=True)
class CostEstimate:
    """What is left for a cell to ask, in words, and what that costs; null where its prices are not known."""

    words: str
    dollars: float | None


def access(cell: Cell, config: DictConfig, study: Study) -> ApiAccess | None:
    """How the cell's model is asked; None if it is not behind an API."""
    if not cell.settings.behind_api:
        return None
    price = config.model.price
    return ApiAccess(
        **OmegaConf.to_container(config.api, resolve=True),
        key_env=config.model.key_env,
        price_read=price.read,
        price_written=price.written,
        answers=str(study.answers(cell).absolute()),
    )


def estimates(cells: Sequence[Cell], asked: dict[str, ApiAccess], counts: dict[str, dict]) -> list[CostEstimate]:
    """Of those cells that have `counts`, from a job; asked: how, both by id."""
    return [_estimate(cell, asked[cell.id], counts[cell.id]) for cell in cells if cell.id in counts]


def _estimate(cell: Cell, how: ApiAccess, count: dict[str, Any]) -> CostEstimate:
    read, written = count["read"], count["written"]
    words = f"{cell.name} ({cell.model}): {count['requests']:,} requests, "
    about = "" if count["counted"] else "about "  # without a tokenizer
    words += f"{about}{units.count(read)} tokens read, at most {units.count(written)} written"
    prices = how.price_read, how.price_written
    if None in prices:
        return CostEstimate(f"{words}; model.price.read= and model.price.written= would tell what they cost.", None)
    cost = (prices[0] * read + prices[1] * written) / 1e6
    return CostEstimate(f"{words}: {about or 'at most '}{units.dollars(cost)}.", cost)


def told(found: Sequence[CostEstimate], budget: float | None) -> None:
    """Print what is estimated. Raises UserError if it exceeds `budget`, in dollars, or can't be told."""
    for estimate in found:
        print(estimate.words, file=sys.stderr)
    if budget is None or not found:
        return
    costs = [estimate.dollars for estimate in found]
    if None in costs:
        raise UserError(
            f"--budget {budget:g}USD can't be kept to without prices: set model.price.read= and model.price.written=, "
            "dollars for a million tokens."
        )
    if sum(costs) > budget:
        raise UserError(
            f"Nothing is asked: it may cost {units.dollars(sum(costs))}, above --budget {budget:g}USD; "
            "raise that, or ask fewer items with eval.limit=."
        )
