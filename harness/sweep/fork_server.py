"""Job processes of a sweep, forked from one process that has imported the libraries: the fork server.

The server starts with the first request, or with `prepare` before it, and runs harness/job/__main__.py; its side is
harness/job/serve.py. Each job is a fresh process: it shares nothing but imported code. When the sweep ends, in whatever
way, the server stops its job and exits; while it imports libraries and has no job, it is killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from harness import boot
from harness.protocol import BEGUN

# OpenMP: a waiting thread soon sleeps. A thread that spins takes the core from the one it waits for as soon as anything
# else runs on this machine (`benchmarks/speed.py beside`). libgomp spins for a moment first, because most waits are
# short and waking a thread costs more.
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
# CUDA: memory segments grow. Steps vary in shape, which would fragment fixed segments more and more.
SEGMENTS = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
# CUDA: cuDNN's attention, which torch prefers on H100 and B200, builds a plan for each new shape, in tens to hundreds
# of milliseconds (modelscope/FunASR#3704). Answers grow by a token a step, and batches differ in length. On a B200 it
# also gives wrong greedy answers (pytorch#193893).
ATTENTION = {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"}


def environment() -> dict[str, str]:
    """The environment of jobs: that of this process, and the variables above that it does not set.

    Libraries read it when they are loaded, so the server has it from its start. What is set for Hydra is left out.
    """
    own = {name: value for name, value in boot.environment().items() if name != "HYDRA_FULL_ERROR"}
    segments = {} if any(re.fullmatch(r"PYTORCH_(\w+_)?ALLOC_CONF", name) for name in os.environ) else SEGMENTS
    waiting = {} if {*WAITING, "KMP_BLOCKTIME"} & os.environ.keys() else WAITING
    return waiting | segments | ATTENTION | own


@dataclass(frozen=True)
class Holder:
    """The process that forks jobs, the channel on which it is asked to, and the environment that it has."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    environment: dict[str, str]


class Server:
    """Starts jobs, one at a time."""

    def __init__(self) -> None:
        self._holder: Holder | None = None

    def prepare(self, libraries: str) -> None:
        """Start importing the module `libraries`, which the first request will name, if nothing has started yet."""
        if self._holder is None:
            self._holder = _launched(libraries)

    def start(self, stderr: IO[bytes]) -> Job:
        """A new job, which waits for its request; its output goes to `stderr`.

        It works in the working folder of this process, which need not be the one that the server was started in.
        """
        holder = self._holder
        if holder is None or holder.process.poll() is not None or holder.environment != environment():
            self.stop()
            holder = self._holder = _launched()
        theirs, request = os.pipe()
        events, ours = os.pipe()
        folder = os.open(".", os.O_RDONLY)  # by descriptor: it may have been removed
        with contextlib.suppress(BrokenPipeError, ConnectionError):  # the server died; its exit status says how
            socket.send_fds(holder.channel, [b"\0"], [theirs, ours, stderr.fileno(), folder])
        for end in (theirs, ours, folder):
            os.close(end)
        return Job(open(request, "w"), open(events), holder.process, holder.channel)

    def stop(self) -> None:
        if self._holder is not None:
            _hang_up(self._holder.channel)  # closing alone leaves it open in processes that were forked from this one
            self._holder.channel.close()
            self._holder.process.wait()


def _launched(libraries: str | None = None) -> Holder:
    """A new process that forks jobs, in the environment of now.

    libraries: the module that it imports before it is asked (null: none). What that prints is nobody's: a job that
    lacks a library imports it again, and its log says what failed.
    """
    variables = environment()
    ours, theirs = socket.socketpair()
    with theirs:
        # A session of its own, so that Ctrl-C reaches only us and we end the job in order.
        process = subprocess.Popen(
            boot.command("harness.job", str(theirs.fileno()), *([libraries] if libraries else [])),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if libraries else None,
            pass_fds=[theirs.fileno()],
            env=variables,
            start_new_session=True,
        )
    return Holder(process, ours, variables)


def _hang_up(channel: socket.socket) -> None:
    """Have the server take the sweep as ended."""
    with contextlib.suppress(OSError):  # it has died
        channel.shutdown(socket.SHUT_WR)


@dataclass
class Job:
    """A running job: the pipe for its request, the pipe of its events, and its end."""

    request: IO[str]
    events: IO[str]
    _holder: subprocess.Popen[bytes]
    _channel: socket.socket
    _begun: bool = False

    def lines(self) -> Iterator[str]:
        with self.events:
            yield from self.events

    @property
    def holder(self) -> int:
        """Process id of the server, which stops the job and exits when the sweep ends."""
        return self._holder.pid

    def wait(self) -> int:
        """The exit status, negative for a signal; the server's own, if it ended too."""
        answer = b""
        with contextlib.suppress(ConnectionError):  # the server died before it read everything
            while not answer.removeprefix(BEGUN) and (part := self._channel.recv(16)):
                answer += part
                self._begun = True
        code = answer.removeprefix(BEGUN)
        return int(code) if code else self._holder.wait()

    def stop(self) -> None:
        """Stop the job in order; kill the server if it has none yet, or has not exited after 10 seconds."""
        _hang_up(self._channel)
        try:
            self._holder.wait(10 if self._has_begun() else 0)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait()

    def _has_begun(self) -> bool:
        """Whether the server has begun the job: imports that come before can't be interrupted in order."""
        with contextlib.suppress(OSError):  # nothing has arrived, or the server died
            self._begun = self._begun or bool(self._channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        return self._begun
