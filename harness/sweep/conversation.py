"""A request to a job, and what the job answers: the sweep's side of harness/protocol.py."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

from harness.errors import UserError
from harness.protocol import Noted, Progress, Refused, Request, Result, Warned, decode_event, encode
from harness.sweep.fork_server import Job
from harness.sweep.lease import Lease


class Overdue(Exception):
    """The job took longer than `seconds`, and was ended."""

    def __init__(self, seconds: float):
        super().__init__(seconds)
        self.seconds = seconds


class Conversation:
    """Sends `request` to `job`, and yields its progress and results; the job has ended at the end of the context.

    lease: kept as long as the job lives; if it is lost, the job is stopped. timeout: seconds after which the job is
    stopped. An error within the context stops it too.

    exit_status: of the job, once the context has ended. That raises UserError if the job refused its request, and
    Overdue if it took too long.
    """

    def __init__(self, job: Job, request: Request, lease: Lease | None = None, timeout: float | None = None):
        self._job, self._request, self._lease = job, request, lease
        self.exit_status = 0
        self._seconds, self._watch = timeout or 0.0, threading.Timer(timeout or 0.0, self._end)
        self._watch.daemon = True
        self._overdue = False
        self._refusal: str | None = None

    def __enter__(self) -> Conversation:
        if self._seconds:
            self._watch.start()
        try:
            # If it dies before it has read, its exit status tells.
            with contextlib.suppress(BrokenPipeError), self._job.request as request:
                request.write(encode(self._request))
        except BaseException:
            self._stop()
            raise
        return self

    def __iter__(self) -> Iterator[Progress | Result]:
        for event in map(decode_event, self._job.lines()):
            if isinstance(event, Refused):
                self._refusal = event.sentence
            elif isinstance(event, Warned):
                warn(event.sentence)
            elif isinstance(event, Noted):
                print(event.sentence, file=sys.stderr)
            else:
                if self._lease is not None and isinstance(event, Progress):
                    self._lease.works(self._job.holder, self._job.stop)
                    self._lease = None
                yield event

    def progress(self) -> Iterator[Progress]:
        """The progress alone, of a request that has no results."""
        return (event for event in self if isinstance(event, Progress))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._stop()
            return
        try:
            self.exit_status = self._job.wait()
        except BaseException:
            self._stop()
            raise
        self._watch.cancel()
        if self._overdue:
            raise Overdue(self._seconds)
        if self._refusal is not None:
            raise UserError(self._refusal)

    def _end(self) -> None:
        self._overdue = True
        self._job.stop()

    def _stop(self) -> None:
        self._watch.cancel()
        self._job.stop()


def warn(words: str) -> None:
    print(f"warning: {words}", file=sys.stderr)
