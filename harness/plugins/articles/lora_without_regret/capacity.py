"""The claim on rank and capacity."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean

from harness.plugins.articles.claims import OPEN, Judgement, unchosen
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.lora_without_regret.losses import EQUAL, HIGHER, penalty, smallest_batch
from harness.plugins.articles.rules import adapt_settings, hold_all
from harness.record import Record
from harness.report.lint.training import TARGETS

BITS = 2  # that a parameter can store: Allen-Zhu & Li (2024, arXiv:2404.05405), as the article assumes


def rank_capacity(at: Evidence) -> Judgement:
    """The smallest adapter must fall behind, the largest must match: `hold_all`.

    Each adapter is at its best learning rate. Refuted only by adapters whose capacity is known to be exceeded, or to
    suffice.
    """
    at = smallest_batch(at)
    full = at.choices().get(("full",))
    adapters = _adapters(at)
    if full is None or len(adapters) < 2:
        return unchosen(at, ("full", "lora"), [], "full", "lora with two capacities")
    reference = at.chosen(full)
    small, large = adapters[0], adapters[-1]
    exceeded, sufficient = small.exceeded, large.exceeded
    if exceeded is None or sufficient is None:
        return Judgement(OPEN, why="The information in the training data is unknown: no training losses")
    field = [reference, *(adapter.records for adapter in adapters)]
    parts = [
        ("the smallest adapter", penalty([small.records], [reference], HIGHER, field)),
        ("the largest adapter", penalty([large.records], [reference], EQUAL, field)),
    ]
    judgement = hold_all(parts)
    if not exceeded or sufficient:
        why = "exceed the largest" if sufficient else "fit into the smallest"
        return replace(judgement, decision=OPEN, why=f"The training data {why} adapter", corrected=None)
    return judgement


@dataclass(frozen=True)
class _Adapter:
    """The chosen records of one LoRA adapter, and its trainable parameters."""

    records: list[Record]
    trainable: int

    @property
    def exceeded(self) -> bool | None:
        """Whether the training data hold more bits than the adapter can store; None if unknown.

        The bits are the log loss of all supervised tokens as they were first seen (the code length of the data). This
        overestimates them if training sees an item twice.
        """
        bits = [
            fmean(point.loss for point in train.loss) * train.tokens.supervised
            for record in self.records
            if (train := record.train) and train.loss and train.tokens.supervised is not None
        ]
        return fmean(bits) / math.log(2) > BITS * self.trainable if bits else None


def _adapters(at: Evidence) -> list[_Adapter]:
    """Each LoRA adapter (rank and the modules it changes), smallest first."""
    kinds = {_kind(record) for record in at.finished("lora") if record.parameters}
    parts = [at.where(_of_kind(kind)) for kind in kinds]
    chosen = [part.chosen(choice) for part in parts for choice in part.choices().values()]
    adapters = [_Adapter(records, records[0].parameters.trainable) for records in chosen if records[0].parameters]
    return sorted(adapters, key=lambda adapter: adapter.trainable)


def _of_kind(kind: str) -> Callable[[Record], bool]:
    return lambda record: _kind(record) == kind


def _kind(record: Record) -> str:
    adapt = adapt_settings(record)
    return json.dumps([record.cell.method, record.cell.rank, *(adapt.get(setting) for setting in TARGETS)])
