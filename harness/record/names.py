"""What cells and studies are called, and which names can be a file's."""

from __future__ import annotations

import re

from harness.record.schema import Cell

STUDY_NAME = re.compile(r"[^\W_][\w.-]*(/[^\W_][\w.-]*)*")  # a folder below results, never beside it


def cell_name(cell: Cell) -> str:
    """``lora-r16-a32-lr2e-4-s0-1f3c9a``: for people first, the id's head last; safe as a file's name."""
    parts = [re.sub(r"[^\w.]+", "_", cell.method) or "_"]
    for letter, value in (("r", cell.rank), ("a", cell.alpha), ("lr", cell.lr), ("s", cell.seed)):
        if value is not None:
            parts.append(letter + short(value))
    return "-".join([*parts, cell.id[:6]])


def names_a_file(name: str) -> bool:
    """Whether a cell's name can be a file's: one that leads to another folder is nobody's but an attacker's.

    Commands that are shown have it as a word, so it is no option either.
    """
    return name not in ("", ".", "..") and not re.search(r"^-|[/\\\x00]", name)


def short(value: float) -> str:
    """A number as people type it: 16, 0.5, 2e-4."""
    if 0 < abs(value) < 0.01:
        mantissa, exponent = f"{value:.5e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"
