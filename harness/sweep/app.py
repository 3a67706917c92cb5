"""The Hydra app behind ``run`` and ``sweep``: composes cells, plans a grid, has each cell run. The only Hydra entry.

A named sweep is a config in ``sweeps/`` that extends ``conf/config.yaml``; its axes stand under
``hydra.sweeper.params``. The sweeper here is Hydra's own with a plan before the launch: every point is
composed and checked, equal points collapse into one cell, recorded cells are left out. What remains goes
to whichever launcher Hydra was given.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from harness import config as settings_of
from harness.config import CONF, SWEEPS, Config, one_of
from harness.errors import UserError
from harness.record import Cell, Record
from harness.sweep import cell as cells_of
from harness.sweep import worker
from harness.sweep.progress import Progress
from harness.sweep.store import Study

NOT_A_LAUNCH = {"--cfg", "-c", "--help", "-h", "--hydra-help", "--info", "-i", "--shell-completion", "-sc", "--version"}

_progress: Progress | None = None  # of the sweep that this process runs; None in a launcher's worker process
_outcomes: list[str] = []  # statuses of the cells that this process ran or had run


class SweepsOnSearchPath(SearchPathPlugin):
    def manipulate_search_path(self, search_path) -> None:
        search_path.append("sweeps", f"file://{SWEEPS}")


class GridSweeper(BasicSweeper):
    """Hydra's basic sweeper, planning first."""

    def sweep(self, arguments):
        returns = super().sweep(arguments)
        statuses = [job.return_value for batch in returns for job in batch]
        _outcomes.extend(statuses)
        if statuses:
            counts = ", ".join(f"{statuses.count(s)} {s}" for s in sorted(set(statuses)))
            print(f"Done: {counts}. `python -m harness table` renders the table.", file=sys.stderr)
        return returns

    def split_arguments(self, overrides, max_batch_size):
        points = super().split_arguments(overrides, None)[0]
        wanted: dict[str, tuple[Cell, list[str]]] = {}
        left, composed = [], None
        for point in points:
            composed = self.hydra_context.config_loader.load_sweep_config(self.config, point)
            cell = cells_of.from_config(composed)
            wanted.setdefault(cell.id, (cell, point))
        study = _study(composed)
        for cell, point in wanted.values():
            found = study.recorded(cell)
            if found is None or found.status in composed.retry.statuses:
                left.append((cell, point))
        _announce(study, len(points), len(wanted), len(left))
        if not left:
            return []
        worker.check([cell for cell, _ in left], composed.data_root)
        study.plan(cell for cell, _ in wanted.values())

        global _progress
        _progress = Progress(len(left))
        batches = [point for _, point in left]
        return list(self.split_overrides_to_chunks(batches, max_batch_size))


def _announce(study: Study, points: int, cells: int, left: int) -> None:
    same = "" if cells == points else f" ({points} points of the grid, equal ones run once)"
    print(f"{study.name}: {cells} cells{same}, {cells - left} recorded, {left} to run.", file=sys.stderr)


def _study(config: DictConfig) -> Study:
    return Study(Path(config.results_dir).expanduser(), config.study)


def _task(config: DictConfig) -> str:
    """What Hydra calls for each point, here or in a launcher's worker; returns the record's status."""
    settings_of.register_resolvers()
    cell, study = cells_of.from_config(config), _study(config)
    found = study.recorded(cell)
    if found and found.status not in config.retry.statuses:
        print(f"{cell.name} is recorded in {study.path(cell)} ({found.status}).", file=sys.stderr)
        _outcomes.append(found.status)
        return found.status
    progress = _progress or Progress(1)
    progress.start(cell)
    try:
        found = worker.run(cell, study, config.data_root, progress.update)
    finally:
        progress.clear()
    progress.end(found)
    if _progress is None:
        progress.close()
        _outcomes.append(found.status)
        _tell(found)
    return found.status


def _tell(found: Record) -> None:
    for score in found.scores:
        error = "" if score.stderr is None else f" ± {score.stderr:.4f}"
        name = f"{score.task} {score.metric} ({score.filter})"
        print(f"{name}: {score.value:.4f}{error}, n = {score.n}, {score.num_fewshot} shots")


def main(command: str, arguments: list[str]) -> int:
    """Run ``run`` or ``sweep`` with Hydra's arguments; returns the exit status (1 if a cell failed).

    Raises UserError for bad input, KeyboardInterrupt when stopped.
    """
    settings_of.register_resolvers()
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(group="hydra/sweeper", name="grid", node=BasicSweeperConf(_target_=f"{__name__}.GridSweeper"))
    Plugins.instance().register(GridSweeper)
    Plugins.instance().register(SweepsOnSearchPath)

    name = "config"
    if command == "sweep":
        if arguments and "=" not in arguments[0] and not arguments[0].startswith(("-", "+", "~")):
            name, *arguments = arguments
            one_of("sweep", name, sorted(path.stem for path in SWEEPS.glob("*.yaml")))
        if not any(a.partition("=")[0] in NOT_A_LAUNCH for a in arguments):
            arguments = ["--multirun", *arguments]
        if not any(a.startswith("hydra/sweeper=") for a in arguments):
            arguments = ["hydra/sweeper=grid", *arguments]
    sys.argv = [f"python -m harness {command}", *arguments]

    # Hydra prints a traceback, or several lines, and exits; the user gets one sentence from us instead.
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(config_path=str(CONF), config_name=name, version_base="1.3")(_task)()
    except (HydraException, OmegaConfBaseException) as error:
        if full_error:
            raise
        raise UserError(_sentence(error)) from None
    finally:
        if _progress is not None:
            _progress.close()
    return int(any(status != "ok" for status in _outcomes))


def _sentence(error: Exception) -> str:
    """Hydra's or OmegaConf's message as one line."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        try:
            one_of(group, choice, sorted(error.options))
        except UserError as unknown:
            return str(unknown)
    cause = f" {error.__cause__}" if error.__cause__ is not None else ""
    return " ".join(f"{error}{cause}".split())
