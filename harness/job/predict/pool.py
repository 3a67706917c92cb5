"""Answers a plan by processes in parallel, and has each import its libraries while this one imports them, too.

Cells that take the same are one task, so that no two processes compute the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import torch

from harness import boot
from harness.job import libraries
from harness.job.measure import device
from harness.protocol import PlanCells, PlannedCell
from harness.record import Cell
from harness.settings import plain


def answer(request: PlanCells) -> Iterator[dict[str, Any]]:
    """Yields ``budget``, ``kernels``, ``environment`` and the ``calibration`` that is used, then a ``prediction`` for
    each cell.
    """
    groups = _groups(request.cells)
    with _processes(max(1, min(os.cpu_count() or 1, len(groups))), request.libraries) as pool:
        from harness.job.predict import workers  # the libraries, which the processes have or import meanwhile

        yield from workers.answer(request, groups, pool)


def _processes(count: int, module: str) -> ProcessPoolExecutor:
    """A pool of `count` processes that have the libraries of `module`.

    They are spawned beside an accelerator: importing libraries uses it, after which forks fail, and a backward pass
    starts threads for every device. Otherwise forked, before this process computes in threads.
    """
    how = "spawn" if torch.accelerator.is_available() else "fork"
    if how == "fork":
        libraries.load(module)
    # The system ends each when this process is killed: it would wait for tasks forever.
    pool = ProcessPoolExecutor(count, get_context(how), boot.die_with, (os.getpid(),))
    if how == "fork":
        pool.submit(int).result()
    else:
        with device.seeing(""):  # each would use memory of the GPU
            for _ in range(count):
                pool.submit(libraries.load, module)
    return pool


def _groups(cells: Sequence[PlannedCell]) -> list[list[int]]:
    """The positions of `cells` that take the same."""
    groups: dict[str, list[int]] = {}
    for i, planned in enumerate(cells):
        groups.setdefault(_key(planned.cell), []).append(i)
    return [*groups.values()]


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
