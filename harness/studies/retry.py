"""Runs cells again from their records alone, without the sweep that asked for them.

A record holds all that decides its cell's result, so nothing else is needed but where the data lies. It also names what
is called to load a model or to build an optimizer; a record may have come from anywhere, so here only what this
harness's own settings name is called.
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
from harness.config import ADAMW, CONF, PRECAUTIONS, SWEEPS, Config
from harness.errors import UserError
from harness.record import Precautions, Record, read_study
from harness.redact import leaves
from harness.settings import cell_id, plain
from harness.sweep import runner
from harness.sweep.progress import Progress
from harness.sweep.store import Study

STATUSES = ("failed", "diverged", "oom")
LOADED = {"dtype", "quantization_config", "attn_implementation"}  # keywords of from_pretrained that run no code


def failed(study: Study) -> list[Record]:
    """Records of the cells of a study that ran here and broke, and of which none runs now."""
    running = study.running()
    records, _ = read_study(study.folder)
    return [r for r in records if r.status in STATUSES and r.source is None and r.cell.name not in running]


def changes(overrides: Sequence[str]) -> dict[str, Any]:
    """What `overrides` (KEY=VALUE) say of a cell's precautions, by their names; UserError if they can't be."""
    keys = [override.partition("=")[0] for override in overrides]
    for key, override in zip(keys, overrides, strict=True):
        if key not in PRECAUTIONS or "=" not in override:
            known = ", ".join(f"{key}=" for key in PRECAUTIONS)
            raise UserError(f"{override} can't be: a cell is run again as it was; what may differ is {known}.")
    try:
        config = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.from_dotlist([*overrides]))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0].rstrip('.')}.") from None
    settings_of.check_precautions(config)
    asked = settings_of.precautions(config)
    return {PRECAUTIONS[key]: getattr(asked, PRECAUTIONS[key]) for key in keys}


def retry(
    study: Study, records: Sequence[Record], data_root: str | None, changed: dict[str, Any] | None = None
) -> list[Record]:
    """Run the cells of `records` again, with the precautions that they ran with but for the `changed` ones.

    Weights are saved and a tracker is told as was asked for then. Returns their new records. Raises UserError before
    anything is run if one can't be. One that another process is running, or has just run, is left to that, with a line
    on standard error.
    """
    for found in records:
        if (why := objection(found)) is not None:
            raise UserError(f"{found.cell.name} is not run from its record: {why}; its sweep's command runs it.")
        if found.tracker is not None:
            settings_of.check_installed(found.tracker)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's stop is as orderly as Ctrl-C
    runner.check([found.cell for found in records], data_root)
    progress, done = Progress(len(records)), []
    try:
        for found in records:
            try:
                precautions = dataclasses.replace(found.precautions, **changed or {})
                again = _run(study, found, data_root, precautions, progress)
            except UserError as error:
                print(f"{found.cell.name} is not run: {error}", file=sys.stderr)
            else:
                done.append(again)
    finally:
        progress.close()
    return done


def _run(study: Study, found: Record, data_root: str | None, precautions: Precautions, progress: Progress) -> Record:
    """The new record of the cell of `found`; UserError if another process has the cell or has made one meanwhile."""
    with study.claim(found.cell) as claim:
        if study.recorded(found.cell) != found:
            raise UserError("another process has run it meanwhile.")
        progress.start(found.cell)
        try:
            again = runner.run(
                found.cell,
                study,
                claim,
                data_root,
                progress.update,
                precautions,
                save=found.save,
                tracker=found.tracker,
            )
        finally:
            progress.clear()
        progress.end(again)
    return again


def objection(found: Record) -> str | None:
    """Why the settings of a record are not to be run without a look at them; None if they may be."""
    settings = found.cell.settings
    if cell_id(settings) != found.cell.id:
        return "its settings are not those that its id stands for"
    if found.cell.settings.behind_api:
        return "how its model is asked (key, prices) is no part of it"
    model = settings.model
    if model.trust_remote_code or not model.use_safetensors:
        return "it asks for code or pickled weights of its model's to be trusted"
    if settings.eval.unsafe_code:
        return "it asks for code that a model writes to be run"
    if added := settings.method.load.keys() - LOADED:
        return f"it loads its model by {min(added)}, which may be code"
    named = _named()
    for key, value in leaves(plain(settings)):
        if key.endswith("_target_") and value not in named:
            return f"{key}={value} is named in no file of conf/ or sweeps/"
        if isinstance(value, str) and "${" in value:
            return f"{key} is to be interpolated"
        if key.endswith("attn_implementation") and "/" in str(value):
            return f"{key}={value} is code of the hub"
    return None


def _named() -> set[str]:
    """What the files of settings name to be called, or method.adamw means."""
    files = [path for folder in (CONF, SWEEPS) for path in folder.rglob("*.yaml")]
    written = (name for path in files for name in re.findall(r"_target_: *([\w.]+)", path.read_text(encoding="utf-8")))
    return {*written, *ADAMW.values()}
