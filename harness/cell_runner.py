"""Cells that plug-ins run, such as those of a model that is not on this machine: which, and how.

The core runs a cell unless `runner_of` returns a plug-in that does.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig

from harness import plugin
from harness.protocol import LocalPaths, Report, RunCell
from harness.record import Cell, Record
from harness.settings import Settings

Extra = dict[str, Any]  # what a plug-in adds to the request for a cell, as JSON values
Cost = dict[str, Any]  # what running a cell would take, as its plug-in counts it, as JSON values


class CellRunner(Protocol):
    """What a plug-in names under `cells`. The sweep calls the first four methods, the job the others.

    So only the latter may import what is for jobs, when they are called.
    """

    def runs(self, settings: Settings) -> bool:
        """Whether the plug-in runs the cell of `settings`."""

    def composed(self, resolved: Mapping[str, Any]) -> Settings | None:
        """The settings of a cell, as the resolved configuration has them; None if the plug-in does not run it."""

    def extra(self, config: DictConfig, answers: Path) -> Extra:
        """What the request for the cell of `config` has to carry. answers: a file for what is to outlive the job."""

    def admit(self, requests: Sequence[RunCell], costs: Mapping[str, Cost], dollars: float | None) -> None:
        """Print what the cells of `requests` would cost, before any runs. UserError if that is more than `dollars`.

        costs: by the cell's id. dollars: the budget (null: none).
        """

    def check(self, cell: Cell, extra: Extra, data_root: str | None, local: LocalPaths) -> Cost:
        """What running `cell` would cost. Raises UserError if it can't run here."""

    def run(self, request: RunCell, report: Report) -> Record:
        """Run the cell of `request`, and write its record, as harness/job/run_cell.py does; returns the record."""


def runner_of(settings: Settings) -> CellRunner | None:
    """Who runs the cell of `settings`; None if the core does."""
    return next((runner for runner in runners() if runner.runs(settings)), None)


@functools.cache
def runners() -> tuple[CellRunner, ...]:
    """Those of all plug-ins."""
    return tuple(plugin.load(part.cells)() for part in plugin.installed() if part.cells is not None)
