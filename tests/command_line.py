"""The command line in this process, and what tests demand of it."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.cli.commands import command_line
from harness.sweep import runner
from harness.sweep.fork_server import Server


def forbid_jobs(patch: pytest.MonkeyPatch) -> None:
    """Fail a test in which a job starts."""

    def start(*_: object) -> None:
        raise AssertionError("a job was started")

    patch.setattr(Server, "start", start)
    patch.setattr(Server, "prepare", lambda *_: None)


def called(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What the command line says in `folder`, with these environment `variables`.

    Its jobs need not wait for imports each time: while the environment stays the same, one server forks them all.
    """
    out, err = io.StringIO(), io.StringIO()
    at_end = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", sys.argv)  # Hydra is handed its own
        for name, value in variables.items():
            patch.setenv(name, value)
        try:
            status = main([*arguments])
        except SystemExit as ended:  # after --help
            status = ended.code
        finally:
            signal.signal(signal.SIGTERM, at_end)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def installed(*commands: str) -> list[str]:
    """Those of `commands` that are there: some are of plug-ins."""
    return [name for name in commands if name in command_line("harness").names()]


@contextmanager
def own_server() -> Iterator[None]:
    """Gives this process a server of its own for a while, in another environment; the usual one serves on after it."""
    with pytest.MonkeyPatch.context() as patch:
        server = Server()
        patch.setattr(runner, "_server", server)
        yield
        server.stop()


def assert_refused(stderr, *culprits):
    """One line that starts with "error: " and names `culprits`, and no word of Python's."""
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    assert "Traceback" not in stderr
    assert "Error executing job" not in stderr
    for culprit in culprits:
        assert culprit in errors[0]
