"""Runs the cell of a model behind an API: without weights, it only scores the tasks.

The cost is estimated before, by the requests that lm-eval would send.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness import redact
from harness.job import prepared_inputs
from harness.job.evaluate import scoring
from harness.job.evaluate.scoring import AnswerCount, Tasks
from harness.job.evaluate.task_index import IncludedTasks
from harness.job.recording import Recording
from harness.job.reporter import AnswersReport
from harness.plugins.api import requests
from harness.plugins.api.job.chat_tasks import ChatTasks
from harness.plugins.api.requests import ApiAccess
from harness.protocol import Report, RunCell
from harness.record import ApiUsage, Cell, Memory, Phase, Record, item_hashes
from harness.settings import DataSettings, EvalSettings, Settings

if TYPE_CHECKING:
    from harness.plugins.api.job.lm_eval_model import ApiModel


def estimate(cell: Cell, access: ApiAccess, data_root: str | None, include_path: str | None = None) -> dict[str, Any]:
    """What remains to ask: requests, tokens read, and most tokens written. counted: whether by a tokenizer.

    Raises UserError if the cell's tasks can't be loaded, or if a package is missing.
    """
    _prepare(access)
    from harness.plugins.api.job import lm_eval_model

    lm, tasks = lm_eval_model.estimator(cell.settings.model, access), _tasks(cell.settings, data_root, include_path)
    scoring.answered(lm, tasks)
    return {"requests": lm.requests, "read": lm.read, "written": lm.written, "counted": lm.counted}


def run_api_cell(request: RunCell, report: Report) -> Record:
    """Run the cell of `request` and write its record, as harness.job.run_cell.run_cell does; returns the record."""
    recording = Recording(request, report)
    cell = ApiCell(request, report)
    with recording.failures(cell):
        recording.keep_items(cell.run(recording.result))
    return recording.finish(cell)


class ApiCell:
    """A running cell of a model behind an API: harness.job.recording.RunningCell."""

    def __init__(self, request: RunCell, report: Report):
        self.cell = request.cell
        self.phase = "start"
        self.step: int | None = None
        self._request, self._access, self._report = request, ApiAccess.from_extra(request.extra), report
        self._phases: dict[str, Phase] = {}

    def run(self, result: Record) -> pd.DataFrame:
        """Score the tasks, and put scores and cost into `result`; after a failure the cost alone. Returns the items."""
        tasks = _tasks(self.cell.settings, self._request.data_root, self._request.local.include_path)
        count = AnswerCount(tasks, AnswersReport(self._report, "score", given=lambda: lm.stored))
        lm = _engine(self.cell, self._access, told=count.add, tell=self._warn)
        result.items = item_hashes(tasks.sample)
        self.phase, clock = "score", time.monotonic()
        self._report({"phase": "score"})
        try:
            result.scores, items = scoring.answered(lm, tasks)
            result.classes = scoring.class_counts(tasks, items)
            result.truncated_requests = lm.cut.requests
        finally:
            self._phases["score"] = Phase(time.monotonic() - clock, Memory())
            result.api = _spent(lm, _is_chat(self.cell.settings))
        return items

    def describe(self, result: Record) -> None:
        """Add the phases to `result`. Nothing is known of the machine behind the API."""
        result.phases = self._phases

    def _warn(self, sentence: str) -> None:
        self._report({"warning": sentence})

    def shortage(self) -> None:
        return None

    def end(self, result: Record | None) -> None:
        """Nothing is left to do: no tracker follows a cell without training."""


def _prepare(access: ApiAccess) -> None:
    """Raise UserError if a package is missing; hide the key of `access` from now on."""
    requests.require("method=api requires")
    redact.named.update([access.key_env] if access.key_env else [])


def _engine(cell: Cell, access: ApiAccess, **how: Any) -> ApiModel:
    """The engine that asks the cell's model. how: further keywords."""
    _prepare(access)
    from harness.plugins.api.job import lm_eval_model

    return lm_eval_model.engine(cell.settings.model, access, **how)


def _is_chat(settings: Settings) -> bool:
    return settings.model.tokenizer is None


def _tasks(settings: Settings, data_root: str | None, include_path: str | None) -> Tasks:
    include = IncludedTasks.in_folder(include_path)
    return _made(settings.eval, settings.data, _is_chat(settings), data_root, include)


@functools.lru_cache(4)  # checking, estimating and asking use the same tasks
def _made(
    settings: EvalSettings, data: DataSettings, is_chat: bool, data_root: str | None, include: IncludedTasks | None
) -> Tasks:
    own = prepared_inputs.own_task(settings, data, data_root, likelihoods=not is_chat)
    return (ChatTasks if is_chat else Tasks)(settings, data_root, own, include)


def _spent(lm: ApiModel, is_chat: bool) -> ApiUsage:
    """The cost of the answers that `lm` used."""
    access = lm.access
    found = [answer for key in lm.used if (answer := lm.kept.get(key))]
    own = [answer for answer in found if answer.key in lm.kept.own]
    paid = [(access.price_read, _sum(a.read for a in own)), (access.price_written, _sum(a.written for a in own))]
    return ApiUsage(
        kind="chat" if is_chat else "completions",
        requests=len(found),
        cached=len(found) - len(own),
        tries=lm.tries,
        read=_sum(a.read for a in found),
        written=_sum(a.written for a in found),
        seconds=sum(a.seconds for a in found),
        concurrency=access.concurrency,
        price_read=access.price_read,
        price_written=access.price_written,
        cut=_sum(a.cut for a in found),
        left_out=sorted({name for a in found for name in a.left_out or ()}),
        refused=len(lm.refused),
        dollars=_dollars(paid),
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    """The sum of `counts`; None if one is unknown."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def _dollars(paid: Iterable[tuple[float | None, int | None]]) -> float | None:
    """What tokens cost. paid: prices of a million tokens, and numbers of tokens; None if one is unknown."""
    total = 0.0
    for price, tokens in paid:
        if price is None or tokens is None:
            return None
        total += price * tokens
    return total / 1e6
