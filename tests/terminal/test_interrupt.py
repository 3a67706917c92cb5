"""Ctrl-C leaves the last state of a live display on the screen, each line once."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time

import pyte
import pytest
from records import make_record

from harness.sweep.store import Study

COLUMNS = 38  # as many as the row of the running cell takes: the echoed ^C would wrap


@pytest.mark.long
@pytest.mark.slow
def test_an_echoed_interrupt_doubles_no_line(tmp_path):
    (tmp_path / "new" / ".harness").mkdir(parents=True)
    cell = make_record("lora", study="new").cell
    with Study(tmp_path, "new").lease(cell) as note:
        note({"phase": "train", "step": 1, "of": 100, "loss": 2.0, "memory_bytes": 10**9})
        screen = interrupted(["status", "--watch", "--results-dir", str(tmp_path)])
    assert sum("new: 0 done" in line for line in screen) == 1, screen
    assert sum(cell.name in line for line in screen) == 1, screen


def interrupted(words):
    """What the screen shows after Ctrl-C was typed while a cell was shown as running."""
    process, terminal = pty.fork()
    if process == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        os.environ["TERM"] = "xterm-256color"
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a shell ignores in what it starts in the background
        os.environ |= {"COLUMNS": str(COLUMNS), "LINES": "24"}
        os.execv(sys.executable, [sys.executable, "-m", "harness", *words])
    screen = pyte.Screen(COLUMNS, 24)
    stream = pyte.ByteStream(screen)
    deadline, typed = time.monotonic() + 60, False
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.5)[0]:
            try:
                stream.feed(os.read(terminal, 65536))
            except OSError:  # the other side was closed
                break
        if not typed and any("running  " in line for line in screen.display):
            time.sleep(2.5)  # one more drawing
            os.write(terminal, b"\x03")
            typed = True
    os.waitpid(process, 0)
    os.close(terminal)
    return [line.rstrip() for line in screen.display if line.strip()]
