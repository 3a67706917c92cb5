"""Lost workers: a process or its machine ends without an answer for its cell.

The launcher returns `Lost` for that cell and waits for the others. A lost cell's lease is void, so the same command
runs it again.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from harness.errors import first_line

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
    """Within this context a lost job of submitit or of Ray answers with `Lost`, and its launcher waits for the others.

    Hydra's launchers keep their jobs to themselves and give up on all of them at the first lost one; on a Slurm cluster
    without accounting submitit's waits for that one forever. So the function that each asks for answers is replaced.
    """
    module = type(launcher).__module__
    if module.startswith("hydra_plugins.hydra_submitit_launcher"):
        import submitit

        with _replaced(submitit.Job, "results", _answers_of_submitit(submitit.Job.results)):
            yield
    elif module.startswith("hydra_plugins.hydra_ray_launcher"):
        import ray

        with _replaced(ray, "get", _answers_of_ray(ray.get)):
            yield
    else:
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within this context attribute `name` of `owner` is `value`."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _answers_of_submitit(results: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """`submitit.Job.results`, by which a lost job answers too."""
    from submitit.core.utils import UncompletedJobError

    def answers(job: Any) -> list[Any]:
        try:
            if _ended(job):
                return results(job)
            why = "left Slurm's queue without an answer"
        except UncompletedJobError as error:
            why = f"did not answer: {first_line(error)}"
        return [_lost(f"{why}; what it printed is in {job.paths.stderr}")]

    return answers


def _answers_of_ray(get: Callable[..., Any]) -> Callable[..., Any]:
    """`ray.get`, by which a task answers too that Ray does not try again."""
    from ray.exceptions import RayError, RayTaskError

    def answer(task: Any) -> Any:
        try:
            return get(task)
        except RayTaskError as error:  # its own text begins with the worker's address, and is a traceback
            return _lost(f"ended by an error: {type(error.cause).__name__}: {first_line(error.cause)}")
        except RayError as error:
            return _lost(f"did not answer: {first_line(error)}")

    return answer


def _lost(why: str) -> JobReturn:
    return JobReturn(status=JobStatus.COMPLETED, _return_value=Lost(why))


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
