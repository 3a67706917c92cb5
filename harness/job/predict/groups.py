"""Which cells of a plan take the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.grouping import grouped
from harness.protocol import PlannedCell
from harness.record import Cell
from harness.settings import plain


def groups_of(cells: Sequence[PlannedCell]) -> list[list[int]]:
    """The positions of `cells` that take the same: a group is one task, so that no two processes compute the same."""
    return [*grouped((_key(planned.cell), i) for i, planned in enumerate(cells)).values()]


def _key(cell: Cell) -> str:
    """A key that is equal for cells with the same memory, if their batches have the same shape."""
    settings = cell.settings
    train = plain(replace(settings.train, max_steps=None))
    same = [without_rates(plain(settings.method)), plain(settings.model), plain(settings.data), train]
    return json.dumps(same, sort_keys=True)


def without_rates(method: Any) -> Any:
    """The settings `method` without those that memory does not depend on, at any depth."""
    if isinstance(method, dict):
        return {k: without_rates(v) for k, v in method.items() if k not in ("lr", "lora_alpha", "scale")}
    return method
