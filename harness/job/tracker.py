"""What a cell tells a tracker while it runs, through accelerate's classes for TensorBoard, MLflow, W&B and trackio.

It is for looking on; the record is what was measured. All is told between steps, outside of what is timed, and a
tracker that breaks off ends no training. Where a tracker is and who may write there is its own affair: it is asked for
in its own environment variables.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from harness import redact
from harness.errors import UserError
from harness.record import Cell, Record


class Tracker:
    """The tracker `name` of one run of `cell`; `folder` is its study's. Raises UserError where it can't start."""

    def __init__(self, name: str, cell: Cell, study: str, folder: Path):
        self._name = name
        self._tracker: GeneralTracker | None = None
        try:
            tracker = LOGGER_TYPE_TO_CLASS[name](**_place(name, cell.name, study.replace("/", "-"), folder))
            tracker.start()
            tracker.store_init_configuration(_flat(redact.hide(cell.settings)))
        except Exception as error:  # whatever it raises without a network, an account, a server
            why = _first_line(error)
            raise UserError(f"tracker={name} can't start: {why}; set it up, or leave tracker out.") from error
        self._tracker = tracker

    def log(self, values: dict[str, float | None], step: int) -> None:
        """Tell `values`, those that there are, as they are after `step` steps."""
        known = {name: value for name, value in values.items() if value is not None}
        self._call(lambda tracker: tracker.log(known, step=step))

    def end(self, found: Record) -> None:
        """Tell what the record adds to what was told on the way, and end."""
        values = {f"score/{s.task}/{s.metric}/{s.filter}": s.value for s in found.scores}
        if found.train is not None:
            values["train/tokens_per_second_steady"] = found.train.tokens_per_second_steady
        self.log(values, found.train.steps if found.train else 0)
        self._call(lambda tracker: tracker.finish())

    def _call(self, what: Callable[[GeneralTracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            what(self._tracker)
        except Exception as error:  # a server that went away, a full disk
            print(f"{self._name} is told no more ({_first_line(error)}); the cell goes on.", file=sys.stderr)
            self._tracker = None


def _place(name: str, run: str, study: str, folder: Path) -> dict[str, Any]:
    """What the class is called with so that the run has its cell's name, among those of its study."""
    return {
        "tensorboard": {"run_name": run, "logging_dir": folder / "tensorboard"},
        "mlflow": {"experiment_name": study, "run_name": run},
        "wandb": {"run_name": study, "name": run, "dir": str(folder)},
        "trackio": {"run_name": study, "name": run},
    }[name]


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Dotted names and values that any tracker takes."""
    flat: dict[str, list[Any]] = {}
    for key, value in redact.leaves(settings):
        flat.setdefault(key, []).append(value)
    values = {key: found[0] if len(found) == 1 else str(found) for key, found in flat.items()}
    return {key: value if isinstance(value, bool | int | float) else str(value) for key, value in values.items()}


def _first_line(error: Exception) -> str:
    return (redact.clean(str(error)).strip() or type(error).__name__).splitlines()[0].rstrip(".")
