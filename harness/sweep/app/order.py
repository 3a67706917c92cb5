"""The order in which a sweep runs its cells, and the cell that it repeats to see the machine's drift.

In grid order all cells of one method run one after another, so a machine that gets hotter makes the last method look
slow. A random order spreads drift over all methods. It depends on the study's name and on each cell alone: a sweep that
resumes goes on in it, and several sweeps of one study share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, TypeVar

from harness.record import Cell, Record

Order = Literal["random", "grid"]

T = TypeVar("T")


def random_key(cell: Cell, study: str) -> str:
    """What cells are sorted by for the random order of `study`."""
    return hashlib.sha256(f"{study} {cell.id}".encode()).hexdigest()


def repeated(cells: Sequence[Cell], recorded: dict[str, Record | None], to_run: set[str]) -> Cell | None:
    """The first of `cells` that trains on one machine, and finished or will be run; None without one.

    recorded: by id, the record that is there. to_run: ids.
    """
    for cell in cells:
        earlier = recorded.get(cell.id)
        finished = earlier is not None and earlier.status == "ok"
        here = cell.settings.method.tuned and cell.settings.train.nodes == 1
        if here and (finished or cell.id in to_run):
            return cell
    return None


def with_repeats(pending: Sequence[T], first: T | None, repeat: T, every: int) -> list[T]:
    """`pending`, and `repeat` at the beginning, after each `every` of them and at the end.

    first: what `repeat` repeats, if it is among `pending`; it then stands at the beginning itself.
    """
    others = [point for point in pending if point != first]
    order = [repeat if first is None else first]
    for number, point in enumerate(others, start=1):
        order.append(point)
        if number % every == 0:
            order.append(repeat)
    return order if order[-1] == repeat and len(order) > 1 else [*order, repeat]
