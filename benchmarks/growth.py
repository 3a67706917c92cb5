"""Growth of time and memory with the number of cells, with rank, length and batch, and with items. Renders GROWTH.md.

    python benchmarks/growth.py cells parent steps scoring   # about 45 minutes on 2 idle cores
    python benchmarks/growth.py records                      # about 10 minutes, and 3 GB of disk
    python benchmarks/growth.py                              # renders again from saved measurements

cells     sweeps of 10, 100 and 1,000 seeds of the tiny model; each cell takes one step and scores nothing
parent    the same sweeps of 1,000 and 10,000 seeds, whose cells are copies of one real record: standing_in.py
steps     a LoRA step on SmolLM2-135M: the median of three after a warm-up, and the peak of live tensors in one more
scoring   SmolLM2-135M answers word problems, by lm-eval's HFLM and by our engine
records   `table` of 100, 1,000 and 10,000 records of 60 steps, and `report` of two cells with 1 GB of items each
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import large_studies
import speed
from speed import HERE, MEASURED, composed, kept, timed
from speed_page import OWN, WALL, provenance
from tabulate import tabulate

from harness import units
from harness.config import ROOT
from harness.job.data import encoding
from harness.job.evaluate import scoring
from harness.job.measure import device
from harness.job.measure.live_memory import LiveBytes
from harness.job.models import loading
from harness.settings import AUTO
from harness.sweep import app

EMPTY = (
    *("method=lora", "model=tiny", "rank=4", "train.max_steps=1", "train.batch_size=1", "train.validation_items=1"),
    *("eval.tasks=[]", "infer.repeats=0", "+data.load.train=64", "+data.load.validation=8"),
)
RANK, LENGTH, BATCH = 16, 256, 4
GRID = [*((rank, LENGTH, BATCH) for rank in (4, 16, 64, 256))]
GRID += [*((RANK, length, BATCH) for length in (64, 128, 512, 1024)), *((RANK, LENGTH, size) for size in (1, 2, 8, 16))]


def cells() -> list[dict[str, Any]]:
    rows = []
    for count in (10, 100, 1000):
        with tempfile.TemporaryDirectory() as folder:
            sweep = [sys.executable, "-m", "harness", "sweep", *EMPTY, f"seed=range({count})", f"results_dir={folder}"]
            # The parent's own peak, of neither its holder nor its jobs, which a wrapper can't see. Linux tells it here;
            # what getrusage tells is at least what this process, which starts it, had.
            told = "import runpy, sys, atexit\natexit.register(lambda: print('peak', next(line for line in "
            told += "open('/proc/self/status') if line.startswith('VmHWM')).split()[1], file=sys.stderr))\n"
            told += "sys.argv = sys.argv[1:]\nrunpy.run_module('harness', run_name='__main__', alter_sys=True)"
            command = [sys.executable, "-c", told, *sweep[2:]]
            start = time.perf_counter()
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            seconds = time.perf_counter() - start
        peak = next(line for line in reversed(done.stderr.splitlines()) if line.startswith("peak "))
        rows.append({"cells": count, "seconds": seconds, "parent": int(peak.split()[1]) * 1024})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def parent() -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        run = [sys.executable, "-m", "harness", "run", *EMPTY, "seed=0", f"results_dir={folder}/real"]
        subprocess.run(run, cwd=folder, env=environment, check=True, capture_output=True)
        (example,) = Path(folder, "real", "adhoc").glob("*.json")
        for count in (1000, 10_000):
            sweep = ["sweep", *EMPTY, f"seed=range({count})", f"results_dir={folder}/{count}"]
            command = [sys.executable, str(HERE / "standing_in.py"), str(example), *sweep]
            done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
            rows.append({"cells": count} | json.loads(done.stderr.splitlines()[-1]))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def steps() -> list[dict[str, Any]]:
    rows = []
    for rank, length, size in GRID:
        side = speed.OurSide("lora", "wordmath", f"rank={rank}")
        batch = [encoding.Example(list(range(1000, 1000 + length)), length // 2)] * size
        side.step(batch)
        seconds = median(timed(partial(side.step, batch)) for _ in range(3))
        with LiveBytes(device.here()) as live:
            live.see([list(side.net.parameters()), list(side.net.buffers())])
            live.see([v for state in side.optimizer.state.values() for v in state.values()])
            side.step(batch)
        rows.append({"rank": rank, "length": length, "batch": size, "seconds": seconds, "peak": live.peak})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def scored() -> list[dict[str, Any]]:
    cell = composed("model=smollm2_135m", "method=base", "data=wordmath_short", "train.precision=fp32")
    net, tokenizer = loading.load(cell, device.here()), loading.tokenizer(cell.settings.model)
    rows = []
    for items in (20, 40, 80, 160):
        tasks = scoring.Tasks(dataclasses.replace(cell.settings.eval, limit=items), None)
        size = cell.settings.eval.batch_size or AUTO  # null behind an API alone
        row: dict[str, Any] = {"items": items}
        for name, ours in (("stock", False), ("ours", True)):
            row[name] = timed(partial(scoring.score, net, tokenizer, tasks, size, None, speedups=ours))
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    return rows


def records() -> list[dict[str, Any]]:
    rows = []
    for count in (100, 1_000, 10_000):
        with tempfile.TemporaryDirectory() as folder:
            large_studies.write_copies(Path(folder) / "copies", count)
            row = {"study": f"{count:,} records", "command": "table"}
            rows.append(row | _of_command("table", "--results-dir", folder))
    for items, length in ((20_000, 26_000), (4_000_000, 130)):
        with tempfile.TemporaryDirectory() as folder:
            size = large_studies.write_answered(Path(folder) / "answered", items, length)
            row = {"study": f"2 records, {units.size(size)} of {items:,} items each", "command": "report"}
            rows.append(row | _of_command("report", "--results-dir", folder, "--out", f"{folder}/page.html"))
    return rows


def _of_command(*command: str) -> dict[str, Any]:
    seconds, peak = large_studies.measured(*command)
    print(command[0], seconds, peak, file=sys.stderr, flush=True)
    return {"seconds": seconds, "peak": peak}


def _cells(rows: list[dict[str, Any]]) -> list[str]:
    table = [
        [f"{r['cells']:,}", f"{r['seconds']:.0f} s", f"{r['seconds'] / r['cells']:.2f} s", units.size(r["parent"])]
        for r in rows
    ]
    return [
        "Cells of the tiny model: one step, nothing scored.",
        "",
        _table(table, ["Cells", "Sweep", "A cell", "Parent's memory"]),
    ]


def _parent(rows: list[dict[str, Any]]) -> list[str]:
    table = [
        [
            f"{r['cells']:,}",
            *(units.size(r[key]) for key in ("first", "last")),
            f"{(r['last'] - r['first']) / r['cells'] / 1024:.1f} KiB",
            units.size(r["peak"]),
        ]
        for r in rows
    ]
    return [
        "Memory of a sweep's own process. Each cell is a copy of one real record; the answer in the end reads all.",
        "",
        _table(table, ["Cells", "At the first cell", "After the last", "A cell", "Peak, with the answer"]),
    ]


def _steps(rows: list[dict[str, Any]]) -> list[str]:
    table = [
        [
            *(str(r[k]) for k in ("rank", "length", "batch")),
            f"{r['seconds']:.2f} s",
            f"{r['length'] * r['batch'] / r['seconds']:.0f}",
            units.size(r["peak"]),
        ]
        for r in rows
    ]
    return [
        "LoRA on all linear layers of SmolLM2-135M; the loss covers the second half of each sequence.",
        "",
        _table(table, ["Rank", "Length", "Sequences", "Step", "Tokens/s", "Peak of tensors"]),
    ]


def _scoring(rows: list[dict[str, Any]]) -> list[str]:
    table = [[str(r["items"]), f"{r['stock']:.1f} s", f"{r['ours']:.1f} s"] for r in rows]
    return [
        "Written answers to word problems, in fp32. Stock: lm-eval's `HFLM`.",
        "",
        _table(table, ["Items", "Stock", "Ours"]),
    ]


def _records(rows: list[dict[str, Any]]) -> list[str]:
    table = [[r["study"], f"`{r['command']}`", f"{r['seconds']:.1f} s", units.size(r["peak"])] for r in rows]
    return [
        "Commands on recorded studies: processor time, and the most that was resident.",
        "",
        _table(table, ["Study", "Command", "Processor time", "Peak memory"]),
    ]


def _table(rows: list[list[str]], head: list[str]) -> str:
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


PARTS: dict[str, tuple[Callable[[], list[dict[str, Any]]], Callable[[list[dict[str, Any]]], list[str]]]] = {
    "cells": (cells, _cells),
    "parent": (parent, _parent),
    "steps": (steps, _steps),
    "scoring": (scored, _scoring),
    "records": (records, _records),
}


def rendered() -> str:
    out = ["# How time and memory grow", "", "Made by `make bench`: see `benchmarks/growth.py`.", ""]
    for part, (_, render) in PARTS.items():
        file = MEASURED / f"growth_{part}.json"
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            out += [f"## {part.capitalize()}", "", *render(found["rows"]), "", provenance(found), ""]
    return "\n".join(out)


def _measured(part: str, by: dict[str, str]) -> dict[str, Any]:
    return {"rows": PARTS[part][0]()} | by


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    speed.add_parts(parser, PARTS)
    arguments = parser.parse_args()
    app.register()
    for part in arguments.parts:
        by = {"cells": {"clock": WALL}, "records": {"clock": OWN}}.get(part, {})
        kept(f"growth_{part}", partial(_measured, part, by))
    (HERE / "GROWTH.md").write_text(rendered(), encoding="utf-8")
    print(rendered(), end="")


if __name__ == "__main__":
    main()
