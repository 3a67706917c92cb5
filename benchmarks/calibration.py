"""Proves `harness calibrate` on this machine: ten cells of different shapes, their times by plan and as they ran.

    python benchmarks/calibration.py            # about ten minutes on two idle cores
    python benchmarks/calibration.py --write    # and benchmarks/CALIBRATION.md

Run it where nothing else runs. Three kinds of cells are calibrated, in one shape; the ten that run differ from it in
method, rank, batch, length or checkpointing. Each runs three times on the same batches, and each step's least time
counts: what disturbs a step makes it longer. Exit status 1 if a cell is more than 15% off.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

import harness
from harness.config import ROOT
from harness.record import calibrations

PAGE = ROOT / "benchmarks" / "CALIBRATION.md"
WITHIN = 0.15
RUNS = 3
Settings = dict[str, Any]
COMMON: Settings = {"model": "smollm2_135m", "data": "wordmath", "eval.tasks": [], "infer.repeats": 0}
COMMON |= {"train.max_steps": 8, "train.validation_items": 2}
CALIBRATED: Settings = {"method": "lora,full,dora", "train.batch_size": 4, "train.max_length": 256}
CELLS: tuple[Settings, ...] = (
    {"method": "lora", "rank": 8, "train.batch_size": 1},
    {"method": "lora", "rank": 16, "train.batch_size": 2},
    {"method": "lora", "rank": 64, "train.batch_size": 4},
    {"method": "lora", "rank": 16, "train.batch_size": 8},
    {"method": "lora", "rank": 16, "train.batch_size": 2, "train.grad_accum": 3},
    {"method": "lora", "rank": 16, "train.batch_size": 4, "train.gradient_checkpointing": True},
    {"method": "full", "train.batch_size": 1},
    {"method": "full", "train.batch_size": 6},
    {"method": "dora", "rank": 8, "train.batch_size": 2},
    {"method": "dora", "rank": 32, "train.batch_size": 6},
)


@dataclass(frozen=True)
class Compared:
    """Seconds of a step of a cell, as planned and as it ran."""

    cell: str
    planned: float
    measured: float

    @property
    def error(self) -> float:
        return self.planned / self.measured - 1


def compare(folder: Path, common: Settings, calibrated: Settings, cells: Sequence[Settings]) -> list[Compared]:
    """Calibrate below `folder`, then plan and run each of `cells` there."""
    calibrating = {"results_dir": str(folder / "calibrated")}
    typed = [f"{name}={value}" for name, value in (common | calibrated | calibrating).items()]
    subprocess.run([sys.executable, "-m", "harness", "calibrate", *typed], check=True)
    planned = [_planned(common | cell | calibrating) for cell in cells]
    measured = [_measured(common | cell, folder) for cell in cells]
    names = [" ".join(f"{name}={value}" for name, value in cell.items()) for cell in cells]
    return [Compared(*of) for of in zip(names, planned, measured, strict=True)]


def _planned(settings: Settings) -> float:
    row = harness.plan(settings=settings, quiet=True).iloc[0]
    return float(row["seconds"]) / settings["train.max_steps"]


def _measured(settings: Settings, folder: Path) -> float:
    """Seconds of a step: the mean over the steady ones, each the least of RUNS runs on the same batches."""
    runs = []
    for number in range(RUNS):
        train = harness.run(settings=settings | {"results_dir": str(folder / f"run{number}")}, quiet=True).train
        if train is None:
            raise RuntimeError(f"{settings} was not trained")
        runs.append([train.step_seconds[step] for step in train.steady_steps()])
    return statistics.mean(map(min, zip(*runs, strict=True)))


def page(rows: list[Compared], device: str) -> str:
    cells = [[row.cell, f"{row.planned:.3f} s", f"{row.measured:.3f} s", f"{row.error:+.0%}"] for row in rows]
    found = [abs(row.error) for row in rows]
    within = sum(error <= WITHIN for error in found)
    return "\n".join(
        [
            "# Times by calibration",
            "",
            f"Made by `python benchmarks/calibration.py --write` on {device}: SmolLM2-135M, calibrated in 4 × 256",
            f"tokens of lora, full and dora. {within} of {len(rows)} cells are within {WITHIN:.0%}, the median error",
            f"is {statistics.median(found):.0%}. Seconds are of a step, each the least of {RUNS} runs.",
            "",
            tabulate(cells, ["cell", "planned", "measured", "error"], "pipe", disable_numparse=True),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(Path(folder), COMMON, CALIBRATED, CELLS)
        (calibration,) = calibrations(Path(folder) / "calibrated")
    text = page(rows, " ".join(map(str, calibration.device[1:2])))
    print(text, end="")
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
    sys.exit(int(max(abs(row.error) for row in rows) > WITHIN))


if __name__ == "__main__":
    main()
