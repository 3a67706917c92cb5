"""`rm` removes what it says, and says what it removes: links and not their targets, and nothing that resists."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from command_line import assert_refused
from plans import make_plan
from records import make_record, sound

from harness.__main__ import main
from harness.record import PLAN, add_plans, read
from harness.sweep.store import Study


@pytest.fixture
def folder():
    """A folder that every user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def record(folder):
    """The record of a cell in the study `demo` of the results folder."""
    return sound(make_record("lora", 16), folder / "results" / "demo")


def rm(record, *more):
    return main(["rm", record.stem, "--yes", "--results-dir", str(record.parent.parent), *more])


def test_a_cell_that_a_plan_asks_for_stays_in_it_and_that_is_said(record, capsys):
    """What was written before the first cell is not unwritten by leaving a cell out."""
    study, cell = record.parent, read(record).cell
    add_plans(study, [make_plan([make_record("lora", 16)])])
    plan = (study / PLAN).read_bytes()
    assert rm(record) == 0
    assert "until a sweep runs it, verdicts of the study are interim" in capsys.readouterr().err
    assert (study / PLAN).read_bytes() == plan
    Study(study.parent, "demo").plan([cell])  # as a sweep that never came to it leaves it
    assert rm(record) == 0
    out, err = capsys.readouterr()
    assert "it was planned, not run" in out
    assert "still has this cell" in err
    (study / PLAN).unlink()
    sound(make_record("lora", 16), study)
    assert rm(record) == 0
    assert not capsys.readouterr().err


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_weights_is_removed_and_its_target_is_left(record, folder, capsys, exists):
    target = folder / "elsewhere"
    if exists:
        target.mkdir()
        (target / "adapter.safetensors").touch()
    record.with_suffix("").symlink_to(target)
    assert rm(record) == 0
    assert f"{record.stem} (a link; {target} is left as it is)" in capsys.readouterr().out
    assert not record.with_suffix("").is_symlink()
    assert not record.exists()
    assert (target / "adapter.safetensors").exists() == exists


def test_links_within_the_weights_are_not_followed(record, folder):
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "kept").touch()
    record.with_suffix("").mkdir()
    (record.with_suffix("") / "inside").symlink_to(folder / "elsewhere")
    assert rm(record) == 0
    assert (folder / "elsewhere" / "kept").exists()
    assert not record.with_suffix("").exists()


@pytest.mark.parametrize("place", ["{name}", ".harness/checkpoints/{name}"])
def test_what_can_not_be_removed_is_an_error_and_the_cell_keeps_its_record(record, capsys, place):
    resisting = record.parent / place.format(name=record.stem)
    resisting.mkdir(parents=True)
    (resisting / "file").touch()
    os.chmod(resisting, 0o555)
    root, nobody = os.geteuid() == 0, 65534
    try:
        if root:  # whom no permission stops
            for path in record.parent.rglob("*"):
                os.chown(path, nobody, nobody)
            os.chown(record.parent, nobody, nobody)
            os.seteuid(nobody)
        status = rm(record)
    finally:
        if root:
            os.seteuid(0)
        os.chmod(resisting, 0o755)
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert_refused(err, f"demo/{record.stem} is not removed, as ", str(resisting), "Permission denied")
    assert record.exists()
    assert rm(record) == 0, "once that is mended"
    assert not resisting.exists()


def test_a_link_to_checkpoints_is_removed_and_its_target_is_left(record, folder):
    study = Study(record.parent.parent, "demo")
    (folder / "elsewhere").mkdir()
    checkpoints = record.parent / ".harness" / "checkpoints" / record.stem
    checkpoints.parent.mkdir(parents=True)
    checkpoints.symlink_to(folder / "elsewhere")
    study.remove(record.stem)
    assert not checkpoints.is_symlink()
    assert (folder / "elsewhere").is_dir()
