"""Writes what a sweep asks for into its study before the first cell runs: plan.jsonl."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from harness import env, record, units
from harness.record import ComparedGroup, JudgingRules, PlannedMethod, Record, StudyPlan, group_of, planned_seeds
from harness.redact import redact
from harness.sweep.app.point import Point
from harness.sweep.app.session import Options
from harness.sweep.store import Study

LOOKED_AT = ("ok", "pruned", "diverged")  # statuses of records that tell something of a method


def note_plan(study: Study, points: Sequence[Point], options: Options) -> None:
    """Add what the sweep of `points` asks for to the study's plans, unless they have it, as they have confirmations.

    Says which methods had results already: what is added to them is exploratory. Raises UserError if the file of the
    plans is damaged.
    """
    if options.rules is None or all(point.request.confirmation for point in points):
        return
    with study.planning():
        plans = record.read_plans(study.folder)
        if not options.confirm and all(_covered(plans, part, []) for part in _methods(points, [])):
            return
        records, _ = record.read_study(study.folder)
        confirm = confirming_seeds(plans, records, points, options.confirm or 0)
        methods = [part for part in _methods(points, records) if not _covered(plans, part, confirm)]
        if not methods:
            return
        plan = _plan(points, methods, confirm, options.rules, shlex.join(["harness", *options.typed]))
        record.add_plans(study.folder, [plan])
    _tell(plan, study)


def confirming_seeds(
    plans: Sequence[StudyPlan], records: Sequence[Record], points: Sequence[Point], number: int
) -> list[int]:
    """The `number` fresh seeds that confirm what `points` choose: those that are planned already come first."""
    choosing = {r.cell.seed for r in records if not r.confirmation} | {point.cell.seed for point in points}
    return planned_seeds(plans, {seed for seed in choosing if seed is not None}, number)


def _methods(points: Sequence[Point], records: Sequence[Record]) -> list[PlannedMethod]:
    """What `points` ask for by method, model and data. records: the study's, some of which may be there already."""
    cells: dict[ComparedGroup, dict[str, str]] = {}
    for point in points:
        cells.setdefault(group_of(point.cell), {})[point.cell.name] = point.cell.id
    trained = {group_of(point.cell) for point in points if point.cell.seed is not None}
    before = Counter((group_of(r.cell), r.confirmation) for r in records if r.status in LOOKED_AT)
    return [
        PlannedMethod(*group, group in trained, ids, before[group, False], before[group, True])
        for group, ids in cells.items()
    ]


def _covered(plans: Sequence[StudyPlan], part: PlannedMethod, confirm: Sequence[int]) -> bool:
    """Whether `plans` ask for all of `part`, and for the seeds `confirm` of what is chosen of it."""
    earlier = [(plan, other) for plan in plans for other in plan.methods if other.group == part.group]
    ids = set().union(*(other.ids for _, other in earlier))
    seeds = {seed for plan, _ in earlier for seed in plan.confirm}
    return part.ids <= ids and (not part.trained or seeds.issuperset(confirm))


def _plan(
    points: Sequence[Point], methods: Sequence[PlannedMethod], confirm: list[int], rules: JudgingRules, command: str
) -> StudyPlan:
    return StudyPlan(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        harness=env.made_with().get("harness commit") or env.version_of(env.OWN_PACKAGE) or "unknown",
        command=redact(command),
        seeds=sorted({point.cell.seed for point in points if point.cell.seed is not None}),
        confirm=confirm,
        evaluation=list(dict.fromkeys(point.cell.settings.eval for point in points)),
        articles=rules.articles,
        rules=rules.rules,
        methods=list(methods),
    )


def _tell(plan: StudyPlan, study: Study) -> None:
    late = [part.method for part in plan.methods if (part.confirmed_before if plan.confirm else part.tried_before)]
    if late:
        print(
            f"There are results of {', '.join(dict.fromkeys(late))} already: what this sweep adds to them is "
            "exploratory. A new study (study=NAME) has a plan of its own.",
            file=sys.stderr,
        )
    elif plan.confirm:
        fresh, path = units.plural(len(plan.confirm), "fresh seed"), study.folder / record.PLAN
        print(f"Planned in {path}: {fresh} of each method's best setting.", file=sys.stderr)
