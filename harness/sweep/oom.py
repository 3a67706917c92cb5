"""What is done about a cell that ran out of memory, if it was asked for: the same steps in smaller micro-batches."""

from __future__ import annotations

from harness.record import Record, SmallerBatches, device_count

HELPS = ("probe", "train", "validate")  # phases whose memory depends on the micro-batch


def smaller(found: Record | None) -> SmallerBatches | None:
    """Half the micro-batch that the cell of `found` ran out of memory with, and accumulation to match.

    None where that would be no help: it did not run out of memory, or not in training, or with one sequence at a time.
    Nor where nothing can be accumulated, as the method steps while it goes backward.
    """
    if found is None or found.status != "oom" or found.failure is None or found.failure.phase not in HELPS:
        return None
    asked, before = found.cell.settings["train"], found.smaller_batches
    size = before.batch_size if before else asked["batch_size"]
    devices = device_count(found.cell.settings)
    if size == devices or (found.cell.settings["method"].get("optim") or {}).get("per_layer"):
        return None
    half = (size // devices + 1) // 2 * devices
    while -(-asked["batch_size"] // (half // devices)) % devices:  # as many micro-batches for each
        half -= devices
    accum = asked.get("grad_accum", 1) * -(-asked["batch_size"] // half)  # an untuned row accumulates nothing
    return SmallerBatches(half, accum, [*(before.after if before else []), found.failure])


def to_begin_with(found: Record | None) -> SmallerBatches | None:
    """How to run the cell whose record is `found` now; None for as it was asked.

    One that broke in smaller micro-batches for another reason goes on with them.
    """
    if found is not None and found.status == "failed":
        return found.smaller_batches
    return smaller(found)
