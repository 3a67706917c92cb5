"""Which records ran at the same time on one GPU or processor, so that the time of neither counts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from datetime import datetime
from typing import Any

from harness.grouping import grouped
from harness.record.schema import Record


def overlapping(records: Iterable[Record]) -> set[int]:
    """Their ids as objects. Starts are in whole seconds: overlaps below a second are ignored."""
    together: set[int] = set()
    for members in grouped((gpu, record) for record in records if record.seconds for gpu in _gpus(record)).values():
        running: Record | None = None  # the one of those seen so far that ends last
        end = -math.inf
        for record in sorted(members, key=_start):
            if running is not None and _start(record) + 1 < end:
                together |= {id(running), id(record)}
            if _start(record) + record.seconds > end:
                running, end = record, _start(record) + record.seconds
    return together


def _start(record: Record) -> float:
    return datetime.fromisoformat(record.started).timestamp()


def _gpus(record: Record) -> list[Hashable]:
    """Each GPU with the boot of its machine; without a recorded boot, the CPU and its memory identify the machine."""
    parts: list[Any] = [record.environment.get(name) for name in ("cpu", "device")]
    cpu, device = (part if isinstance(part, dict) else {} for part in parts)
    boot = record.environment.get("boot") or (cpu.get("memory_bytes") and (cpu.get("name"), cpu.get("memory_bytes")))
    return [(boot, gpu) for gpu in str(device.get("id")).split("+")] if boot else []
