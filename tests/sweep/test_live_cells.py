"""A sweep's own table, `status` and `view` say the same of the same cells."""

from __future__ import annotations

import json
import os
import time

import pytest
from records import change, make_record, measured

from harness import protocol, terminal
from harness.record import write
from harness.studies.status import lines, study_status
from harness.sweep.cell_status import CellStatus, table
from harness.sweep.live_cells import Durations, LiveCells
from harness.sweep.progress import SweepProgress
from harness.sweep.store import Study


def test_one_sweep_is_told_alike_wherever_it_is_shown(tmp_path):
    study = Study(tmp_path, "demo")
    done, running, left = (measured(make_record("lora", 16, seed=seed)) for seed in range(3))
    progress = SweepProgress([record.cell for record in (done, running, left)])
    progress.start(done.cell)
    progress.end(done)
    progress.start(running.cell)
    event = protocol.Progress("train", 7, 50, loss=2.125, seconds_left=300.0)
    progress.update(event)
    write(done, study.path(done.cell))
    study.plan([done.cell, running.cell, left.cell])
    with study.lease(running.cell) as note:
        note(protocol.facts(event))
        status = study_status(tmp_path, "demo")
    own = progress.live
    assert own.counts == status.counts == {"done": 1, "running": 1, "failed": 0, "left": 1}
    assert own.seconds_left == pytest.approx(status.seconds_left)
    assert own.time_left == status.time_left
    (mine,), (read,) = own.having("running"), status.having("running")
    assert mine.progress == read.progress
    after = sum(phase.seconds for name, phase in done.phases.items() if name not in ("load", "probe", "train"))
    assert mine.progress.seconds_left == pytest.approx(300.0 + after), "with the phases after training"
    assert terminal.lines(progress.view(200, 24), width=200)[0].endswith(f", {status.time_left}.")
    assert lines(status)[0].endswith(status.time_left)


def test_cells_that_run_at_a_time_share_the_time_left():
    durations = Durations([make_record("lora")])
    one, two = (
        LiveCells([CellStatus(name, state, "0", "lora", seconds=0.0) for name, state in states.items()], durations)
        for states in ({"a": "running", "b": "left"}, {"a": "running", "b": "running"})
    )
    assert one.seconds_left == 2 * two.seconds_left
    assert one.counts["left"] == 1
    assert not one.over


def test_a_cell_takes_as_long_as_those_of_its_steps(tmp_path):
    """A sweep over rows, steps or models has cells of minutes and of hours, each of the same methods."""
    study, cells = Study(tmp_path, "demo"), []
    for seed, steps in enumerate((25, 25, 400, 400, 400)):
        record = make_record("lora", 16, seed=seed)
        change(record, train={"max_steps": steps})
        record.seconds = 4.0 * steps
        cells.append(record.cell)
        if seed in (0, 1, 2):
            write(record, study.path(record.cell))
    study.plan(cells)
    assert study_status(tmp_path, "demo").seconds_left == 2 * 4.0 * 400
    study.path(cells[2]).unlink()
    assert study_status(tmp_path, "demo").seconds_left == 3 * 4.0 * 25, "as those of its method"


def test_a_sweep_knows_what_cells_are_left():
    """One that is repeated is left as often as it still runs; one that another sweep has run is left no more."""
    short, long, other = (make_record("lora", 16, seed=seed) for seed in range(3))
    for record, steps in ((short, 25), (long, 400), (other, 400)):
        change(record, train={"max_steps": steps})
        record.seconds = 4.0 * steps
    progress = SweepProgress([r.cell for r in (short, long, short, other, long, short)])
    for record in (short, long):
        progress.start(record.cell)
        progress.end(record)
    assert progress.live.counts == {"done": 2, "running": 0, "failed": 0, "left": 4}
    assert progress.live.seconds_left == 4.0 * (25 + 400 + 400 + 25)
    progress.start(short.cell)
    assert progress.live.counts == {"done": 1, "running": 1, "failed": 0, "left": 3}
    progress.clear()
    progress.skip(other.cell)
    assert progress.done == 3
    assert progress.live.seconds_left == 4.0 * (25 + 400 + 25)


def test_scoring_again_takes_as_long_as_cells_that_were_scored(monkeypatch):
    cells = [make_record("lora", 16, seed=seed).cell for seed in range(3)]
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress = SweepProgress(cells)
    assert progress.live.time_left == "time left unknown until a cell is done"
    progress.start(cells[0])
    now = 60.0
    progress.scored(cells[0])
    assert progress.done == 1
    assert progress.live.seconds_left == 120.0


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_terminal_tells_cells_apart(width):
    names = [f"lora-r16-a32-lr1e-3-s{seed}-facts_bits4-4a5b6c" for seed in range(3)]
    at = protocol.CellProgress("train", 120, 1000, loss=1.234, tokens_per_second=1234.0, memory_bytes=3 * 2**30)
    cells = [CellStatus(name, "running", host="node-0123.cluster", seconds=323.0, progress=at) for name in names]
    _, _, *rows = terminal.lines(table(cells, width, indent=2), width=width)
    assert len({row.split()[1] for row in rows}) == 3
    assert all("train 120/1000" in row for row in rows)


def test_a_cell_whose_machine_has_been_silent_for_long_is_left(tmp_path):
    study, cell = Study(tmp_path, "demo"), make_record("lora").cell
    study.plan([cell])
    lease_of = tmp_path / "demo" / ".harness" / "running" / cell.name
    with study.lease(cell) as held:
        content = json.loads(held.path.read_text()) | {"machine": "another", "host": "gpu017"}
    lease_of.mkdir(parents=True)
    path = lease_of / "0123.json"
    path.write_text(json.dumps(content))
    assert study_status(tmp_path, "demo").counts["running"] == 1
    os.utime(path, (time.time() - 2 * 86400, time.time() - 2 * 86400))
    status = study_status(tmp_path, "demo")
    assert status.counts == {"done": 0, "running": 0, "failed": 0, "left": 1}
    (line,) = [line for line in lines(status) if cell.name in line]
    assert "silent for 48.0 h" in line
    assert "gpu017" in line
