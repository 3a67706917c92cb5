"""Whether what a study says was planned: a verdict by its plan, an interim look before the plan is finished, or
exploratory.

    plan = study_plan(records, folder)
    plan.state(records of a verdict, "beyond_lora").word
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.errors import UserError
from harness.grouping import grouped
from harness.record import PlannedStudy, Record, StudyPlan, group_of, read_plans
from harness.report.rules import compared_otherwise, judging_rules

PlanWord = Literal["planned", "interim", "exploratory"]
WEAKEST_FIRST: tuple[PlanWord, ...] = ("interim", "exploratory", "planned")
MOST_NAMED = 3  # verdicts in a line beside a table, which has each with its state
NO_PLAN = "The study has no plan"


@dataclass(frozen=True)
class PlanState:
    """What a verdict rests on.

    word: planned (on exactly the seeds and items of a finished plan), interim (a look before the plan is finished: it
    decides nothing yet), or exploratory (on something that no plan had before results were there). why: of the latter
    two, without a full stop; empty if planned.
    """

    word: PlanWord
    why: str = ""

    def shown(self, decision: str) -> str:
        """`decision` as it is printed: before its plan is finished a verdict is none yet."""
        if self.word != "interim":
            return decision
        return "not decided yet" if decision == "not decided" else f"not decided yet (so far: {decision})"

    @property
    def interim(self) -> list[str]:
        """That the plan is not finished, in one line, which an answer begins with; else empty."""
        return [self.sentence] if self.word == "interim" else []

    def title(self, message: str) -> str:
        """`message`, the title of a figure, as it stands before the plan is finished or after it."""
        return f"Interim: {message}" if message and self.word == "interim" else message

    @property
    def sentence(self) -> str:
        """One short line beside a table."""
        if self.word == "planned":
            return "Planned: seeds, items and rules were fixed before the first cell, and the plan is finished."
        if self.word == "interim":
            return f"Interim, nothing is decided yet. {self.why}."
        return f"Exploratory. {self.why}."


EXPLORATORY = PlanState("exploratory", NO_PLAN)


class StudyPlanned:
    """A study's plan and the records that it is compared with."""

    def __init__(self, planned: PlannedStudy | None, records: Sequence[Record], why: str = NO_PLAN):
        self._planned, self._why = planned, why
        self._named = {record.cell.name: record for record in records}

    def of_names(self, names: Iterable[str], article: str, claim: str) -> PlanState:
        """`state` of the records of cells `names`."""
        return self.state([self._named[name] for name in names], article, claim)

    def state(self, records: Iterable[Record], article: str | None = None, claim: str | None = None) -> PlanState:
        """What rests on `records`, of the study. article: whose `claim` is judged (null: methods are compared)."""
        if self._planned is None:
            return PlanState("exploratory", self._why)
        records = list(records)
        if why := self._planned.unplanned(records):
            return PlanState("exploratory", why)
        plans = [self._planned.planned_by(record) for record in records]
        of_study = [*self._named.values()]
        if why := _other_rules([plan for plan in plans if isinstance(plan, StudyPlan)], of_study, article, claim):
            return PlanState("exploratory", why)
        progress = self._planned.progress
        if not progress.finished:
            why = f"The plan of {progress.created} has {progress.text}; the same command runs the rest"
            return PlanState("interim", why)
        groups = {group_of(record.cell) for record in records}
        if failed := [name for group, names in self._planned.failed.items() if group in groups for name in names]:
            runs = "runs it" if len(failed) == 1 else "runs them"
            return PlanState("interim", f"{', '.join(failed)} failed; the same command {runs} again")
        return PlanState("planned")


def plan_lines(states: Iterable[tuple[str, PlanState]]) -> list[str]:
    """What the states of verdicts are and why, a line for each; with the first of the verdicts' names where there are
    several states."""
    names = grouped((state, name) for name, state in states)
    if len(names) < 2:
        return [state.sentence for state in names]
    return [f"{_first(of)}: {state.sentence}" for state, of in names.items()]


def _first(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:MOST_NAMED])} and {more} more"


def study_plan(records: Sequence[Record], folder: Path | Mapping[str, Any] | None) -> StudyPlanned:
    """The plan of a study. records: all of the study's. folder: of the study; tables in its place have no plan."""
    if not isinstance(folder, Path):
        return StudyPlanned(None, records)
    try:
        plans = read_plans(folder)
    except UserError as error:
        return StudyPlanned(None, records, str(error).rstrip("."))
    return StudyPlanned(PlannedStudy(plans, records) if plans else None, records)


def weakest(states: Iterable[PlanState]) -> PlanState:
    """What rests on several studies: interim if one is, as then nothing is decided; else exploratory if one is."""
    return min(states, key=lambda state: WEAKEST_FIRST.index(state.word))


def _other_rules(plans: Sequence[StudyPlan], records: Sequence[Record], article: str | None, claim: str | None) -> str:
    """Why `plans` of a study of `records` are of other rules than those that judge it now; empty if of the same."""
    judging = judging_rules()
    now = judging.rules if article is not None else {"comparison": judging.rules["comparison"]}
    for plan in plans:
        if article is not None and article not in plan.articles:
            return f"The plan of {plan.created[:10]} names no claims of {article}"

        def is_other(name: str, version: int, plan: StudyPlan = plan) -> bool:
            planned, changed = plan.rules.get(name), judging.changed.get(name, {})
            if planned is None or planned > version:
                return True
            since = range(planned + 1, version + 1)
            if name == "comparison":
                return any(compared_otherwise(each, records, by_claims=claim is not None) for each in since)
            of = f"{article}/{claim}"
            return any(claim is None or each not in changed or of in changed[each] for each in since)

        if other := [name for name, version in now.items() if is_other(name, version)]:
            versions = ", ".join(f"{name} {plan.rules.get(name, 'none')}, now {now[name]}" for name in other)
            return f"The rules of judging have changed since the plan of {plan.created[:10]} ({versions})"
    return ""
