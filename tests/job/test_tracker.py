"""A tracker is told how training goes, by its own files; and it changes nothing, also where it breaks."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from accelerate import PartialState
from job_helpers import no_peak, run_request, tiny  # noqa: F401
from records import make_record, make_score

from harness import env, validate
from harness.errors import UserError
from harness.job.tracker import Tracker
from harness.record import TrackerName

pytest.importorskip("tensorboard")


def events(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.mark.long
def test_tensorboard_is_told_what_the_record_says(tmp_path):
    cell = tiny("method=lora", "infer.repeats=0", "train.max_steps=4", "train.validate_every=2")
    path = tmp_path / f"{cell.name}.json"
    found = run_request(cell, "demo", path, None, lambda event: None, tracker="tensorboard")
    told = events(tmp_path / "tensorboard" / cell.name)
    losses = [(point.step, pytest.approx(point.loss, rel=1e-6)) for point in found.train.loss]
    assert told["train/loss"] == losses
    assert told["train/lr"] == [(point.step, pytest.approx(point.lr, rel=1e-6)) for point in found.train.loss]
    assert told["validation/loss"] == [(p.step, pytest.approx(p.loss, rel=1e-6)) for p in found.validation]
    assert told["score/facts/acc/none"] == [(4, pytest.approx(found.scores[0].value))]
    assert {"train/tokens_per_second", "train/grad_norm", "train/memory_bytes"} <= told.keys()
    (settings,) = (tmp_path / "tensorboard" / cell.name).rglob("hparams.yml")
    assert "method.adapt.r: 8\n" in settings.read_text()

    plain = run_request(cell, "demo", tmp_path / "plain.json", None, lambda event: None)
    assert [p.loss for p in plain.train.loss] == [p.loss for p in found.train.loss]
    assert plain.scores == found.scores


def test_one_that_can_not_start_is_one_sentence_before_anything_is_run(tmp_path):
    (tmp_path / "tensorboard").write_text("a file")
    cell = tiny("method=full", "infer.repeats=0")
    with pytest.raises(UserError, match=r"tracker=tensorboard can't start: .*; set it up, or omit tracker\."):
        run_request(cell, "demo", tmp_path / f"{cell.name}.json", None, lambda event: None, tracker="tensorboard")
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]


def test_one_that_breaks_off_is_told_no_more(tmp_path, capsys):
    tracker = Tracker("tensorboard", tiny("method=full"), "demo", tmp_path)
    tracker.log({"loss": 1.0, "absent": None}, 1)
    tracker.log({"loss": Broken(2.0)}, 2)
    tracker.log({"loss": 3.0}, 3)
    assert capsys.readouterr().err == "tensorboard failed (the number is gone); the cell continues without it.\n"
    (folder,) = (tmp_path / "tensorboard").iterdir()
    assert events(folder)["loss"] == [(1, 1.0)]


def test_trackio_has_a_project_a_study_and_samples_nothing_by_itself(tmp_path, monkeypatch):
    """Checked with trackio 0.43 itself: a sweep of two methods, offline, is one project with two runs."""
    started = {}
    run = SimpleNamespace(config={}, log=lambda values, **more: None, finish=lambda: None)
    config = SimpleNamespace(update=lambda values, **more: None)
    stub = SimpleNamespace(init=lambda **arguments: started.update(arguments) or run, config=config)
    monkeypatch.setitem(sys.modules, "trackio", stub)
    PartialState(cpu=True)  # which training has made before
    cell = tiny("method=lora")
    Tracker("trackio", cell, "papers/mine", tmp_path)
    assert started == {"project": "papers-mine", "name": cell.name, "auto_log_cpu": False, "auto_log_gpu": False}


@pytest.fixture
def mlflow(monkeypatch):
    """What stands for MLflow (3.17, whose names it refuses too): all that it is told, by the name of the call."""
    told = {"metrics": {}, "params": {}, "ended": []}

    def take(kind, values, **more):
        assert all(re.fullmatch(r"[\w. :/-]+", name) for name in values)
        told[kind].update(values)

    stub = SimpleNamespace(
        search_experiments=lambda filter_string: [SimpleNamespace(experiment_id="1")],
        start_run=lambda **arguments: None,
        log_params=lambda values: take("params", values),
        log_metrics=lambda values, **more: take("metrics", values),
        end_run=lambda status="FINISHED": told["ended"].append(status),
        utils=SimpleNamespace(validation=SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100)),
    )
    monkeypatch.setitem(sys.modules, "mlflow", stub)
    PartialState(cpu=True)
    return told


@pytest.mark.parametrize(
    ("status", "ended"), [("ok", "FINISHED"), ("pruned", "FINISHED"), ("diverged", "FAILED"), ("oom", "FAILED")]
)
def test_a_cell_that_fails_is_a_failed_run_in_mlflow(tmp_path, mlflow, status, ended):
    """Checked with MLflow 3.17 itself, as are its names below."""
    Tracker("mlflow", tiny("method=lora"), "demo", tmp_path).end(make_record(status=status))
    assert mlflow["ended"] == [ended]


def test_names_that_mlflow_refuses_are_written_otherwise(tmp_path, mlflow):
    cell = tiny("method=lora", "+method.adapt.rank_pattern={layers.0@x: 2}")
    record = make_record(scores=[make_score(0.5, task="humaneval", metric="pass@1", filter="create_test")])
    Tracker("mlflow", cell, "demo", tmp_path).end(record)
    assert mlflow["params"]["method.adapt.rank_pattern.layers.0_x"] == 2
    assert mlflow["metrics"]["score/humaneval/pass_1/create_test"] == 0.5
    assert mlflow["ended"] == ["FINISHED"]


def test_a_cell_that_fails_is_a_failed_run_in_wandb(tmp_path, monkeypatch):
    """Checked with wandb 0.31 itself, offline."""
    started, codes = {}, []
    run = SimpleNamespace(log=lambda values, **more: None, finish=lambda exit_code=0: codes.append(exit_code))
    config = SimpleNamespace(update=lambda values, **more: None)
    stub = SimpleNamespace(init=lambda **arguments: started.update(arguments) or run, config=config)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    for status in ("ok", "failed"):
        Tracker("wandb", tiny("method=lora"), "papers/mine", tmp_path).end(make_record(status=status))
    assert codes == [0, 1]
    assert started["project"] == "papers-mine"
    assert started["settings"] == {"x_disable_stats": True, "console": "off"}


@pytest.mark.parametrize("moment", ["training", "after the scores"])
def test_a_job_that_is_stopped_ends_its_run(tmp_path, mlflow, monkeypatch, moment):
    before, describe = signal.getsignal(signal.SIGTERM), env.describe

    def stop(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    def in_step(event):
        if event.get("step") == 2:
            stop()

    if moment == "after the scores":
        monkeypatch.setattr(env, "describe", lambda: stop() or describe())
    cell = tiny("method=lora", "infer.repeats=0")
    report = in_step if moment == "training" else lambda event: None
    try:
        with pytest.raises(SystemExit):
            run_request(cell, "demo", tmp_path / f"{cell.name}.json", None, report, tracker="mlflow")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert mlflow["ended"] == ["FAILED"]
    assert not (tmp_path / f"{cell.name}.json").exists()


class Broken(float):
    """A number that can't be written, as a disk that is full can't be written to."""

    def __float__(self):
        raise OSError("the number is gone")

    __array__ = item = __float__


@pytest.mark.parametrize("name", get_args(TrackerName))
def test_one_that_is_not_installed_says_so(cell, monkeypatch, name):
    monkeypatch.setattr(validate, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=f"tracker={name} is not installed: pip install {name}"):
        cell("method=lora", f"tracker={name}")
