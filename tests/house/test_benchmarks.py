"""The committed benchmark documents say what their commands make, and keep what we promise of them."""

from __future__ import annotations

import cProfile
import json
import pstats
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from job_helpers import DATA, needs_data

from harness.config import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import cards
import plan
import table as benchmark
from published_speed import CHECK, DEVELOP

from harness.record import read_study
from harness.report.tables.table import comparison
from harness.sweep.estimates import rates

PLAN = ROOT / "benchmarks" / "PLAN.md"
PUBLISHED = json.loads(plan.MEASURED["published"].read_text(encoding="utf-8"))
FURTHER = json.loads(plan.MEASURED["further"].read_text(encoding="utf-8"))


def rows(text: str) -> list[list[str]]:
    """The cells of all tables' rows, heads left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[-1].endswith("%")]


@pytest.mark.long
@pytest.mark.slow
@needs_data
def test_plan_keeps_within_what_we_promise():
    command = [sys.executable, "benchmarks/plan.py", "own", "--data-root", str(DATA)]
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


# Programs whose measurements others published: what was recorded of them, which test_programs.py computes anew


def off(row: dict, which: str) -> float:
    return abs(row[f"predicted_{which}"] / row[which] - 1)


def test_the_page_of_published_programs_is_its_record():
    assert (ROOT / "docs" / "plan.md").read_text(encoding="utf-8") == plan.rendered_page()


def test_resident_memory_is_within_a_hundredth_of_every_row_that_publishes_it():
    rows = [row for row in PUBLISHED + FURTHER if row["resident"]]
    assert len(rows) == 26 + 60
    for row in rows:
        assert off(row, "resident") <= 0.01, row


@pytest.mark.parametrize("rows", [PUBLISHED, FURTHER], ids=["published", "further"])
def test_peaks_are_within_five_hundredths_of_nine_rows_in_ten(rows):
    known = [r for r in rows if r["predicted_peak"] and not r["unknown"] and "ms-swift" not in r["source"]]
    assert len(known) >= 40
    assert sum(off(row, "peak") <= 0.05 for row in known) >= 0.9 * len(known)
    assert max(off(row, "peak") for row in known) < 0.1


def test_every_family_of_further_rows_is_predicted():
    families = {re.split(r"[-/]", row["model"].lower())[1] for row in FURTHER if row["predicted_peak"]}
    assert families >= {"mixtral", "powerlm", "falcon", "gemma", "phi", "stablelm", "tinyllama", "llama", "mistral"}


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


@pytest.mark.long
def test_a_table_takes_few_calls_a_record(tmp_path):
    """Calls of functions are counted, as times depend on the machine and on what else it does."""
    few, many = (_calls_of_a_table(tmp_path / f"n{n}", n) for n in (60, 240))
    assert (many - few) / 180 < MOST_CALLS


MOST_CALLS = 3_000


def _calls_of_a_table(folder: Path, records: int) -> int:
    benchmark.write_study(folder, records)
    profile = cProfile.Profile()
    profile.runcall(lambda: comparison(read_study(folder)[0]))
    return pstats.Stats(profile).total_calls


@pytest.mark.long
@pytest.mark.slow
def test_the_benchmark_of_tables_runs():
    command = [sys.executable, "benchmarks/table.py", "--records", "30", "--repeats", "1"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    assert [row[0] for row in cells(made.stdout)] == ["30"]


@pytest.mark.long
def test_the_ranges_of_times_and_their_page_are_of_the_published_runs():
    record = json.loads(cards.RECORD.read_text(encoding="utf-8"))
    assert cards.spreads(record["compared"]) == rates.SPREADS | {"": rates.SPREAD}
    made = cards.PAGE.read_text(encoding="utf-8")
    assert cards.page(record, made) == made


def test_estimated_times_agree_with_published_ones():
    rows = json.loads(cards.RECORD.read_text(encoding="utf-8"))["compared"]
    parts = [[row for row in rows if row["source"] in sources] for sources in (DEVELOP, CHECK)]
    assert sum(map(len, parts)) == len(rows) > 70
    for part, median in zip((rows, *parts), (0.15, 0.15, 0.2), strict=True):
        found = [abs(error) for error in cards.errors(part)]
        assert statistics.median(found) <= median
        assert sum(error <= cards.NEAR for error in found) >= 0.9 * len(found)
