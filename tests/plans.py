"""Plans of studies for tests, and records that they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from records import make_record

from harness.record import PlannedMethod, Record, StudyPlan
from harness.report.rules import judging_rules
from harness.settings import cell_id

BEFORE, CREATED, AFTER = (f"2026-01-0{day}T00:00:00+00:00" for day in (1, 2, 3))


def planned_record(method: str = "lora", lr: float = 1e-4, seed: int = 0, **fields: Any) -> Record:
    """A record with a full id, which began after `CREATED`; `fields` of the record, or of `make_record`."""
    own = {name: fields.pop(name) for name in ("confirmation", "started", "rescored") if name in fields}
    record = make_record(method, 16, 32.0, lr, seed, **fields)
    record.cell = replace(record.cell, id=cell_id(record.cell.settings))
    return replace(record, **({"started": AFTER} | own))


def confirming(method: str = "lora", lr: float = 1e-4, seed: int = 1, **fields: Any) -> Record:
    return planned_record(method, lr, seed, confirmation=True, **fields)


def make_plan(
    cells: Sequence[Record],
    confirm: Sequence[int] = (),
    tried_before: int = 0,
    confirmed_before: int = 0,
    **fields: Any,
) -> StudyPlan:
    """The plan of a sweep that tries `cells`; `fields` of the plan."""
    methods: dict[tuple[str, str, str], dict[str, str]] = {}
    for record in cells:
        cell = record.cell
        methods.setdefault((cell.method, cell.model, cell.data), {})[cell.name] = cell.id
    rules = judging_rules()
    usual = {"created": CREATED, "harness": "0123456789ab", "command": "harness sweep", "articles": rules.articles}
    usual |= {"rules": rules.rules, "confirm": list(confirm), "evaluation": [cells[0].cell.settings.eval]}
    usual["seeds"] = sorted({record.cell.seed for record in cells if record.cell.seed is not None})
    usual["methods"] = [
        PlannedMethod(*group, group[0] != "base", ids, tried_before, confirmed_before) for group, ids in methods.items()
    ]
    return StudyPlan(**(usual | fields))
