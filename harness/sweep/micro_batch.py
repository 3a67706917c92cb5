"""Micro-batches that fit the device's memory: predicted ones, and smaller ones after an out-of-memory error.

The steps stay the same: their examples are split into more micro-batches.
"""

from __future__ import annotations

from typing import Any

from harness.record import Cell, Record, SmallerBatches

HELPS = ("probe", "train", "validate")  # phases whose memory depends on the micro-batch


def smaller(record: Record | None) -> SmallerBatches | None:
    """Half the micro-batch that the cell of `record` ran out of memory with, and as much more accumulation.

    None if that would not help: the cell did not run out of memory in training, its micro-batch is one sequence per
    device, or its method steps in the backward pass and so can't accumulate gradients.
    """
    if record is None or record.status != "oom" or record.failure is None or record.failure.phase not in HELPS:
        return None
    train, before = record.cell.settings.train.validated(), record.smaller_batches
    size = before.batch_size if before else train.micro_batch
    devices = record.cell.settings.train.total_devices
    if size == devices or (record.cell.settings.method.optim or {}).get("per_layer"):
        return None
    half = (size // devices + 1) // 2 * devices
    while -(-train.micro_batch // (half // devices)) % devices:  # as many micro-batches for each
        half -= devices
    accum = (train.grad_accum or 1) * -(-train.micro_batch // half)  # an untuned row accumulates nothing
    after = [*(before.after if before else []), record.failure]
    return SmallerBatches(half, accum, after, before.planned if before else None)


def planned(cell: Cell, prediction: dict[str, Any]) -> SmallerBatches:
    """The first micro-batch of a cell with train.batch_size=auto: the predicted one, else the whole step."""
    step, size = cell.settings.train.validated().micro_batch, prediction.get("micro_batch")
    first = size or step
    return SmallerBatches(first, -(-step // first), [], size)


def for_rerun(record: Record | None) -> SmallerBatches | None:
    """The micro-batches to run the cell of `record` with again; None for those of its settings.

    A cell that failed for another reason keeps the smaller micro-batches that it had.
    """
    if record is not None and record.status == "failed":
        return record.smaller_batches
    return smaller(record)
