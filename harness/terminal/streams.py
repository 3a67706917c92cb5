"""Text that can't command a terminal, and streams that let nothing else through.

Records, file names, answers of models and of servers are written by others. A command prints through `cleaned_streams`,
so that nothing of theirs moves the cursor, overwrites what stands there, sets a title or turns the text around.
"""

from __future__ import annotations

import io
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, TextIO

ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|.)?")  # of a terminal, such as colours
TURNING = "\u202a-\u202e\u2066-\u2069"  # what turns the direction of text
CONTROL = re.compile(rf"[\x00-\x08\x0a-\x1f\x7f-\x9f{TURNING}]")
# Of an escape sequence that holds text, such as a title, the text stays: its end could lie behind what others wrote.
COMMANDS = re.compile(rf"\x1b\[[0-9:;<=>?]*[@-~]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f{TURNING}]")
RETURNS = re.compile(r"\r\n?")
NO_TEXT = re.compile("[\ud800-\udfff]")  # bytes of a file's name that are no UTF-8


def printable(text: str) -> str:
    """One text of others, without control sequences and line breaks."""
    return NO_TEXT.sub("\ufffd", CONTROL.sub("", ESCAPES.sub("", text)))


def cleaned(text: str) -> str:
    """`text`, of which parts may be others', without what commands a terminal.

    Lines and tabs stay. A carriage return begins a new line: nothing is overwritten.
    """
    return NO_TEXT.sub("\ufffd", COMMANDS.sub("", RETURNS.sub("\n", text)))


class WritableText(Protocol):
    """What text is written to: a file, or rich's stand-in for one."""

    def write(self, text: str, /) -> int: ...


class Filtered:
    """A stream of text that writes to `target` what `change` makes of it; what goes to its descriptor passes by."""

    def __init__(self, target: WritableText, change: Callable[[str], str]):
        self.target, self.change = target, change

    def write(self, text: str) -> int:
        self.target.write(self.change(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)


@contextmanager
def cleaned_streams() -> Iterator[None]:
    """Within this context, whatever is printed is cleaned, the traceback of an exception that ends it included.

    A character that the terminal's encoding lacks, such as × in ASCII, is printed as an escape.
    """
    own = sys.stdout, sys.stderr
    handlers = [(stream, stream.errors) for stream in own if isinstance(stream, io.TextIOWrapper)]
    for stream, _ in handlers:
        stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (Filtered(stream, cleaned) for stream in own)
    try:
        yield
    except Exception:
        sys.excepthook = _print_cleaned  # Python calls it when the streams are what they were
        raise
    finally:
        sys.stdout, sys.stderr = own
        for stream, errors in handlers:
            if not stream.closed:
                stream.reconfigure(errors=errors)


def _print_cleaned(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    traceback.print_exception(kind, error, where, file=Filtered(sys.stderr, cleaned))


def uncleaned(stream: TextIO) -> TextIO:
    """The stream below `stream`, for what has cleaned its text and adds colours of its own."""
    layer: Any = stream  # each has its own way to the one below
    while True:
        layer = getattr(layer, "rich_proxied_file", layer)
        if not isinstance(layer, Filtered) or layer.change is not cleaned:
            return layer
        layer = layer.target
