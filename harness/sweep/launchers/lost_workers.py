"""Workers that are lost: a process or its machine goes away, and never answers for the cell that it was given.

A launcher hands `Lost` over as what came of that cell, and waits for the others. A lost cell's claim is void, so the
same command runs it again.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

GLANCE = 10  # seconds between looks into Slurm's queue
GRACE = 10  # seconds that a shared disk may take to show the answer of a job that left the queue


@dataclass(frozen=True)
class Lost:
    """why: how the worker ended, as the end of a sentence that begins with it."""

    why: str

    def answer(self) -> JobReturn:
        return JobReturn(status=JobStatus.COMPLETED, _return_value=self)


def died(code: int) -> str:
    """How a process with the exit status `code`, negative for a signal's, ended."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"


@contextlib.contextmanager
def heard_of(launcher: Launcher) -> Iterator[None]:
    """While it lasts, a job of submitit that is lost answers with `Lost`.

    Otherwise submitit's launcher would give up on all jobs at the first lost one; and on a cluster that keeps no
    accounts it would wait for that one forever. Ray gives a lost worker's task to another worker by itself.
    """
    if not type(launcher).__module__.startswith("hydra_plugins.hydra_submitit_launcher"):
        yield
        return
    import submitit

    results = submitit.Job.results

    def answers(job: submitit.Job) -> list[Any]:
        try:
            if _ended(job):
                return results(job)
            why = "left Slurm's queue without an answer"
        except submitit.core.utils.UncompletedJobError as error:
            why = f"did not answer: {str(error).splitlines()[0]}"
        return [Lost(f"{why}; what it printed is in {job.paths.stderr}").answer()]

    submitit.Job.results = answers
    try:
        yield
    finally:
        submitit.Job.results = results


def _ended(job: Any) -> bool:
    """Wait for `job`; whether submitit knows how it ended. If not, it is in Slurm's queue no more."""
    looked = time.monotonic()
    while not job.done():
        time.sleep(1)
        if job._cancel_command == "scancel" and time.monotonic() - looked > GLANCE:
            looked = time.monotonic()
            if not _queued(job.job_id):
                time.sleep(GRACE)
                return job.done()
    return True


def _queued(job_id: str) -> bool:
    """Whether Slurm's queue holds the job still; also if Slurm can't be asked at the moment."""
    asked = subprocess.run(["squeue", "--noheader", "--jobs", job_id], capture_output=True, text=True)
    if asked.returncode:
        return "Invalid job id" not in asked.stderr
    return bool(asked.stdout.strip())
