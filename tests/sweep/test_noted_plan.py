"""What a sweep writes into its study before its first cell."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from plans import CREATED, confirming, planned_record

from harness.errors import UserError
from harness.record import PLAN, PlannedStudy, read_plans, write
from harness.report.rules import judging_rules
from harness.sweep.app.noted_plan import note_plan
from harness.sweep.app.session import Options
from harness.sweep.store import Study

GRID = [planned_record(method, lr) for method in ("lora", "full") for lr in (1e-4, 2e-4)]


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path, "demo")


def note(study, *records, confirm=None, typed=("sweep", "lr", "study=a b"), rules=True):
    points = [SimpleNamespace(cell=r.cell, request=SimpleNamespace(confirmation=r.confirmation)) for r in records]
    note_plan(study, points, Options(confirm=confirm, typed=typed, rules=judging_rules() if rules else None))
    return read_plans(study.folder)


def ran(study, *records):
    study.folder.mkdir(exist_ok=True)
    for record in records:
        write(record, study.path(record.cell))


def test_a_plan_says_what_is_asked_for(study, capsys):
    (plan,) = note(study, *GRID, confirm=2)
    assert (plan.seeds, plan.confirm) == ([0], [1, 2])
    assert plan.command == "harness sweep lr 'study=a b'"
    assert plan.evaluation == [GRID[0].cell.settings.eval]
    assert (plan.rules, plan.articles) == (judging_rules().rules, judging_rules().articles)
    assert [(part.method, part.trained, part.tried_before) for part in plan.methods] == [
        ("lora", True, 0),
        ("full", True, 0),
    ]
    assert plan.methods[0].cells == {record.cell.name: record.cell.id for record in GRID[:2]}
    assert capsys.readouterr().err == (
        f"Planned in {study.folder / PLAN}: 2 fresh seeds of each method's best setting.\n"
    )


def test_a_sweep_without_confirmation_has_a_plan_too(study, capsys):
    (plan,) = note(study, *GRID)
    assert plan.confirm == []
    assert capsys.readouterr().err == ""


def test_the_same_command_adds_nothing(study):
    first = note(study, *GRID, confirm=2)
    ran(study, *GRID, confirming())
    assert note(study, *GRID, confirm=2) == first
    assert note(study, *GRID, confirm=1) == first
    assert note(study, *GRID[:1]) == first


def test_more_seeds_are_a_line_of_their_own(study, capsys):
    (first,) = note(study, *GRID, confirm=2)
    ran(study, *GRID, *(fresh := [confirming("lora", seed=1), confirming("lora", seed=2)]))
    capsys.readouterr()
    plans = note(study, *GRID, confirm=3)
    assert plans[0] == first
    assert plans[1].confirm == [1, 2, 3]
    assert [(part.method, part.confirmed_before) for part in plans[1].methods] == [("lora", 2), ("full", 0)]
    assert capsys.readouterr().err == (
        "There are results of lora already: what this sweep adds to them is exploratory. A new study (study=NAME) has "
        "a plan of its own.\n"
    )
    of_old = [replace(plan, created=CREATED) for plan in plans]  # as the records are
    study_now = PlannedStudy(of_old, [*fresh, confirming("full", seed=3), added := confirming("lora", seed=3)])
    assert study_now.unplanned().startswith(f"{added.cell.name} was added when 2 ")


def test_confirmations_after_tries_without_a_plan_were_planned(study):
    ran(study, *GRID)
    (plan,) = note(study, *GRID, confirm=2)
    assert {part.tried_before for part in plan.methods} == {2}
    assert PlannedStudy([plan], [confirming(started=plan.created)]).unplanned() == ""


def test_another_method_is_a_line_of_its_own(study):
    note(study, *GRID[:2], confirm=1)
    ran(study, *GRID[:2], confirming())
    plans = note(study, *GRID, confirm=1)
    assert [[part.method for part in plan.methods] for plan in plans] == [["lora"], ["full"]]
    assert {part.confirmed_before for plan in plans for part in plan.methods} == {0}


def test_failed_cells_were_no_look(study):
    ran(study, planned_record(lr=9e-4, status="failed"), planned_record(lr=8e-4, status="oom"))
    (plan,) = note(study, *GRID)
    assert {part.tried_before for part in plan.methods} == {0}


def test_confirmations_are_planned_with_what_they_confirm(study):
    assert note(study, confirming(), confirm=2) == []


def test_without_rules_there_is_no_plan(study):
    assert note(study, *GRID, rules=False) == []


def test_a_damaged_plan_stops_a_sweep(study):
    note(study, *GRID)
    (study.folder / PLAN).write_text("no plan\n")
    with pytest.raises(UserError, match="line 1, is no plan"):
        note(study, *GRID, confirm=1)
