"""A study's folder: plans add up, records are found, and its state can be told from it alone."""

from __future__ import annotations

import os
import re

import pytest
from records import make_record

from harness.errors import UserError
from harness.record import RecordError, note_command, noted_commands, write
from harness.studies.status import lines, study_status
from harness.sweep import runner
from harness.sweep.store import Study


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path, "demo")


@pytest.fixture
def lora():
    return make_record("lora", 16, 32.0, 2e-4).cell


def test_plans_add_up(study, lora):
    full, dora = make_record("full").cell, make_record("dora", 16).cell
    assert study.planned() == []
    study.plan([lora, full])
    study.plan([full, dora])
    assert study.planned() == [lora, full, dora]


@pytest.mark.parametrize("text", ["", "[{", "3", '[{"id": 1}]', "[3]", '{"a": 1}', "[" * 5000])
def test_a_damaged_plan_is_named(study, lora, text):
    study.plan([lora])
    path = study.folder / ".harness" / "plan.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"{re.escape(str(path))} is damaged; delete it"):
        study.planned()


def test_a_plan_with_settings_that_no_cell_has_is_damaged(study, lora):
    deep: dict = {}
    for _ in range(400):
        deep = {"a": deep}
    lora.settings.other["deep"] = deep
    study.plan([lora])
    with pytest.raises(UserError, match=r"plan\.json is damaged; delete it"):
        study.planned()


@pytest.mark.parametrize("scoring", [False, True])
def test_a_log_or_list_of_commands_that_is_a_link_leaves_what_it_points_to(study, lora, tmp_path, monkeypatch, scoring):
    """A study that was received may have links to files of the machine."""
    outside = tmp_path / "outside"
    outside.write_text("keep")
    study.folder.mkdir()

    class Failing:
        def start(self, stderr):
            stderr.write(b"words")
            raise UserError("no job")

    monkeypatch.setattr(runner, "_server", Failing())
    for path in (study.log(lora), study.folder / "commands.txt"):
        path.symlink_to(outside)
    request = runner.request_for(lora, study, None, warn=False)
    runs = [lambda lease: runner.run(request, study, lease, print)]
    runs += [lambda lease: runner.score(lora, study, lease, lora.settings.eval, None, print)]
    with study.lease(lora) as lease, pytest.raises(UserError, match="no job"):
        runs[scoring](lease)
    assert not study.log(lora).is_symlink()
    note_command(study.folder, ["sweep", "study=demo"])
    assert noted_commands(study.folder) == ["harness sweep study=demo"]
    assert outside.read_text() == "keep"


def test_a_command_with_a_line_separator_is_one_line(study):
    for _ in range(2):
        note_command(study.folder, ["run", "data.prompt=a\u2028b"])
    assert noted_commands(study.folder) == ["harness run 'data.prompt=a\u2028b'"]


def test_a_record_is_found_by_its_cell(study):
    record = make_record("lora", 16, 32.0, 2e-4)
    assert study.recorded(record.cell) is None
    write(record, study.path(record.cell))
    assert study.recorded(record.cell) == record


def test_another_cell_under_the_same_name_is_not_taken_for_it(study):
    record = make_record("lora", 16, 32.0, 2e-4)
    write(record, study.path(record.cell))
    record.cell.id = "another"
    with pytest.raises(UserError, match=r"lora-.*\.json holds another cell under this name"):
        study.recorded(record.cell)


def test_a_truncated_record_is_not_taken_for_none(study, lora):
    study.folder.mkdir()
    study.path(lora).write_text("{")
    with pytest.raises(RecordError, match="is not complete JSON"):
        study.recorded(lora)


