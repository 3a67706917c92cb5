"""GPU.md: one line per check and their tables, from the study's records and its `checks.jsonl` alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from tabulate import tabulate

from harness import units
from harness.errors import UserError
from harness.record import Record, decode, read_study

from .bench import Check

CHECKS = "checks.jsonl"  # one JSON object a line, in the order of the runs; not *.json, which is a record
BYTES = {"peak", "predicted", "measured", "tensors", "reserved", "our peak", "its peak", "peak of each"}
BYTES |= {"weights", "adapters", "gradients", "optimizer", "rest", "allocated", "largest_free"}
PERCENT = {"difference", "time off", "peak off", "share", "last", "first"}
SHOWN: dict[type, Callable[[Any], str]] = {bool: lambda v: "yes" if v else "no", str: str, dict: str}


def add(check: Check, folder: Path) -> None:
    with open(folder / CHECKS, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(check)) + "\n")


def read(folder: Path) -> list[Check]:
    """The checks recorded in `folder`, the latest of each name. Raises UserError if there are none."""
    try:
        lines = (folder / CHECKS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"--render requires recorded checks; {folder / CHECKS} does not exist.") from None
    checks = [decode(Check, json.loads(line)) for line in lines]
    return list({check.name: check for check in checks}.values())


def document(folder: Path) -> str:
    """GPU.md of the study in `folder`."""
    checks, (records, _) = read(folder), read_study(folder)
    counts = [(status, sum(check.status == status for check in checks)) for status in ("passed", "failed", "skipped")]
    lines = [[c.name, c.about, c.status, c.detail.replace("|", "\\|"), f"{c.seconds:.0f} s"] for c in checks]
    out = ["# GPU checks", "", "Written by `make gpu`.", *_where(records), ""]
    out += [", ".join(f"{n} {status}" for status, n in counts if n) + ".", ""]
    out += [_table(lines, ["Check", "What it checks", "Result", "Detail", "Time"]), ""]
    if records:
        out += [
            "## Records",
            "",
            _cells(records),
            "",
            "Peaks: CUDA's allocator; on a CPU, counted tensors.",
            "",
        ]
    for check in checks:
        if check.rows:
            out += [f"## {check.name.capitalize()}", "", _rows(check.rows), ""]
    return "\n".join(out)


def _where(records: list[Record]) -> list[str]:
    if not records:
        return []
    latest = max(records, key=lambda record: record.started)
    device, versions, git = (latest.environment[key] for key in ("device", "versions", "git"))
    name = device["name"] or latest.environment["cpu"]["name"]
    parts = [name]
    if device["type"] == "cuda":
        parts += [units.size(device["memory_bytes"]), f"driver {device['driver']}", f"CUDA {device['cuda']}"]
    packages = ("torch", "transformers", "peft", "bitsandbytes", "lm_eval")
    parts += [f"{package} {str(versions[package]).partition('+')[0]}" for package in packages]
    parts += [f"harness commit {git['commit'][:12]}"] if git else []
    return ["", f"{', '.join(parts)}; model {latest.cell.model}; {latest.started[:10]}."]


def _cells(records: list[Record]) -> str:
    """One row per record: speed, losses, and the peak of each phase."""
    phases = list(dict.fromkeys(name for record in records for name in record.phases))
    rows = []
    for record in records:
        training = record.train
        row = [record.cell.name, record.status, f"{record.seconds:.0f} s"]
        row += [
            f"{training.tokens_per_second_steady:,.0f}" if training else "–",
            f"{training.loss[0].loss:.3f} → {training.loss[-1].loss:.3f}" if training else "–",
            units.size(sum(astuple(record.probe.peak))) if record.probe else "–",
        ]
        peaks = (record.phases[name].memory.allocated_peak if name in record.phases else None for name in phases)
        rows.append([*row, *("–" if peak is None else units.size(peak) for peak in peaks)])
    head = ["cell", "status", "time", "tokens/s", "loss", "tensors in the probe", *(f"peak: {name}" for name in phases)]
    return _table(rows, head)


def _rows(rows: list[dict[str, Any]]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return _table([[_shown(key, row.get(key)) for key in keys] for row in rows], keys)


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if type(value) in SHOWN:
        return SHOWN[type(value)](value).replace("|", "\\|")
    if key in BYTES:
        return units.size(value)
    if key in PERCENT:
        return f"{value:+.1%}" if key != "share" else f"{value:.0%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _table(rows: list[list[str]], head: list[str]) -> str:
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)
