"""Logs a running cell to a tracker, through accelerate's classes for TensorBoard, MLflow, W&B and trackio.

Trackers are for watching; measurements are in the record. Values are logged between steps, outside of timings, and a
failing tracker does not end training. A tracker's address and credentials are set by its own environment variables.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from harness import redact
from harness.errors import UserError, first_line
from harness.grouping import grouped
from harness.record import COMPLETE, Cell, Record
from harness.settings import plain

NOT_IN_MLFLOW = re.compile(r"[^\w. :/-]")  # in names of parameters and metrics


class Tracker:
    """The tracker `name` of one run of `cell`. folder: of the study. Raises UserError if the tracker can't start."""

    def __init__(self, name: str, cell: Cell, study: str, folder: Path):
        self._name = name
        self._tracker: GeneralTracker | None = None
        try:
            tracker = LOGGER_TYPE_TO_CLASS[name](**_place(name, cell.name, study.replace("/", "-"), folder))
            tracker.start()
            tracker.store_init_configuration(self._named(_flat(redact.hide(plain(cell.settings)))))
        except Exception as error:  # without a network, an account or a server it may raise anything
            why = redact.clean(first_line(error))
            raise UserError(f"tracker={name} can't start: {why}; set it up, or omit tracker.") from error
        self._tracker = tracker

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        """Log those of `values` that are not None, after `step` steps."""
        numbers = self._named({name: value for name, value in values.items() if value is not None})
        self._call(lambda tracker: tracker.log(numbers, step=step))

    def end(self, record: Record | None) -> None:
        """Log what the record adds, and finish: as a run that failed if the cell did, or has no record (null)."""
        if record is not None:
            values: dict[str, float | None] = {f"score/{s.task}/{s.metric}/{s.filter}": s.value for s in record.scores}
            if record.train is not None:
                values["train/tokens_per_second_steady"] = record.train.tokens_per_second_steady
            self.log(values, record.train.steps if record.train else 0)
        failed = record is None or record.status not in COMPLETE
        self._call(_FAIL.get(self._name, _finish) if failed else _finish)
        self._tracker = None

    def _named(self, values: dict[str, Any]) -> dict[str, Any]:
        """`values` with names that the tracker takes, as of pass@1 and of settings whose key is a pattern."""
        if self._name != "mlflow":
            return values
        return {NOT_IN_MLFLOW.sub("_", name): value for name, value in values.items()}

    def _call(self, what: Callable[[GeneralTracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            what(self._tracker)
        except Exception as error:  # a server that went away, a full disk
            print(
                f"{self._name} failed ({redact.clean(first_line(error))}); the cell continues without it.",
                file=sys.stderr,
            )
            self._tracker = None


def _finish(tracker: GeneralTracker) -> None:
    tracker.finish()


def _fail_in_mlflow(_: GeneralTracker) -> None:
    import mlflow

    mlflow.end_run("FAILED")


def _fail_in_wandb(tracker: GeneralTracker) -> None:
    tracker.tracker.finish(exit_code=1)


_FAIL = {"mlflow": _fail_in_mlflow, "wandb": _fail_in_wandb}  # the others know of no failed run


def _place(name: str, run: str, study: str, folder: Path) -> dict[str, Any]:
    """Arguments of the tracker's class: the run has the cell's name, in a group of its study."""
    places: dict[str, dict[str, Any]] = {
        "tensorboard": {"run_name": run, "logging_dir": folder / "tensorboard"},
        "mlflow": {"experiment_name": study, "run_name": run},
        # Their own sampling of the machine would run beside the timed steps. W&B takes output before it is redacted.
        "wandb": {
            "run_name": study,
            "name": run,
            "dir": str(folder),
            "settings": {"x_disable_stats": True, "console": "off"},
        },
        "trackio": {"run_name": study, "name": run, "auto_log_cpu": False, "auto_log_gpu": False},
    }
    return places[name]


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Dotted names, and values that any tracker accepts."""
    flat = grouped(redact.leaves(settings))
    values = {key: group[0] if len(group) == 1 else str(group) for key, group in flat.items()}
    return {key: value if isinstance(value, bool | int | float) else str(value) for key, value in values.items()}
