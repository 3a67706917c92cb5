"""Fresh seeds of chosen settings: which are run, how records say so, and that a resumed sweep goes on with the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plans import make_plan, planned_record
from records import make_record

from harness.__main__ import main
from harness.python.launching import chosen
from harness.record import PLAN, PlannedStudy, ValidationPoint, read_plans, read_study
from harness.sweep.app.confirmation import fresh_points, methods_of_other_sweeps
from harness.sweep.app.noted_plan import confirming_seeds
from harness.sweep.store import Study

SMALL = (
    *("model=tiny", "rank=8", "train.precision=fp32", "train.max_steps=3", "train.batch_size=2"),
    *("train.validation_items=4", "+data.load.train=64", "+data.load.validation=8", "eval=facts", "eval.limit=4"),
    *("infer.repeats=0", "study=mine"),
)


def tried(method, lr, seed, loss):
    record = make_record(method, lr=lr, seed=seed)
    record.cell = replace(record.cell, id=f"{method} {lr} {seed}")
    record.validation = [ValidationPoint(50, 20_000, loss)]
    return record


@pytest.fixture
def study():
    records = [tried("lora", lr, seed, lr) for lr in (2.0, 1.0) for seed in (0, 1)]
    return [*records, tried("full", 3.0, 0, 1.0), make_record("base")]


def overrides(records):
    return {r.cell.id: [f"method={r.cell.method}", f"lr={r.cell.lr}", f"seed={r.cell.seed}"] for r in records}


def test_the_chosen_settings_run_with_each_fresh_seed(study):
    points = fresh_points(chosen(study), overrides(study), [2, 3])
    assert points == [
        [f"method={method}", f"lr={lr}", f"seed={seed}", "confirmation=true"]
        for method, lr in (("lora", 1.0), ("full", 3.0))
        for seed in (2, 3)
    ]


def test_fresh_seeds_lie_above_all_that_were_tried(study):
    assert confirming_seeds([], study, [], 2) == [2, 3]


def test_a_resumed_sweep_goes_on_with_the_same_seeds(study):
    fresh = tried("lora", 1.0, 2, 0.0)
    fresh.confirmation = True
    assert confirming_seeds([], [*study, fresh], [], 2) == [2, 3]
    assert chosen([*study, fresh]) == chosen(study)


def test_planned_seeds_stay_where_others_are_tried_later(study):
    plans = [make_plan([planned_record()], [2, 3])]
    assert confirming_seeds(plans, [*study, tried("lora", 1.0, 9, 1.0)], [], 2) == [2, 3]
    assert confirming_seeds(plans, [*study, tried("lora", 1.0, 2, 1.0)], [], 2) == [3, 4]


def test_settings_of_other_sweeps_are_left_alone(study):
    assert fresh_points(chosen(study), overrides([study[2]]), [2]) == [
        ["method=lora", "lr=1.0", "seed=2", "confirmation=true"]
    ]
    assert methods_of_other_sweeps(chosen(study), overrides([study[2]])) == ["full"]


def test_a_setting_is_of_this_sweep_if_one_of_its_seeds_is(study):
    """As where an earlier sweep ran seed 0, and this one seed 1."""
    own = [record for record in study if record.cell.seed == 1]
    (point,) = fresh_points(chosen(study), overrides(own), [2])
    assert point == ["method=lora", "lr=1.0", "seed=2", "confirmation=true"]


def test_a_bad_number_of_seeds_is_refused(capsys):
    for bad in ("0", "-1", "three"):
        assert main(["sweep", "method=lora", "--confirm", bad]) == 2
        assert f"argument --confirm: must be a positive number, got {bad};" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_confirms_and_resumes(inside, tmp_path):
    command = ("sweep", *SMALL, "method=lora", "lr=1e-3,1e-5", "seed=0", "--confirm=2")
    run = inside(*command)
    assert run.returncode == 0, run.stderr
    study = Study(tmp_path / "results", "mine")
    records, _ = read_study(study.folder)
    assert sorted((r.cell.seed, r.confirmation) for r in records) == [(0, False), (0, False), (1, True), (2, True)]
    fresh = [record for record in records if record.confirmation]
    best = min((r for r in records if not r.confirmation), key=lambda r: r.validation[-1].loss)
    assert {record.cell.lr for record in fresh} == {best.cell.lr}
    study.path(fresh[0].cell).unlink()
    kept = study.path(fresh[1].cell).stat().st_mtime_ns
    planned = (study.folder / PLAN).read_bytes()
    again = inside(*command)
    assert again.returncode == 0, again.stderr
    assert study.recorded(fresh[0].cell).confirmation
    assert study.path(fresh[1].cell).stat().st_mtime_ns == kept
    assert (study.folder / PLAN).read_bytes() == planned
    assert "Planned in results/mine/plan.jsonl: 2 fresh seeds of each method's best setting." in run.stderr
    assert "2 of 2 cells, 2 of 2 confirming cells" in inside("status", "mine").stdout
    more = inside(*command[:-1], "--confirm=3")  # after a look
    assert "exploratory" in more.stderr
    records, _ = read_study(study.folder)
    (added,) = [record for record in records if record.cell.seed == 3]
    of_study = PlannedStudy(read_plans(study.folder), records)
    assert of_study.unplanned().startswith(f"{added.cell.name} was added when 2 ")
    assert inside("verify").stdout.startswith("mine: 5 records, no problems\n- Exploratory: ")