def test_status_counts_and_names_cells(study, tmp_path):
    done, failed, running, left = (
        make_record("lora", 16, 32.0, 2e-4, seed, status=status)
        for seed, status in enumerate(["ok", "oom", "ok", "ok"])
    )
    write(done, study.path(done.cell))
    write(failed, study.path(failed.cell))
    (study.folder / "broken.json").write_text("{")
    study.plan(r.cell for r in (done, failed, running, left))
    with study.lease(running.cell) as note:
        note({"phase": "train", "step": 3, "of": 50, "loss": 2.5, "tokens_per_second": 400.4, "memory_bytes": 2**30})
        standing = study_status(tmp_path, "demo")
    # Cells of this method take 120 s: one has just started, one is left, one runs at a time.
    head, header, _, *rows, reason = lines(standing)
    assert head == "demo: 1 done, 1 running, 1 failed, 1 left, about 4 min to go"
    assert header.split() == ["state", "cell", "at", "to", "go", "loss", "tokens/s", "memory", "time", "host"]
    host = os.uname().nodename
    at = ["train", "3/50", "120", "s", "2.500", "400", "1.00", "GiB", "now", "0", "s", host]
    assert [row.split() for row in rows] == [
        ["running", running.cell.name, *at],
        ["oom", failed.cell.name, "train", "3", "2", "min"],
        ["left", left.cell.name],
    ]
    assert reason == f"  {failed.cell.name} oom: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert len(standing.problems) == 1
    assert "broken.json" in standing.problems[0]


def test_time_left_goes_by_method_and_by_what_runs_at_once(study, tmp_path):
    fast, slow = make_record("lora", 16), make_record("full")
    fast.seconds, slow.seconds = 10.0, 1000.0
    for record in (fast, slow):
        write(record, study.path(record.cell))
    left = [make_record("full", seed=seed).cell for seed in (1, 2)] + [make_record("lora", 16, seed=1).cell]
    study.plan([fast.cell, slow.cell, *left])
    assert lines(study_status(tmp_path, "demo"))[0].endswith("3 left, about 34 min to go")  # 2,010 s
    with study.lease(left[0]), study.lease(left[1]):
        assert lines(study_status(tmp_path, "demo"))[0].endswith("about 17 min to go")
    study.plan([make_record("dora", 16).cell])  # of no method yet seen: the mean of all, 505 s
    assert lines(study_status(tmp_path, "demo"))[0].endswith("about 42 min to go")


def test_time_left_is_unknown_before_the_first_cell_is_done(study, tmp_path, lora):
    study.plan([lora])
    assert lines(study_status(tmp_path, "demo"))[0].endswith(" 1 left, time left unknown until a cell is done")


def test_a_cell_that_no_sweep_has_planned_takes_time_too(study, tmp_path, lora):
    """`run` plans nothing; without its pace nobody knows how long its cell takes."""
    with study.lease(lora) as note:
        assert lines(study_status(tmp_path, "demo"))[0].endswith("0 left, time left unknown until a cell is done")
        note({"phase": "train", "step": 3, "of": 50, "seconds_left": 47.0})
        assert lines(study_status(tmp_path, "demo"))[0].endswith("0 left, about 47 s to go")


def test_nothing_left_takes_no_time(study, tmp_path):
    record = make_record("lora", 16)
    write(record, study.path(record.cell))
    study.plan([record.cell])
    assert lines(study_status(tmp_path, "demo")) == ["demo: 1 done, 0 running, 0 failed, 0 left"]


def test_a_cell_that_no_sweep_planned_is_not_trained_again_by_the_studys_sweeps(tmp_path):
    study, swept, alone = Study(tmp_path, "demo"), make_record("lora", seed=0), make_record("lora", seed=1)
    note_command(study.folder, ["sweep", "method=lora", "study=demo"])
    again = f"harness sweep method=lora study=demo results_dir={tmp_path} save=adapter"
    assert again in study.anew(alone, "adapter")  # of a folder that was copied nothing tells which cells are of sweeps
    study.plan([swept.cell])
    assert again in study.anew(swept, "adapter")
    assert "then the command that ran it with save=adapter" in study.anew(alone, "adapter")
    assert "harness sweep" not in study.anew(alone, "adapter")
