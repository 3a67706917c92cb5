"""Leaves the record of a cell: an exception, a shortage of memory or a divergence becomes one too."""

from __future__ import annotations

import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import pandas as pd

from harness import env, record, redact
from harness.errors import UserError, about_file
from harness.job import shortage
from harness.job.ended import CellEnded
from harness.job.evaluate.answer_engines import SAVE_FOR
from harness.job.training import distributed
from harness.protocol import Report, RunCell
from harness.record import Failure, Record, Saved, Shortage, model_card


class RunningCell(Protocol):
    """A running cell, of the core or of a plug-in: where it stands, and what its record says of that."""

    @property
    def phase(self) -> str: ...

    @property
    def step(self) -> int | None: ...

    def describe(self, result: Record) -> None:
        """Add the phases, and the environment that only the job knows, to `result`."""

    def shortage(self) -> Shortage | None:
        """What the device holds. Ask while the exception still holds what was in use."""

    def end(self, result: Record | None) -> None:
        """Do what follows on the record, or on the end of a cell that leaves none (null)."""


class Recording:
    """The record of a cell that runs from now on, which `report` is told.

    result: what is known so far. weights: the folder for tuned weights, beside the record.
    """

    def __init__(self, request: RunCell, report: Report):
        started, self._clock = datetime.now(UTC), time.monotonic()
        report({"phase": "start"})
        self._request, self._report, self._path = request, report, Path(request.path)
        self.weights = record.beginnings(self._path)[0]
        _discard_beginnings(self._path)
        self.result = request.record("ok", started)
        self._items: pd.DataFrame | None = None

    def keep_items(self, items: pd.DataFrame) -> None:
        """Keep what was scored, one row for each item, filter and metric, to be written beside the record."""
        self._items = items

    @contextmanager
    def failures(self, running: RunningCell) -> Iterator[None]:
        """A context whose failure, other than by bad input, becomes the record's, with its phase, step and reason.

        Bad input raises UserError, and leaves nothing.
        """
        result = self.result
        try:
            yield
        except CellEnded as error:
            step = running.step if error.step is None else error.step
            result.status, result.failure = error.status, Failure(running.phase, step, str(error))
        except UserError:
            _discard_beginnings(self._path)
            running.end(None)
            raise
        except Exception as error:
            print(redact.redact(traceback.format_exc()), file=sys.stderr)  # into the cell's log
            out_of_memory = shortage.of_memory(error)
            memory = running.shortage() if out_of_memory else None
            result.status = "oom" if out_of_memory else "failed"
            result.failure = Failure(running.phase, running.step, redact.reason(error), memory)
        except BaseException:  # the job is stopped
            running.end(None)
            raise

    def finish(self, running: RunningCell, rank: distributed.LaunchedRank | None = None) -> Record:
        """Write the record, its items and its weights beside it; of several ranks one does so.

        Returns the record. Raises UserError if a file can't be written.
        """
        result = self.result
        if rank is not None and not rank.records(result.status):
            return result
        try:
            result.seconds = time.monotonic() - self._clock
            result.environment = env.describe()
            running.describe(result)
            self._write()
        except BaseException:  # a full disk, or the job is stopped
            running.end(None)
            raise
        running.end(result)
        if self._request.checkpoints is not None and result.status not in ("failed", "oom"):
            shutil.rmtree(self._request.checkpoints, ignore_errors=True)
        self._report({"phase": "recorded"})
        return result

    def _write(self) -> None:
        """Write the record, its items and its weights. Raises UserError if a file can't be written.

        The folder of the weights is gone after this.
        """
        result, path, weights = self.result, self._path, self.weights
        if result.failure is not None:
            _keep_for_scoring(result, result.failure, weights, record.scored_model(path))
        try:
            if self._items is not None:
                result.items_sha256 = _write_items(self._items, path.with_suffix(".items.parquet"))
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


def _keep_for_scoring(result: Record, failure: Failure, weights: Path, scored: Path) -> None:
    """Keep the tuned weights of a cell that failed, if scores are all that it lacks.

    scored: the folder that another engine read, if any: it takes the place of `weights` where none were to be saved.
    """
    merged = result.merge is not None and result.merge.merged
    if failure.phase != "score" and not failure.phase.startswith(SAVE_FOR):
        result.saved = None
    elif result.saved is None and result.cell.settings.method.tuned and failure.phase == "score" and scored.is_dir():
        scored.rename(weights)
        result.saved = Saved("merged" if merged else "model", record.hashes(weights))


def _discard_beginnings(path: Path) -> None:
    for folder in record.beginnings(path):
        shutil.rmtree(folder, ignore_errors=True)


def _write_items(items: pd.DataFrame, path: Path) -> str:
    """Write `items` to `path`, all or nothing; returns the sha256 of the file."""
    with record.replacing(path) as temporary:
        # A reader takes a page at a time. By default one has 1,024 rows at least, however long their texts are
        items.to_parquet(temporary, index=False, write_batch_size=16)
    return record.sha256(path)
