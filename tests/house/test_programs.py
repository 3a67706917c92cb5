"""Others' training programs, re-implemented in benchmarks/programs, give the recorded predictions of their memory.

`make test-bench` runs these, and `make bench`. test_benchmarks.py, in each run, holds what is recorded.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pytest

from harness.config import ROOT
from harness.errors import UserError

sys.path.append(str(ROOT / "benchmarks"))

import plan
from programs import rows as measured

pytestmark = pytest.mark.bench

PUBLISHED = json.loads(plan.MEASURED["published"].read_text(encoding="utf-8"))
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


def written(root: Path, *rows: dict[str, str], columns: list[str] = COLUMNS) -> str:
    (root / "published_memory").mkdir()
    with (root / "published_memory" / "training_memory.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(rows)
    return str(root)


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
    root = Path(written(tmp_path, ROW | row, columns=columns))
    with pytest.raises(UserError, match=f"^{says}$"):
        measured.read(root / "published_memory" / "training_memory.csv")
