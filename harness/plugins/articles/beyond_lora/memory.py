"""Claims on the memory that each method trains in."""

from __future__ import annotations

from harness.plugins.articles.claims import Judgement, lacking
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.rules import counted, hold_all, memory_ratio
from harness.report.frame import TRAIN_MEMORY


def qlora_memory(at: Evidence) -> Judgement:
    """The effect is the ratio to the method whose memory is closest to QLoRA's."""
    others = [method for method in ("full", "lora", "dora", "galore") if at.finished(method)]
    if not at.finished("qlora") or len(others) < 4:
        return lacking("qlora", "all of full, lora, dora and galore")
    return hold_all([(other, memory_ratio(at, "qlora", other, TRAIN_MEMORY, 0, 1)) for other in others])


def dora_memory(at: Evidence) -> Judgement:
    return memory_ratio(at, "dora", "lora", TRAIN_MEMORY, 1 / 1.1, 1.1)


def adapters_galore_memory(at: Evidence) -> Judgement:
    return hold_all([(m, memory_ratio(at, m, "galore", TRAIN_MEMORY, 0, 1)) for m in ("lora", "dora")])


def galore_memory(at: Evidence) -> Judgement:
    return memory_ratio(at, "galore", "full", TRAIN_MEMORY, 0, 2 / 3)


def galore_states(at: Evidence) -> Judgement:
    return counted(at, "galore", "full", "peak_optimizer", 0, 0.5)


def memory_order(at: Evidence) -> Judgement:
    """The effect is that of the part which is refuted, or closest to it."""
    parts = {
        ("qlora", "lora"): (0, 1),
        ("dora", "lora"): (1 / 1.1, 1.1),
        ("dora", "galore"): (0, 1),
        ("galore", "full"): (0, 1),
    }
    return hold_all(
        [
            (f"{one}/{other}", memory_ratio(at, one, other, TRAIN_MEMORY, low, high))
            for (one, other), (low, high) in parts.items()
        ]
    )
