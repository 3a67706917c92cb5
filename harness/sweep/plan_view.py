"""What `plan` shows: a table of the points of a grid, with bars of memory on a terminal, and how it was obtained."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from harness import terminal, units
from harness.sweep import micro_batch
from harness.sweep.cell_status import duration
from harness.sweep.planner import Plan, Planned, Speed
from harness.sweep.runner import BESIDE, TIGHT
from harness.terminal import FittedColumn

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

HELD = ("weights", "adapters", "optimizer")  # between steps, and as much at the peak
PASSING = ("gradients", "activations")
NAMES = {"cpu": "the CPU's", "cuda": "CUDA's"}
COLUMNS = (
    FittedColumn("cell", 0, least=26),
    FittedColumn("trainable", 5, right=True),
    FittedColumn("resident", 6, right=True),
    FittedColumn(" / ".join(HELD), 8, right=True),
    FittedColumn("peak", 1, right=True),
    FittedColumn("+ " + " / ".join(PASSING), 9, right=True),
    FittedColumn("FLOPs", 7, right=True),
    FittedColumn("time", 3, right=True),
    FittedColumn("fits", 1),
    FittedColumn("batch ≤", 4, right=True),
)
BAR = FittedColumn("memory", 2)
WIDTHS = (48, 24, 12)  # of bars; the widest that leaves room for what is more important
KINDS = {"weights": ("█", "blue"), "adapters": ("▓", "magenta"), "optimizer": ("▒", "yellow")}
KINDS |= {"gradients": ("░", "red"), "activations": ("▪", "green"), "overhead": ("·", "dim")}


def lines(plan: Plan, results: Path, throughput: float | None) -> list[str]:
    """The table as plain lines, with notes on how its figures were obtained.

    throughput: raw tokens/s to assume for every cell (None: from records of the same device).
    """
    speed = Speed(results, plan.environment, plan.kernels)
    rows = [_row(plan, point, speed, throughput) for point in plan.predicted]
    header = [column.header for column in COLUMNS]
    out = tabulate(rows, header, "simple", disable_numparse=True).splitlines() if rows else []
    out += [""] if rows else []
    notes = [line for note in _notes(plan, speed, throughput) for line in textwrap.wrap(note, 110)]
    return out + _outside(plan) + notes


def view(plan: Plan, results: Path, throughput: float | None, width: int) -> list[RenderableType]:
    """The same for a terminal of `width` characters: the columns that fit, and bars of memory by kind."""
    from rich.text import Text

    speed = Speed(results, plan.environment, plan.kernels)
    rows = [_row(plan, point, speed, throughput) for point in plan.predicted]
    parts: list[RenderableType] = []
    if rows:
        spare = width - min(terminal.needed(COLUMNS[:1], rows), 30) - 24
        size = next((size for size in WIDTHS if size <= spare), WIDTHS[-1])
        columns = [COLUMNS[0], BAR, *COLUMNS[1:]]
        barred = [[row[0], bar(plan, point, size), *row[1:]] for row, point in zip(rows, plan.predicted, strict=True)]
        table, left_out = terminal.fitted(columns, barred, width)
        parts += [table, Text(""), _legend(plan)]
        if left_out:
            parts.append(Text(f"Not shown at this width: {', '.join(left_out)}.", style="dim"))
        parts.append(Text(""))
    return parts + [Text(sentence) for sentence in (*_outside(plan), *_notes(plan, speed, throughput))]


def bar(plan: Plan, point: Planned, size: int) -> Text:
    """The peak by kind, `size` characters for the largest peak or the budget, which is a line."""
    from rich.text import Text

    scale = max([plan.budget, *(other.peak + BESIDE for other in plan.predicted)]) / size
    limit = min(size - 1, round(plan.budget / scale))
    cells: list[tuple[str, str]] = []
    reached = 0.0
    for kind, (character, style) in KINDS.items():
        reached += BESIDE if kind == "overhead" else point.prediction["peak"][kind]
        cells += [(character, style)] * (round(reached / scale) - len(cells))
    cells += [(" ", "")] * (size - len(cells))
    cells[limit] = ("|", "bold")
    return Text.assemble(*cells[:size])


def _legend(plan: Plan) -> Text:
    from rich.text import Text

    parts: list[str | tuple[str, str]] = []
    for kind, (character, style) in KINDS.items():
        parts += [(character, style), f" {kind}  "]
    return Text.assemble(*parts, ("|", "bold"), f" {units.size(plan.budget)}")


def _row(plan: Plan, point: Planned, speed: Speed, throughput: float | None) -> list[str]:
    p, seconds = point.prediction, speed.seconds(point, throughput)
    return [
        point.name,
        f"{units.count(p['trainable'])} ({100 * p['trainable'] / p['total']:.3g}%)",
        units.size(sum(p["resident"].values())),
        " / ".join(_short(p["resident"][kind]) for kind in HELD),
        units.size(point.peak),
        " / ".join(_short(p["peak"][kind]) for kind in PASSING),
        units.count(p["flops"]),
        "–" if seconds is None else duration(seconds),
        _fit(plan, point),
        _batch(point),
    ]


def _outside(plan: Plan) -> list[str]:
    """Sentences on the points without a row, and on what makes points fit."""
    out = []
    for point in plan.points:
        if "impossible" in point.prediction:
            out.append(f"Impossible: {point.name}: {point.prediction['impossible']}")
        if "unknown" in point.prediction:
            out.append(f"Not predicted: {point.name}: {point.prediction['unknown']}")
    return out + plan.remedies + ([""] if plan.remedies else [])


def _fit(plan: Plan, point: Planned) -> str:
    if not plan.fits(point):
        return "no"
    return "yes" if point.peak + BESIDE <= TIGHT * plan.budget else "tight"


def _batch(point: Planned) -> str:
    """The largest train.batch_size that fits; with train.batch_size=auto the micro-batch × the accumulation."""
    size = point.prediction["micro_batch"]
    if size is not None:
        taken = micro_batch.planned(point.cell, point.prediction)
        return f"auto: {taken.batch_size} × {taken.grad_accum}"
    largest = point.prediction["largest_batch"]
    return "–" if largest is None else str(largest)


def _notes(plan: Plan, speed: Speed, throughput: float | None) -> list[str]:
    notes, possible = [], plan.predicted
    shapes = {tuple(p.prediction["shape"][k] for k in ("sequences", "tokens", "real")) for p in possible}
    for sequences, tokens, real in sorted(shapes):
        source = "from the data" if real else "assumed: each sequence of train.max_length tokens, all in the loss"
        notes.append(f"Largest batch: {sequences} sequences, {tokens} tokens ({source}).")
    if possible:
        precisions = ", ".join(sorted({p.prediction["precision"] for p in possible}))
        notes.append(
            f"Memory: live tensors, in {precisions} with {NAMES[plan.kernels]} kernels. A cell fits if they and "
            f"{units.size(BESIDE)} of overhead are within {units.size(plan.budget)}; above {TIGHT:.0%} it is tight. "
            "batch ≤: the largest train.batch_size that fits; for auto, the micro-batch × the accumulation."
        )
        if plan.kernels == "cuda":
            notes.append("Tables show the allocator's peak, which has kernels' workspaces and rounding beside tensors.")
        if (plan.environment.get("versions") or {}).get("liger-kernel"):
            notes.append("The loss is predicted in the harness's own chunks; on CUDA, liger-kernel chooses others.")
        if any(p.cell.settings.train.compile for p in possible):
            notes.append(
                "Cells with train.compile=true are counted as uncompiled: torch.compile may change their activations "
                "and their time."
            )
        if any(p.cell.settings.method.paged for p in possible):
            notes.append(
                "Moments in paged memory are left out, as CUDA moves them to the host when memory is short: 8 bytes "
                "per trained weight, about 2 with method.adamw=paged_8bit."
            )
        if throughput is not None:
            notes.append(f"Time: training steps, at {throughput:g} tokens/s.")
        elif speed.used:
            notes.append(
                f"Time: training steps, estimated from {len(speed.used)} records of this device that ran alone, of a "
                "like size."
            )
        else:
            notes.append(
                "Time: unknown without records of this device that ran alone and are of a like size; --throughput sets "
                "a rate."
            )
    return notes


def _short(n: float) -> str:
    """Bytes in short form, such as 1.5G, for lists."""
    return "0" if not n else units.size(n).replace(" GiB", "G").replace(" MiB", "M").replace(" KiB", "K")
