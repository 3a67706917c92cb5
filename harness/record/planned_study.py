"""How a study's records compare with its plans: which of them were planned, and what is missing."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from harness import units
from harness.grouping import grouped
from harness.record.schema import Cell, Record
from harness.record.scores import Scoring
from harness.record.study_plan import ComparedGroup, PlannedMethod, StudyPlan, group_of
from harness.settings import Settings, cell_id

CLOCKS = timedelta(minutes=1)  # by which clocks of the machines of a study may differ


@dataclass(frozen=True)
class PlanProgress:
    """How far the plans of a study are.

    ended, cells: recorded cells of the grids, and all. confirmed, confirming: likewise of fresh seeds of chosen
    settings; 0 of 0 without. created: the date of the first plan.
    """

    created: str
    ended: int
    cells: int
    confirmed: int
    confirming: int

    @property
    def finished(self) -> bool:
        return (self.ended, self.confirmed) == (self.cells, self.confirming)

    @property
    def text(self) -> str:
        """Such as "24 of 24 cells, 12 of 30 confirming cells"."""
        confirming = f", {self.confirmed} of {self.confirming} confirming cells" if self.confirming else ""
        return f"{self.ended} of {self.cells} cells{confirming}"


@dataclass(frozen=True)
class Unplanned:
    """Why no plan has a record. contradicts: whether that can't be so of a confirmation that a sweep ran."""

    reason: str
    contradicts: bool = False


