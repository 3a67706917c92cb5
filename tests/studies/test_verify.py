"""What `verify` says of a study: nothing of a sound one, and one sentence for each thing that was done to it."""

from __future__ import annotations

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from plans import confirming, make_plan, planned_record
from records import change, make_record, make_study, sound

from harness.__main__ import main
from harness.config import ROOT
from harness.record import PLAN, STUDY_NAME, add_plans, read, reading, studies, write
from harness.studies import verify


@pytest.fixture
def path(tmp_path):
    """A sound record of LoRA in the study `demo`."""
    return sound(make_record("lora", 16, 32.0, 2e-4), tmp_path / "demo")


def edit(path, change, fresh_hash=False):
    """Rewrite the record at `path` after `change`; with the hash of the items that lie there, if wanted."""
    record = read(path)
    change(record)
    if fresh_hash:
        record.items_sha256 = verify.record.sha256(items(path))
    write(record, path)


def items(path):
    return path.with_suffix(".items.parquet")


def test_a_sound_study_has_no_problem(tmp_path, capsys):
    for record in make_study():
        sound(record, tmp_path / "demo")
    assert main(["verify", "--results-dir", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("demo: 8 records, no problems\n", "")


@pytest.mark.parametrize("study", studies(ROOT / "results" / "reference"))
def test_the_published_records_are_sound(study):
    assert STUDY_NAME.fullmatch(study)
    assert verify.study(ROOT / "results" / "reference", study).problems == []


def test_records_of_another_study_are_noted_and_are_no_problem(tmp_path, capsys):
    sound(make_record("lora", 16, 32.0, 2e-4), tmp_path / "mine" / "renamed")
    assert main(["verify", "--results-dir", str(tmp_path)]) == 0
    note = f"{tmp_path}/mine/renamed holds 1 record of the study demo."
    assert capsys.readouterr().out == f"mine/renamed: 1 record, no problems\n- {note}\n"
    assert main(["verify", "--results-dir", str(tmp_path), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["mine/renamed"]["misplaced"] == [note]


@pytest.mark.parametrize(
    ("folder", "study"), [("moved/demo", "demo"), ("demo", "reference/demo"), ("later/demo", "reference/demo")]
)
def test_a_study_below_another_folder_is_the_same(tmp_path, folder, study):
    sound(make_record("lora", 16, study=study), tmp_path / folder)
    assert verify.study(tmp_path, folder).misplaced == []


def test_each_record_is_read_once(planned, capsys, monkeypatch):
    """Large studies have thousands."""
    own, paths = verify.record.read, []
    for module in (verify.record, reading):
        monkeypatch.setattr(module, "read", lambda path: paths.append(path.name) or own(path))
    assert main(["verify", "--results-dir", str(planned)]) == 0
    assert sorted(paths) == sorted(path.name for path in (planned / "demo").glob("*.json"))


def truncate(path):
    path.write_text(path.read_text()[:-20])


def other_settings(path):
    edit(path, lambda r: change(r, train={"max_steps": 51}))


def other_rank(path):
    edit(path, lambda r: setattr(r.cell, "rank", 8))


def rename(path):
    items(path).rename(path.with_name("mine.items.parquet"))
    path.rename(path.with_name("mine.json"))


def lose_items(path):
    items(path).unlink()


def flip_a_byte(path):
    content = bytearray(items(path).read_bytes())
    content[len(content) // 2] ^= 1
    items(path).write_bytes(content)


def cut_items(path):
    items(path).write_bytes(items(path).read_bytes()[:100])
    edit(path, lambda r: setattr(r, "items_sha256", verify.record.sha256(items(path))))


def other_columns(path):
    pq.write_table(pa.table({"value": [1.0]}), items(path))
    edit(path, lambda r: None, fresh_hash=True)


def texts_for_values(path):
    table = pq.read_table(items(path))
    at = table.column_names.index("value")
    pq.write_table(table.set_column(at, "value", [["a", "b", "c", "d"]]), items(path))
    edit(path, lambda r: None, fresh_hash=True)


def fewer_items(path):
    pq.write_table(pq.read_table(items(path)).slice(1), items(path))
    edit(path, lambda r: None, fresh_hash=True)


def too_many_items(path):
    rows = 2**22 + 1
    pq.write_table(pa.table({name: [""] * rows for name in ("task", "metric", "filter")}), items(path))
    edit(path, lambda r: None, fresh_hash=True)


def long_text(path):
    edit(path, lambda r: r.environment.update(boot="x" * 10_000_000))


def another_mean(path):
    edit(path, lambda r: setattr(r.scores[0], "value", 0.51))


DAMAGES = {  # by name what is done to the record at a path, and what is said of it
    "truncated": (truncate, "is not complete JSON"),
    "settings": (other_settings, "which is not that of its settings: one of them was edited"),
    "rank": (other_rank, "whose settings are those of lora-r8-a32-lr2e-4-s0-"),
    "file": (rename, "mine.json holds the cell lora-r16-a32-lr2e-4-s0-"),
    "no items": (lose_items, "is missing: the scores of its record can't be compared item by item"),
    "hash": (flip_a_byte, "is not the file that its record was written with: the hashes differ"),
    "no parquet": (cut_items, "can't be read as items"),
    "columns": (other_columns, "can't be read as items"),
    "texts": (texts_for_values, "can't be read as items"),
    "n": (fewer_items, "has 3 items of gsm8k, exact match, strict format; its record counts 4"),
    "rows": (too_many_items, "(it has 4,194,305 rows; at most 4,194,304 are read)"),
    "text": (long_text, "must have at most 1,048,576 bytes in a line to be read as a record, got 10,000,0"),
    "size": (
        lambda path: os.truncate(path, 2**40),
        "must have at most 268,435,456 bytes to be read as a record, got 1",
    ),
    "mean": (another_mean, "has a mean of 0.5 in gsm8k, exact match, strict format; its record says 0.51"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named_in_one_sentence(path, tmp_path, capsys, damage, said):
    damage(path)
    sound(make_record("full"), tmp_path / "demo")
    assert main(["verify", "--results-dir", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == "demo: 2 records, 1 problem\n"
    (line,) = err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'demo'}/")
    assert said in line
    assert line.endswith(".")


def test_scripts_get_json(path, tmp_path, capsys):
    items(path).unlink()
    assert main(["verify", "--results-dir", str(tmp_path), "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["demo"]["records"] == 1
    assert "is missing" in found["demo"]["problems"][0]


def test_items_without_a_hash_are_a_problem(path, tmp_path):
    """Any other items of the same mean could be put in their place."""
    edit(path, lambda r: setattr(r, "items_sha256", None))
    (problem,) = verify.study(tmp_path, "demo").problems
    assert problem.endswith("items.parquet has no hash in its record, so nothing tells whether it is the one it had.")


def test_a_damaged_plan_is_a_problem(path, tmp_path):
    plan = tmp_path / "demo" / ".harness" / "plan.json"
    plan.parent.mkdir()
    plan.write_text("[")
    (problem,) = verify.study(tmp_path, "demo").problems
    assert "plan.json is damaged" in problem


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("another.json", "another.json can't be read (It is a pipe or a device)"),
        ("{cell}.items.parquet", "can't be read as items ([Errno 22] It is a pipe or a device"),
        ("plan.jsonl", "plan.jsonl can't be read (It is a pipe or a device)"),
        (".harness/plan.json", "plan.json"),
        ("commands.txt", None),
        (".harness/running/{cell}/x.json", None),
    ],
)
def test_a_pipe_is_not_waited_for(path, tmp_path, capsys, name, said):
    pipe = path.parent / name.format(cell=path.stem)
    pipe.parent.mkdir(parents=True, exist_ok=True)
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    assert main(["verify", "--results-dir", str(tmp_path)]) == int(said is not None)
    assert (said or "") in capsys.readouterr().err
    for command in (["table"], ["status"]):
        assert main([*command, "--results-dir", str(tmp_path)]) in (0, 1, 2)


# The plan


@pytest.fixture
def planned(tmp_path):
    """A study of two cells and two confirmations, of which one has run."""
    cells = [planned_record(lr=lr) for lr in (1e-4, 2e-4)]
    for record in (*cells, confirming(seed=1)):
        sound(record, tmp_path / "demo")
    add_plans(tmp_path / "demo", [make_plan(cells, [1, 2])])
    return tmp_path


def test_what_is_missing_of_a_plan_is_told_and_is_no_problem(planned, capsys):
    assert main(["verify", "--results-dir", str(planned)]) == 0
    note = "The plan is not finished: 2 of 2 cells, 1 of 2 confirming cells."
    assert capsys.readouterr().out == f"demo: 3 records, no problems\n- {note}\n"
    assert main(["verify", "--results-dir", str(planned), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["demo"]["plan"] == [note]
    sound(confirming(seed=2), planned / "demo")
    assert verify.study(planned, "demo").notes == []


def test_what_was_added_or_failed_is_told(planned):
    failed, added = confirming(seed=2, status="failed"), planned_record(lr=5e-4)
    for record in (failed, added):
        sound(record, planned / "demo")
    assert verify.study(planned, "demo").notes == [
        f"Failed cells of the plan, which its command runs again: {failed.cell.name}.",
        f"Exploratory: {added.cell.name} is in no plan.",
    ]
    assert verify.study(planned, "demo").problems == []


def test_a_confirmation_without_a_plan_is_a_problem(planned, capsys):
    other = confirming(seed=9)
    early = confirming(seed=2, started="2026-01-01T00:00:00+00:00")
    for record in (other, early):
        sound(record, planned / "demo")
    problems = verify.study(planned, "demo").problems
    assert {problem.partition(" ")[0] for problem in problems} == {early.cell.name, other.cell.name}
    assert len(problems) == 2
    assert main(["verify", "--results-dir", str(planned)]) == 1
    assert "demo: 5 records, 2 problems" in capsys.readouterr().out


def test_an_edited_plan_is_a_problem(planned):
    path = planned / "demo" / PLAN
    path.write_text(path.read_text().replace('"confirm": [1, 2]', '"confirm": [1]'))
    (problem,) = verify.study(planned, "demo").problems
    assert problem.startswith(f"{path}, line 1, is not as it was written: its hash differs;")
    assert verify.study(planned, "demo").notes == []
