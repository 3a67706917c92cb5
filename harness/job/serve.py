"""Loads what jobs share, and forks a job for each request: the other side of harness/sweep/fork_server.py.

Shared are the libraries, and the inputs of harness/job/prepared_inputs.py (data, tokenizer, tasks): the cells of a
sweep mostly use the same.

With an accelerator nothing is forked, because its libraries may have used the device, and then forks fail. There this
process serves one request itself and ends, and the sweep starts another.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tqdm import tqdm

from harness import boot, plugin
from harness.job import libraries
from harness.protocol import BEGUN, Request, decode_request

PATIENCE = 5.0  # seconds that a job has to end after SIGTERM
GLANCE = 0.02  # seconds between checks of the job and of the sweep


@dataclass(frozen=True)
class AcceptedJob:
    """The job that this process has become. forked: whether it was forked from the server."""

    request: Request
    forked: bool


def serve(descriptor: int, prepared: str | None = None) -> AcceptedJob | None:
    """Fork a job for each request on the socket `descriptor`, until its other end is closed.

    Returns in each job, and None in the server at its end. If nothing is forked, the server becomes the job itself.

    A request brings the job's standard input (the request as JSON), output and error, and its working folder. The
    answer is the job's exit status.

    prepared: the module whose libraries are imported before the first request (null: none).

    When the sweep is killed, this process is killed (see harness/boot.py), except while it has a job: then it ends that
    in order. Imports can't be ended otherwise: they take a minute on a cold disk, and may let no other thread run.
    """
    bound, sweep = boot.dies_with_parent(), os.getppid()
    channel = socket.socket(fileno=descriptor)
    tqdm.monitor_interval = 0  # otherwise a thread watches bars, and a lock that it holds stays locked in the fork
    _import_ahead(prepared)
    loaded = False
    while True:
        message, descriptors, *_ = socket.recv_fds(channel, 1, 4)
        if not message:
            return None
        *streams, folder = descriptors
        os.fchdir(folder)  # relative paths, such as those in a user's tasks, mean the same as where one typed them
        os.close(folder)
        os.dup2(streams[2], 2)  # so that the log has failed imports, and errors before the job
        if not loaded:
            if (itself := _without_fork(channel, streams)) is not None:
                return itself
            loaded = True
        request = _request(streams[0], channel)
        if request is None:
            return None
        libraries.load(request.libraries)
        _prepare(request)
        watch, alive = os.pipe()
        _begin(channel)
        job = os.fork()
        if job == 0:
            channel.close()
            os.close(alive)
            threading.Thread(target=_end_without_holder, args=[watch], daemon=True).start()
            _become(streams)
            return AcceptedJob(request, forked=True)
        for end in (watch, *streams):
            os.close(end)
        code = _wait(job, channel)
        os.close(alive)
        if code is None:
            return None
        channel.send(str(code).encode())
        if bound:
            boot.die_with(sweep)


def _import_ahead(module: str | None) -> None:
    """Import the libraries of `module`, if any; what fails is imported again for a request, whose log says why.

    With an accelerator torch alone: the processes of a plan import theirs, at the same time as this one.
    """
    if module is not None:
        with suppress(Exception):
            libraries.load("torch")
            if not _accelerated():
                libraries.load(module)


def _accelerated() -> bool:
    import torch

    return torch.accelerator.is_available()


def _without_fork(channel: socket.socket, streams: list[int]) -> AcceptedJob | None:
    """This process as the job itself, where there is an accelerator; None where jobs are forked."""
    libraries.load("torch")
    if not _accelerated():
        return None
    _become(streams)
    threading.Thread(target=_end_with, args=[channel], daemon=True).start()
    _begin(channel)
    return AcceptedJob(decode_request(sys.stdin.read()), forked=False)


def _prepare(request: Request) -> None:
    """Load what the job of `request` shares with later ones."""
    if request.prepare is not None:
        plugin.load(request.prepare)(request)
    gc.collect()
    gc.freeze()  # otherwise a collection in the job touches, and so copies, all shared memory


def _begin(channel: socket.socket) -> None:
    """Tell the sweep that its job begins; from now on this process ends in order."""
    boot.outlive()
    with suppress(BrokenPipeError):  # the sweep has ended
        channel.send(BEGUN)


def _request(stream: int, channel: socket.socket) -> Request | None:
    """The request written to `stream`; None if the sweep ended before all was written."""
    parts = []
    while not select.select([channel], [], [], 0)[0]:  # between a request and its answer only the end arrives
        ready, _, _ = select.select([stream, channel.fileno()], [], [])
        if ready == [stream]:
            part = os.read(stream, 2**16)
            if not part:
                break
            parts.append(part)
    with suppress(json.JSONDecodeError):
        return decode_request(b"".join(parts))
    return None


@contextmanager
def ends_at_once() -> Iterator[None]:
    """A context at whose end this process exits, with the block's status: unloading libraries takes a second."""
    code = 1
    try:
        yield
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else code
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _become(streams: list[int]) -> None:
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)


def _end_without_holder(watch: int) -> None:
    """End this job if its holder was killed: another sweep may have its cell by then."""
    os.read(watch, 1)  # nothing is ever written
    os._exit(1)


def _end_with(channel: socket.socket) -> None:
    channel.recv(1)  # nothing is ever sent: the sweep has ended
    os.kill(os.getpid(), signal.SIGTERM)


def _wait(job: int, channel: socket.socket) -> int | None:
    """The exit status of the process `job`; None if the sweep ended meanwhile, and the job was stopped."""
    while True:
        ended, status = os.waitpid(job, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if select.select([channel], [], [], GLANCE)[0]:  # between a request and its answer only the end arrives
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
