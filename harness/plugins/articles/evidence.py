"""The records of one place (study, model, data) as the rules of claims use them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from harness.record import Record
from harness.report.conditions import conditions
from harness.report.costs import disturbed_cells
from harness.report.frame import measures, score_name, setting_texts
from harness.report.headline import learned
from harness.report.items.answered import Items
from harness.report.pairwise import items
from harness.report.select import Choice, select
from harness.report.statistics import Answers


class Evidence:
    """The records of one place, and where their evaluation items are (None: no scores are compared).

    numbers, conditions: `measures` and `conditions` of one of the records, computed once for all rules.
    """

    def __init__(self, records: Sequence[Record], folder: Items | None):
        self.records, self._folder = records, folder
        self._choices: dict[tuple[str, ...], list[Choice]] = {}
        self.numbers, self.conditions = _remembered(measures), _remembered(conditions)

    @cached_property
    def data(self) -> str:
        return self.records[0].cell.data

    @cached_property
    def learned(self) -> str | None:
        """The score that shows what was learned of the data; None if no record has it."""
        return learned(self.data, (score_name(score) for record in self.records for score in record.scores))

    @cached_property
    def model_size(self) -> int | None:
        """Weights of the model: the least that a record counts, since adapters add to them; None if none counts any."""
        return min((record.parameters.total for record in self.records if record.parameters), default=None)

    @cached_property
    def _settings(self) -> list[str]:
        return setting_texts(self.records)

    def where(self, keep: Callable[[Record], bool]) -> Evidence:
        """The part of the evidence whose records satisfy `keep`; its choices refer to its own records."""
        return Evidence([record for record in self.records if keep(record)], self._folder)

    @cached_property
    def tried(self) -> Evidence:
        """The part without fresh seeds. Of all ranks, or alphas, of a method only the chosen one has those."""
        return self.where(lambda record: not record.confirmation)

    def finished(self, *methods: str) -> list[Record]:
        """The finished records of `methods`."""
        return [r for r in self.records if r.cell.method in methods and r.status == "ok"]

    @cached_property
    def disturbed(self) -> set[str]:
        """As of `disturbed_cells`."""
        return disturbed_cells(self.records)

    def choices(self, *by: str) -> dict[tuple[Any, ...], Choice]:
        """The chosen setting of each method by (method, *by), without those for which none could be chosen."""
        if by not in self._choices:
            self._choices[by] = select(self.records, ("method", *by), self._settings)
        return {choice.key: choice for choice in self._choices[by] if choice.index}

    def unchosen(self, *by: str) -> list[Choice]:
        """The choices by (method, *by) that `choices` leaves out: there was nothing to choose a setting by."""
        self.choices(*by)
        return [choice for choice in self._choices[by] if not choice.index]

    def chosen(self, *choices: Choice) -> list[Record]:
        """The records of `choices`, sorted by seed."""
        records = [self.records[i] for choice in choices for i in choice.index]
        return sorted(records, key=lambda record: record.cell.seed or 0)

    def sample(
        self, choices: Sequence[Choice], score: str, weights: Sequence[float] | None = None
    ) -> tuple[Answers, tuple[Any, ...]] | None:
        """The values of `score`, the mean over `choices` (weighted, if `weights` are given), and an identifier of the
        items.

        None if a choice lacks the score or its items, or if two choices answered different items. Seeds of several
        choices are averaged seed by seed, over those that all have.
        """
        groups = [self.chosen(choice) for choice in choices]
        scored = all(score in map(score_name, record.scores) for group in groups for record in group)
        if self._folder is None or not scored:
            return None
        answered = [found for group in groups if (found := items(self._folder, group, score))]
        if len(answered) < len(groups) or len({which for _, which in answered}) > 1:
            return None
        common = set.intersection(*({record.cell.seed for record in group} for group in groups))
        if not common:
            return None
        rows, seeds = [], tuple(sorted(common, key=lambda seed: seed or 0))
        for group, (sample, _) in zip(groups, answered, strict=True):
            by_seed = dict(zip((record.cell.seed for record in group), sample.values, strict=True))
            rows.append(np.stack([by_seed[seed] for seed in seeds]))
        first, which = answered[0]
        return Answers(np.average(rows, axis=0, weights=weights), first.clusters, seeds), which


def _remembered(of: Callable[[Record], dict[str, Any]]) -> Callable[[Record], dict[str, Any]]:
    """`of`, which is computed once for each record."""
    known: dict[int, dict[str, Any]] = {}

    def remembered(record: Record) -> dict[str, Any]:
        if id(record) not in known:
            known[id(record)] = of(record)
        return known[id(record)]

    return remembered
