"""Shows how studies stand as that changes, until nothing runs and nothing is left.

A terminal has the table drawn anew in its place; elsewhere (a file, a pipe) each change of a cell's state is a line.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence

from harness.studies.status import Standing, lines

SECONDS = 2.0  # between two looks


def watch(look: Callable[[], list[Standing]], seconds: float = SECONDS) -> list[Standing]:
    """Show what `look` sees, every `seconds`, on standard output; returns what it saw last. Ctrl-C ends it in order."""
    show = Screen() if sys.stdout.isatty() else Changes()
    standings = look()
    try:
        show(standings)
        while not all(standing.over for standing in standings):
            time.sleep(seconds)
            standings = look()
            show(standings)
    except KeyboardInterrupt:
        pass
    return standings


class Screen:
    """Draws all of it over what it drew before, as far as the terminal has room."""

    def __init__(self) -> None:
        self._drawn = 0

    def __call__(self, standings: Sequence[Standing]) -> None:
        width, height = shutil.get_terminal_size()
        text = [line for standing in standings for line in lines(standing)]
        if len(text) >= height:
            hidden = len(text) - height + 2
            text = [*text[: height - 2], f"… and {hidden} more lines: without --watch all are shown"]
        up = f"\x1b[{self._drawn}F" if self._drawn else ""  # to the start of the first line that was drawn
        sys.stdout.write(up + "\x1b[J" + "".join(f"{line[:width]}\n" for line in text))
        sys.stdout.flush()
        self._drawn = len(text)


class Changes:
    """Prints all of it once, then a line for each cell whose state is another."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, str], str] | None = None

    def __call__(self, standings: Sequence[Standing]) -> None:
        cells = {(standing.study, cell.cell): cell for standing in standings for cell in standing.cells}
        if self._states is None:
            text = [line for standing in standings for line in lines(standing)]
        else:
            changed = {key: cell for key, cell in cells.items() if self._states.get(key) != cell.state}
            clock = time.strftime("%H:%M:%S")
            text = [
                f"{clock} {study}/{name} {cell.state}" + (f": {cell.reason}" if cell.reason else "")
                for (study, name), cell in changed.items()
            ]
        if text:
            print("\n".join(text), flush=True)
        self._states = {key: cell.state for key, cell in cells.items()}
