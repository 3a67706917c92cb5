"""A point is composed once, in the sweep, and comes to whatever process runs it as it was."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import called

from harness.record import read_study
from harness.sweep import cells
from harness.sweep.app import point as points
from harness.sweep.app.point import Point, point_of
from harness.sweep.launchers.through_hydra import Elsewhere, _quoted

TINY = ("model=tiny", "method=lora", "data=facts", "train.max_steps=1", "train.batch_size=2", "eval.tasks=[]")
SHORT = ("infer.repeats=0", "train.validation_items=2")


@pytest.fixture
def composed(compose) -> Point:
    overrides = ["model=tiny", "method=lora", "rank=4", "train.save_every=2", "retry.on_oom=true", "save=adapter"]
    return point_of(compose(*overrides, "timeout=9", "retry.statuses=[oom]"), overrides)


def test_a_point_comes_back_from_its_file_and_from_a_pipe(composed, tmp_path):
    composed.at(3).write(tmp_path / "a" / "point.json")
    read = Point.read(tmp_path / "a" / "point.json")
    assert read == composed.at(3) == pickle.loads(pickle.dumps(composed.at(3)))
    assert (read.request.position, read.statuses, read.repeat) == (3, ["oom"], False)
    assert (read.request.save, read.request.precautions.timeout) == ("adapter", 9)
    assert read.cell.id == composed.cell.id
    assert read.study.path(read.cell) == composed.study.path(composed.cell)


def test_a_launcher_of_hydra_gets_a_file_for_each_point(composed, tmp_path):
    launched: list[Point] = []

    class Launcher:
        def launch(self, job_overrides, initial_job_idx):
            for (override,) in job_overrides:
                path = override.removeprefix("+point='").removesuffix("'").replace("\\'", "'")
                launched.append(Point.read(Path(path)))
            return [SimpleNamespace(return_value=initial_job_idx + i) for i in range(len(job_overrides))]

    folder = tmp_path / "it's here"
    elsewhere = Elsewhere(Launcher(), SimpleNamespace(hydra=SimpleNamespace(sweep=SimpleNamespace(dir=str(folder)))))
    sent = [composed.at(1), composed.to_repeat().at(2)]
    assert elsewhere.run(sent) == [0, 1]
    assert elsewhere.run(sent[:1]) == [2]
    assert launched == [*sent, sent[0]]
    assert not list(folder.iterdir())


def test_a_files_name_is_one_word_of_an_override():
    assert _quoted("/a b/it's\\x") == r"'/a b/it\'s\\x'"


@pytest.mark.long
@pytest.mark.slow
def test_a_sweep_composes_each_cell_once(tmp_path, monkeypatch):
    composed: list[str] = []
    from_config = cells.from_config
    counted = SimpleNamespace(from_config=lambda config: composed.append(config.seed) or from_config(config))
    monkeypatch.setattr(points, "cells_of", counted)
    done = called(tmp_path, "sweep", "study=once", "seed=0,1", *TINY, *SHORT)
    assert done.returncode == 0, done.stderr
    assert sorted(composed) == [0, 1]
    records, problems = read_study(tmp_path / "results" / "once")
    assert not problems
    assert sorted(record.position for record in records) == [1, 2]
    assert {record.cell.seed for record in records} == {0, 1}
    assert len(json.loads((tmp_path / "results" / "once" / ".harness" / "plan.json").read_text())) == 2
