"""A sweep of very many points: it shows its progress, asks its job little, and its memory does not grow with cells."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import subprocess
import sys

import pytest
from records import make_record, measured

from harness import record
from harness.config import ROOT
from harness.protocol import CheckCells
from harness.sweep import runner
from harness.sweep.app import planning
from harness.sweep.app.checking import check
from harness.sweep.app.planning import Planning
from harness.sweep.app.point import Sharing, point_of
from harness.sweep.app.session import Options

LORA = ("method=lora", "model=tiny", "eval.tasks=[]")


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Each look at the clock is 0.1 seconds later."""
    ticks = itertools.count()
    monkeypatch.setattr(planning.time, "monotonic", lambda: next(ticks) / 10)


def planned(points: int) -> None:
    with Planning(points) as counted:
        for _ in range(points):
            counted.advance()


def test_what_is_planned_in_a_moment_is_not_worth_a_line(clock, capsys):
    planned(9)
    assert capsys.readouterr().err == ""


def test_progress_begins_after_a_second_and_is_a_line_now_and_then(clock, capsys):
    planned(1200)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["Planning: 10 of 1,200 points", "Planning: 110 of 1,200 points"]
    assert lines[-1] == "Planning: 1,110 of 1,200 points"
    assert len(lines) == 12


def test_on_a_terminal_progress_is_one_line_that_disappears(clock, monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    planned(40)
    assert "\n" not in screen.getvalue()
    assert screen.getvalue().startswith("\rPlanning: 10 of 40 points")
    assert screen.getvalue().endswith("\r\x1b[K")


@pytest.fixture
def points(compose):
    """points(*lines) gives the point of each line of overrides."""
    return lambda *lines: [point_of(compose(*LORA, *line.split()), [*LORA, *line.split()]) for line in lines]


@pytest.fixture
def checked(points, monkeypatch):
    """checked(*lines) gives the cells that a job is asked to check."""
    asked: list[CheckCells] = []
    monkeypatch.setattr(runner, "_ask", lambda what, request: asked.append(request) or [])
    monkeypatch.setattr(runner, "_warn_of_load", lambda: None)

    def cells(*lines: str):
        check(points(*lines), Options())
        return asked.pop().cells

    return cells


def test_a_job_checks_one_of_the_cells_that_differ_in_seed_lr_and_alpha(checked):
    lines = [f"seed={seed} lr={lr} alpha={alpha}" for seed in range(3) for lr in (1e-4, 1e-3) for alpha in (8, 16)]
    assert len(checked(*lines)) == 1


def test_a_job_checks_every_cell_that_may_be_refused_for_a_reason_of_its_own(checked):
    lines = ["rank=4", "rank=8", "train.gradient_checkpointing=true", "model.upcast=true", "eval.tasks=[arc_easy]"]
    lines += ["method.optim.optimizer.lr=-1", "method.adapt.lora_alpha=x", "data.load.seed=7", "speedups=off"]
    assert len(checked(*lines, "rank=4 seed=1")) == len(lines)


def test_points_share_equal_parts_and_stay_what_they_are(points):
    made = points("seed=0", "seed=1", "rank=4", "+method.adapt.note=1", "+method.adapt.note=1.0")
    before = [json.dumps(dataclasses.asdict(point)) for point in made]
    shared = [*map(Sharing(), made)]
    assert [json.dumps(dataclasses.asdict(point)) for point in shared] == before
    first, second, other, *notes = [point.cell.settings for point in shared]
    assert first.method is second.method
    assert first.train is other.train
    assert first.method is not other.method
    assert [type(settings.method.adapt["note"]) for settings in notes] == [int, float]


@pytest.mark.long
@pytest.mark.slow
def test_the_memory_of_a_sweep_does_not_grow_with_its_cells(tmp_path):
    example = tmp_path / "example.json"
    record.write(measured(make_record("lora", 16)), example)
    command = [sys.executable, str(ROOT / "benchmarks" / "standing_in.py"), str(example), "sweep", *LORA]
    cells = 60
    done = subprocess.run(
        [*command, f"seed=range({cells})"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert f"Done: {cells} ok." in done.stderr
    told = json.loads(done.stderr.splitlines()[-1])
    assert told["last"] - told["first"] < cells * 60_000  # with the configurations of each cell it was 190,000
