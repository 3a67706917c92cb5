"""Micro-batches that fit the device's memory: those that are planned for it, and smaller ones after a shortage.

The steps stay the same: their examples are cut into more micro-batches.
"""

from __future__ import annotations

from typing import Any

from harness.record import Cell, Record, SmallerBatches

HELPS = ("probe", "train", "validate")  # phases whose memory depends on the micro-batch


def smaller(found: Record | None) -> SmallerBatches | None:
    """Half the micro-batch that the cell of `found` ran out of memory with, and accumulation to match.

    None where that would be no help: it did not run out of memory, or not in training, or with one sequence at a time.
    Nor where nothing can be accumulated, as the method steps while it goes backward.
    """
    if found is None or found.status != "oom" or found.failure is None or found.failure.phase not in HELPS:
        return None
    asked, before = found.cell.settings.train, found.smaller_batches
    size = before.batch_size if before else asked.micro_batch
    devices = found.cell.settings.train.devices
    if size == devices or (found.cell.settings.method.optim or {}).get("per_layer"):
        return None
    half = (size // devices + 1) // 2 * devices
    while -(-asked.micro_batch // (half // devices)) % devices:  # as many micro-batches for each
        half -= devices
    accum = (asked.grad_accum or 1) * -(-asked.micro_batch // half)  # an untuned row accumulates nothing
    after = [*(before.after if before else []), found.failure]
    return SmallerBatches(half, accum, after, before.planned if before else None)


def planned(cell: Cell, prediction: dict[str, Any]) -> SmallerBatches:
    """The micro-batch to begin such a cell with, by its prediction; the whole step where nothing can be predicted."""
    step, size = cell.settings.train.micro_batch, prediction.get("micro_batch")
    taken = size or step
    return SmallerBatches(taken, -(-step // taken), [], size)


def to_begin_with(found: Record | None) -> SmallerBatches | None:
    """How to run the cell whose record is `found` now; None for as it was asked.

    One that broke in smaller micro-batches for another reason goes on with them.
    """
    if found is not None and found.status == "failed":
        return found.smaller_batches
    return smaller(found)
