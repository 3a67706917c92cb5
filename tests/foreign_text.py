"""Text of others that would command a terminal, and what commands print of it."""

from __future__ import annotations

import io
import re
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from harness.__main__ import main

# A title, an erased screen, colours by either introducer, an overwritten line, the line above, turned text, a bell.
EVIL = "evil\x1b]0;t\x07\x1b[2J\x9b35m\x1b[95mred\rover\x1b[1A\x1b8\u202etxt\u2066\x7f\x08\x85\x90q\x9c"
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Our own: colours, and what a live display hides, erases and draws again.
OWN = re.compile(r"\x1b\[(?!95m)[\d;]*m|\x1b\[\?25[lh]|(\r|\x1b\[1A)\x1b\[2K")


class Screen(io.StringIO):
    """What says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def said(folder, *arguments: str, stream=io.StringIO) -> tuple[int, str]:
    """The exit status of a command and all that it prints."""
    out = stream()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(out):
        patch.chdir(folder)
        patch.setattr(sys, "argv", sys.argv)  # Hydra is handed its own
        patch.setenv("TERM", "xterm-256color")
        patch.delenv("NO_COLOR", raising=False)
        try:
            status = main([*arguments])
        except SystemExit as ended:
            status = ended.code
    return status, out.getvalue()


def assert_harmless(text: str) -> None:
    found = COMMANDS.search(text)
    assert not found, repr(text[max(0, found.start() - 80) : found.end() + 40])
