"""A sweep whose jobs are replaced by a stand-in, to measure its parent: thousands of cells take minutes.

    python benchmarks/standing_in.py RECORD sweep SETTINGS

A job's request is answered in this process by a copy of RECORD with the cell that was asked for; all else is real. The
last line on standard error is JSON with this process's memory in bytes: at the first cell, after the last one, and at
most.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from harness import record
from harness.__main__ import main
from harness.protocol import Progress, RunCell, decode_request, encode
from harness.sweep import runner
from harness.sweep.fork_server import Job, Server


class StandInServer(Server):
    """Starts no process."""

    def __init__(self, example: Path):
        super().__init__()
        self._example = record.read(example)
        self.first: int | None = None
        self.last: int | None = None

    def start(self, stderr: IO[bytes]) -> StandInJob:
        return StandInJob(self._answer)

    def _answer(self, request: RunCell) -> None:
        if self.first is None:
            self.first = memory("VmRSS")
        record.write(replace(self._example, cell=request.cell, study=request.study), Path(request.path))
        self.last = memory("VmRSS")


class StandInJob(Job):
    """Writes the record as soon as its events are asked for."""

    def __init__(self, answer: Callable[[RunCell], None]):
        self.request = self._asked = Request()
        self._answer = answer

    @property
    def holder(self) -> int:
        return os.getpid()

    def lines(self) -> Iterator[str]:
        if isinstance(request := decode_request(self._asked.text), RunCell):
            yield encode(Progress("train", step=1, of=1))
            self._answer(request)
            yield encode(Progress("recorded"))

    def wait(self) -> int:
        return 0

    def stop(self) -> None:
        pass


class Request(io.StringIO):
    """Keeps its text when it is closed."""

    text = ""

    def close(self) -> None:
        self.text = self.getvalue()
        super().close()


def memory(kind: str) -> int:
    """VmRSS, the resident memory of this process, or VmHWM, its peak."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(kind))


if __name__ == "__main__":
    runner._server = server = StandInServer(Path(sys.argv[1]))
    status = main(sys.argv[2:])
    print(json.dumps({"first": server.first, "last": server.last, "peak": memory("VmHWM")}), file=sys.stderr)
    sys.exit(status)
