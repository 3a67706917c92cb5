"""The log of a cell: its last lines, and new lines as they come."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from harness.studies.find import CellRef
from harness.terminal.streams import printable

TAIL_BYTES = 8192  # searched for the last lines
SHOWN_BYTES = 2**26  # of a log's end that are shown; a received one may be a file of terabytes


def shown(line: str) -> str:
    """A line without control sequences, safe on a terminal; of a progress bar, its last state."""
    return printable(line.rstrip("\r\n").rpartition("\r")[2])


def is_log(path: Path) -> bool:
    """Whether `path` is a log. A link is none: a study that was received may have links to files elsewhere."""
    return path.is_file() and not path.is_symlink()


def tail(path: Path, lines: int) -> list[str]:
    """The last `lines` lines of a log that are not blank; none if there is no log."""
    if not is_log(path):
        return []
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in map(shown, text.split("\n")) if line.strip()][-lines:]


def follow(cell: CellRef, seconds: float = 0.5) -> Iterator[str]:
    """The lines of a cell's log, old and new, until the cell has ended; from the start again if it is rerun.

    Reads new lines every `seconds`. Of more than SHOWN_BYTES at once the last ones, after a line that says so.
    """
    position, rest = 0, b""
    while True:
        running = cell.name in cell.study.running()  # asked first, so its last lines are read
        with open(cell.log, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < position:
                position, rest = 0, b""
            if (skipped := size - SHOWN_BYTES - position) > 0:
                yield f"[{cell.log}: {skipped:,} bytes are left out; the last {SHOWN_BYTES:,} follow.]"
                position, rest = position + skipped, b""
            file.seek(position)
            new = file.read(SHOWN_BYTES)
        position += len(new)
        *whole, rest = (rest + new).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
        if not running and not new:
            break
        if not new:
            time.sleep(seconds)
    if rest:
        yield rest.decode(errors="replace")
