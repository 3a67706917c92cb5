"""Predicts many cells in parallel processes."""

from __future__ import annotations

import functools
import json
import os
import pickle
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import torch
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]  # its types lack it

from harness import env
from harness.errors import UserError, first_line
from harness.job.measure import device
from harness.job.models.empty_weights import NeedsValues
from harness.job.predict.prediction import Predictor, without_rates
from harness.protocol import PlanCells, PlannedCell
from harness.record import Calibration, Cell, device_of
from harness.settings import plain


def _group(cell: Cell) -> str:
    """A key that is equal for cells with the same memory, if their batches have the same shape."""
    settings = cell.settings
    train = plain(replace(settings.train, max_steps=None))
    same = [without_rates(plain(settings.method)), plain(settings.model), plain(settings.data), train]
    return json.dumps(same, sort_keys=True)


def answer(request: PlanCells) -> Iterator[dict[str, Any]]:
    """Yields ``budget``, ``kernels``, ``environment`` and the ``calibration`` that is used, then a ``prediction`` for
    each cell.
    """
    cells, budget = request.cells, request.budget
    # Cells that take the same are one task, so that no two processes compute the same.
    groups: dict[str, list[int]] = {}
    for i, planned in enumerate(cells):
        groups.setdefault(_group(planned.cell), []).append(i)
    # Spawned beside an accelerator: importing libraries uses it, after which forks fail, and a backward pass starts
    # threads for every device. Otherwise forked, before this process computes in threads.
    how = "spawn" if torch.accelerator.is_available() else "fork"
    count = max(1, min(os.cpu_count() or 1, len(groups)))
    with ProcessPoolExecutor(count, get_context(how), _end_with_parent) as pool:
        if how == "fork":
            pool.submit(int).result()
        here = device.here()
        environment = env.describe() | device.describe(here)
        kernels = request.kernels or ("cuda" if budget is not None or here.type == "cuda" else "cpu")
        elsewhere = kernels == "cuda" and (budget is not None or here.type != "cuda")  # today's GPUs compute in bf16
        if request.rates is not None:
            bf16 = request.rates.bf16 is not None
        else:
            bf16 = elsewhere or device.compute_dtype("auto") is torch.bfloat16
        calibration = _calibration(request, device_of(environment), kernels)
        predictor = Predictor(
            request.data_root, "bf16" if bf16 else "fp32", kernels, rates=request.rates, calibration=calibration
        )
        pickled = pickle.dumps(predictor)
        budget = budget or environment["device"]["memory_bytes"] or environment["cpu"]["memory_bytes"]
        room = budget - request.beside, int(request.tight * budget) - request.beside
        with device.seeing(""):  # each would use memory of the GPU
            asked = [
                pool.submit(_predict_by, pickled, [cells[i] for i in members], *room) for members in groups.values()
            ]
        predictions: dict[int, dict[str, Any]] = {}
        for members, future in zip(groups.values(), asked, strict=True):
            predictions |= zip(members, future.result(), strict=True)
    used = None if calibration is None else {"device": calibration.device, "created": calibration.created}
    yield {"budget": budget, "kernels": kernels, "environment": environment, "calibration": used}
    for i in range(len(cells)):
        yield {"prediction": predictions[i]}


def _calibration(request: PlanCells, here: list[Any], kernels: str) -> Calibration | None:
    """The newest that applies: without a card, of the device `here` and its kernels."""
    candidates = [c for c in request.calibrations if request.rates is not None or c.device == here]
    return max((c for c in candidates if c.device[0] == kernels), key=lambda c: c.created, default=None)


def _end_with_parent() -> None:
    """Have the system end this process when the parent is killed: it would wait for tasks forever."""
    _prctl_pr_set_pdeathsig(signal.SIGKILL)


@functools.cache
def _unpickled(predictor: bytes) -> Predictor:
    """One in each process, as it keeps what cells share."""
    return pickle.loads(predictor)


def _predict_by(predictor: bytes, cells: list[PlannedCell], budget: int, safe: int) -> list[dict[str, Any]]:
    """As `_predict`, by a pickled `predictor`."""
    return _predict(_unpickled(predictor), cells, budget, safe)


def _predict(
    predictor: Predictor, cells: list[PlannedCell], budget: int, safe: int | None = None
) -> list[dict[str, Any]]:
    out = []
    for planned in cells:
        try:
            out.append(predictor.predict(planned.cell, planned.architecture, budget, safe))
        except UserError as error:
            out.append({"impossible": str(error)})
        except NeedsValues:
            method = planned.cell.method
            out.append({"unknown": f"method={method} depends on values of weights, so its memory can't be predicted."})
        except Exception as error:  # of one architecture; the other cells have their figures
            model, reason = planned.cell.settings.model.path, f"{type(error).__name__}: {first_line(error)}"
            out.append({"unknown": f"Memory of {model} can't be predicted, as it fails without values ({reason})."})
    return out
