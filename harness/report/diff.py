"""The differences between two cells: settings, environment and results."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from harness import units
from harness.record import Record
from harness.report.frame import BYTES, measures, score_name
from harness.score_names import score_label
from harness.settings import plain

ABSENT = "–"
STDERR = " stderr"
Pairs = dict[str, tuple[Any, Any]]  # by dotted name, both values if they differ; None if missing


@dataclass
class CellDiff:
    """a, b: names of the cells. results are in the units of `frame`: bytes, seconds, tokens, nats, proportions."""

    a: str
    b: str
    settings: Pairs
    environment: Pairs
    results: Pairs


def difference(a: Record, b: Record, names: tuple[str, str]) -> CellDiff:
    """The differences between the cells of two records, called `names`."""
    return CellDiff(
        *names,
        settings=_pairs(dict(_leaves(plain(a.cell.settings))), dict(_leaves(plain(b.cell.settings)))),
        environment=_pairs(dict(_leaves(a.environment)), dict(_leaves(b.environment))),
        results=_pairs(_results(a), _results(b)),
    )


def text(diff: CellDiff) -> str:
    """A table for a terminal: sizes in binary units, numbers with their ratio B/A."""
    out = [f"A  {diff.a}", f"B  {diff.b}"]
    for part in ("settings", "environment", "results"):
        pairs: Pairs = getattr(diff, part)
        rows = [
            [_label(name), *_texts(name, a, b), _ratio(a, b) if part == "results" else ""]
            for name, (a, b) in pairs.items()
        ]
        header = [part, "A", "B", "B/A" if part == "results" else ""]
        table = tabulate(rows, header, "plain", disable_numparse=True) if rows else f"{part}: the same"
        out += ["", *(line.rstrip() for line in table.splitlines())]
    return "\n".join(out) + "\n"


def _results(record: Record) -> dict[str, Any]:
    out: dict[str, Any] = {"status": record.status}
    if record.failure is not None:
        out |= {f"failure.{name}": value for name, value in _leaves(dataclasses.asdict(record.failure))}
    out |= {name: value for name, value in measures(record).items() if value is not None}
    for score in record.scores:
        out |= {score_name(score): score.value, f"{score_name(score)}{STDERR}": score.stderr}
    return out


def _pairs(a: dict[str, Any], b: dict[str, Any]) -> Pairs:
    return {name: (a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name)}


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _label(name: str) -> str:
    """Of a score TASK/METRIC/FILTER what people call it; other names stay."""
    score, stderr, _ = name.partition(STDERR)
    return score_label(*score.split("/")) + stderr if score.count("/") == 2 else name


def _texts(name: str, a: Any, b: Any) -> list[str]:
    """Both values as people read them; in full where they would look the same."""
    short = [_size(value) if _in_bytes(name) else _text(value) for value in (a, b)]
    if short[0] == short[1] and isinstance(a, int | float):
        return [f"{value:,}" for value in (a, b)]
    return short


def _in_bytes(name: str) -> bool:
    return name in BYTES or name.endswith("_bytes") or name.startswith("dtypes.")


def _size(value: Any) -> str:
    return units.size(value) if isinstance(value, int | float) else _text(value)


def _text(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, float):
        return units.significant(value) if 1e-4 <= abs(value) < 1e4 else f"{value:.4g}"
    whole = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else " " for c in whole)


def _ratio(a: Any, b: Any) -> str:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
    return f"{b / a:.2f}×" if numbers and a else ""
