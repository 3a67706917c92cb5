"""Holds the libraries that jobs import, and forks a job for each request: the other side of harness/sweep/server.py.

On a machine with an accelerator nothing is forked: its libraries may have touched the device, which no fork survives.
There this process serves one request itself and ends, and the sweep starts another.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable

PATIENCE = 5.0  # seconds that a job gets to end in order
GLANCE = 0.02  # seconds between looks at the job and at the sweep


def serve(descriptor: int, main: Callable[[], int]) -> int:
    """Run `main` in a job for each request on the socket `descriptor`, until its other end is closed.

    A request is the job's standard input, output and error; its exit status is answered. Returns 0, or where nothing
    is forked what `main` does.
    """
    channel = socket.socket(fileno=descriptor)
    loaded = False
    while True:
        message, streams, *_ = socket.recv_fds(channel, 1, 3)
        if not message:
            return 0
        if not loaded:
            os.dup2(streams[2], 2)  # if the imports fail, the job's log says why
            import torch

            if torch.accelerator.is_available():
                _become(streams)
                threading.Thread(target=_end_with, args=[channel], daemon=True).start()
                return main()
            from harness.job import run  # noqa: F401

            loaded = True
        job = os.fork()
        if job == 0:
            channel.close()
            _become(streams)
            _end(main)
        for stream in streams:
            os.close(stream)
        code = _wait(job, channel)
        if code is None:
            return 0
        channel.send(str(code).encode())


def _end(main: Callable[[], int]) -> None:
    """Run `main` and end the process with its status, at once: to take the libraries down would cost a second."""
    code = 1
    try:
        code = main()
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _become(streams: list[int]) -> None:
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)


def _end_with(channel: socket.socket) -> None:
    channel.recv(1)  # nothing is sent there: the sweep went away
    os.kill(os.getpid(), signal.SIGTERM)


def _wait(job: int, channel: socket.socket) -> int | None:
    """The exit status of the process `job`; None if the sweep went away meanwhile, and the job was ended."""
    while True:
        ended, status = os.waitpid(job, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if select.select([channel], [], [], GLANCE)[0]:  # between a request and its answer nothing but the end comes
            break
    os.kill(job, signal.SIGTERM)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if os.waitpid(job, os.WNOHANG)[0]:
            return None
        time.sleep(GLANCE)
    os.kill(job, signal.SIGKILL)
    os.waitpid(job, 0)
    return None
