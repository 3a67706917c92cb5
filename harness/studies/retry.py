"""Runs cells again from their records alone, without the sweep that requested them.

A record holds everything that decides its cell's result, apart from the place of the data. It also names the functions
that load a model or build an optimizer. A record may come from anywhere, so it passes through the gate first.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness import config as settings_of
from harness import gate, validate
from harness.config import PRECAUTIONS, FullConfig
from harness.errors import UserError
from harness.protocol import NO_PATHS, LocalPaths, RunCell
from harness.record import Record, read_study
from harness.settings import BY_MICRO_BATCH
from harness.sweep import runner
from harness.sweep.changed_file import changed_since
from harness.sweep.lease import Lease
from harness.sweep.progress import SweepProgress
from harness.sweep.store import Study

STATUSES = ("failed", "diverged", "oom")


def failed(study: Study) -> list[Record]:
    """Records of the cells of a study that failed, diverged or ran out of memory, and are not running now."""
    running = study.running()
    records, _ = read_study(study.folder)
    return [r for r in records if r.status in STATUSES and r.source is None and r.cell.name not in running]


def changes(overrides: Sequence[str]) -> dict[str, Any]:
    """The precautions that `overrides` (KEY=VALUE) change, by name; UserError for a bad one."""
    keys = [override.partition("=")[0] for override in overrides]
    for key, override in zip(keys, overrides, strict=True):
        if key not in PRECAUTIONS or "=" not in override:
            choices = ", ".join(f"{key}=" for key in PRECAUTIONS)
            study = "" if "=" in override else f" A study is named by --study {override}."
            raise UserError(f"`retry` changes only {choices}; got {override}.{study}")
    try:
        config: DictConfig = OmegaConf.structured(FullConfig)
        config.merge_with(OmegaConf.from_dotlist([*overrides]))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0].rstrip('.')}.") from None
    validate.check_precautions(config)
    precautions = settings_of.precautions(config)
    return {PRECAUTIONS[key]: getattr(precautions, PRECAUTIONS[key]) for key in keys}


def retry(
    study: Study,
    records: Sequence[Record],
    data_root: str | None,
    changed: dict[str, Any] | None = None,
    local: LocalPaths = NO_PATHS,
) -> list[Record]:
    """Run the cells of `records` again with the recorded precautions, save and tracker; returns the new records.

    changed: precautions that differ from the recorded ones. local: whose code is run, so no record names it.
    Raises UserError, before anything runs, if a record is refused, or `changed` for it. A cell that another process
    runs, or has just run, is skipped with a line on standard error.
    """
    for recorded in records:
        require(recorded, study.path(recorded.cell))
        _require_suited(recorded, changed or {})
        if recorded.tracker is not None:
            validate.check_installed(recorded.tracker)
    _require_same_data(study, records, data_root)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's stop is as orderly as Ctrl-C
    runner.check([recorded.cell for recorded in records], data_root, local=local)
    progress, new_records = SweepProgress([recorded.cell for recorded in records]), []
    try:
        for recorded in records:
            try:
                precautions = dataclasses.replace(recorded.precautions, **changed or {})
                request = runner.request_for(
                    recorded.cell,
                    study,
                    data_root,
                    local,
                    precautions=precautions,
                    save=recorded.save,
                    tracker=recorded.tracker,
                    confirmation=recorded.confirmation,
                    early_stopping=study.early_stopping(recorded.stop),
                )
                again = _run(study, recorded, request, progress)
            except UserError as error:
                progress.skip(recorded.cell)
                print(f"{recorded.cell.name} is not run: {error}", file=sys.stderr)
            else:
                new_records.append(again)
    finally:
        progress.close()
    return new_records


def _require_suited(recorded: Record, changed: dict[str, Any]) -> None:
    """Raise UserError if the settings of a cell exclude a precaution that is `changed`, as `validate.check` has it."""
    settings = recorded.cell.settings
    objective, saves = settings.train.objective, changed.get("save_every") is not None
    objections = {
        f"train.objective={objective} can't be combined with retry.on_oom=true: its loss depends on the pairs of a "
        "micro-batch": changed.get("on_oom") and objective in BY_MICRO_BATCH,
        "train.early_stopping can't be combined with train.save_every: checkpoints do not keep the best weights": saves
        and settings.train.early_stopping is not None,
        "Paged AdamW requires train.save_every=null: paged memory can't be restored from a checkpoint": saves
        and settings.method.paged,
    }
    for why, applies in objections.items():
        if applies:
            raise UserError(f"{recorded.cell.name} is not run: {why}.")


def _require_same_data(study: Study, records: Sequence[Record], data_root: str | None) -> None:
    """Raise UserError if other cells of the study ran with other data than those of `records` would now."""
    cells, recorded = [record.cell for record in records], read_study(study.folder)[0]
    if (changed := changed_since(recorded, cells, {cell.id for cell in cells}, data_root)) is not None:
        raise UserError(f"{changed}, so that this study would mix two data sets; run a sweep with another study=NAME.")


def _run(study: Study, recorded: Record, request: RunCell, progress: SweepProgress) -> Record:
    """The new record of a cell; UserError if another process has the cell or has just run it."""
    with study.lease(recorded.cell) as lease:
        if study.recorded(recorded.cell) != recorded:
            raise UserError("another process has just run it.")
        return run_shown(study, request, lease, progress)


def run_shown(study: Study, request: RunCell, lease: Lease, progress: SweepProgress) -> Record:
    """The new record of a cell, whose run `progress` shows."""
    progress.start(request.cell)
    try:
        again = runner.run(request, study, lease, progress.update)
    finally:
        progress.clear()
    progress.end(again)
    return again


def require(recorded: Record, path: Path) -> None:
    """Raise UserError if a cell is not to be run again from its record, whose file is at `path`."""
    if recorded.cell.settings.behind_api:
        raise UserError(
            f"{recorded.cell.name} is not run from its record: it does not hold how its model is asked (key, prices). "
            "Run its sweep again instead."
        )
    gate.require(recorded, path)
