"""Lost workers: a process or its machine ends without an answer for its cell.

The launcher returns `Lost` for that cell and waits for the others. A lost cell's lease is void, so the same command
runs it again.
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

QUEUE_SECONDS = 10  # between two reads of Slurm's queue
GRACE_SECONDS = 10  # for a shared disk to show the answer of a job that left the queue


@dataclass(frozen=True)
class Lost:
    """The result of a cell whose worker was lost.

    why: how the worker ended, a predicate such as ``was killed by SIGKILL``.
    """

    why: str


def died(code: int) -> str:
    """How a process ended; `code` is its exit status, negative for a signal."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"


@contextlib.contextmanager
def lost_jobs_answer(launcher: Launcher) -> Iterator[None]:
    """Within this context a lost job of submitit answers with `Lost`. Ray reruns a lost task by itself.

    Hydra's launcher keeps its jobs to itself and calls `Job.results` on each, so submitit's public interface
    (`Job.done`, `Job.exception`) is out of reach from here, and the method is replaced. Without that, the launcher
    gives up on all jobs at the first lost one; on a cluster without accounting it waits for that one forever.
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
        lost = Lost(f"{why}; what it printed is in {job.paths.stderr}")
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=lost)]

    submitit.Job.results = answers
    try:
        yield
    finally:
        submitit.Job.results = results


def _ended(job: Any) -> bool:
    """Wait for `job`. True if submitit knows how it ended; False if it left Slurm's queue without an answer."""
    looked = time.monotonic()
    while not job.done():
        time.sleep(1)
        if job._cancel_command == "scancel" and time.monotonic() - looked > QUEUE_SECONDS:
            looked = time.monotonic()
            if not _queued(job.job_id):
                time.sleep(GRACE_SECONDS)
                return job.done()
    return True


def _queued(job_id: str) -> bool:
    """Whether Slurm's queue still holds the job; True if Slurm does not answer."""
    queue = subprocess.run(["squeue", "--noheader", "--jobs", job_id], capture_output=True, text=True)
    if queue.returncode:
        return "Invalid job id" not in queue.stderr
    return bool(queue.stdout.strip())