class PlannedStudy:
    """The plans of a study, at least one, and its records."""

    def __init__(self, plans: Sequence[StudyPlan], records: Iterable[Record]):
        self.plans = plans
        self._records = list(records)
        self._parts = grouped((part.group, (plan, part)) for plan in plans for part in plan.methods)
        self._planned_by: dict[str, StudyPlan | Unplanned] = {}
        self._tried: dict[tuple[ComparedGroup, int, str], bool] = {}

    @cached_property
    def progress(self) -> PlanProgress:
        ended = Counter(group for group in self._parts for _ in self._recorded_cells(group))
        confirming = {group: self._confirming(group) for group in self._parts}
        return PlanProgress(
            created=self.plans[0].created[:10],
            ended=ended.total(),
            cells=sum(len(self._ids(group)) for group in self._parts),
            confirmed=sum(recorded for recorded, _ in confirming.values()),
            confirming=sum(needed for _, needed in confirming.values()),
        )

    @cached_property
    def failed(self) -> dict[ComparedGroup, list[str]]:
        """Names of planned cells that failed, which the same command runs again."""
        return grouped(
            (group_of(record.cell), record.cell.name)
            for record in self._records
            if record.status == "failed" and isinstance(self.planned_by(record), StudyPlan)
        )

    def planned_by(self, record: Record) -> StudyPlan | Unplanned:
        """The plan of a record; of one that no plan had before results like it were there, why."""
        name = record.cell.name
        if name not in self._planned_by:
            self._planned_by[name] = self._plan_of(record)
        return self._planned_by[name]

    def _plan_of(self, record: Record) -> StudyPlan | Unplanned:
        cell, parts = record.cell, self._parts.get(group_of(record.cell), [])
        asking = [(plan, part) for plan, part in parts if self._asks_for(plan, part, record)]
        if not asking:
            at_first = bool(parts) and not any(_before(part, record) for _, part in parts)
            return Unplanned(f"{cell.name} is in no plan", record.confirmation and at_first)
        plans = [plan for plan, part in asking if not _before(part, record)]
        if not plans:
            before = min(_before(part, record) for _, part in asking)
            results = "a result" if before == 1 else f"{before} results"
            was = "was" if before == 1 else "were"
            return Unplanned(f"{cell.name} was added when {results} of {cell.method} {was} there")
        plans = [plan for plan in plans if all(_evaluates(plan, scoring) for scoring in record.rescored)]
        if not plans:
            return Unplanned(f"{cell.name} was scored again after its plan, otherwise than planned")
        for plan in plans:
            # Differences are compared, as a time less a minute may be before year 1, which Python has not.
            if datetime.fromisoformat(record.started) - datetime.fromisoformat(plan.created) >= -CLOCKS:
                return plan
        return Unplanned(f"{cell.name} began before its plan was written", contradicts=True)

    def unplanned(self, records: Iterable[Record] | None = None) -> str:
        """Why `records` (null: all of the study) are exploratory, without a full stop; empty if all were planned.

        Names the first of them, as the others are usually so for the same reason.
        """
        plans = [self.planned_by(record) for record in (self._records if records is None else records)]
        reasons = list(dict.fromkeys(each.reason for each in plans if isinstance(each, Unplanned)))
        if not reasons:
            return ""
        more = f" ({units.plural(len(reasons) - 1, 'further record')} likewise)" if reasons[1:] else ""
        return f"{reasons[0]}{more}"

    def contradictions(self) -> list[str]:
        """A sentence for each confirmation that no sweep by these plans can have run."""
        planned = [self.planned_by(record) for record in self._records if record.confirmation]
        return [
            f"{each.reason}: its plan must come before a confirmation."
            for each in planned
            if isinstance(each, Unplanned) and each.contradicts
        ]

    def _asks_for(self, plan: StudyPlan, part: PlannedMethod, record: Record) -> bool:
        if not record.confirmation:
            return record.cell.id in part.ids
        return part.trained and record.cell.seed in plan.confirm and self._tries(record.cell, part)

    def _tries(self, cell: Cell, confirming: PlannedMethod) -> bool:
        """Whether a confirming cell is, but for its seed, one that was to be tried when `confirming` was planned.

        Plans from before the first confirmation are one: until then nothing was seen that decides. The same for all
        seeds of a setting, so it is looked up once for them.
        """
        setting = confirming.group, confirming.confirmed_before, _with_seed(cell.settings, None)
        if setting not in self._tried:
            self._tried[setting] = self._is_tried(cell, confirming)
        return self._tried[setting]

    def _is_tried(self, cell: Cell, confirming: PlannedMethod) -> bool:
        together = [
            (plan, part)
            for plan, part in self._parts[confirming.group]
            if part.confirmed_before <= confirming.confirmed_before
        ]
        ids = {_with_seed(cell.settings, seed) for plan, _ in together for seed in plan.seeds}
        return any(not ids.isdisjoint(part.ids) for _, part in together)

    def _ids(self, group: ComparedGroup) -> set[str]:
        """The ids of all cells that grids have of `group`."""
        return set().union(*(part.ids for _, part in self._parts[group]))

    def _recorded_cells(self, group: ComparedGroup) -> list[Record]:
        ids = self._ids(group)
        return [record for record in self._of_group.get(group, []) if record.cell.id in ids]

    def _confirming(self, group: ComparedGroup) -> tuple[int, int]:
        """How many confirming cells of `group` are recorded, and how many there are to be."""
        seeds = {seed for plan, part in self._parts[group] if part.trained for seed in plan.confirm}
        cells = self._recorded_cells(group)
        if len(cells) == len(self._ids(group)) and all(record.status != "ok" for record in cells):
            return 0, 0  # nothing can be chosen
        recorded = Counter(
            _with_seed(record.cell.settings, None)
            for record in self._of_group.get(group, [])
            if record.confirmation and record.cell.seed in seeds
        )
        return max(recorded.values(), default=0), len(seeds)

    @cached_property
    def _of_group(self) -> dict[ComparedGroup, list[Record]]:
        return grouped((group_of(record.cell), record) for record in self._records)


def _evaluates(plan: StudyPlan, scoring: Scoring) -> bool:
    """Whether a later scoring is of tasks of the plan and as planned, but for the size of its batches."""
    settings = scoring.settings
    return any(
        set(scoring.tasks) <= set(planned.tasks)
        and dataclasses.replace(settings, tasks=planned.tasks, batch_size=planned.batch_size) == planned
        for planned in plan.evaluation
    )


def _before(part: PlannedMethod, record: Record) -> int:
    """Results like `record` that were there when `part` was planned."""
    return part.confirmed_before if record.confirmation else part.tried_before


def _with_seed(settings: Settings, seed: int | None) -> str:
    """The id of a cell with another seed."""
    return cell_id(dataclasses.replace(settings, seed=seed))
