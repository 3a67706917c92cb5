"""Words for the headline memory, and the guard against comparing two instruments: harness/record/train_memory.py."""

from __future__ import annotations

from collections.abc import Iterable, Set

from harness.record import Instrument, Record, memory_instrument, train_memory
from harness.report.frame import TRAIN_MEMORY

MEANINGS: dict[Instrument, str] = {
    "allocator": "the peak of CUDA's allocator over training",
    "tensors": "the peak of live tensors in a training step",
}


def instruments(records: Iterable[Record]) -> set[Instrument]:
    """The instruments behind the headline memory of those of `records` that have one."""
    measured_by = (memory_instrument(record) for record in records if train_memory(record) is not None)
    return {instrument for instrument in measured_by if instrument is not None}


def comparable(measured_by: Set[Instrument], measure: str) -> bool:
    """Whether a column of `frame` is one quantity in records with the instruments `measured_by`."""
    return measure != TRAIN_MEMORY or len(measured_by) < 2


def meaning(records: Iterable[Record]) -> str:
    """What the headline memory of `records` is."""
    kinds = instruments(records)
    if len(kinds) > 1:
        return f"{MEANINGS['allocator']}, on a CPU {MEANINGS['tensors']}; these two are not compared"
    return MEANINGS[next(iter(kinds), "tensors")]
