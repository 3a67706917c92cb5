"""The records of one place (study, model, data) as the rules of claims use them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from harness.record import Record
from harness.report.frame import frame, score_name
from harness.report.pairwise import items
from harness.report.select import Choice, select


class Evidence:
    """The records of one place, and their evaluation items in the study's folder (None: no scores are compared)."""

    def __init__(self, records: Sequence[Record], folder: Path | None):
        self.records, self._folder = records, folder
        self._choices: dict[tuple[str, ...], list[Choice]] = {}

    @cached_property
    def data(self) -> str:
        return self.records[0].cell.data

    @cached_property
    def _frame(self) -> pd.DataFrame:
        return frame(self.records)

    def where(self, keep: Callable[[Record], bool]) -> Evidence:
        """The part of the evidence whose records satisfy `keep`; its choices refer to its own records."""
        return Evidence([record for record in self.records if keep(record)], self._folder)

    def of(self, *methods: str) -> list[Record]:
        """The finished records of `methods`."""
        return [r for r in self.records if r.cell.method in methods and r.status == "ok"]

    def choices(self, *by: str) -> dict[tuple, Choice]:
        """The chosen setting of each method by (method, *by), without those for which none could be chosen."""
        if by not in self._choices:
            self._choices[by] = select(self._frame, ("method", *by))
        return {choice.key: choice for choice in self._choices[by] if choice.index}

    def chosen(self, *choices: Choice) -> list[Record]:
        """The records of `choices`, sorted by seed."""
        records = [self.records[i] for choice in choices for i in choice.index]
        return sorted(records, key=lambda record: record.cell.seed or 0)

    def sample(self, choices: Sequence[Choice], score: str) -> tuple[np.ndarray, tuple] | None:
        """(seeds, items) values of `score`, the mean over `choices`, and an identifier of the items.

        None if a choice lacks the score or its items, or if two choices answered different items.
        """
        groups = [self.chosen(choice) for choice in choices]
        scored = all(score in map(score_name, record.scores) for group in groups for record in group)
        if self._folder is None or not scored:
            return None
        answered = [items(self._folder, group, score) for group in groups]
        if not all(answered) or len({which for _, which in answered}) > 1:
            return None
        seeds = min(len(values) for values, _ in answered)
        return np.mean([values[:seeds] for values, _ in answered], axis=0), answered[0][1]
