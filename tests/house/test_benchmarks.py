"""The committed benchmark documents say what their commands make, and keep what we promise of them."""

from __future__ import annotations

import cProfile
import csv
import json
import pstats
import re
import subprocess
import sys
from pathlib import Path

import pytest
from job_helpers import DATA, needs_data

from harness.config import ROOT
from harness.errors import UserError

sys.path.append(str(ROOT / "benchmarks"))

import cards
import plan
import table as benchmark
from programs import page

from harness.record import read_study
from harness.report.tables.table import comparison
from harness.sweep.estimates import times

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


# Programs whose measurements others published

COLUMNS = [
    *("source", "model", "method", "rank", "targets", "micro_batch", "tokens_per_row", "gradient_checkpointing"),
    *("dtype", "attention", "notes", "hardware", "peak_bytes", "resident_bytes", "nvidia_smi_mib", "tokens_per_second"),
]
FMS = "foundation-model-stack/fms-acceleration scripts/benchmarks/refs/a100_80gb.csv"
ROW = {
    "source": FMS,
    "model": "mistralai/Mistral-7B-v0.1",
    "method": "lora",
    "rank": "16",
    "targets": "q,k,v,o",
    "micro_batch": "4",
    "tokens_per_row": "about 4096",
    "gradient_checkpointing": "true",
    "dtype": "bfloat16",
    "attention": "flash_attention_2",
    "notes": "plain Trainer",
    "hardware": "A100-80GB",
    "peak_bytes": "26704571904",
    "resident_bytes": "14664493056",
}


def off(row: dict, which: str) -> float:
    return abs(row[f"predicted_{which}"] / row[which] - 1)


def written(root: Path, *rows: dict[str, str], columns: list[str] = COLUMNS) -> str:
    (root / "published_memory").mkdir()
    with (root / "published_memory" / "training_memory.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(rows)
    return str(root)


def test_the_page_of_published_programs_is_its_record():
    assert (ROOT / "docs" / "plan.md").read_text(encoding="utf-8") == page.page(PUBLISHED + FURTHER)


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


@pytest.mark.slow
def test_published_programs_are_predicted_anew_as_recorded(tmp_path, capsys):
    litgpt = ROW | {"source": "Lightning-AI/litgpt config_hub/finetune/README.md", "rank": "32", "targets": "q,v"}
    litgpt |= {"model": "meta-llama/Llama-3.1-8B", "micro_batch": "?", "tokens_per_row": "up to 512 (Alpaca)"}
    litgpt |= {"gradient_checkpointing": "false", "hardware": "A10G-24GB", "resident_bytes": "", "notes": ""}
    fused = {"method": "qlora", "notes": "accelerated-peft-bnb-foak (fused kernels)", "peak_bytes": "14115336192"}
    tuned = ROW | {"source": "pytorch/torchtune README.md", "model": "meta-llama/Llama-3.2-3B", "method": "full"}
    tuned |= {"micro_batch": "2", "tokens_per_row": "4096", "rank": "", "targets": "", "resident_bytes": ""}
    tuned |= {"notes": "cumulative: + chunked cross-entropy", "gradient_checkpointing": "false"}
    tuned |= {"peak_bytes": "46063524249"}
    packed = litgpt | {"method": "qlora", "model": "mistralai/Mistral-7B-v0.1", "rank": "?", "targets": "?"}
    packed |= {"micro_batch": "2", "peak_bytes": "14290000000"}
    rows = [ROW, ROW | fused | {"resident_bytes": ""}, litgpt | {"peak_bytes": "19730000000"}, packed, tuned]
    plan.main(["published", "--data-root", written(tmp_path, *rows)])
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split("|")[6].strip() for line in lines if line.startswith("|") and "GiB" in line}
    names = ("peak", "method", "model")
    recorded = [next(r for r in PUBLISHED if str(r["peak"]) == row["peak_bytes"]) for row in rows]
    assert [[r[n] for n in names[1:]] for r in recorded] == [[row[n] for n in names[1:]] for row in rows]
    assert shown == {f"{row['predicted_peak'] / row['peak'] - 1:+.2%}" for row in recorded}


@pytest.mark.slow
def test_rows_that_can_not_be_predicted_say_why_and_lose_no_other(tmp_path, capsys):
    wrong = {
        "hardware must be A100-80GB, .*, got TPU.": {"hardware": "TPU"},
        "A prediction requires micro_batch and tokens_per_row.": {"micro_batch": "?"},
        "A prediction of an adapter requires rank and targets.": {"rank": "?"},
        "source must begin with one of .*, got somebody/else README.md.": {"source": "somebody/else README.md"},
        "model must be one whose dimensions are known .*, got a/b.": {"model": "a/b"},
        "method must be full, lora or qlora, got ia3.": {"method": "ia3"},
    }
    rows = [ROW | {"method": "full", "peak_bytes": "72434837504", "resident_bytes": "43467876352"}]
    plan.main(["published", "--data-root", written(tmp_path, *rows, *(ROW | part for part in wrong.values()))])
    out = capsys.readouterr().out
    assert out.count("No prediction: ") == len(wrong)
    for message in wrong:
        assert re.search(f"No prediction: {message}", out), out
    assert "-0.00%" in out


@pytest.mark.parametrize(
    ("columns", "row", "says"),
    [
        ([*COLUMNS, "colour"], {}, "training_memory.csv has the unknown column colour; known are source, .*"),
        (COLUMNS[:-1], {}, "training_memory.csv requires the column tokens_per_second."),
        (
            COLUMNS,
            {"micro_batch": "many"},
            "training_memory.csv, row 1: micro_batch must be a number or [?], got many.",
        ),
        (COLUMNS, {"peak_bytes": "?"}, "training_memory.csv, row 1 requires peak_bytes."),
    ],
)
def test_a_malformed_file_of_measurements_is_one_sentence(tmp_path, columns, row, says):
    from programs import rows

    root = Path(written(tmp_path, ROW | row, columns=columns))
    with pytest.raises(UserError, match=f"^{says}$"):
        rows.read(root / "published_memory" / "training_memory.csv")


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


@pytest.mark.slow
def test_the_benchmark_of_tables_runs():
    command = [sys.executable, "benchmarks/table.py", "--records", "30", "--repeats", "1"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    assert [row[0] for row in cells(made.stdout)] == ["30"]


def test_the_factor_of_times_and_its_page_are_of_the_published_runs():
    rows = json.loads(cards.RECORD.read_text(encoding="utf-8"))
    assert cards.slower(rows) == (times.SLOWER, times.SLOWER_FROM, times.SLOWER_TO)
    assert {row["card"] for row in rows} == {"a100_80", "l40s"}
    made = cards.PAGE.read_text(encoding="utf-8")
    assert cards.page(rows, made) == made
