"""Whether a verdict is one by its plan, an interim look or exploratory."""

from __future__ import annotations

import pytest
from plans import confirming, make_plan, planned_record
from records import change

from harness.record import PLAN, JudgingRules, add_plans
from harness.report import planned
from harness.report.planned import EXPLORATORY, PlanState, plan_lines, study_plan, weakest
from harness.report.rules import judging_rules

TRIED = [planned_record(method) for method in ("lora", "full")]
FRESH = [confirming(method, seed=seed) for method in ("lora", "full") for seed in (1, 2)]


def state(folder, records, evidence=None, article=None):
    return study_plan(records, folder).state(records if evidence is None else evidence, article)


@pytest.fixture
def folder(tmp_path):
    add_plans(tmp_path, [make_plan(TRIED, [1, 2])])
    return tmp_path


def test_a_finished_plan_decides(folder):
    for article in (None, *make_plan(TRIED).articles):
        assert state(folder, [*TRIED, *FRESH], FRESH, article) == PlanState("planned")


def test_before_it_is_finished_a_look_decides_nothing(folder):
    interim = state(folder, [*TRIED, *FRESH[:3]], FRESH[:3])
    begun = "The plan of 2026-01-02 has 2 of 2 cells, 3 of 4 confirming cells"
    assert interim == PlanState("interim", f"{begun}; the same command runs the rest")
    assert interim.shown("supported") == "not decided yet (so far: supported)"
    assert interim.shown("not decided") == "not decided yet"


def test_a_failed_cell_leaves_its_method_open(folder):
    failed = confirming("full", seed=2, status="failed")
    records = [*TRIED, *FRESH[:3], failed]
    assert state(folder, records, FRESH).why == f"{failed.cell.name} failed; the same command runs it again"
    assert state(folder, records, FRESH[:2]) == PlanState("planned")
    ended = confirming("full", seed=2, status="diverged")  # which is a result
    assert state(folder, [*TRIED, *FRESH[:3], ended], FRESH[:3]) == PlanState("planned")


def test_without_a_plan_all_is_exploratory(tmp_path):
    assert state(tmp_path, [*TRIED, *FRESH]) == EXPLORATORY
    assert state({}, TRIED) == state(None, TRIED) == EXPLORATORY
    assert EXPLORATORY.shown("supported") == "supported"


def test_what_was_added_is_exploratory(folder):
    added = [confirming(method, seed=9) for method in ("lora", "full")]
    why = f"{added[0].cell.name} is in no plan (1 further record likewise)"
    assert state(folder, [*TRIED, *FRESH, *added], [*FRESH, *added]) == PlanState("exploratory", why)
    assert state(folder, [*TRIED, *FRESH, *added], FRESH) == PlanState("planned")


def test_other_rules_than_the_planned_ones_explore(tmp_path):
    plan = make_plan(TRIED, [1, 2], rules={"comparison": 0}, articles=["other"])
    add_plans(tmp_path, [plan])
    changed = "The rules of judging have changed since the plan of 2026-01-02 (comparison 0, now"
    assert state(tmp_path, [*TRIED, *FRESH], FRESH).why.startswith(changed)
    assert state(tmp_path, [*TRIED, *FRESH], FRESH, "other").why.startswith(changed)
    assert state(tmp_path, [*TRIED, *FRESH], FRESH, "mine").why == "The plan of 2026-01-02 names no claims of mine"


def test_a_version_that_changes_other_claims_leaves_a_claim_planned(tmp_path, monkeypatch):
    now = JudgingRules({"comparison": 2, "claims": 4}, ["mine"], {"claims": {3: ["mine/memory"], 4: ["mine/speed"]}})
    monkeypatch.setattr(planned, "judging_rules", lambda: now)
    for version, exploratory in (
        (1, {"score", "memory", "speed"}),
        (2, {"memory", "speed"}),
        (3, {"speed"}),
        (5, {"score"}),
    ):
        folder = tmp_path / str(version)
        folder.mkdir()
        rules = {"comparison": 2, "claims": version}
        add_plans(folder, [make_plan(TRIED, [1, 2], rules=rules, articles=["mine"])])
        plan = study_plan([*TRIED, *FRESH], folder)
        words = {claim: plan.state(FRESH, "mine", claim).word for claim in exploratory | {"score"}}
        assert {claim for claim, word in words.items() if word == "exploratory"} == exploratory
        assert plan.state(FRESH).word == "planned"  # methods are compared, and no claim is judged


def test_a_version_explores_only_what_it_can_answer_otherwise(tmp_path):
    """Version 3 of the comparison changes nothing where methods have the same seeds and cells are scored alike."""
    rules = judging_rules().rules | {"comparison": 2}
    add_plans(tmp_path, [make_plan(TRIED, [1, 2], rules=rules, articles=["mine"])])
    assert state(tmp_path, [*TRIED, *FRESH], FRESH) == PlanState("planned")
    unequal = [*TRIED, *FRESH, confirming("full", seed=3)]
    assert state(tmp_path, unequal, FRESH).why.endswith("(comparison 2, now 3)")
    assert study_plan(unequal, tmp_path).state(FRESH, "mine", "claim") == PlanState("planned")
    scored_again = planned_record("lora")
    change(scored_again, eval={"limit": 9})
    assert (
        study_plan([*TRIED, *FRESH, scored_again], tmp_path)
        .state(FRESH, "mine", "claim")
        .why.endswith("(comparison 2, now 3)")
    )


def test_a_damaged_plan_is_told_and_counts_as_none(folder):
    (folder / PLAN).write_text("{}\n")
    assert state(folder, [*TRIED, *FRESH], FRESH).why.startswith(f"{folder / PLAN}, line 1, is no plan")


def test_states_are_told_in_one_line_each():
    planned, interim = PlanState("planned"), PlanState("interim", "The plan has 1 of 2 cells")
    assert plan_lines([("a", planned), ("b", planned)]) == [planned.sentence]
    assert plan_lines([("a", planned), ("b", interim), ("c", planned)]) == [
        f"a, c: {planned.sentence}",
        "b: Interim, nothing is decided yet. The plan has 1 of 2 cells.",
    ]
    assert weakest([planned, EXPLORATORY, interim]) == interim
    assert weakest([planned, EXPLORATORY]) == EXPLORATORY
    assert weakest([planned, planned]) == planned
