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

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from harness import boot, record
from harness.sweep.app.composing import Composer
from harness.sweep.app.point import Point, point_of
from harness.sweep.launchers.base import Answer, CellLauncher, Run
from harness.sweep.launchers.lost_workers import Lost, died
from harness.sweep.launchers.places import places

STOP_SECONDS = 20  # for a worker to stop its cell in order


class LocalParallel(CellLauncher, Launcher):
    """Sends each worker its next cell as soon as the last one is done.

    cells: cells at a time (null: one per place of GPUs; on a CPU, one).
    """

    __module__ = "hydra_plugins.harness"  # Hydra instantiates no launcher from elsewhere

    def __init__(self, cells: int | None = None):
        self._cells = cells

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._loader, self._task, self._config = hydra_context.config_loader, task_function, config
        places(self._cells)

    def at_a_time(self, devices: int) -> int:
        return len(places(self._cells, devices))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run points for another sweeper, such as Optuna's, which has not composed them."""
        setup_globals()
        compose = Composer.of_sweep(self._loader, self._config)
        points = [
            point_of(compose(overrides), list(overrides)).at(number + 1)
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=answer) for answer in self.run(points)]

    def run(self, points: Sequence[Point]) -> list[Answer]:
        answers: dict[int, Answer] = {}
        devices = [point.cell.settings.train.devices for point in points]
        for count in sorted(set(devices), reverse=True):  # cells of one device count share a set of places
            some = {number: point for number, point in enumerate(points) if devices[number] == count}
            answers |= self._all_run(some, places(self._cells, count))
        return [answers[number] for number in sorted(answers)]

    def _all_run(self, points: dict[int, Point], places: list[dict[str, str]]) -> dict[int, Answer]:
        """What became of `points`, by number, each run in one of `places`."""
        folder = Path(self._config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        if len(places) > 1 and "CUDA_VISIBLE_DEVICES" not in places[0]:
            words = f"{len(places)} cells at a time share this CPU: measured times will not be comparable."
            print(f"warning: {words}", file=sys.stderr)
        waiting = deque(points.items())
        idle = [Worker(place, folder / f"parallel-{i}.log") for i, place in enumerate(places)][: len(waiting)]
        busy: dict[Worker, int] = {}
        answers: dict[int, Answer] = {}
        try:
            while waiting or busy:
                while waiting and idle:
                    number, point = waiting.popleft()
                    worker = idle.pop(0)
                    worker.send(self._task, point)
                    busy[worker] = number
                ready = wait([worker.connection for worker in busy])
                for worker in [worker for worker in busy if worker.connection in ready]:
                    answers[busy.pop(worker)] = worker.answer()
                    idle.append(worker)
        finally:
            stop([*idle, *busy])
        return answers


class Worker:
    """A process that runs cells in `place`. It starts with its first cell; its output is appended to `log`."""

    connection: Connection
    _process: subprocess.Popen[bytes]

    def __init__(self, place: dict[str, str], log: Path):
        self._place, self._log = place, log
        self._started = False

    def send(self, task: Run, point: Point) -> None:
        if not self._started or self._process.poll() is not None:
            self._start()
        with contextlib.suppress(BrokenPipeError):  # it died just now; `answer` reports it
            self.connection.send((task, point))

    def answer(self) -> Answer:
        """What became of the last point; `Lost` if the worker died first."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):  # before an answer, or within one
            self.connection.close()
            return Lost(f"{died(self._process.wait())}; its output is in {self._log.name}")

    def close(self) -> None:
        """Tell the process to stop its cell, if there is one, and exit."""
        if self._started and self._process.stdin is not None:
            self._process.stdin.close()

    def end(self) -> None:
        """Wait for the process to exit, and kill it after STOP_SECONDS."""
        if not self._started:
            return
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.connection.close()

    def _start(self) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        with theirs, open(record.without_link(self._log), "ab") as log:
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
        self._started = True


def stop(workers: list[Worker]) -> None:
    """End all of `workers`, at the same time."""
    for worker in workers:
        worker.close()
    for worker in workers:
        worker.end()


def main(descriptor: int) -> None:
    """The worker: run what comes over `descriptor` and answer, until the sweep closes the standard input."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    boot.outlive()
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            task, point = connection.recv()
            connection.send(task(point))


def _end_with_the_sweep() -> None:
    os.read(0, 1)  # nothing is written there; it returns when the sweep closes it or dies
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(int(sys.argv[1]))
