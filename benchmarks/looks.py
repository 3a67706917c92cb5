"""Situations of `make validity` in which somebody looks several times: with and without a plan of the seeds.

Two equal methods are compared at 3, 8 and 16 seeds, and the first significant difference is told.

    without a plan   whether one of the looks tells the methods apart
    wrong            whether one does whose verdict is planned: a look before the plan is finished decides nothing, and
                     what was added to a finished plan is exploratory
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from simulated import METHODS, Noise, Study, answer
from situations import FLAT, Outcome, situation

from harness.record import PlannedMethod, PlannedStudy, Record, StudyPlan
from harness.report.pairwise import contests
from harness.report.planned import StudyPlanned
from harness.report.rules import judging_rules
from harness.report.statistics import ALPHA

LOOKS = (3, 8, 16)  # seeds


@situation(
    "looks at 3, 8 and 16 seeds at equal methods",
    **{"16 are planned": {"planned": 16}},
    **{"3 are planned": {"planned": 3}},
    **{"16 are planned, seeds vary by 3 points": {"planned": 16, "sd": 3}},
    **{"3 are planned, seeds vary by 3 points": {"planned": 3, "sd": 3}},
)
def looks(draw: np.random.Generator, planned: int, sd: float = 1) -> Outcome:
    study = Study(draw)
    answer(study, "wordmath", dict.fromkeys(METHODS[:2], 0.5), max(LOOKS), Noise(seed_points=sd, **FLAT))
    records = [replace(record, cell=replace(record.cell, id=record.cell.name)) for record in study.records]
    plan = plan_of([record for record in records if seed(record) < planned])
    apart, words = [], []
    for seeds in LOOKS:
        seen = [record for record in records if seed(record) < seeds]
        (contest,) = contests(seen, study.tables)
        apart.append(min(contest.corrected.values()) < ALPHA)
        words.append(StudyPlanned(PlannedStudy([plan], seen), seen).state(seen).word)
    by_plan = [is_apart for is_apart, word in zip(apart, words, strict=True) if word == "planned"]
    return {"wrong": any(by_plan), "without a plan": any(apart)}


def seed(record: Record) -> int:
    return record.cell.seed or 0


def plan_of(records: list[Record]) -> StudyPlan:
    """A plan of the cells of `records`, written before they ran."""
    ids: dict[str, dict[str, str]] = {}
    for record in records:
        ids.setdefault(record.cell.method, {})[record.cell.name] = record.cell.id
    cell, rules = records[0].cell, judging_rules()
    return StudyPlan(
        created="2026-01-01T00:00:00+00:00",
        harness="simulated",
        command="harness sweep",
        seeds=sorted({seed(record) for record in records}),
        confirm=[],
        evaluation=[cell.settings.eval],
        articles=rules.articles,
        rules=rules.rules,
        methods=[PlannedMethod(method, cell.model, cell.data, True, cells) for method, cells in ids.items()],
    )
