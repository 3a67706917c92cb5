"""Watching a study: how it stands, as text, as JSON, live; the logs of its cells; what differs; what is removed."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from on_screen import OnScreen
from plans import make_plan, planned_record
from records import make_record, measured

from harness import terminal
from harness.__main__ import main
from harness.config import ROOT
from harness.protocol import CellProgress
from harness.record import PLAN, Disk, add_plans, names_a_file, read, write
from harness.studies import logs
from harness.studies.find import find
from harness.studies.status import RecordCache, lines, study_status
from harness.studies.watch import screenful
from harness.sweep.cell_status import to_go
from harness.sweep.store import Study, begun

TOLD = {"phase": "train", "step": 3, "of": 50, "loss": 2.5, "tokens_per_second": 400.4}
TOLD |= {"memory_bytes": 3 * 2**29, "seconds_left": 47.0}


@pytest.fixture
def study(tmp_path):
    """Cells that are done, failed (with a log) and left, in the study `demo`."""
    study = Study(tmp_path, "demo")
    done = measured(make_record("lora", 16, 32.0, 2e-4))
    failed = make_record("lora", 16, 32.0, 2e-4, 1, status="oom")
    for record in (done, failed):
        write(record, study.path(record.cell))
        study.log(record.cell).write_text(f"a line of {record.cell.name}\nanother\n\x1b[31mred\x1b[0m\nlast\n\n")
    study.plan([done.cell, failed.cell, make_record("dora", 16, 32.0, 2e-4).cell])
    return study


def name_of(study, start):
    (name,) = [cell.name for cell in study.planned() if cell.name.startswith(start)]
    return name


def ask(study, capsys, *line):
    """(exit status, standard output, standard error) of a command on the folder of `study`."""
    status = main([line[0], "--results-dir", str(study.folder.parent), *line[1:]])
    return status, *capsys.readouterr()


def state_of(study, name):
    (found,) = [cell for cell in study_status(study.folder.parent, study.name).cells if cell.cell == name]
    return found


# How it stands


def test_a_running_cell_tells_all_that_it_reported(study):
    cell = make_record("full").cell
    with study.lease(cell) as note:
        note(TOLD | {"lr": 2e-4})
        found = state_of(study, cell.name)
        assert found.progress == CellProgress(**TOLD)
        assert TOLD.items() <= found.to_json().items()
        (row,) = [line for line in lines(study_status(study.folder.parent, "demo")) if cell.name in line]
        assert row.split()[2:-1] == ["train", "3/50", "47", "s", "2.500", "400", "1.50", "GiB", "now", "0", "s"]


def test_the_time_after_training_is_added_to_that_of_its_steps(study):
    cell = make_record("lora", 16, 32.0, 2e-4, 2).cell
    study.plan([cell])
    with study.lease(cell) as note:
        note({"phase": "train", "step": 3, "of": 50, "seconds_left": 47.0})
        assert state_of(study, cell.name).progress.seconds_left == 47.0 + 30.0  # the recorded cell scored for 30 s
        note({"phase": "score"})
        left = state_of(study, cell.name).progress.seconds_left
        assert left == pytest.approx(120.0, abs=5)  # as the recorded one took in all


@pytest.mark.parametrize("progress", [None, [], "train", {"step": "3", "loss": None, "phase": 7, "seconds_left": "x"}])
def test_damaged_progress_in_a_lease_is_ignored(study, progress):
    cell = make_record("full").cell
    with study.lease(cell) as note:
        note(progress)
        assert state_of(study, cell.name).progress.phase == "start"
        assert any(cell.name in line for line in lines(study_status(study.folder.parent, "demo")))


def test_a_cell_that_is_run_again_is_running_and_not_failed(study):
    name = name_of(study, "lora-r16-a32-lr0.0002-s1")
    with study.lease(read(study.folder / f"{name}.json").cell):
        assert study_status(study.folder.parent, "demo").counts == {"done": 1, "running": 1, "failed": 0, "left": 1}


def test_the_last_lines_of_a_failed_cells_log_are_shown(study):
    shown = lines(study_status(study.folder.parent, "demo"))
    assert shown[-3:] == ["    | another", "    | red", "    | last"]


def test_the_json_of_status_says_the_same(study, capsys):
    status, out, _ = ask(study, capsys, "status", "--format", "json")
    (found,) = json.loads(out)
    assert status == 0
    assert {key: found[key] for key in ("study", "done", "running", "failed", "left")} == {
        "study": "demo", "done": 1, "running": 0, "failed": 1, "left": 1,
    }  # fmt: skip
    states = {cell["state"]: cell for cell in found["cells"]}
    assert states.keys() == {"ok", "oom", "left"}
    assert states["oom"]["reason"].startswith("CUDA out of memory")
    assert states["oom"]["log"] == ["another", "red", "last"]
    assert found["seconds_left"] == 120.0


def test_a_study_that_has_no_record_yet_is_seen(study, tmp_path, capsys):
    Study(tmp_path, "new/one").plan([make_record("full").cell])
    assert begun(tmp_path) == ["demo", "new/one"]
    assert "new/one: 0 done, 0 running, 0 failed, 1 left" in ask(study, capsys, "status")[1]


def test_records_are_read_again_only_when_they_changed(study, monkeypatch):
    cache, folder = RecordCache(), study.folder
    first = cache.read(folder)
    monkeypatch.setattr("harness.record.read", lambda path: pytest.fail(f"{path} was read again"))
    assert cache.read(folder) == first
    monkeypatch.undo()
    path = study.folder / f"{name_of(study, 'lora-r16-a32-lr0.0002-s1')}.json"
    path.write_text("{")
    records, problems = cache.read(folder)
    assert len(records) == 1
    assert "is not complete JSON" in problems[0]
    path.unlink()
    assert cache.read(folder) == (records, [])


# Live


def watching(study, *names, **keywords):
    command = [sys.executable, "-m", "harness", "status", *names, "--watch", "--results-dir", str(study.folder.parent)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **keywords)


def finish_what_is_left(study):
    for cell in study.planned():
        if not study.path(cell).exists():
            record = make_record("dora", 16, 32.0, 2e-4)
            record.cell = cell
            write(record, study.path(cell))


@pytest.mark.long
def test_off_a_terminal_a_watch_prints_changes_until_all_is_done(study):
    watch = watching(study, stdout=subprocess.PIPE, text=True)
    first = [watch.stdout.readline() for _ in range(3)]
    assert first[0].startswith("demo: 1 done, 0 running, 1 failed, 1 left")
    finish_what_is_left(study)
    rest, _ = watch.communicate(timeout=20)
    assert watch.returncode == 0
    assert rest.splitlines()[-1].endswith(f" demo/{name_of(study, 'dora')} ok")
    assert "\x1b" not in rest


def on_screen(study, *arguments, columns=80, **variables):
    command = [sys.executable, "-m", "harness", *arguments, "--results-dir", str(study.folder.parent)]
    return OnScreen(command, columns, **variables)


@pytest.mark.long
def test_on_a_terminal_a_watch_draws_over_what_it_drew(study):
    watch = on_screen(study, "status", "--watch")
    watch.until("1 left")
    finish_what_is_left(study)
    watch.until("demo: 2 done, 0 running, 1 failed, 0 left")
    assert watch.end() == 0
    assert sum(line.startswith("demo:") for line in watch.display) == 1


def test_a_narrow_terminal_shows_reasons_and_what_counts_of_a_running_cell(study):
    cell = make_record("full").cell
    with study.lease(cell) as note:
        note(TOLD | {"seconds_left": 470.0})
        narrow, wide, asked = (
            on_screen(study, "status", *more, columns=columns) for columns, *more in ((80,), (200,), (80, "--wide"))
        )
        assert [narrow.end(), wide.end(), asked.end()] == [0, 0, 0]
    (row,) = [line for line in narrow.display if "running" in line and "full" in line]
    for shown in ("train 3/50", "8 min", "2.500", "1.50 GiB"):
        assert shown in row
    reason = " ".join(narrow.display)
    assert "Tried to allocate 2.00 GiB." in " ".join(reason.split())
    (row,) = [line for line in wide.display if "running" in line and "full" in line]
    for shown in (cell.name, "train 3/50", "8 min", "2.500", "400", "1.50 GiB"):
        assert shown in row
        assert shown in "".join(asked.display)  # the terminal breaks the lines


def test_no_color_turns_colours_off(study):
    plain, coloured = (on_screen(study, "status", **v) for v in ({"NO_COLOR": "1"}, {}))
    assert [plain.end(), coloured.end()] == [0, 0]
    assert plain.display == coloured.display
    assert b"\x1b[31m" in coloured.raw
    assert b"\x1b[3" not in plain.raw


@pytest.mark.long
def test_a_watch_waits_for_a_study_that_has_not_begun(study):
    watch = watching(study, "new", stdout=subprocess.PIPE, text=True)
    assert watch.stdout.readline().startswith("Waiting for the study to begin.")
    write(make_record("full"), study.folder.parent / "new" / "full.json")
    rest, _ = watch.communicate(timeout=20)
    assert watch.returncode == 0
    assert rest.startswith("new: 1 done")


def test_a_watch_shows_what_is_at_work_and_counts_what_is_over(study):
    failed = make_record("full", status="failed")
    write(failed, study.folder.parent / "old" / "full.json")
    results = study.folder.parent
    shown = terminal.lines(screenful([study_status(results, name) for name in ("demo", "old")], 80, 24), width=80)
    assert shown[0] == "1 more study is over; `status` shows all."
    assert any(line.startswith("demo: ") for line in shown)
    assert not any(line.startswith("old: ") for line in shown)


def test_a_killed_run_with_a_checkpoint_is_left(study):
    (study.folder / ".harness" / "checkpoints" / "lora-r4").mkdir(parents=True)
    found = study_status(study.folder.parent, "demo")
    assert found.counts["left"] == 2
    assert ["left", "lora-r4", "checkpoint"] in [line.split() for line in lines(found)]


def test_a_cell_that_did_not_fit_has_not_failed(study):
    write(make_record("full", status="unfit"), study.folder / "full.json")
    assert study_status(study.folder.parent, "demo").counts == {
        "done": 1, "running": 0, "failed": 1, "left": 1, "unfit": 1,
    }  # fmt: skip


def test_a_cell_that_takes_longer_than_others_is_not_said_to_be_done_in_no_time(study):
    cell = make_record("lora", 16, 32.0, 2e-4, 2).cell
    quick = read(study.folder / f"{name_of(study, 'lora-r16-a32-lr0.0002-s0')}.json")
    quick.seconds = 1e-6
    write(quick, study.path(quick.cell))
    study.plan([cell])
    with study.lease(cell) as note:
        note({"phase": "score"})
        assert study_status(study.folder.parent, "demo").time_left == "time left unknown: longer than cells before"
    assert to_go([-5.0]) == "time left unknown: longer than cells before"
    assert to_go([-5.0, 300.0]) == "more than 5 min to go"
    assert to_go([0.0]) == "almost done"


def test_ctrl_c_ends_a_watch_in_order(study):
    watch = watching(study, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert watch.stdout.readline().startswith("demo: ")
    watch.send_signal(signal.SIGINT)
    _, err = watch.communicate(timeout=20)
    assert (watch.returncode, err) == (0, "")


def test_a_watch_is_not_for_scripts(study, capsys):
    status, _, err = ask(study, capsys, "status", "--watch", "--format", "json")
    assert status == 2
    assert "--watch can't be combined with --format json" in err


# Which cell


@pytest.mark.parametrize("text", ["dora", "demo/dora", "dora-r16-a32"])
def test_a_cell_is_found_by_the_beginning_of_its_name(study, text):
    assert str(find(study.folder.parent, ["demo"], text)) == f"demo/{name_of(study, 'dora')}"


def test_a_cell_is_found_by_its_id(study):
    for cell in study.planned():
        assert find(study.folder.parent, ["demo"], cell.id).name == cell.name
        assert find(study.folder.parent, ["demo"], cell.id[:5]).name == cell.name


def test_a_cell_with_a_damaged_record_is_found(study):
    name = name_of(study, "lora-r16-a32-lr0.0002-s0")
    (study.folder / f"{name}.json").write_text("{")
    (study.folder / ".harness" / "plan.json").write_text("{")
    assert find(study.folder.parent, ["demo"], name).name == name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora", "lora matches 2 cells; type more of one: demo/lora-"),
        ("dorra-r16", "There is no cell dorra-r16 in demo."),
        ("", "There is no cell  in demo."),
        ("nope/lora", "There is no study nope"),
        ("../demo/dora", "There is no study ../demo"),
        ("..", "There is no cell .. in demo."),
        ("/etc/passwd", "There is no study /etc"),
    ],
)
@pytest.mark.parametrize("command", ["logs", "rm"])
def test_an_unknown_cell_is_one_sentence(study, capsys, command, text, said):
    status, out, err = ask(study, capsys, command, text)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {said}")


# Logs


def test_a_log_that_is_a_link_or_a_pipe_is_not_shown(study, capsys, tmp_path):
    """A study that was received may have links to files elsewhere, and a pipe is waited for."""
    (tmp_path / "secret").write_text("hunter2\n")
    for number, put in enumerate((lambda log: log.symlink_to(tmp_path / "secret"), os.mkfifo)):
        for log in study.folder.glob("*.log"):
            log.unlink()
        for path in study.folder.glob("*.json"):
            put(path.with_suffix(".log"))
        name = next(study.folder.glob("lora*.json")).stem
        for command in (["logs", name], ["logs", name, "--format", "json"], ["logs", name, "--follow"]):
            assert ask(study, capsys, *command)[0] == 2, (number, command)
        assert "hunter2" not in "".join(ask(study, capsys, "status")[1:])
        assert "hunter2" not in "".join(ask(study, capsys, "status", "--format", "json")[1:])


def test_logs_are_shown_without_what_a_terminal_would_obey(study, capsys):
    status, out, _ = ask(study, capsys, "logs", "lora-r16-a32-lr0.0002-s1")
    assert status == 0
    assert out.splitlines()[1:4] == ["another", "red", "last"]
    _, out, _ = ask(study, capsys, "logs", "lora-r16-a32-lr0.0002-s1", "--format", "json")
    assert "\x1b[31mred" in json.loads(out)["log"]


def test_a_cell_without_a_log_says_so(study, capsys):
    status, _, err = ask(study, capsys, "logs", "dora")
    assert status == 2
    assert "has no log" in err


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("10%\r50%\r100%\n", "100%"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b[2J\x1b[1;1Hgone", "gone"),
        ("a\tb\x08\x00", "a\tb"),
        ("\x9b31mtext", "31mtext"),
    ],
)
def test_a_line_is_safe_to_show(line, shown):
    assert logs.shown(line) == shown


def test_of_a_log_of_a_terabyte_the_end_is_shown(study, monkeypatch):
    found = find(study.folder.parent, ["demo"], "lora-r16-a32-lr0.0002-s1")
    monkeypatch.setattr(logs, "SHOWN_BYTES", 100)
    found.log.touch()
    os.truncate(found.log, 2**40)  # sparse, so it takes no room
    with open(found.log, "a") as log:
        log.write("\nthe end\n")
    said, _, last = logs.follow(found)
    assert said.endswith(f"{2**40 + 9 - 100:,} bytes are left out; the last 100 follow.]")
    assert last == "the end"


def test_a_log_is_followed_while_its_cell_runs(study):
    found = find(study.folder.parent, ["demo"], "lora-r16-a32-lr0.0002-s1")
    cell, seen = read(found.record).cell, []
    with study.lease(cell):
        found.log.write_text("old\n")
        thread = threading.Thread(target=lambda: seen.extend(logs.follow(found, seconds=0.02)))
        thread.start()

        def wait_for(text):
            until = time.monotonic() + 10
            while text not in seen:
                assert time.monotonic() < until, seen
                time.sleep(0.01)

        wait_for("old")
        with open(found.log, "a") as log:
            log.write("half")
            log.flush()
            time.sleep(0.1)
            assert "half" not in seen
            log.write(" a line\n")
        wait_for("half a line")
        found.log.write_text("new\n")  # run anew
        wait_for("new")
        with open(found.log, "a") as log:
            log.write("the end")
    thread.join(10)
    assert seen == ["old", "half a line", "new", "the end"]


# What differs


def test_a_diff_says_what_differs_and_nothing_else(study, capsys):
    other = measured(make_record("dora", 16, 32.0, 2e-4), slowdown=2.0)
    other.environment = other.environment | {"threads": 4}
    write(other, study.path(other.cell))
    status, out, _ = ask(study, capsys, "diff", "lora-r16-a32-lr0.0002-s0", "dora", "--format", "json")
    found = json.loads(out)
    assert status == 0
    assert (found["a"], found["b"]) == (f"demo/{name_of(study, 'lora-r16-a32-lr0.0002-s0')}", f"demo/{other.cell.name}")
    assert found["settings"] == {"method.name": ["lora", "dora"]}
    assert found["environment"] == {"threads": [2, 4]}
    assert found["results"]["tokens_per_second_steady"] == [500.0, 350.0]
    assert found["results"]["gsm8k/exact_match/strict-match"] == [0.23, 0.235]
    assert "status" not in found["results"]
    _, out, _ = ask(study, capsys, "diff", "lora-r16-a32-lr0.0002-s0", "dora")
    (row,) = [line.split() for line in out.splitlines() if line.startswith("tokens_per_second_steady")]
    assert row[1:] == ["500.0", "350.0", "0.70×"]


def test_a_diff_has_sizes_as_people_read_them_and_in_full_where_they_would_look_the_same(study, capsys):
    other = measured(make_record("dora", 16, 32.0, 2e-4))
    other.disk = Disk(3 * 2**30, other.disk.model + 1)
    other.environment = other.environment | {"cpu": {"memory_bytes": 24 * 2**30}}
    write(other, study.path(other.cell))
    _, out, _ = ask(study, capsys, "diff", "lora-r16-a32-lr0.0002-s0", "dora")
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines() if line[:1].strip()}
    assert rows["adapter_bytes"].split() == ["18", "MiB", "3.00", "GiB", "170.67×"]
    assert rows["model_bytes"].split() == [f"{257 * 2**20:,}", f"{257 * 2**20 + 1:,}", "1.00×"]
    assert rows["cpu.memory_bytes"].endswith("24.00 GiB")


def test_a_diff_of_a_cell_with_itself_is_empty_and_one_of_a_failed_cell_has_its_reason(study, capsys):
    same = ["lora-r16-a32-lr0.0002-s0"] * 2
    assert ask(study, capsys, "diff", *same)[1].splitlines()[3::2] == [
        *("settings: the same", "environment: the same", "results: the same"),
    ]
    _, out, _ = ask(study, capsys, "diff", "lora-r16-a32-lr0.0002-s0", "lora-r16-a32-lr0.0002-s1", "--format", "json")
    found = json.loads(out)
    assert found["settings"] == {"seed": [0, 1]}
    assert found["results"]["status"] == ["ok", "oom"]
    assert found["results"]["failure.reason"][1].startswith("CUDA out of memory")


def test_a_diff_needs_two_records(study, capsys):
    status, _, err = ask(study, capsys, "diff", "lora-r16-a32-lr0.0002-s0", "dora")
    assert status == 2
    assert "dora" in err
    assert "has no record yet" in err


# What is removed


def test_a_removed_cell_leaves_nothing(study, capsys):
    name = name_of(study, "lora-r16-a32-lr0.0002-s1")
    (study.folder / f"{name}.items.parquet").write_bytes(b"PAR1")
    kept = {path for path in study.folder.rglob("*") if path.is_file() and name not in path.name}
    status, out, _ = ask(study, capsys, "rm", name, "--yes", "--format", "json")
    assert status == 0
    assert json.loads(out)["removed"] == [f"{name}.json", f"{name}.items.parquet", f"{name}.log"]
    assert {path for path in study.folder.rglob("*") if path.is_file()} == kept
    assert name not in [cell.name for cell in study.planned()]
    assert len(study.planned()) == 2


def test_a_planned_cell_is_taken_from_the_plan(study, capsys):
    assert ask(study, capsys, "rm", "dora", "--yes")[0] == 0
    assert len(study.planned()) == 2


def test_without_a_terminal_nothing_is_removed_unasked(study, capsys, monkeypatch):
    before = sorted(study.folder.rglob("*"))
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    status, _, err = ask(study, capsys, "rm", "lora-r16-a32-lr0.0002-s1")
    assert status == 2
    assert "--yes" in err
    assert sorted(study.folder.rglob("*")) == before


@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False)])
def test_on_a_terminal_it_is_asked(study, capsys, monkeypatch, answer, gone):
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    with open(theirs) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        name = name_of(study, "lora-r16-a32-lr0.0002-s1")
        status, _, err = ask(study, capsys, "rm", name)
    os.close(ours)
    assert f"Remove demo/{name} ({name}.json, {name}.log)? [y/N]" in err
    assert status == (0 if gone else 1)
    assert (study.folder / f"{name}.json").exists() != gone


def test_a_running_cell_is_not_removed(study, capsys):
    name = name_of(study, "lora-r16-a32-lr0.0002-s1")
    with study.lease(read(study.folder / f"{name}.json").cell):
        status, _, err = ask(study, capsys, "rm", name, "--yes")
    assert status == 2
    assert "is running; stop its sweep first" in err
    assert (study.folder / f"{name}.json").exists()


# Hostile names


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "a/../../outside", "..", ".", "", "a\\b", "a\x00b", "--help", "-r16-s0"]
)
def test_a_name_that_leads_out_of_the_study_is_no_cells(study, tmp_path, capsys, name):
    assert not names_a_file(name)
    (tmp_path / "outside.log").write_text("secret")
    (tmp_path / "outside.json").write_text("{}")
    record = make_record("full")
    record.cell.name, record.cell.id = name, "feedface"
    write(record, study.folder / "hostile.json")
    status, _, err = ask(study, capsys, "status")
    assert status == 1
    assert "hostile.json is a damaged record (cell.name is" in err
    for command in (["logs"], ["rm", "--yes"]):
        assert ask(study, capsys, *command, "feedface")[0] == 2
    study.plan([record.cell])  # a plan may come from anywhere, too
    status, out, err = ask(study, capsys, "status")
    assert status == 1
    assert out.startswith("demo: 1 done")
    assert "plan.json is damaged" in err
    assert ask(study, capsys, "logs", "feedface")[0] == 2
    assert (tmp_path / "outside.log").exists()
    # The file itself can be removed: by its own name, which leads nowhere else.
    Path(study.folder / ".harness" / "plan.json").unlink()
    assert ask(study, capsys, "rm", "hostile", "--yes")[0] == 0
    assert not (study.folder / "hostile.json").exists()
    assert (tmp_path / "outside.json").exists()


def test_status_says_how_far_the_plan_is(study, capsys):
    assert json.loads(ask(study, capsys, "status", "--format", "json")[1])[0]["plan"] is None
    add_plans(study.folder, [make_plan([planned_record("lora"), planned_record("full")], [1, 2])])
    assert "\n  plan: 0 of 2 cells, 0 of 4 confirming cells\n" in ask(study, capsys, "status")[1]
    (told,) = json.loads(ask(study, capsys, "status", "--format", "json")[1])
    expected = {"created": "2026-01-02", "ended": 0, "cells": 2, "confirmed": 0, "confirming": 4}
    assert told["plan"] == expected
    (study.folder / PLAN).write_text("no plan\n")
    status, out, err = ask(study, capsys, "status")
    assert (status, "plan:" in out) == (1, False)
    assert "line 1, is no plan; restore the file from a copy, or" in err
