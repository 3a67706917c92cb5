"""Result folders of several machines become one: all of it travels, nothing is lost, and nobody chooses unasked."""

from __future__ import annotations

import json
import shutil

import pytest
from plans import AFTER, make_plan, planned_record
from records import make_record, sound

from harness.__main__ import main
from harness.record import PLAN, add_plans, note_command, noted_commands, read, read_plans, repeated_sweeps
from harness.studies import verify
from harness.sweep.store import Study


@pytest.fixture
def machines(tmp_path):
    """Folders `a` and `b`: full in a, dora in b, and lora in both; with logs and plans."""
    for machine, methods in {"a": ("full", "lora"), "b": ("dora", "lora")}.items():
        study = Study(tmp_path / machine, "demo")
        cells = []
        for method in methods:
            path = sound(make_record(method, 16, 32.0, 2e-4), study.folder)
            path.with_suffix(".log").write_text(f"{method} on {machine}")
            cells.append(read(path).cell)
        study.plan([*cells, make_record("galore", seed=len(machine)).cell])
    return tmp_path


def run(folder, *arguments):
    return main(["merge", *arguments, "--into", str(folder / "all")])


def one(folder, method):
    (path,) = folder.glob(f"demo/{method}-*.json")
    return path


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def change(path, **fields):
    """Lay the record at `path` down anew with other `fields`."""
    record = read(path)
    for name, value in fields.items():
        setattr(record, name, value)
    return sound(record, path.parent)


def test_records_items_logs_and_plans_travel(machines, capsys):
    assert run(machines, str(machines / "a"), str(machines / "b")) == 0
    assert capsys.readouterr().out == f"{machines / 'all'}: 3 new, 0 replaced by newer ones, 0 already there.\n"
    for machine, method in (("a", "full"), ("a", "lora"), ("b", "dora")):
        source = one(machines / machine, method)
        for suffix in (".json", ".items.parquet", ".log"):
            target = machines / "all" / "demo" / source.with_suffix(suffix).name
            assert target.read_bytes() == source.with_suffix(suffix).read_bytes()
    planned = [cell.method for cell in Study(machines / "all", "demo").planned()]
    assert planned == ["full", "lora", "galore", "dora"]
    assert verify.study(machines / "all", "demo")[:2] == (3, [])


def test_commands_travel_each_once(machines):
    """As a sweep that was typed on both machines is one. They are comments: nobody here typed them."""
    for machine, lines in {"a": ["sweep both", "sweep a"], "b": ["sweep both", "sweep b"]}.items():
        for line in lines:
            note_command(machines / machine / "demo", line.split())
    run(machines, str(machines / "a"), str(machines / "b"))
    merged = [f"# merged: harness sweep {name}" for name in ("both", "a", "b")]
    assert noted_commands(machines / "all" / "demo") == merged
    assert repeated_sweeps(machines / "a" / "demo", ["seed=1"]) == [
        "harness sweep both seed=1",
        "harness sweep a seed=1",
    ]
    assert repeated_sweeps(machines / "all" / "demo", ["seed=1"]) == []
    assert main(["merge", str(machines / "all"), "--into", str(machines / "more")]) == 0
    assert noted_commands(machines / "more" / "demo") == merged


def test_a_second_time_nothing_changes(machines, capsys):
    run(machines, str(machines / "a"), str(machines / "b"))
    before = contents(machines / "all")
    capsys.readouterr()
    assert run(machines, str(machines / "b"), str(machines / "a")) == 0
    assert "0 new, 0 replaced by newer ones, 3 already there" in capsys.readouterr().out
    assert contents(machines / "all") == before


def test_items_that_are_gone_come_back(machines):
    run(machines, str(machines / "a"))
    lost = one(machines / "all", "lora").with_suffix(".items.parquet")
    lost.unlink()
    assert run(machines, str(machines / "a")) == 0
    assert verify.study(machines / "all", "demo")[:2] == (2, [])


def test_unequal_records_are_shown_and_nothing_is_written(machines, capsys):
    run(machines, str(machines / "a"))
    change(one(machines / "b", "lora"), seconds=99.0, started="2026-01-03T00:00:00+00:00")
    before = contents(machines / "all")
    capsys.readouterr()
    assert run(machines, str(machines / "b")) == 1
    first, mine, theirs, last = capsys.readouterr().out.splitlines()
    assert first == f"conflict: demo/{one(machines / 'a', 'lora').stem}"
    told = "ok, began 2026-01-02T03:04:05+00:00, validation loss 1.25, gsm8k, exact match, strict format 0.5"
    assert mine == f"  {one(machines / 'all', 'lora')}: {told}"
    assert theirs.startswith(f"  {one(machines / 'b', 'lora')}: ok, began 2026-01-03T00:00:00+00:00")
    assert last == f"Nothing was written to {machines / 'all'}; --newer keeps of each the last one that finished."
    assert contents(machines / "all") == before, "dora was no conflict, and was to wait all the same"


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_the_newer_is_kept_when_told(machines, order):
    newer = change(one(machines / "b", "lora"), seconds=99.0, started="2026-01-03T00:00:00+02:00", scores=[])
    newer.with_suffix(".items.parquet").unlink()
    newer.with_suffix(".log").unlink()
    change(newer, items_sha256=None)
    run(machines, str(machines / order[0]), "--newer")
    assert run(machines, str(machines / order[1]), "--newer") == 0
    kept = one(machines / "all", "lora")
    assert read(kept).seconds == 99.0
    assert not kept.with_suffix(".items.parquet").exists(), "they were of the older one"
    assert not kept.with_suffix(".log").exists()
    assert verify.study(machines / "all", "demo")[:2] == (3, [])


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_later_failure_replaces_no_cell_that_finished(machines, order):
    failed = make_record("lora", 16, 32.0, 2e-4, status="failed")
    change(
        one(machines / "b", "lora"),
        status="failed",
        failure=failed.failure,
        started="2026-01-03T00:00:00+02:00",
        scores=[],
    )
    run(machines, str(machines / order[0]), "--newer")
    assert run(machines, str(machines / order[1]), "--newer") == 0
    assert read(one(machines / "all", "lora")).status == "ok"


