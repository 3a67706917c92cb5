"""A file of one's own that was edited is another file: a sweep that goes on says so before it trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import forbid_jobs
from job_helpers import composed
from records import make_record

from harness import data_files
from harness.__main__ import main
from harness.studies import retry
from harness.sweep.changed_file import changed_file
from harness.sweep.shared_name import other_study, shared_name
from harness.sweep.store import Study

ROWS = "".join(json.dumps({"question": f"{i}?", "answer": f"{i}"}) + "\n" for i in range(60))
TYPED = ("model=tiny", "data=local", "data.path=mine.jsonl", "eval.tasks=[]", "train.precision=fp32")


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Of a cell that ran with the file mine.jsonl."""
    from harness.record import write

    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text(ROWS)
    recorded = make_record()
    recorded.study, recorded.cell = "mine", composed(*TYPED)
    recorded.fingerprints = {"data": "sha256:x", "file": data_files.digest("mine.jsonl", None)}
    path = Study(Path("results"), "mine").path(recorded.cell)
    path.parent.mkdir(parents=True)
    write(recorded, path)
    return recorded


def test_only_a_change_of_the_file_is_told(record):
    assert changed_file([record], None) is None
    Path("mine.jsonl").touch()
    assert changed_file([record], None) is None
    Path("mine.jsonl").write_text(ROWS[:200])
    assert changed_file([record], None).startswith("data.path=mine.jsonl has changed since ")
    record.fingerprints.pop("file")  # as of records from before
    assert changed_file([record], None) is None


@pytest.mark.long
def test_a_sweep_does_not_mix_two_files(record, capsys):
    Path("mine.jsonl").write_text(ROWS[:200])
    assert main(["sweep", "study=mine", *TYPED, "seed=0,1"]) == 2
    err = capsys.readouterr().err
    assert f"has changed since {record.cell.name} ran with it, so that this study would mix two data sets" in err
    assert "study=NAME" in err
    assert main(["sweep", "study=mine", *TYPED, "seed=0"]) == 0  # all is recorded, and that is told
    assert "warning: data.path=mine.jsonl has changed since" in capsys.readouterr().err
    assert main(["run", "study=mine", *TYPED]) == 0
    assert "warning: data.path=mine.jsonl has changed since" in capsys.readouterr().err


def test_a_sweep_over_other_settings_does_not_mix_two_files(record, capsys):
    """The recorded cell is no point of the second grid, and is compared with its cells all the same."""
    Path("mine.jsonl").write_text(ROWS[:200])
    assert main(["sweep", "study=mine", *TYPED, "lr=1e-3,2e-3"]) == 2
    err = capsys.readouterr().err
    assert f"has changed since {record.cell.name} ran with it, so that this study would mix two data sets" in err


def test_retry_does_not_mix_two_files(record):
    from harness.errors import UserError

    Path("mine.jsonl").write_text(ROWS[:200])
    failed = make_record()
    failed.cell = composed(*TYPED, "seed=7")
    with pytest.raises(UserError, match="would mix two data sets"):
        retry._require_same_data(Study(Path("results"), "mine"), [failed], None)
    retry._require_same_data(Study(Path("results"), "mine"), [record], None)


def test_two_files_of_one_name_are_not_compared_as_one(record, capsys):
    """They are two files of one grid, or one is of a recorded cell; a copy of the same bytes is no other file."""
    for folder, rows in (("a", ROWS), ("b", ROWS[:1200])):
        Path(folder).mkdir()
        Path(folder, "mine.jsonl").write_text(rows)
    others = [part for part in TYPED if not part.startswith("data.path=")]
    assert main(["sweep", "study=new", *others, "data.path=a/mine.jsonl,b/mine.jsonl"]) == 2
    err = capsys.readouterr().err
    assert "data.path=a/mine.jsonl and data.path=b/mine.jsonl would be compared as one" in err
    assert "rename one, or take a study for each (study=NAME)" in err
    assert main(["sweep", "study=mine", *others, "data.path=b/mine.jsonl"]) == 2
    assert "data.path=mine.jsonl and data.path=b/mine.jsonl would be compared as one" in capsys.readouterr().err

    assert shared_name([record], [composed(*others, "data.path=a/mine.jsonl")], None) is None
    assert shared_name([record], [composed(*others, "data.path=b/mine.jsonl", "data.limit=9")], None) is None
    Path("mine.jsonl").unlink()  # then its hash is in the record
    assert shared_name([record], [composed(*others, "data.path=a/mine.jsonl")], None) is None


def test_two_models_of_one_name_are_not_compared_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a", "own").mkdir(parents=True)
    Path("b").mkdir()
    Path("b", "own").symlink_to(Path("..", "a", "own"))
    first, same, other = (composed("model=tiny", f"model.path={path}") for path in ("a/own", "b/own", "c/own"))
    assert shared_name([], [first, same], None) is None
    sentence = shared_name([], [first, same, other], None)
    assert sentence.startswith("model.path=a/own and model.path=c/own would be compared as one, as both are named own;")
    assert "set model.name for one, or take a study for each" in sentence
    named = composed("model=tiny", "model.path=c/own", "model.name=other")
    assert shared_name([], [first, named], None) is None


def test_a_study_that_was_renamed_is_told_to_fall_apart(record, capsys, monkeypatch):
    """Its records keep the study's name, by which tables tell studies apart."""
    forbid_jobs(monkeypatch)
    Path("results", "mine").rename(Path("results", "later"))
    with pytest.raises(AssertionError, match="a job was started"):
        main(["sweep", "study=later", *TYPED, "seed=0,1"])
    assert "warning: records in results/later are of the study mine, so tables will show" in capsys.readouterr().err
    assert other_study([record], Path("results", "mine"), "mine") is None
