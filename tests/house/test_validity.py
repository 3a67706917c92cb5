"""A small part of `make validity`: intervals and equal methods in few simulated studies."""

from __future__ import annotations

import json
import sys

import pytest
from plugin_list import MISSING

from harness.config import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import validity

STUDIES = 60
QUICK = [
    "equal methods told apart, no clusters, 3 seeds",
    "ratios of times, 2 seeds, runs differ by 3%",
    "ratios of losses, 3 seeds, normal",
]


@pytest.mark.parametrize("name", QUICK)
def test_a_situation_holds(name):
    found = validity.simulate(name, STUDIES)
    assert validity.holds(found), found


def test_the_document_is_of_what_was_measured():
    measured = json.loads(validity.MEASURED.read_text(encoding="utf-8"))
    assert MISSING or set(measured) <= set(validity.SITUATIONS)
    assert validity.DOCUMENT.read_text(encoding="utf-8") == validity.document(measured)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(situations, studies): the exit status, and of how many studies each situation on the page is."""
    monkeypatch.setattr(validity, "MEASURED", tmp_path / "validity.json")
    monkeypatch.setattr(validity, "DOCUMENT", tmp_path / "VALIDITY.md")

    def call(situations, studies):
        monkeypatch.setattr(validity, "SITUATIONS", situations)
        status = validity.main(["--studies", str(studies)])
        return status, {name: of["studies"] for name, of in json.loads(validity.MEASURED.read_text()).items()}

    return call


def in_the_first(studies):
    """A situation that is wrong in the first of that many studies, and in no later one."""
    left = [True] * studies
    return lambda draw: {"wrong": bool(left and left.pop())}


@pytest.mark.parametrize(("wrong", "status"), [(0.0, 0), (1.0, 1)])
def test_a_situation_that_does_not_hold_is_the_exit_status(run, capsys, wrong, status):
    situations = {"one": lambda draw: {"wrong": wrong}, "two": lambda draw: {"wrong": 0.0}}
    assert run(situations, 20) == (status, {"one": 500 if wrong else 20, "two": 20})
    assert capsys.readouterr().out.count("DOES NOT HOLD") == status


def test_what_is_outside_by_chance_in_a_short_run_is_decided_by_a_long_one(run):
    assert run({"one": in_the_first(20)}, 20) == (0, {"one": 500})


def test_what_the_page_says_does_not_hold_is_no_news(run, capsys):
    assert run({"one": lambda draw: {"wrong": 1.0}}, 500)[0] == 1
    assert run({"one": lambda draw: {"wrong": 1.0}, "new": lambda draw: {"wrong": 0.0}}, 20)[0] == 0
    assert "does not hold, as before" in capsys.readouterr().out
    assert run({"one": lambda draw: {"wrong": 1.0}, "new": lambda draw: {"wrong": 1.0}}, 20)[0] == 1
