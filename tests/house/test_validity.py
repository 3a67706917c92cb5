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


@pytest.mark.parametrize(("wrong", "status"), [(0.0, 0), (1.0, 1)])
def test_a_situation_that_does_not_hold_is_the_exit_status(tmp_path, monkeypatch, capsys, wrong, status):
    monkeypatch.setattr(
        validity, "SITUATIONS", {"one": lambda draw: {"wrong": wrong}, "two": lambda draw: {"wrong": 0.0}}
    )
    monkeypatch.setattr(validity, "MEASURED", tmp_path / "validity.json")
    monkeypatch.setattr(validity, "DOCUMENT", tmp_path / "VALIDITY.md")
    assert validity.main(["--studies", "20"]) == status
    assert capsys.readouterr().out.count("DOES NOT HOLD") == status
    assert len(json.loads(validity.MEASURED.read_text())) == 2
