"""Memory of commands on studies that are larger than what fits it."""

from __future__ import annotations

import sys

import pytest
from records import make_study

from harness import record
from harness.cli import sweep
from harness.config import ROOT

sys.path.append(str(ROOT / "benchmarks"))

from large_studies import measured, write_answered, write_copies

pytestmark = pytest.mark.slow
MIB = 2**20


def peak(folder, *command):
    return measured(*command, "--results-dir", str(folder))[1]


@pytest.mark.long
@pytest.mark.parametrize(("command", "limit"), [("table", 26_000), ("lint", 22_000), ("status", 28_000)])
def test_a_record_more_takes_little_memory(copied, command, limit):
    """60 steps have 540 numbers; a record's JSON has 24,000 bytes."""
    few, many = (peak(folder, command) for folder in copied)
    assert (many - few) / 1_000 < limit


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """Two results folders: a study of 200 records, and one of 1,200."""
    folders = [tmp_path_factory.mktemp("results") for _ in range(2)]
    for folder, count in zip(folders, (200, 1_200), strict=True):
        write_copies(folder / "copies", count)
    return folders


@pytest.fixture(scope="module")
def long_texts(tmp_path_factory):
    return answered(tmp_path_factory, 1_000, 50_000)


@pytest.fixture(scope="module")
def many_items(tmp_path_factory):
    return answered(tmp_path_factory, 200_000, 200)


def answered(tmp_path_factory, *size):
    """A study of two cells with some 100 MB of items each."""
    folder = tmp_path_factory.mktemp("results")
    assert write_answered(folder / "answered", *size) > 75 * MIB
    return folder


@pytest.mark.long
@pytest.mark.parametrize(("command", "limit"), [("report", 480), ("forgetting", 320)])
def test_texts_of_items_are_not_held(long_texts, tmp_path, command, limit):
    assert peak(long_texts, command, "--out", str(tmp_path / "out")) < limit * MIB


@pytest.mark.long
@pytest.mark.parametrize(("command", "limit"), [("report", 720), ("table", 320), ("forgetting", 340)])
def test_an_item_more_takes_little_memory(many_items, tmp_path, command, limit):
    """A page has 120,000 answers at most. Which method is the best is drawn without a weight for each item."""
    assert peak(many_items, command, "--out", str(tmp_path / "out")) < limit * MIB


def test_the_answer_of_a_large_sweep_is_that_of_a_small_one(tmp_path, monkeypatch, capsys):
    """Its records are read by another process."""
    for number, one in enumerate(make_study()):
        record.write(one, tmp_path / f"{number}.json")
    sweep._print_answer(tmp_path)
    here = capsys.readouterr().out
    assert "No method is recommended: " in here
    monkeypatch.setattr(sweep, "MANY", 0)
    monkeypatch.delattr(record, "read_study")  # in this process
    sweep._print_answer(tmp_path)
    assert capsys.readouterr().out == here
