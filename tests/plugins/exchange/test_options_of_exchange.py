"""Options of the commands that take results of others and hand over ours, on published studies."""

from __future__ import annotations

import json

import hub
import pytest
from peft_result import RUN
from tested_settings import lines

from harness.config import ROOT

AT = "--results-dir {root}/results/reference"
STUDY = f"--study quickstart {AT}"


@lines(
    f"export {STUDY} --out theirs --format text",
    f"export {STUDY} --out theirs --format json",
    "import peft published/lora.json --study peft --results-dir imported",
    "import lm-eval theirs --study evaluated --results-dir imported",
)
@pytest.mark.long
def test_a_study_is_exported_and_imported(run, tmp_path):
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "lora.json").write_text(json.dumps(RUN))
    run(root=ROOT)
    assert len(list((tmp_path / "theirs").rglob("results_*.json"))) == 6
    assert list((tmp_path / "imported" / "peft").glob("*.json"))
    assert list((tmp_path / "imported" / "evaluated").glob("*.json"))


@lines(
    f"push-study quickstart me/quickstart {AT} --public --format json",
    f"push-study quickstart me/two {AT} --format text",
)
def test_a_study_is_uploaded(run, monkeypatch):
    with hub.uploads(monkeypatch) as taken:
        run(root=ROOT)
    assert [made["visibility"] for made in taken.made] == ["public", "private"]
    assert "cells.parquet" in taken.sent
