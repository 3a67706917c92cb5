"""Runs several cells at a time on this machine: Hydra's launcher `local_parallel`, with one or more GPUs per cell.

    harness sweep NAME hydra/launcher=local_parallel [hydra.launcher.cells=N]

Each place has a worker. A place is as many GPUs as a cell asks for (train.devices), or a share of the CPU's cores. A
worker is a process (`main`, below) that runs the cells it is sent one by one.
When the sweep ends, in whatever way, its workers stop their cells in order and exit.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pynvml
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from omegaconf import open_dict

from harness import boot
from harness import config as settings_of
from harness.errors import UserError
from harness.sweep.app.composing import Composer
from harness.sweep.launchers.lost_workers import Lost, died

STOP_SECONDS = 20  # for a worker to stop its cell in order


class LocalParallel(Launcher):
    """Sends each worker its next cell as soon as the last one is done.

    cells: cells at a time (null: one per place of GPUs; on a CPU, one).
    """

    __module__ = "hydra_plugins.harness"  # Hydra instantiates no launcher from elsewhere

    def __init__(self, cells: int | None = None):
        self._cells = cells

    def setup(self, *, hydra_context, task_function, config) -> None:
        self._context, self._task, self._config = hydra_context, task_function, config
        places(self._cells)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        setup_globals()
        points = dict(enumerate(job_overrides, initial_job_idx))
        compose = Composer.of(self._context.config_loader, self._config)
        devices = {number: settings_of.device_count(compose(point)) for number, point in points.items()}
        answers: dict[int, JobReturn] = {}
        for count in sorted(set(devices.values()), reverse=True):  # cells of one device count share a set of places
            some = {number: point for number, point in points.items() if devices[number] == count}
            answers |= self._all_run(some, places(self._cells, count))
        return [answers[number] for number in sorted(answers)]

    def _all_run(self, points: dict[int, Sequence[str]], places: list[dict[str, str]]) -> dict[int, JobReturn]:
        """The returns of `points`, by number, each run in one of `places`."""
        folder = Path(self._config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        if len(places) > 1 and "CUDA_VISIBLE_DEVICES" not in places[0]:
            words = f"{len(places)} cells at a time share this CPU: measured times will not be comparable."
            print(f"warning: {words}", file=sys.stderr)
        waiting = deque(points.items())
        idle = [Worker(place, folder / f"parallel-{i}.log") for i, place in enumerate(places)][: len(waiting)]
        busy: dict[Worker, int] = {}
        answers: dict[int, JobReturn] = {}
        try:
            while waiting or busy:
                while waiting and idle:
                    number, point = waiting.popleft()
                    worker = idle.pop(0)
                    worker.send(self._job(number, point))
                    busy[worker] = number
                ready = wait([worker.connection for worker in busy])
                for worker in [worker for worker in busy if worker.connection in ready]:
                    answers[busy.pop(worker)] = worker.answer()
                    idle.append(worker)
        finally:
            stop([*idle, *busy])
        return answers

    def _job(self, number: int, point: Sequence[str]) -> tuple[Any, ...]:
        """What a worker needs for `point`: Hydra's context, the task function, the configuration."""
        config = self._context.config_loader.load_sweep_config(self._config, list(point))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return self._context, self._task, config


class Worker:
    """A process that runs cells in `place`. It starts with its first cell; its output is appended to `log`."""

    connection: Connection

    def __init__(self, place: dict[str, str], log: Path):
        self._place, self._log = place, log
        self._process: subprocess.Popen | None = None

    def send(self, job: tuple[Any, ...]) -> None:
        if self._process is None or self._process.poll() is not None:
            self._start()
        with contextlib.suppress(BrokenPipeError):  # it died just now; `answer` reports it
            self.connection.send(job)

    def answer(self) -> JobReturn:
        """The return of the last job; its value is `Lost` if the worker died first."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):  # before an answer, or within one
            self.connection.close()
            why = f"{died(self._process.wait())}; its output is in {self._log.name}"
            return Lost(why).answer()

    def close(self) -> None:
        """Tell the process to stop its cell, if there is one, and exit."""
        if self._process is not None:
            self._process.stdin.close()

    def end(self) -> None:
        """Wait for the process to exit, and kill it after STOP_SECONDS."""
        if self._process is None:
            return
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.connection.close()

    def _start(self) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        with theirs, open(self._log, "ab") as log:
            # A session of its own: see fork_server.py.
            self._process = subprocess.Popen(
                boot.command("harness.sweep.launchers.local_parallel", str(theirs.fileno())),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                env=boot.environment() | self._place,
                start_new_session=True,
            )


def without_configs(job: JobReturn) -> JobReturn:
    """`job` without what it was composed to: two configurations, which a sweep of thousands can't keep."""
    job.cfg = job.hydra_cfg = None
    return job


def stop(workers: list[Worker]) -> None:
    """End all of `workers`, at the same time."""
    for worker in workers:
        worker.close()
    for worker in workers:
        worker.end()


def places(cells: int | None, devices: int = 1) -> list[dict[str, str]]:
    """The environment variables of each place; one cell at a time runs in each.

    Raises UserError if this machine has no room for `cells` places of `devices` GPUs each.
    """
    if cells is not None and (not isinstance(cells, int) or cells < 1):
        raise UserError(f"hydra.launcher.cells must be a positive number, got {cells}.")
    found = gpus()
    if found:
        require_gpus(devices)
        together = [",".join(found[i : i + devices]) for i in range(0, len(found) - devices + 1, devices)]
        if cells is not None and cells > len(together):
            each = "" if devices == 1 else f", {devices} of them for a cell (train.devices)"
            raise UserError(
                f"hydra.launcher.cells must be at most {len(together)}, got {cells}: a GPU runs one cell at a time, "
                f"and there are {len(found)}{each}."
            )
        return [{"CUDA_VISIBLE_DEVICES": gpus} for gpus in together[:cells]]
    if cells in (None, 1):
        return [{}]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, _cores() // cells))
    return [{"OMP_NUM_THREADS": threads} for _ in range(cells)]


def require_gpus(devices: int) -> None:
    """Raise UserError if this machine has GPUs, but fewer than `devices`."""
    found = gpus()
    if found and devices > len(found):
        raise UserError(f"train.devices must be at most {len(found)}, the GPUs of this machine, got {devices}.")


def gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(i) for i in range(count)]
    return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")] if count else []


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def main(descriptor: int) -> None:
    """The worker: run what comes over `descriptor` and answer, until the sweep closes the standard input."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    boot.outlive()
    setup_globals()
    settings_of.register_resolvers()
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            context, task, config = connection.recv()
            answer = run_job(
                hydra_context=context,
                task_function=task,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
            connection.send(without_configs(answer))


def _end_with_the_sweep() -> None:
    os.read(0, 1)  # nothing is written there; it returns when the sweep closes it or dies
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(int(sys.argv[1]))
