"""The committed benchmark documents say what their commands make, and keep what we promise of them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from job_helpers import DATA, needs_data

from harness.config import ROOT

PLAN = ROOT / "benchmarks" / "PLAN.md"


def rows(text: str) -> list[list[str]]:
    """The cells of all tables' rows, heads left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[-1].endswith("%")]


@pytest.mark.slow
@needs_data
def test_plan_keeps_within_what_we_promise():
    command = [sys.executable, "benchmarks/plan.py", "--peft", str(DATA / "peft_results")]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    assert made.stdout == PLAN.read_text(encoding="utf-8")


def test_predictions_are_near_the_measurements():
    ours, savers, published = re.split(r"^## Llama", PLAN.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {row[0] for row in rows(ours)} == {"base", "full", "lora", "qlora", "dora", "galore"}
    assert len(rows(ours)) == 2 * 6
    assert len(rows(published)) == 3
    for table, most in ((ours, 5), (published, 3)):
        for row in rows(table):
            assert abs(float(row[-1].removesuffix("%"))) <= most, row
    peaks = {
        found[1]: float(found[2]) for found in re.finditer(r"^\| (\w+) .*\| ([\d.]+) GiB +\|$", savers, re.MULTILINE)
    }
    assert peaks["qlora"] < 8
    assert peaks["lora"] < 17


def cells(text: str) -> list[list[str]]:
    """The rows of benchmarks/TABLE.md."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if " s |" in line]


def test_tables_of_many_records_keep_within_what_we_promise():
    few, more, many = cells((ROOT / "benchmarks" / "TABLE.md").read_text(encoding="utf-8"))
    assert [few[0], more[0], many[0]] == ["100", "1,000", "10,000"]
    seconds = [float(row[2].removesuffix(" s")) for row in (few, more, many)]
    assert float(many[1].removesuffix(" s")) < 10
    assert many[4].endswith(" MiB")
    assert seconds[2] - seconds[0] < 1.5 * 11 * (seconds[1] - seconds[0])  # 11 times if linear, 101 if quadratic


@pytest.mark.slow
def test_the_benchmark_of_tables_runs():
    command = [sys.executable, "benchmarks/table.py", "--records", "30", "--repeats", "1"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    assert [row[0] for row in cells(made.stdout)] == ["30"]
