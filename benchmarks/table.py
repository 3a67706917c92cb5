"""Time and memory of `harness table` for 100, 1,000 and 10,000 records of 2,000 items each.

    python benchmarks/table.py --out benchmarks/TABLE.md      # about 5 minutes on 2 cores and 2 GB of disk

The records are copies of a published one, over a grid of 5 methods, 3 seeds, 4 ranks and enough learning rates. Scores,
losses and items are random.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tabulate import tabulate

from harness import record, units
from harness.config import ROOT

(TEMPLATE,) = (ROOT / "results" / "reference" / "quickstart").glob("lora-*.json")
METHODS, SEEDS, RANKS = ["full", "lora", "qlora", "dora", "galore"], 3, [8, 16, 32, 64]
ITEMS = 2_000


def write_study(folder: Path, records: int) -> None:
    """Write `records` records with their items to `folder`."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    template = record.read(TEMPLATE)
    template.study = folder.name
    template.items = record.item_hashes({template.scores[0].task: range(ITEMS)})
    hashes = [bytes(draw.integers(256, size=32, dtype=np.uint8)).hex() for _ in range(ITEMS)]
    rates = itertools.count(1)
    grid = ((rate, *rest) for rate in rates for rest in itertools.product(METHODS, RANKS, range(SEEDS)))
    for i, (rate, method, rank, seed) in enumerate(itertools.islice(grid, records)):
        values = (draw.random(ITEMS) < 0.5).astype(float)
        name = f"{method}-r{rank}-lr{rate}e-6-s{seed}-{i:06x}"
        axes: dict[str, Any] = {"method": method, "rank": rank, "alpha": 2.0 * rank, "lr": rate * 1e-6, "seed": seed}
        template.cell = dataclasses.replace(template.cell, id=f"{i:064x}", name=name, **axes)
        template.scores[0] = dataclasses.replace(
            template.scores[0], value=float(values.mean()), stderr=float(values.std() / ITEMS**0.5), n=ITEMS
        )
        template.validation[-1].loss = float(draw.normal(1, 0.1))
        record.write(template, folder / f"{name}.json")
        (folder / f"{name}.items.parquet").write_bytes(_items(template.scores[0], hashes, values))


def _items(score: record.Score, hashes: list[str], values: np.ndarray) -> bytes:
    """A file of items, with the columns that `harness.job.evaluate.scoring` writes."""
    same = {"task": score.task, "subject": score.task, "filter": score.filter, "metric": score.metric}
    columns: dict[str, Any] = {name: [text] * len(values) for name, text in same.items()}
    answers = [f"#### {n}" for n in range(len(values))]
    columns |= {"item": range(len(values)), "hash": hashes, "value": values, "prediction": answers, "target": answers}
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def measure(results: Path, study: str) -> tuple[float, float, int]:
    """Wall seconds, processor seconds and peak resident bytes of a process of `harness table` for `study`."""
    command = [sys.executable, "-m", "harness", "table", "--study", study, "--results-dir", str(results)]
    begin = time.perf_counter()
    process = subprocess.Popen([*command, "--out", str(results / f"{study}.md")], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        raise SystemExit(f"{' '.join(command)} failed.")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, nargs="+", default=[100, 1_000, 10_000], metavar="N")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        for n in options.records:
            write_study(results / f"n{n}", n)
            runs = [measure(results, f"n{n}") for _ in range(options.repeats)]
            seconds, processor, memory = min(runs)[0], min(run[1] for run in runs), max(run[2] for run in runs)
            times = [f"{seconds:.1f} s", f"{processor:.1f} s", f"{1e3 * seconds / n:.2f} ms"]
            rows.append([f"{n:,}", *times, units.size(memory)])
    head = ["records", "time", "processor time", "time per record", "peak memory"]
    text = "\n".join(
        [
            "# Time and memory of a table",
            "",
            "Made by `python benchmarks/table.py`: whole processes of `harness table` on "
            f"{len(os.sched_getaffinity(0))} cores, which other work",
            f"may share. Shortest time and largest memory of {options.repeats} runs. A record has {ITEMS:,} items; the "
            "table reads those of the chosen settings.",
            "",
            tabulate(rows, head, "pipe", disable_numparse=True, colalign=["right"] * 5),
            "",
        ]
    )
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