def test_of_two_records_with_one_start_none_is_newer(machines, capsys):
    change(one(machines / "b", "lora"), seconds=99.0)
    assert run(machines, str(machines / "a"), str(machines / "b"), "--newer") == 1
    assert "conflict: demo/lora-" in capsys.readouterr().out
    assert not (machines / "all").exists()


@pytest.mark.parametrize("link", ["record", "items", "log", "weights", "inner", "study", "commands"])
def test_links_are_neither_followed_nor_copied(machines, tmp_path, capsys, link):
    """An archive may have links to files of the machine that it is merged on."""
    path = one(machines / "b", "lora")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    targets = {"record": path, "items": path.with_suffix(".items.parquet"), "log": path.with_suffix(".log")}
    if link in targets:
        shutil.move(targets[link], outside / "file")
        targets[link].symlink_to(outside / "file")
    elif link == "weights":
        path.with_suffix("").symlink_to(outside, target_is_directory=True)
    elif link == "inner":
        path.with_suffix("").mkdir()
        (path.with_suffix("") / "adapter_config.json").symlink_to(outside / "secret.txt")
    elif link == "commands":
        (path.parent / "commands.txt").symlink_to(outside / "secret.txt")
    else:
        shutil.move(path.parent, outside / "demo")
        path.parent.symlink_to(outside / "demo", target_is_directory=True)
    assert run(machines, str(machines / "a"), str(machines / "b")) == (2 if link == "study" else 1)
    assert not (machines / "all").exists()
    said = capsys.readouterr().err
    assert "There are no studies" in said if link == "study" else "is a link, which is not followed" in said


def test_a_damaged_record_stops_the_merge(machines, capsys):
    one(machines / "b", "dora").with_suffix(".items.parquet").write_bytes(b"PAR1")
    (machines / "b" / "demo" / "broken.json").write_text("{")
    assert run(machines, str(machines / "a"), str(machines / "b")) == 1
    out, err = capsys.readouterr()
    assert out == f"Nothing was written to {machines / 'all'}.\n"
    assert [line.partition(" ")[0] for line in err.splitlines()] == ["error:", "error:"]
    assert "broken.json is not complete JSON" in err
    assert "the hashes differ" in err
    assert not (machines / "all").exists()


def test_a_damaged_record_in_place_is_not_written_over(machines, capsys):
    run(machines, str(machines / "a"))
    one(machines / "all", "lora").write_text("{")
    before = contents(machines / "all")
    assert run(machines, str(machines / "b"), "--newer") == 1
    assert f"{one(machines / 'all', 'lora')} is not complete JSON" in capsys.readouterr().err
    assert contents(machines / "all") == before


def test_a_cell_that_is_being_run_is_not_written_over(machines, capsys):
    study = Study(machines / "all", "demo")
    with study.lease(read(one(machines / "b", "dora")).cell):
        assert run(machines, str(machines / "b")) == 1
    assert "its cell is being run" in capsys.readouterr().err
    assert list(study.folder.glob("*.json")) == []


def test_scripts_get_json(machines, capsys):
    change(one(machines / "b", "lora"), seconds=99.0)
    assert run(machines, str(machines / "a"), str(machines / "b"), "--format", "json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["written"], found["problems"]) == (False, [])
    assert [new["name"].partition("-")[0] for new in found["new"]] == ["full", "dora"]
    ((one_, other),) = found["conflicts"]
    assert (one_["file"], other["file"]) == (str(one(machines / "a", "lora")), str(one(machines / "b", "lora")))


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["absent"], "There is no folder"),
        (["all"], "can't be merged into"),
        ([""], "can't be merged into"),
        (["a/demo"], "There are no studies in"),
    ],
)
def test_a_folder_that_can_not_be_merged_is_named(machines, capsys, folders, said):
    (machines / "all").mkdir()
    assert run(machines, *(str(machines / folder) for folder in folders)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_a_damaged_plan_stops_it_before_anything_is_written(machines, capsys):
    (machines / "a" / "demo" / ".harness" / "plan.json").write_text("[")
    assert run(machines, str(machines / "b"), str(machines / "a")) == 2
    assert "plan.json is damaged" in capsys.readouterr().err
    assert not (machines / "all").exists()


def test_plans_travel_each_once(machines, capsys):
    both, later = make_plan([planned_record()]), make_plan([planned_record("dora")], created=AFTER)
    for machine, plans in {"a": [both], "b": [both, later]}.items():
        add_plans(machines / machine / "demo", plans)
    for order in ("ab", "ba"):
        assert run(machines, *(str(machines / machine) for machine in order)) == 0
        assert read_plans(machines / "all" / "demo") == [both, later]
    edited = machines / "b" / "demo" / PLAN
    edited.write_text(edited.read_text().replace("dora", "full"))
    capsys.readouterr()
    assert run(machines, str(machines / "b")) == 1
    assert f"{edited}, line 2, is not as it was written" in capsys.readouterr().err


def test_a_link_in_place_of_a_plan_is_refused(machines, capsys):
    (machines / "a" / "demo" / PLAN).symlink_to(machines / "secret")
    assert run(machines, str(machines / "a")) == 1
    assert f"{machines / 'a' / 'demo' / PLAN} is a link" in capsys.readouterr().err
