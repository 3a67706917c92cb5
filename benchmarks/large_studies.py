"""Studies that are larger than real ones: many records, and files of items with long texts or many rows."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness import record
from harness.config import ROOT
from harness.settings import cell_id

REFERENCE = ROOT / "results" / "reference"
TRAINED = REFERENCE / "study_alpha_fresh"  # two methods' settings with 30 seeds each, 60 steps a cell
SCORED = REFERENCE / "quickstart"
TOLD = """
import atexit, resource, runpy, sys

def tell(file):
    usage = resource.getrusage(resource.RUSAGE_SELF)
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
    print(usage.ru_utime + usage.ru_stime, peak, file=open(file, "w"))

atexit.register(tell, sys.argv.pop(1))
runpy.run_module("harness", run_name="__main__", alter_sys=True)
"""


def measured(*command: str) -> tuple[float, int]:
    """Processor seconds of a process of the command line, and the bytes that were resident at its most.

    It tells them itself, on Linux: what getrusage tells of it is at least what this process has.
    """
    with tempfile.NamedTemporaryFile() as file:
        started = [sys.executable, "-c", TOLD, file.name, *command]
        variables = os.environ | {"PYTHONPATH": str(ROOT)}
        ended = subprocess.run(started, cwd=ROOT, env=variables, capture_output=True, text=True)
        if ended.returncode > 1:  # 1: the linter has findings
            raise RuntimeError(ended.stderr)
        seconds, kib = file.read().split()
    return float(seconds), int(kib) * 1024


def write_copies(folder: Path, count: int) -> None:
    """Write `count` published records to `folder`, each under a seed of its own."""
    originals = [record.read(path) for path in sorted(TRAINED.glob("lora-*.json"))]

    def write(number: int) -> None:
        again, which = divmod(number, len(originals))
        original = originals[which]
        seed = 1000 * again + (original.cell.seed or 0)
        settings = dataclasses.replace(original.cell.settings, seed=seed)
        cell = dataclasses.replace(original.cell, seed=seed, settings=settings, id=cell_id(settings))
        cell.name = record.cell_name(cell)
        made = dataclasses.replace(original, study=folder.name, cell=cell, items_sha256=None)
        record.write(made, folder / f"{cell.name}.json")

    folder.mkdir(parents=True)
    with ThreadPoolExecutor(16) as pool:  # each waits for the disk
        list(pool.map(write, range(count)))


def write_answered(folder: Path, rows: int, length: int, methods: tuple[str, ...] = ("base", "lora")) -> int:
    """Write published records of `methods` to `folder`, each with a file of `rows` items whose questions and
    predictions have `length` characters; returns the bytes of a file."""
    draw = np.random.default_rng(0)
    for method in methods:
        (original,) = SCORED.glob(f"{method}-*.json")
        made = record.read(original)
        made.study, score = folder.name, made.scores[0]
        values = (draw.random(rows) < score.value).astype(float)
        made.scores = [dataclasses.replace(score, n=rows, value=float(values.mean()), clusters=None)]
        made.items = record.item_hashes({score.task: range(rows)})
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{made.cell.name}.items.parquet"
        _write_items(file, made.scores[0], values, length, draw)
        made.items_sha256 = record.sha256(file)
        record.write(made, folder / f"{made.cell.name}.json")
    return file.stat().st_size


def _write_items(file: Path, score: record.Score, values: np.ndarray, length: int, draw: np.random.Generator) -> None:
    same = {"task": score.task, "subject": score.task, "filter": score.filter, "metric": score.metric}
    names = [*same, "item", "hash", "value", "prediction", "target", "question"]
    numbers = {"item": pa.int64(), "value": pa.float64()}
    schema = pa.schema([(name, numbers.get(name, pa.large_string())) for name in names])
    step = max(1, 2**24 // length)
    with pq.ParquetWriter(file, schema, write_batch_size=16) as writer:
        for begin in range(0, len(values), step):
            part = values[begin : begin + step]
            items = range(begin, begin + len(part))
            columns: dict[str, Any] = {name: [text] * len(part) for name, text in same.items()}
            columns |= {"item": items, "hash": [f"{i:064x}" for i in items], "value": part}
            columns |= {"target": [str(i) for i in items]}
            for name in ("question", "prediction"):
                columns[name] = [f"{name} {draw.bytes(length // 2).hex()}" for _ in items]
            writer.write_table(pa.table({name: columns[name] for name in names}, schema), row_group_size=2**20)
