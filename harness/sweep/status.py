"""What of a study is done, running, failed and left, from its folder alone."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from statistics import mean

from harness.record import read_study
from harness.sweep.store import Study


def describe(results: Path, name: str) -> tuple[list[str], list[str]]:
    """Lines for a terminal about the study `name` below `results`, and a sentence for each bad record.

    The time left assumes that a cell takes as long as the recorded ones of its method did on average (of
    any method, where there is none), and that cells go on running as many at a time as now, at least one.
    """
    study = Study(results, name)
    records, problems = read_study(study.folder)
    running, done = study.running(), {r.cell.id for r in records}
    left = [c for c in study.planned() if c.id not in done]
    waiting = [c for c in left if c.name not in running]
    bad = [r for r in records if r.status != "ok"]

    counts = [
        f"{len(records) - len(bad)} done",
        f"{len(running)} running",
        f"{len(bad)} failed",
        f"{len(waiting)} left",
    ]
    lines = [f"{name}: {', '.join(counts)}" + _time_left(records, left, running)]
    for cell, marker in running.items():
        progress = marker["progress"]
        where = progress.get("phase", "start")
        if "step" in progress:
            where += f" step {progress['step']} of {progress['of']}, loss {progress['loss']:.3f}, "
            where += f"{progress['tokens_per_second']:.0f} tokens/s"
        host = "" if marker["host"] == socket.gethostname() else f" on {marker['host']}"
        lines.append(f"  running  {cell}{host}: {where}, {_minutes(time.time() - marker['started'])}")
    lines += [f"  {r.status:8} {r.cell.name}: {r.failure.reason if r.failure else ''}" for r in bad]
    lines += [f"  left     {c.name}" for c in waiting]
    return lines, problems


def _time_left(records, left, running) -> str:
    seconds = [r.seconds for r in records if r.status == "ok"]
    if not left:
        return ""
    if not seconds:
        return ", time left unknown until a cell is done"
    by_method = {c.method: [r.seconds for r in records if r.cell.method == c.method and r.status == "ok"] for c in left}
    total = 0.0
    for cell in left:
        expected = mean(by_method[cell.method] or seconds)
        if cell.name in running:
            expected = max(0.0, expected - (time.time() - running[cell.name]["started"]))
        total += expected
    return f", about {_minutes(total / max(1, len(running)))} to go"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
