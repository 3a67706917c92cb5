"""The log of a cell: its last lines, and what comes to it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from harness.studies.find import Found

NEAR_END = 8192  # bytes in which the last lines are looked for
ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|.)?")  # of a terminal: colours and worse
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def shown(line: str) -> str:
    """A line as it is safe to show on a terminal; of a progress bar what it last was."""
    return CONTROL.sub("", ESCAPES.sub("", line.rstrip("\r\n").rpartition("\r")[2]))


def tail(path: Path, lines: int) -> list[str]:
    """The last `lines` of a log that are not blank; none if there is no log."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - NEAR_END))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in map(shown, text.split("\n")) if line.strip()][-lines:]


def follow(found: Found, seconds: float = 0.5) -> Iterator[str]:
    """The lines of a cell's log, old and new, until the cell runs no more; from the start again if it is run anew.

    Looks for new ones every `seconds`.
    """
    position, rest = 0, b""
    while True:
        running = found.name in found.study.running()  # asked first, so that its last words are read
        with open(found.log, "rb") as file:
            if os.fstat(file.fileno()).st_size < position:
                position, rest = 0, b""
            file.seek(position)
            new = file.read()
        position += len(new)
        *whole, rest = (rest + new).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
        if not running and not new:
            break
        if not new:
            time.sleep(seconds)
    if rest:
        yield rest.decode(errors="replace")
