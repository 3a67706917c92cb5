"""Runs a cell and leaves its record: an exception, a shortage of memory or a divergence becomes one too."""

from __future__ import annotations

import shutil
import sys
import time
import traceback
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

import pandas as pd

from harness import env, record, redact
from harness.errors import UserError, about_file
from harness.job import pair_cell, preflight, run_cell, shortage
from harness.job.api import client, run_api_cell
from harness.job.evaluate.vllm.process import VllmFailed
from harness.job.reporter import Report
from harness.job.tracker import Tracker
from harness.job.training import distributed, halving, loop
from harness.protocol import RunCell
from harness.record import Failure, Record, Saved, Shortage, model_card


class RunningCell(Protocol):
    """A running cell, on this machine or behind an API.

    items: what was scored, one row for each item, filter and metric; None before that.
    """

    phase: str
    step: int | None
    items: pd.DataFrame | None

    def run(self, result: Record) -> None:
        """Run all phases; each puts its part into `result`."""

    def describe(self, result: Record) -> None:
        """Add the phases, and the environment that only the job knows, to `result`."""

    def shortage(self) -> Shortage | None:
        """What the device holds. Ask while the exception still holds what was in use."""

    def end(self, result: Record) -> None:
        """Do what follows on the record."""


def run(request: RunCell, report: Report, rank: distributed.Rank | None = None) -> Record:
    """Run the cell, write its record to the request's path (its items beside it), and return it.

    `report` is called with phases and with steps of training. Bad input raises UserError and leaves no record; any
    other failure is recorded with its phase, step and reason. A record that can't be written raises UserError too.

    rank: this process's part in a cell on several devices. One of them leaves the record.
    """
    cell, path = request.cell, Path(request.path)
    started, clock = datetime.now(UTC), time.monotonic()
    report({"phase": "start"})
    weights = record.beginnings(path)[0]
    _discard_beginnings(path)
    if cell.settings.behind_api:
        job: RunningCell = run_api_cell.ApiCell(request, report)
    else:
        preflight.check_machine(cell, request.local.vllm_python)
        first = rank is None or rank.number == 0
        tracked = request.tracker is not None and first
        start_tracker = partial(Tracker, request.tracker, cell, request.study, path.parent) if tracked else None
        kind = pair_cell.PairCell if cell.settings.train.paired else run_cell.LocalCell
        job = kind(request, report, weights, rank, start_tracker)
    result = request.record("ok", started)
    try:
        job.run(result)
    except loop.Diverged as error:
        result.status, result.failure = "diverged", Failure(job.phase, error.step, str(error))
    except halving.Pruned as error:
        result.status, result.failure = "pruned", Failure(job.phase, error.step, str(error))
    except (client.Stopped, VllmFailed) as error:
        result.status, result.failure = "failed", Failure(job.phase, job.step, str(error))
    except UserError:
        _discard_beginnings(path)
        raise
    except Exception as error:
        print(redact.redact(traceback.format_exc()), file=sys.stderr)  # into the cell's log
        out_of_memory = shortage.of_memory(error)
        memory = job.shortage() if out_of_memory else None
        result.status = "oom" if out_of_memory else "failed"
        result.failure = Failure(job.phase, job.step, redact.reason(error), memory)
    if rank is not None and not rank.records(result.status):
        return result
    result.seconds = time.monotonic() - clock
    result.environment = env.describe()
    job.describe(result)
    _write(result, job.items, path, weights)
    job.end(result)
    if request.checkpoints is not None and result.status != "failed":
        shutil.rmtree(request.checkpoints, ignore_errors=True)
    report({"phase": "recorded"})
    return result


def _write(result: Record, items: pd.DataFrame | None, path: Path, weights: Path) -> None:
    """Write `result` to `path`, its items and its weights beside it. Raises UserError if a file can't be written.

    weights: the folder that the tuned weights were saved in, if `result` says so; it is gone after this.
    """
    if result.status != "ok":
        _keep_for_scoring(result, weights, record.scored_model(path))
    try:
        if items is not None:
            result.items_sha256 = _write_items(items, path.with_suffix(".items.parquet"))
        if result.saved is None:
            shutil.rmtree(record.model_folder(path), ignore_errors=True)  # of an earlier record
        else:
            (weights / record.CARD).write_text(model_card.text(result), encoding="utf-8")
            record.place(weights, record.model_folder(path))
        record.write(result, path)
    except OSError as error:
        raise UserError(about_file(error)) from None
    finally:
        _discard_beginnings(path)


def _keep_for_scoring(result: Record, weights: Path, scored: Path) -> None:
    """Keep the tuned weights of a cell that failed, if scores are all that it lacks.

    scored: the folder that vLLM read, if any: it takes the place of `weights` where none were to be saved.
    """
    phase, tuned = result.failure.phase, result.cell.settings.method.tuned
    if phase not in ("save_for_vllm", "score"):
        result.saved = None
    elif result.saved is None and tuned and phase == "score" and scored.is_dir():
        scored.rename(weights)
        result.saved = Saved("merged" if result.merge.merged else "model", record.hashes(weights))


def _discard_beginnings(path: Path) -> None:
    for folder in record.beginnings(path):
        shutil.rmtree(folder, ignore_errors=True)


def _write_items(items: pd.DataFrame, path: Path) -> str:
    """Write `items` to `path`, all or nothing; returns the sha256 of the file."""
    with record.replacing(path) as temporary:
        # A reader takes a page at a time. By default one has 1,024 rows at least, however long their texts are
        items.to_parquet(temporary, index=False, write_batch_size=16)
    return record.sha256(path)
