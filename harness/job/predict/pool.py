"""Answers a plan by processes in parallel, and has each import its libraries while this one imports them, too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch

from harness import boot
from harness.job import libraries
from harness.job.measure import device
from harness.job.predict.groups import groups_of
from harness.protocol import PlanCells


def answer(request: PlanCells) -> Iterator[dict[str, Any]]:
    """Yields ``budget``, ``kernels``, ``environment`` and the ``calibration`` that is used, then a ``prediction`` for
    each cell.
    """
    groups = groups_of(request.cells)
    with _processes(max(1, min(os.cpu_count() or 1, len(groups))), request.libraries) as pool:
        from harness.job.predict import workers

        yield from workers.answer(request, groups, pool)


def _processes(count: int, module: str) -> ProcessPoolExecutor:
    """A pool of `count` processes that have the libraries of `module`, or import them meanwhile; this one has them.

    They are spawned beside an accelerator: importing libraries uses it, after which forks fail, and a backward pass
    starts threads for every device. Otherwise forked, before this process computes in threads.
    """
    # The system ends each when this process is killed: it would wait for tasks forever.
    begin = partial(ProcessPoolExecutor, count, initializer=boot.die_with, initargs=(os.getpid(),))
    if torch.accelerator.is_available():
        pool = begin(mp_context=get_context("spawn"))
        with device.seeing(""):  # each would use memory of the GPU
            for _ in range(count):
                pool.submit(libraries.load, module)
        libraries.load(module)
    else:
        libraries.load(module)
        pool = begin(mp_context=get_context("fork"))
        pool.submit(int).result()
    return pool
