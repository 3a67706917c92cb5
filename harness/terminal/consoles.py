"""rich's console and live display, whose texts are cleaned and whose colours are ours alone."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.segment import Segment

from harness.terminal.streams import Filtered, cleaned


class CleanConsole(Console):
    """A console that renders no control sequences but those of its styles; markup and emoji are plain text."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **keywords)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(cleaned(segment.text), segment.style)


class CleanLive(Live):
    """A live display. What is printed meanwhile appears above it; rich would take over colours and links from there."""

    def start(self, refresh: bool = False) -> None:
        super().start(refresh)
        if isinstance(sys.stdout, FileProxy):
            sys.stdout = Filtered(sys.stdout, cleaned)
        if isinstance(sys.stderr, FileProxy):
            sys.stderr = Filtered(sys.stderr, cleaned)
