"""A study's plan: its file, and which records it asked for before there were results."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from plans import AFTER, BEFORE, CREATED, confirming, make_plan, planned_record

from harness.errors import UserError
from harness.record import (
    PLAN,
    PlannedStudy,
    Scoring,
    add_plans,
    planned_seeds,
    planned_study,
    read_plans,
    read_study,
    studies,
)
from harness.settings import cell_id

TRIED = [planned_record(method, lr) for method in ("lora", "full") for lr in (1e-4, 2e-4)]
FRESH = [confirming(method, seed=seed) for method in ("lora", "full") for seed in (1, 2)]
PLANNED = make_plan(TRIED, [1, 2])


def progress(*records, plans=(PLANNED,)):
    return PlannedStudy(plans, records).progress.text


def reason(record, *plans):
    return PlannedStudy(plans, [record]).unplanned()


# The file


def test_plans_are_read_as_they_were_written(tmp_path):
    later = make_plan(TRIED[:1], [1, 2, 3], created=AFTER)
    add_plans(tmp_path, [later])
    add_plans(tmp_path, [PLANNED, later])
    assert read_plans(tmp_path) == [PLANNED, later]
    assert read_plans(tmp_path / "none") == []
    before = (tmp_path / PLAN).read_bytes()
    add_plans(tmp_path, [PLANNED])
    assert (tmp_path / PLAN).read_bytes() == before


def test_a_plan_is_no_record(tmp_path):
    folder = tmp_path / "demo"
    add_plans(folder, [PLANNED])
    assert read_study(folder) == ([], [])
    assert studies(tmp_path) == []


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda text: text.replace('"confirm": [1, 2]', '"confirm": [1, 3]'), "line 1, is not as it was written"),
        (lambda text: text.replace(": ", ":"), "line 1, is not as it was written"),
        (lambda text: text[:-20], "line 1, is no plan"),
        (lambda text: text + "<<<<<<< ours\n", "line 2, is no plan"),
        (lambda text: text + "[]\n", "line 2, is no plan"),
        (lambda text: text + "\n", "line 2, is no plan"),
    ],
)
def test_an_edited_file_is_named_in_a_sentence(tmp_path, edit, problem):
    add_plans(tmp_path, [PLANNED])
    path = tmp_path / PLAN
    path.write_text(edit(path.read_text()))
    with pytest.raises(UserError) as error:
        read_plans(tmp_path)
    assert str(error.value).startswith(f"{path}, {problem}")
    assert str(error.value).endswith("restore the file from a copy, or remove it, which makes the study exploratory.")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"created": "0"}, "created is '0', which is no date and time with a time zone"),
        ({"created": "2026-01-02"}, "created is '2026-01-02', which is no date and time with a time zone"),
        ({"seeds": [-1]}, "seeds is -1, which is not between 0 and 4294967295"),
        ({"confirm": [1, 2**32]}, "confirm is 4294967296, which is not between 0 and 4294967295"),
        ({"confirm": list(range(10_001))}, "the line has more than 10000 seeds"),
        ({"rules": {"claims": -1}}, "rules.claims is -1"),
    ],
)
def test_a_value_that_no_sweep_writes_is_named_although_its_hash_is_right(tmp_path, fields, problem):
    add_plans(tmp_path, [replace(PLANNED, **fields)])
    with pytest.raises(UserError) as error:
        read_plans(tmp_path)
    assert f"{tmp_path / PLAN}, line 1, is no plan ({problem}" in str(error.value)


def test_a_line_that_is_nested_too_deeply_is_no_plan(tmp_path):
    (tmp_path / PLAN).write_text("[" * 5000)
    with pytest.raises(UserError, match=r"line 1, is no plan; restore the file"):
        read_plans(tmp_path)


def test_a_plan_of_the_first_minute_of_all_is_compared():
    first = replace(PLANNED, created="0001-01-01T00:00:00+00:00")
    assert reason(FRESH[0], first) == ""


def test_seeds_of_one_setting_are_looked_up_once(monkeypatch):
    seeds = list(range(100))
    plan = replace(make_plan(TRIED, seeds), seeds=seeds)
    records = [confirming(seed=seed) for seed in seeds]
    hashed = []
    monkeypatch.setattr(planned_study, "cell_id", lambda settings: hashed.append(settings) or cell_id(settings))
    assert PlannedStudy([plan], records).unplanned() == ""
    assert len(hashed) <= 2 * len(seeds)


def test_another_format_is_named(tmp_path):
    add_plans(tmp_path, [replace(PLANNED, format=2)])
    with pytest.raises(UserError, match=r"has format 2; this version of the harness reads 1\.$"):
        read_plans(tmp_path)


def test_a_file_that_is_no_file_is_named(tmp_path):
    (tmp_path / PLAN).mkdir()
    with pytest.raises(UserError, match="can't be read"):
        read_plans(tmp_path)


def test_a_line_is_json(tmp_path):
    add_plans(tmp_path, [PLANNED])
    (line,) = (tmp_path / PLAN).read_text().splitlines()
    value = json.loads(line)
    assert (value["seeds"], value["confirm"], list(value)[-1]) == ([0], [1, 2], "sha256")


# Seeds


def test_seeds_that_confirm_are_planned_ones_first_then_those_above_all():
    assert planned_seeds([], [0, 1], 2) == [2, 3]
    assert planned_seeds([PLANNED], [0], 2) == [1, 2]
    assert planned_seeds([PLANNED], [0], 4) == [1, 2, 3, 4]
    assert planned_seeds([PLANNED], [0, 1], 3) == [2, 3, 4]
    assert planned_seeds([PLANNED], [0], 1) == [1]
    assert planned_seeds([], [], 2) == [0, 1]
    assert planned_seeds([PLANNED], [0], 0) == []


# What was planned


def test_what_a_plan_asks_for_was_planned():
    for record in (*TRIED, *FRESH):
        assert PlannedStudy([PLANNED], [record]).planned_by(record) == PLANNED


def test_what_no_plan_asks_for_was_not():
    others = [planned_record(lr=5e-4), confirming(seed=7), confirming(lr=5e-4), planned_record("dora")]
    for record in (*others, confirming(settings={"eval": {"limit": 9}})):
        assert reason(record, PLANNED) == f"{record.cell.name} is in no plan"


def test_seeds_that_were_added_after_a_look_were_not():
    more = make_plan(TRIED[:1], [1, 2, 3], created=AFTER, tried_before=2, confirmed_before=2)
    assert reason(FRESH[0], PLANNED, more) == ""
    added = confirming(seed=3)
    assert reason(added, PLANNED, more) == f"{added.cell.name} was added when 2 results of lora were there"


def test_seeds_that_were_added_before_the_first_confirmation_were():
    more = make_plan(TRIED[:2], [1, 2, 3], created=AFTER, tried_before=2)
    assert reason(confirming(seed=3), PLANNED, more) == ""


def test_a_setting_that_was_added_after_a_look_confirms_nothing():
    """Its fresh seeds are those that the first plan asked for, of other settings."""
    better = planned_record(lr=5e-4)
    more = make_plan([better], [1, 2], created=AFTER, tried_before=2, confirmed_before=2)
    fresh = confirming(lr=5e-4)
    for record in (fresh, better):
        assert reason(record, PLANNED, more).startswith(f"{record.cell.name} was added when 2 ")


def test_another_method_has_a_plan_of_its_own():
    dora = make_plan([planned_record("dora")], [1, 2], created=AFTER)
    assert reason(confirming("dora"), PLANNED, dora) == ""


def test_a_record_from_before_its_plan_was_not_planned():
    early = confirming(started=BEFORE)
    study = PlannedStudy([PLANNED], [early])
    assert study.unplanned() == f"{early.cell.name} began before its plan was written"
    assert study.contradictions() == [
        f"{early.cell.name} began before its plan was written: its plan must come before a confirmation."
    ]
    assert reason(confirming(started=CREATED.replace("02T00:00:00", "01T23:59:30")), PLANNED) == ""  # a clock


def test_a_later_scoring_was_not_planned():
    record = confirming()
    record.rescored = [Scoring(["mmlu"], AFTER, replace(record.cell.settings.eval, tasks=["mmlu"]), {}, {}, None)]
    otherwise = f"{record.cell.name} was scored again after its plan, otherwise than planned"
    assert reason(record, PLANNED) == otherwise
    planned = replace(record.cell.settings.eval, tasks=["wordmath", "mmlu"], limit=50)
    plan = replace(PLANNED, evaluation=[planned])
    assert reason(record, plan) == otherwise, "with another limit"


def test_a_later_scoring_as_planned_stays_planned():
    record = confirming()
    planned = replace(record.cell.settings.eval, tasks=["wordmath", "mmlu"], limit=50)
    again = replace(planned, tasks=["mmlu"], batch_size=4)
    record.rescored = [Scoring(["mmlu"], AFTER, again, {}, {}, None)]
    assert reason(record, replace(PLANNED, evaluation=[planned])) == ""


def test_contradictions_are_confirmations_that_no_sweep_can_have_run():
    assert PlannedStudy([PLANNED], [*TRIED, *FRESH, planned_record(lr=5e-4), confirming("dora")]).contradictions() == []
    more = make_plan(TRIED[:1], [1, 2, 3], created=AFTER, confirmed_before=2)
    assert PlannedStudy([PLANNED, more], [confirming(seed=3)]).contradictions() == []
    (sentence,) = PlannedStudy([PLANNED], [confirming(seed=7)]).contradictions()
    assert sentence.endswith("is in no plan: its plan must come before a confirmation.")


# How far it is


def test_progress_counts_cells_and_confirming_cells():
    assert progress() == "0 of 4 cells, 0 of 4 confirming cells"
    assert progress(*TRIED, *FRESH[:3]) == "4 of 4 cells, 3 of 4 confirming cells"
    assert PlannedStudy([PLANNED], [*TRIED, *FRESH]).progress.finished
    assert progress(*TRIED, planned_record(lr=5e-4), plans=[make_plan(TRIED)]) == "4 of 4 cells"


def test_an_untuned_model_is_not_confirmed():
    base = planned_record("base")
    assert progress(base, plans=[make_plan([base, *TRIED[:2]], [1])]) == "1 of 3 cells, 0 of 1 confirming cells"


def test_a_method_without_a_finished_setting_is_not_confirmed():
    failed = [planned_record("full", lr, status="diverged") for lr in (1e-4, 2e-4)]
    assert progress(*TRIED[:2], *failed, *FRESH[:2]) == "4 of 4 cells, 2 of 2 confirming cells"


def test_seeds_of_two_settings_do_not_add_up():
    assert progress(*TRIED[:2], confirming(seed=1), confirming(lr=2e-4, seed=2)) == (
        "2 of 4 cells, 1 of 4 confirming cells"
    )
