"""The headline memory of a cell: its peak in training, by the one instrument that its device has for it.

On CUDA that is the allocator's peak over the training window, which nvidia-smi's figure exceeds by the allocator's
cache and the context. On CPU, which has no such allocator, it is the peak of live tensors in the probe. The two are
different quantities: tensors leave out what kernels allocate inside an operation and the allocator's rounding. So a
record's headline says which one it is, and the two are never compared.
"""

from __future__ import annotations

from typing import Literal

from harness.record.schema import Record

Instrument = Literal["allocator", "tensors"]


def memory_instrument(record: Record) -> Instrument | None:
    """What `train_memory` of this record is measured by; None if the record does not say on what it ran."""
    device = record.environment.get("device")  # a free dict: any part of it may be missing
    kind = device.get("type") if isinstance(device, dict) else None
    return None if kind is None else "allocator" if kind == "cuda" else "tensors"


def train_memory(record: Record) -> int | None:
    """Peak bytes of training, or None; the process's peak is another quantity and no stand-in.

    A cell that failed in the probe has the peak of that phase. An untuned model has none: its probe is no training
    step.
    """
    if record.parameters is None or not record.parameters.trainable:
        return None
    if memory_instrument(record) != "allocator" and record.probe is not None:
        return record.probe.peak.total
    phase = record.phases.get("train") or record.phases.get("probe")
    return phase.memory.allocated_peak if phase else None


def memory_remainder(record: Record) -> int | None:
    """What tensors by kind leave of `train_memory` on CUDA, in bytes: kernels' workspaces and the allocator's rounding.

    Negative if the probe's largest batch had a higher peak than training. None on CPU, where kinds add up to it.
    """
    peak = train_memory(record)
    if peak is None or record.probe is None or memory_instrument(record) != "allocator":
        return None
    return peak - record.probe.peak.total
