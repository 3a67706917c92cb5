"""The record is the only contract between running and comparing: what is written is read, and damage is named."""

from __future__ import annotations

import json
import math
import os

import pytest
from records import make_record, make_study, reseal

from harness.record import STUDY_NAME, LossPoint, Merge, RecordError, read, read_study, studies, write


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "study" / "lora.json"
    write(make_record("lora", 16, 32.0, 2e-4), path)
    return path


def damage(path, change):
    """Rewrite the record at `path` after `change` has edited its JSON."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_written_record_reads_back(tmp_path):
    for i, record in enumerate(make_study()):
        record.merge = Merge(False, "NF4 weights are not merged")
        if record.train:
            record.train.loss = [LossPoint(1, 400, 2.5, 2e-4, 1.25)]
        path = tmp_path / f"{i}.json"
        write(record, path)
        assert read(path) == record


def test_integers_are_read_as_floats_where_the_schema_says_float(path):
    reseal(path, json.loads(path.read_text()) | {"seconds": 120})
    assert isinstance(read(path).seconds, float)


def test_a_truncated_file_is_not_complete_json(path):
    path.write_text(path.read_text()[:-20])
    with pytest.raises(RecordError, match=r"lora\.json is not complete JSON .*; delete it and run its cell again\.$"):
        read(path)


def test_bytes_that_are_not_text_are_not_complete_json(path):
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match=r"lora\.json is not complete JSON"):
        read(path)


@pytest.mark.parametrize("foreign", [[], 3, None, "text", {}, {"schema": 1}, {"cell": {}}])
def test_foreign_json_is_not_a_record(path, foreign):
    path.write_text(json.dumps(foreign))
    with pytest.raises(RecordError, match=r"lora\.json is JSON but not a record of this harness"):
        read(path)


def test_a_missing_file_can_not_be_read(tmp_path):
    with pytest.raises(RecordError, match=r"absent\.json can't be read \(No such file or directory\)\.$"):
        read(tmp_path / "absent.json")


def test_another_schema_is_named(path):
    damage(path, lambda value: value.update(schema=99))
    with pytest.raises(RecordError, match=r"lora\.json has record schema 99; this version of the harness reads 4\.$"):
        read(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.pop("study"), "study is missing"),
        (lambda v: v["cell"].pop("model"), r"cell\.model is missing"),
        (lambda v: v["scores"][0].pop("stderr"), r"scores\[0\]\.stderr is missing"),
        (lambda v: v.update(colour="red"), "the record has the unknown field 'colour'"),
        (lambda v: v["train"].update(colour="red"), "train has the unknown field 'colour'"),
        (lambda v: v.update(status="fine"), "status is 'fine', which is none of 'ok', 'failed', 'oom', 'diverged'"),
        (lambda v: v.update(seconds="120"), "seconds should be of type float, not str"),
        (lambda v: v["cell"].update(rank=16.0), r"cell\.rank should be of type int, not float"),
        (lambda v: v["cell"].update(seed=True), r"cell\.seed should be of type int, not bool"),
        (lambda v: v["train"]["tokens"].update(raw=None), r"train\.tokens\.raw should be of type int, not NoneType"),
        (lambda v: v.update(scores={}), "scores should be a list"),
        (lambda v: v.update(phases=[]), "phases should be an object"),
        (lambda v: v["phases"].update(load=[]), r"phases\.load should be an object"),
        (
            lambda v: v["phases"]["load"]["memory"].update(process_peak="1"),
            r"phases\.load\.memory\.process_peak should",
        ),
        (lambda v: v["validation"][1].update(step="x"), r"validation\[1\]\.step should be of type int, not str"),
        (
            lambda v: v["cell"]["settings"]["train"].update(max_steps=[]),
            r"cell\.settings\.train\.max_steps should be of type int, not list",
        ),
        (lambda v: v["environment"].update(boot={}), r"environment\.boot should be of type str, not dict"),
    ],
)
def test_damage_names_the_file_and_the_field(path, change, said):
    damage(path, change)
    with pytest.raises(RecordError, match=rf"lora\.json is a damaged record \({said}"):
        read(path)


def test_a_number_json_can_not_hold_leaves_the_old_file_whole(path):
    before = read(path)
    broken = make_record("lora", 16, 32.0, 2e-4)
    broken.seconds = math.nan
    with pytest.raises(ValueError, match="JSON"):
        write(broken, path)
    assert read(path) == before
    assert [p.name for p in path.parent.iterdir()] == ["lora.json"]


def test_a_write_cut_short_leaves_the_old_file_whole(path, monkeypatch):
    before = read(path)

    def full_disk(_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(make_record("full"), path)
    assert read(path) == before
    assert [p.name for p in path.parent.iterdir()] == ["lora.json"]


def test_a_study_is_read_around_its_damaged_files(path):
    write(make_record("full"), path.with_name("full.json"))
    path.with_name("broken.json").write_text("{")
    path.with_name("notes.txt").write_text("not a record")
    found, problems = read_study(path.parent)
    assert [record.cell.method for record in found] == ["full", "lora"]
    assert len(problems) == 1
    assert "broken.json" in problems[0]


def test_a_record_that_is_nested_too_deeply_hides_no_other(path):
    write(make_record("full"), path.with_name("full.json"))

    def nest(value):
        for _ in range(500):
            value["cell"]["settings"]["other"] = {"a": value["cell"]["settings"]["other"]}

    damage(path, nest)
    found, problems = read_study(path.parent)
    assert [record.cell.method for record in found] == ["full"]
    assert "lora.json is a damaged record (cell.settings.other.a.a" in problems[0]
    assert "is nested deeper than 50 levels" in problems[0]


def test_a_study_that_is_not_there_is_empty(tmp_path):
    assert read_study(tmp_path / "absent") == ([], [])


def test_studies_are_the_visible_folders_with_records(tmp_path):
    for name in ("one/a.json", "one/b.json", "deep/two/c.json", ".hidden/d.json", "one/.trash/e.json", "top.json"):
        write(make_record(), tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert studies(tmp_path) == ["deep/two", "one"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_no_json(path, number):
    text = path.read_text()
    assert '"seconds": 120.0' in text
    path.write_text(text.replace('"seconds": 120.0', f'"seconds": {number}'))
    with pytest.raises(RecordError, match=r"lora\.json is not complete JSON \(.+: line \d+ column \d+"):
        read(path)


@pytest.mark.parametrize("digits", [400, 5000])  # the latter is beyond what Python parses at all
def test_a_number_too_large_for_a_float_is_no_json(path, digits):
    path.write_text(path.read_text().replace('"seconds": 120.0', f'"seconds": 1{"0" * digits}'))
    with pytest.raises(RecordError, match=r"lora\.json is not complete JSON"):
        read(path)


def test_an_integer_beyond_64_bits_names_its_field(path):
    damage(path, lambda value: value["train"].update(steps=10**30))
    with pytest.raises(RecordError, match=r"lora\.json is a damaged record \(train\.steps should be of type int"):
        read(path)


def test_text_that_can_not_be_printed_is_refused(path):
    damage(path, lambda value: value["cell"].update(model="half a pair: \ud800"))
    with pytest.raises(RecordError, match=r"lora\.json is not complete JSON .*surrogate in string") as refused:
        read(path)
    str(refused.value).encode()


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("研究/Größe-2", True), ("أ.b", True), ("..", False), ("a/../b", False), ("-x", False), ("_x", False)],
)
def test_a_study_is_named_by_letters_of_any_script_and_leads_nowhere_else(name, is_one):
    assert bool(STUDY_NAME.fullmatch(name)) == is_one
