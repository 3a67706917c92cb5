"""Runs cells again from their records alone, without the sweep that requested them.

A record holds everything that decides its cell's result, apart from the place of the data. It also names the functions
that load a model or build an optimizer. A record may come from anywhere, so only functions that config files name are
called.
"""

from __future__ import annotations

import dataclasses
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness import config as settings_of
from harness import validate
from harness.config import ADAMW, PRECAUTIONS, Config
from harness.config_folders import conf_folders, sweep_folders
from harness.errors import UserError
from harness.protocol import NO_PATHS, LocalPaths, RunCell
from harness.record import Record, read_study
from harness.redact import leaves
from harness.settings import cell_id, plain
from harness.sweep import runner
from harness.sweep.lease import Lease
from harness.sweep.progress import SweepProgress
from harness.sweep.store import Study

STATUSES = ("failed", "diverged", "oom")
SAFE_LOAD = {"dtype", "quantization_config", "attn_implementation"}  # keywords of from_pretrained that run no code


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
            known = ", ".join(f"{key}=" for key in PRECAUTIONS)
            raise UserError(f"`retry` changes only {known}; got {override}.")
    try:
        config = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.from_dotlist([*overrides]))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0].rstrip('.')}.") from None
    validate.check_precautions(config)
    asked = settings_of.precautions(config)
    return {PRECAUTIONS[key]: getattr(asked, PRECAUTIONS[key]) for key in keys}


def retry(
    study: Study,
    records: Sequence[Record],
    data_root: str | None,
    changed: dict[str, Any] | None = None,
    local: LocalPaths = NO_PATHS,
) -> list[Record]:
    """Run the cells of `records` again with the recorded precautions, save and tracker; returns the new records.

    changed: precautions that differ from the recorded ones. local: whose code is run, so no record names it.
    Raises UserError, before anything runs, if a record is refused. A cell that another process runs, or has just run,
    is skipped with a line on standard error.
    """
    for found in records:
        if (why := objection(found)) is not None:
            raise UserError(f"{found.cell.name} is not run from its record: {why}. Run its sweep again instead.")
        if found.tracker is not None:
            validate.check_installed(found.tracker)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's stop is as orderly as Ctrl-C
    runner.check([found.cell for found in records], data_root, local=local)
    progress, done = SweepProgress(len(records)), []
    try:
        for found in records:
            try:
                precautions = dataclasses.replace(found.precautions, **changed or {})
                options = {"precautions": precautions, "save": found.save, "tracker": found.tracker}
                options |= {"confirmation": found.confirmation, "halving": study.halving(found.stop)}
                request = runner.request_for(found.cell, study, data_root, local, **options)
                again = _run(study, found, request, progress)
            except UserError as error:
                print(f"{found.cell.name} is not run: {error}", file=sys.stderr)
            else:
                done.append(again)
    finally:
        progress.close()
    return done


def _run(study: Study, found: Record, request: RunCell, progress: SweepProgress) -> Record:
    """The new record of a cell; UserError if another process has the cell or has just run it."""
    with study.lease(found.cell) as lease:
        if study.recorded(found.cell) != found:
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


def objection(found: Record) -> str | None:
    """Why the settings of a record are not safe to run unread; None if they are."""
    settings = found.cell.settings
    if cell_id(settings) != found.cell.id:
        return "its id is not that of its settings"
    if found.cell.settings.behind_api:
        return "it does not hold how its model is asked (key, prices)"
    model = settings.model
    if model.trust_remote_code or not model.use_safetensors:
        return "it trusts code or pickled weights of its model"
    if settings.eval.unsafe_code:
        return "it runs code that a model writes"
    if added := settings.method.load.keys() - SAFE_LOAD:
        return f"it loads its model with {min(added)}, which may run code"
    named = _named()
    for key, value in leaves(plain(settings)):
        if key.endswith("_target_") and value not in named:
            return f"no file of conf/ or sweeps/ names {key}={value}"
        if isinstance(value, str) and "${" in value:
            return f"{key} is an interpolation"
        if key.endswith("attn_implementation") and "/" in str(value):
            return f"{key}={value} is code from the hub"
    return None


def _named() -> set[str]:
    """The functions that config files name, and those that method.adamw stands for."""
    files = [path for folder in (*conf_folders(), *sweep_folders()) for path in folder.rglob("*.yaml")]
    written = (name for path in files for name in re.findall(r"_target_: *([\w.]+)", path.read_text(encoding="utf-8")))
    return {*written, *ADAMW.values()}
