"""A command on a terminal of a given size, and what a person would see on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

import pyte

from harness.config import ROOT


class OnScreen:
    """Runs `command` in a terminal. display: the lines of its screen, as a terminal emulator shows them."""

    def __init__(self, command: list[str], columns: int = 80, rows: int = 24, cwd=None, **variables: str):
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream = pyte.ByteStream(self._screen)
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        environment |= {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"} | variables
        self.raw = b""
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=cwd, close_fds=True
        )
        os.close(theirs)

    @property
    def display(self) -> list[str]:
        """All lines, those that have scrolled away included."""
        above = ["".join(line[x].data for x in sorted(line)) for line in self._screen.history.top]
        return [line.rstrip() for line in (*above, *self._screen.display)]

    def until(self, text: str, seconds: float = 60) -> None:
        """Read until the screen shows `text`."""
        self._read(lambda: any(text in line for line in self.display), seconds)
        assert any(text in line for line in self.display), "\n".join(self.display)

    def end(self, seconds: float = 120) -> int:
        """Read until the command ends; returns its exit status."""
        self._read(lambda: False, seconds)
        os.close(self._ours)
        return self.process.wait(10)

    def _read(self, enough, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not enough() and time.monotonic() < until:
            if not select.select([self._ours], [], [], 0.5)[0]:
                continue
            try:
                new = os.read(self._ours, 65536)
            except OSError:  # the other side was closed
                return
            self.raw += new
            self._stream.feed(new)
