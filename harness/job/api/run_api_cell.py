"""Runs the cell of a model behind an API: without weights, it only scores the tasks.

The cost is estimated before, by the requests that lm-eval would send.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness import redact
from harness.job import prepared_inputs
from harness.job.api import client
from harness.job.api.chat_tasks import ChatTasks
from harness.job.evaluate import scoring
from harness.job.evaluate.scoring import AnswerCount, Tasks
from harness.job.evaluate.task_index import IncludedTasks
from harness.job.reporter import AnswersReport
from harness.protocol import ApiAccess, RunCell
from harness.record import ApiUsage, Cell, Memory, Phase, Record, item_hashes
from harness.settings import DataSettings, EvalSettings, Settings

if TYPE_CHECKING:
    from harness.job.api.lm_eval_model import ApiModel


def check(cell: Cell, data_root: str | None, include_path: str | None = None) -> None:
    """Raise UserError if the cell's tasks can't be loaded, or if a package is missing."""
    client.require("method=api requires")
    _tasks(cell.settings, data_root, include_path)


def estimate(cell: Cell, access: ApiAccess, data_root: str | None, include_path: str | None = None) -> dict[str, Any]:
    """What remains to ask: requests, tokens read, and most tokens written. counted: whether by a tokenizer."""
    lm, tasks = _engine(cell, access, estimate=True), _tasks(cell.settings, data_root, include_path)
    scoring.answered(lm, tasks)
    return {"requests": lm.requests, "read": lm.read, "written": lm.written, "counted": lm.counted}


class ApiCell:
    """A running cell of a model behind an API: harness.job.recording.RunningCell."""

    def __init__(self, request: RunCell, report: Callable[[dict], None]):
        self.cell, self.phase, self.step = request.cell, "start", None
        self.items: pd.DataFrame | None = None
        self._request, self._report = request, report
        self._phases: dict[str, Phase] = {}

    def run(self, result: Record) -> None:
        """Score the tasks, and put scores and cost into `result`; after a failure the cost alone."""
        tasks = _tasks(self.cell.settings, self._request.data_root, self._request.local.include_path)
        count = AnswerCount(tasks, AnswersReport(self._report, "score", given=lambda: lm.stored))
        lm = _engine(self.cell, self._request.access, told=count.add, tell=self._warn)
        result.items = item_hashes(tasks.sample)
        self.phase, clock = "score", time.monotonic()
        self._report({"phase": "score"})
        try:
            result.scores, self.items = scoring.answered(lm, tasks)
        finally:
            self._phases["score"] = Phase(time.monotonic() - clock, Memory())
            result.api = _spent(lm, _is_chat(self.cell.settings))

    def describe(self, result: Record) -> None:
        """Add the phases to `result`. Nothing is known of the machine behind the API."""
        result.phases = self._phases

    def _warn(self, sentence: str) -> None:
        self._report({"warning": sentence})

    def shortage(self) -> None:
        return None

    def end(self, result: Record) -> None:
        """Nothing is left to do: no tracker follows a cell without training."""


def _engine(cell: Cell, access: ApiAccess, **how: Any) -> ApiModel:
    """The engine that asks the cell's model. how: further keywords."""
    client.require("method=api requires")
    from harness.job.api import lm_eval_model

    redact.named.update([access.key_env] if access.key_env else [])
    return lm_eval_model.engine(cell.settings.model, access, **how)


def _is_chat(settings: Settings) -> bool:
    return settings.model.tokenizer is None


def _tasks(settings: Settings, data_root: str | None, include_path: str | None) -> Tasks:
    include = IncludedTasks.of(include_path)
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
        dollars=None if None in itertools.chain(*paid) else sum(price * tokens for price, tokens in paid) / 1e6,
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    """The sum of `counts`; None if one is unknown."""
    counts = list(counts)
    return None if None in counts else sum(counts)
