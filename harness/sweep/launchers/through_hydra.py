"""Runs points by Hydra's launchers: one by one in this process, or by Slurm or Ray on other machines.

Hydra's launchers hand each worker a list of overrides and have it compose them. A point is composed already, so that
list names the point's file alone, in the study's folder, which all machines share.
"""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from harness.errors import UserError, first_line
from harness.sweep.app.point import Point
from harness.sweep.app.running import FILE
from harness.sweep.launchers import lost_workers
from harness.sweep.launchers.base import Answer, CellLauncher, Run
from harness.sweep.launchers.lost_workers import Lost


class OneByOne(CellLauncher):
    """Hydra's `basic`: this process has one job after another run a cell, as its answer is asked for."""

    in_this_process = True

    def __init__(self, run: Run):
        self._run = run

    def run(self, points: Sequence[Point]) -> Iterator[Answer]:
        return map(self._run, points)


class Elsewhere(CellLauncher):
    """A launcher of Hydra's that sends cells to other processes, such as submitit's."""

    on_this_machine = False

    def __init__(self, launcher: Launcher, config: DictConfig):
        self._launcher, self._config = launcher, config
        self._launched = 0

    def run(self, points: Sequence[Point]) -> list[Answer]:
        folder = Path(self._config.hydra.sweep.dir) / "points"
        files = [folder / f"{uuid.uuid4().hex}.json" for _ in points]
        for point, file in zip(points, files, strict=True):
            point.write(file)
        overrides = [[f"+{FILE}={_quoted(str(file))}"] for file in files]
        try:
            with lost_workers.lost_jobs_answer(self._launcher):
                jobs = self._launcher.launch(overrides, initial_job_idx=self._launched)
        except Exception as error:
            _discard(files)
            raise UserError(f"{type(self._launcher).__name__} broke off: {first_line(error)}.") from error
        self._launched += len(points)
        _discard(files)  # after an interruption they stay: what a queue holds goes on
        return [_answer(job) for job in jobs]


class Slurm(Elsewhere):
    """Jobs of Slurm, each of which may have several machines."""

    def __init__(self, launcher: Launcher, config: DictConfig):
        super().__init__(launcher, config)
        self.nodes = config.hydra.launcher.nodes

    def interrupted(self) -> None:
        name = self._config.hydra.launcher.name
        print(
            f"What Slurm holds goes on there; `scancel --name={name}` ends it. Until then the same command would queue "
            "those cells twice.",
            file=sys.stderr,
        )


class Ray(Elsewhere):
    """Tasks of a Ray cluster."""

    def require(self) -> None:
        """Raise UserError if the cluster has fewer GPUs than a cell asks for: Ray lets it wait forever, silently.

        Connects to the cluster as the launcher does, which then finds itself connected.
        """
        settings = self._config.hydra.launcher.ray
        gpus = settings.remote.get("num_gpus") or 0
        if not gpus:
            return
        import ray

        if not ray.is_initialized():
            options: Any = OmegaConf.to_container(settings.init, resolve=True)
            ray.init(**options)
        there = ray.cluster_resources().get("GPU", 0)
        if there < gpus:
            raise UserError(
                f"hydra.launcher.ray.remote.num_gpus={gpus:g} requires a cluster with GPUs, got {there:g}; on a "
                "cluster without GPUs add hydra.launcher.ray.remote.num_gpus=0."
            )


# By the names of Hydra's classes: its scan for plugins makes the classes anew.
KINDS: dict[str, type[Elsewhere]] = {"SlurmLauncher": Slurm, "RayLauncher": Ray}


def cell_launcher(launcher: Launcher, config: DictConfig, run: Run) -> CellLauncher:
    """`launcher` of Hydra's as a sweep uses it. run: what runs a point in this process."""
    if isinstance(launcher, CellLauncher):
        return launcher
    name = type(launcher).__name__
    return OneByOne(run) if name == "BasicLauncher" else KINDS.get(name, Elsewhere)(launcher, config)


def _discard(files: Sequence[Path]) -> None:
    """Remove the `files` of points, and their folder."""
    for file in files:
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another sweep of the study may have some there
        files[0].parent.rmdir()


def _answer(job: JobReturn) -> Answer:
    """What the worker of `job` answers. One that ended by an error is lost, and what others answer is kept."""
    try:
        answer: Answer = job.return_value
        return answer
    except Exception as error:  # whatever ended the worker
        return Lost(f"ended by {type(error).__name__} ({first_line(error)})")


def _quoted(value: str) -> str:
    """`value` as a quoted string of an override."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
