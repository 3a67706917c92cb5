"""Predicts the cells of a plan: what this process does, and what each of the pool's does."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from harness import env
from harness.errors import UserError, first_line
from harness.job.measure import device
from harness.job.models.empty_weights import NeedsValues
from harness.job.predict.prediction import Predictor
from harness.protocol import PlanCells, PlannedCell
from harness.record import Calibration, device_of

ANOTHER = 1.25  # times this GPU's memory; a card that is sold with 16 GB has 14.6 GiB


def answer(request: PlanCells, groups: Sequence[Sequence[int]], pool: ProcessPoolExecutor) -> Iterator[dict[str, Any]]:
    """As `harness.job.predict.pool.answer`, by the processes of `pool`. groups: positions of cells that are alike."""
    cells, budget = request.cells, request.budget
    here = device.here()
    environment = env.describe() | device.describe(here)
    kernels = request.kernels or ("cuda" if budget is not None or here.type == "cuda" else "cpu")
    own = _is_here(request, kernels, environment["device"]["memory_bytes"])
    bf16 = _in_bf16(request, kernels, own)
    calibration = _calibration(request, device_of(environment), kernels)
    predictor = Predictor(
        request.data_root, "bf16" if bf16 else "fp32", kernels, rates=request.rates, calibration=calibration
    )
    pickled = pickle.dumps(predictor)
    budget = budget or environment["device"]["memory_bytes"] or environment["cpu"]["memory_bytes"]
    room = budget - request.beside, int(request.tight * budget) - request.beside
    futures = [pool.submit(_predict_by, pickled, [cells[i] for i in members], *room) for members in groups]
    predictions: dict[int, dict[str, Any]] = {}
    for members, future in zip(groups, futures, strict=True):
        predictions |= zip(members, future.result(), strict=True)
    if own:
        predictions |= _lacking(cells)
    used = None if calibration is None else {"device": calibration.device, "created": calibration.created}
    yield {"budget": budget, "kernels": kernels, "environment": environment, "calibration": used}
    for i in range(len(cells)):
        yield {"prediction": predictions[i]}


def _is_here(request: PlanCells, kernels: str, memory: int | None) -> bool:
    """Whether the GPU here is planned for. memory: its bytes; null: there is none.

    A budget names no GPU. One that is well above the memory of this GPU is another's.
    """
    if request.rates is not None or kernels != "cuda" or memory is None:
        return False
    return (request.budget or 0) <= ANOTHER * memory


def _in_bf16(request: PlanCells, kernels: str, own: bool) -> bool:
    """Whether precision ``auto`` is bf16 on the device that is planned for. own: whether it is the GPU here; others of
    today have bf16."""
    if request.rates is not None:
        return request.rates.bf16 is not None
    return (kernels == "cuda" and not own) or device.compute_dtype("auto") is torch.bfloat16


def _lacking(cells: Sequence[PlannedCell]) -> dict[int, dict[str, Any]]:
    """In place of predictions, by position: why a cell can't run on the GPU here, which lacks its arithmetic."""
    out = {}
    for position, planned in enumerate(cells):
        try:
            device.check_formats(planned.cell.settings)
        except UserError as error:
            out[position] = {"impossible": str(error)}
    return out


def _calibration(request: PlanCells, here: list[Any], kernels: str) -> Calibration | None:
    """The newest that applies: without a card, of the device `here` and its kernels."""
    candidates = [c for c in request.calibrations if request.rates is not None or c.device == here]
    return max((c for c in candidates if c.device[0] == kernels), key=lambda c: c.created, default=None)


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
