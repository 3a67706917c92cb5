"""The conditions under which a cell ran: what must be equal to compare its memory, times or scores with another's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from harness.record import Record
from harness.report.lint.environment import device, versions
from harness.report.lint.training import attention_text, micro_batches_text

LIBRARIES = ("torch", "transformers", "peft", "lm_eval")  # whose versions move scores, speed and memory


def conditions(record: Record) -> dict[str, str]:
    """What must be equal to compare the memory or the times of two cells, by name: what ran it, and on what."""
    facts = {**device(record), **numerics(record)}
    if record.probe and (seen := attention_text(record.probe)):
        facts["attention"] = seen
    if (size := micro_batches_text(record)) is not None:
        facts["micro-batches"] = size
    return facts


def numerics(record: Record) -> dict[str, str]:
    """What must be equal to compare the scores or losses of two cells, by name: precision, and versions of
    libraries."""
    facts = {name: version for name, version in versions(record).items() if name in LIBRARIES}
    if precision := record.environment.get("precision"):
        facts["precision"] = str(precision)
    return facts


def differing(ones: Sequence[Record], others: Sequence[Record], facts: Callable[[Record], dict[str, str]]) -> list[str]:
    """Names of the facts that some cell of one side has otherwise than some cell of the other; unknown ones agree."""
    sides = [[facts(record) for record in side] for side in (ones, others)]
    names = dict.fromkeys(name for side in sides for cell_facts in side for name in cell_facts)
    return [
        name
        for name in names
        if len({cell_facts[name] for side in sides for cell_facts in side if name in cell_facts}) > 1
    ]


def started(record: Record) -> float | None:
    """When the cell started, in seconds; None if its record does not tell."""
    try:
        return datetime.fromisoformat(record.started).timestamp()
    except (TypeError, ValueError):
        return None
