"""Job processes for a sweep: forked from one that holds the libraries, so that a cell need not import them again.

The holder is started at the first request and runs ``python -m harness.job``; its side is harness/job/serve.py.
Each job is a fresh process all the same: nothing but imported code is shared. When the sweep is gone, however it went,
the holder ends its job and itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from harness.config_folders import ROOT, SHIPPED

# For OpenMP: a thread that waits for the others soon sleeps. If it spins for long, it takes the core from the one it
# waits for as soon as anything else runs on this machine: `benchmarks/speed.py beside`. libgomp spins for a moment
# first, as most waits are short, and to wake a thread up costs more.
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
# For CUDA: segments of memory grow. Steps vary in shape, and of fixed segments more and more would lie idle in pieces.
SEGMENTS = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


def environment() -> dict[str, str]:
    """What jobs are started with: this process's environment, and what of the above it does not set itself.

    Libraries read it as they are loaded, so it is the holder's from its start.
    """
    segments = {} if any(re.fullmatch(r"PYTORCH_(\w+_)?ALLOC_CONF", name) for name in os.environ) else SEGMENTS
    waiting = {} if {*WAITING, "KMP_BLOCKTIME"} & os.environ.keys() else WAITING
    return waiting | segments | os.environ | {"PYTHONPATH": import_path()}


def import_path() -> str:
    """PYTHONPATH of a process that imports this package: its checkout, if it is no wheel's, and what is set already."""
    checkout = str(ROOT) if SHIPPED == ROOT else None
    return os.pathsep.join(filter(None, [checkout, os.environ.get("PYTHONPATH")]))


class Server:
    """Starts jobs, one at a time."""

    def __init__(self) -> None:
        self._holder: subprocess.Popen | None = None
        self._channel: socket.socket | None = None
        self._environment: dict[str, str] = {}

    def start(self, stderr: IO[bytes]) -> Job:
        """A new job whose messages go to `stderr`; it waits for its request."""
        if self._holder is None or self._holder.poll() is not None or self._environment != os.environ:
            self.stop()
            self._launch()
        theirs, request = os.pipe()
        events, ours = os.pipe()
        with contextlib.suppress(BrokenPipeError, ConnectionError):  # a holder that died: its exit status tells
            socket.send_fds(self._channel, [b"\0"], [theirs, ours, stderr.fileno()])
        os.close(theirs)
        os.close(ours)
        return Job(open(request, "w"), open(events), self._holder, self._channel)

    def stop(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._holder is not None:
            self._holder.wait()

    def _launch(self) -> None:
        self._environment = dict(os.environ)
        ours, theirs = socket.socketpair()
        self._channel = ours
        with theirs:
            # -P keeps the user's folder off the import path: a queue.py there must not break the job.
            # A session of its own, so that Ctrl-C reaches only us and we end the job in order.
            self._holder = subprocess.Popen(
                [sys.executable, "-P", "-m", "harness.job", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment(),
                start_new_session=True,
            )


@dataclass
class Job:
    """A running job: where its request is written, what it reports, and how it ended."""

    request: IO[str]
    events: IO[str]
    _holder: subprocess.Popen
    _channel: socket.socket

    def lines(self) -> Iterator[str]:
        with self.events:
            yield from self.events

    @property
    def holder(self) -> int:
        """The process that holds it; it ends the job, and itself, when the sweep is gone."""
        return self._holder.pid

    def wait(self) -> int:
        """Its exit status, negative for the signal that killed it; the holder's own, if that ended with it."""
        code = b""
        with contextlib.suppress(ConnectionError):  # a holder that died without having read all
            code = self._channel.recv(16)
        return int(code) if code else self._holder.wait()

    def stop(self) -> None:
        """End the job in order, or by force when that takes more than 5 seconds."""
        with contextlib.suppress(OSError):  # it died itself
            self._channel.shutdown(socket.SHUT_WR)  # the holder takes this for our end
        try:
            self._holder.wait(10)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait()
