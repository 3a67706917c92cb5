"""Shows the status of studies as it changes, until no cell is running or left.

On a terminal the table is redrawn in place; elsewhere (a file, a pipe) each change of a cell's state is a line.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence

from harness.studies.status import StudyStatus, lines

SECONDS = 2.0  # between two reads


def watch(read: Callable[[], list[StudyStatus]], seconds: float = SECONDS) -> list[StudyStatus]:
    """Print what `read` returns, every `seconds`; returns the last status. Ctrl-C ends it in order."""
    show = Screen() if sys.stdout.isatty() else Changes()
    studies = read()
    try:
        show(studies)
        while not all(study.over for study in studies):
            time.sleep(seconds)
            studies = read()
            show(studies)
    except KeyboardInterrupt:
        pass
    return studies


class Screen:
    """Redraws everything in place, as far as the terminal has room."""

    def __init__(self) -> None:
        self._drawn = 0

    def __call__(self, studies: Sequence[StudyStatus]) -> None:
        width, height = shutil.get_terminal_size()
        text = [line for study in studies for line in lines(study)]
        if len(text) >= height:
            hidden = len(text) - height + 2
            text = [*text[: height - 2], f"… and {hidden} more lines; without --watch all are shown"]
        up = f"\x1b[{self._drawn}F" if self._drawn else ""  # to the start of the first line that was drawn
        sys.stdout.write(up + "\x1b[J" + "".join(f"{line[:width]}\n" for line in text))
        sys.stdout.flush()
        self._drawn = len(text)


class Changes:
    """Prints everything once, then a line for each cell whose state has changed."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, str], str] | None = None

    def __call__(self, studies: Sequence[StudyStatus]) -> None:
        cells = {(study.study, cell.cell): cell for study in studies for cell in study.cells}
        if self._states is None:
            text = [line for study in studies for line in lines(study)]
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
