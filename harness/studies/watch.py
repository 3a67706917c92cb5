"""Shows the status of studies as it changes, until no cell is running or left.

On a terminal the table is redrawn in place; elsewhere (a file, a pipe) each change of a cell's state is a line.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from harness import terminal
from harness.studies.status import StudyStatus, lines, view

if TYPE_CHECKING:
    from rich.console import Group

SECONDS = 2.0  # between two reads
AROUND = 5  # lines of a study beside its rows of cells
WAITING = "Waiting for the study to begin. Ctrl-C ends the watch."


def watch(read_studies: Callable[[], list[StudyStatus]], seconds: float = SECONDS) -> list[StudyStatus]:
    """Print what `read_studies` returns, every `seconds`; returns the last status. Ctrl-C ends it in order.

    Without a study yet, it waits for one.
    """
    studies: list[StudyStatus] = []
    with Screen() if sys.stdout.isatty() else Changes() as show:
        try:
            while True:
                studies = read_studies()
                show(studies)
                if studies and all(study.over for study in studies):
                    break
                time.sleep(seconds)
        except KeyboardInterrupt:
            pass
    return studies


class Screen:
    """Redraws the studies that are not over in place, as far as the terminal has room; all of them once all are."""

    def __enter__(self) -> Screen:
        self._console = terminal.console()
        self._live = terminal.live(self._console, auto_refresh=False)
        self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._live.stop()

    def __call__(self, studies: Sequence[StudyStatus]) -> None:
        self._live.update(screenful(studies, self._console.width - terminal.ECHO, self._console.height), refresh=True)


def screenful(studies: Sequence[StudyStatus], width: int, height: int) -> Group:
    """What a screen shows: the studies at work, or all if none is. What has no room is counted."""
    from rich.console import Group
    from rich.text import Text

    if not studies:
        return Group(Text(WAITING))
    visible = [study for study in studies if not study.over] or list(studies)
    rows = max(2, height // len(visible) - AROUND)
    parts = [part for study in visible for part in view(study, width, rows)]
    if hidden := len(studies) - len(visible):
        what = "1 more study is" if hidden == 1 else f"{hidden} more studies are"
        parts.insert(0, Text(f"{what} over; `status` shows all."))
    return Group(*parts)


class Changes:
    """Prints everything once, then a line for each cell whose state has changed."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, str], str] | None = None
        self._waits = False

    def __enter__(self) -> Changes:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def __call__(self, studies: Sequence[StudyStatus]) -> None:
        if not studies:
            if not self._waits:
                print(WAITING, flush=True)
            self._waits = True
            return
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
