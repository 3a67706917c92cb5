"""`sweep … stop=asha`: which rule cells get, what is refused, what is pruned, stays so, or is trained to its end."""

from __future__ import annotations

import pytest
from command_line import assert_refused
from real_sweeps import NINE_STEPS
from records import make_record

from harness.plugins.halving import PLUGIN
from harness.protocol import EarlyStopping
from harness.record import StopRule, read_study
from harness.sweep.app.pending import to_run
from harness.sweep.app.point import Point, point_of, stop_rule
from harness.sweep.store import Study

RULE = StopRule(0.15, 4)


def test_the_rule_is_no_part_of_a_cell_and_does_not_apply_to_confirmations(compose, cell):
    assert cell(*NINE_STEPS, "stop=asha").id == cell(*NINE_STEPS).id
    assert stop_rule(compose(*NINE_STEPS)) is None
    assert stop_rule(compose(*NINE_STEPS, "stop=asha")) == RULE
    assert stop_rule(compose(*NINE_STEPS, "stop=asha", "stop.first=0.2", "stop.factor=3")) == StopRule(0.2, 3)
    assert stop_rule(compose(*NINE_STEPS, "stop=asha", "confirmation=true")) is None
    assert stop_rule(compose(*NINE_STEPS, "stop=asha", "method=base")) is None


def test_the_rule_and_the_study_s_folder_come_to_the_job(compose, tmp_path):
    point = point_of(compose(*NINE_STEPS, "stop=asha", f"results_dir={tmp_path}"), [])
    assert point.request.early_stopping == EarlyStopping(
        RULE, str(tmp_path / "mine" / ".harness" / "rungs"), PLUGIN.early_stop
    )
    point.write(tmp_path / "point.json")
    assert Point.read(tmp_path / "point.json") == point


def test_a_sweep_runs_no_pruned_cell_again(compose):
    record = make_record("lora", 16, 32.0, 1e-3, status="pruned")
    assert not to_run(record, point_of(compose(*NINE_STEPS, "stop=asha"), []))


@pytest.mark.parametrize(
    ("line", "culprits"),
    [
        ("sweep stop=ashes", ["stop=ashes is unknown. Did you mean asha?"]),
        ("sweep stop=asha stop.first=25", ["stop.first must be a share of the tokens above 0 and below 1, got 25."]),
        ("sweep stop=asha stop.factor=1", ["stop.factor must be 2 or more, got 1."]),
        ("sweep stop=asha stop.first=0.9 train.max_steps=5", ["requires a rung before the last step", "is step 5."]),
        ("sweep stop=asha train.validation_items=0", ["train.validation_items must be 1 or more, got 0"]),
        ("sweep stop=asha,none", ["stop is not an axis"]),
        ("sweep stop.first=0.1,0.2", ["stop.first is not an axis"]),
    ],
)
def test_bad_settings_of_the_rule_are_one_error(inside, tmp_path, line, culprits):
    run = inside(*line.split())
    assert run.returncode == 2
    assert_refused(run.stderr, *culprits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_cell_does_without_the_group(inside):
    planned = inside("plan", "model=tiny", "data=facts", "train.max_steps=1", "--device", "cpu", "~stop")
    assert (planned.returncode, planned.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_prunes_resumes_and_confirms(inside, tmp_path):
    command = ("sweep", *NINE_STEPS, "method=lora", "lr=1e-2,1e-7,1e-8,1e-9", "seed=0", "stop=asha", "--drift=2")
    run = inside(*command)
    assert run.returncode == 0, run.stderr
    study = Study(tmp_path / "results", "mine")
    records, _ = read_study(study.folder)
    assert {record.stop for record in records} == {RULE}
    ended = [record for record in records if record.status == "pruned"]
    assert 1 <= len(ended) <= 3
    assert "pruned" in run.stderr.splitlines()[-1]
    repeated = [record for record in records if record.repeats]
    assert {again.status for record in repeated for again in record.repeats} == {"ok"}  # trained to its end

    again = inside(*(part for part in command if not part.startswith("--drift")), "--confirm=1")
    assert again.returncode == 0, again.stderr
    assert "4 recorded, 0 to run" in again.stderr
    (fresh,) = [record for record in read_study(study.folder)[0] if record.confirmation]
    assert (fresh.cell.lr, fresh.status, fresh.stop, len(fresh.validation)) == (1e-2, "ok", None, 1)
