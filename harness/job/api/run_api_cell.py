"""Runs the cell of a model behind an API: there are no weights, so its tasks are asked for, and that is all.

What it would cost is counted before, by asking in earnest whatever lm-eval would ask, but for the answers.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness import redact
from harness.errors import UserError
from harness.job.api.chat_tasks import ChatTasks
from harness.job.evaluate import scoring
from harness.job.evaluate.scoring import Tasks
from harness.record import Api, Cell, Memory, Phase, Record
from harness.settings import EvalSettings, Settings

if TYPE_CHECKING:
    from harness.job.api.lm_eval_model import Engine

NEEDED = ("aiohttp", "tenacity")  # of the extra, what lm-eval's own packages need not bring


class Stopped(Exception):
    """The endpoint does not answer; one sentence. What it answered is kept."""


@dataclass
class Asking:
    """How to ask: `api` of the settings, and `model.key_env` and `model.price`; answers: the cell's file of them."""

    concurrency: int
    per_minute: float | None
    timeout: float
    retries: int
    backoff: float
    key_env: str | None
    price_read: float | None
    price_written: float | None
    answers: str


def check(cell: Cell, data_root: str | None) -> None:
    """Raise UserError if the cell's tasks can't be had, or nothing can ask for them here."""
    _require()
    _tasks(cell.settings, data_root)


def estimate(cell: Cell, asking: Asking, data_root: str | None) -> dict[str, Any]:
    """What is left to be asked: requests, tokens read and, at most, written; counted: not guessed, those read."""
    lm, tasks = _asked(cell, asking, data_root, estimate=True)
    scoring.answered(lm, tasks)
    return {"requests": lm.requests, "read": lm.read, "written": lm.written, "counted": lm.counted}


class Job:
    """The running cell of a model behind an API: what `run` of the job asks of it."""

    def __init__(self, cell: Cell, asking: Asking, data_root: str | None, report: Callable[[dict], None]):
        self.cell, self.phase, self.step = cell, "start", None
        self.items: pd.DataFrame | None = None
        self._asking, self._data_root, self._report = asking, data_root, report
        self._phases: dict[str, Phase] = {}

    def run(self, result: Record) -> None:
        """Have the tasks answered, and their scores put into `result`; what they took also if they are not."""
        lm, tasks = _asked(self.cell, self._asking, self._data_root, told=self._told)
        result.items = tasks.sample
        self.phase, clock = "score", time.monotonic()
        self._report({"phase": "score"})
        try:
            result.scores, self.items = scoring.answered(lm, tasks)
        finally:
            self._phases["score"] = Phase(time.monotonic() - clock, Memory())
            result.api = _spent(lm, _is_chat(self.cell.settings))

    def describe(self, result: Record) -> None:
        """Add what is to be said of where it ran, beside versions: nothing, it was elsewhere."""
        result.phases = self._phases

    def shortage(self) -> None:
        return None

    def end(self, result: Record) -> None:
        """Nothing is left to do: no tracker follows a cell without training."""

    def _told(self, done: int, of: int) -> None:
        self._report({"phase": "score", "step": done, "of": of})


def _asked(cell: Cell, asking: Asking, data_root: str | None, **how: Any) -> tuple[Engine, Tasks]:
    """What asks the cell's model, and what for; how: further keywords of the engine."""
    _require()
    from harness.job.api import lm_eval_model

    redact.named.update([asking.key_env] if asking.key_env else [])
    return lm_eval_model.engine(cell.settings.model, asking, **how), _tasks(cell.settings, data_root)


def _require() -> None:
    if missing := [package for package in NEEDED if find_spec(package) is None]:
        raise UserError(
            f"method=api needs the extra `api` ({', '.join(missing)}): pip install -e '.[api]' in the project's folder."
        )


def _is_chat(settings: Settings) -> bool:
    return settings.model.tokenizer is None


def _tasks(settings: Settings, data_root: str | None) -> Tasks:
    return _made(settings.eval, _is_chat(settings), data_root)


@functools.lru_cache(4)  # to check them, to count them, and to ask for them is three times the same
def _made(settings: EvalSettings, is_chat: bool, data_root: str | None) -> Tasks:
    return (ChatTasks if is_chat else Tasks)(settings, data_root)


def _spent(lm: Engine, is_chat: bool) -> Api:
    """What the answers that `lm` was asked for took."""
    asking = lm.asking
    found = [answer for key in lm.used if (answer := lm.kept.get(key))]
    own = [answer for answer in found if answer.key in lm.kept.own]
    paid = [(asking.price_read, _sum(a.read for a in own)), (asking.price_written, _sum(a.written for a in own))]
    return Api(
        kind="chat" if is_chat else "completions",
        requests=len(found),
        cached=len(found) - len(own),
        tries=lm.tries,
        read=_sum(a.read for a in found),
        written=_sum(a.written for a in found),
        seconds=sum(a.seconds for a in found),
        concurrency=asking.concurrency,
        price_read=asking.price_read,
        price_written=asking.price_written,
        cut=_sum(a.cut for a in found),
        left_out=sorted({name for a in found for name in a.left_out or ()}),
        dollars=None if None in itertools.chain(*paid) else sum(price * tokens for price, tokens in paid) / 1e6,
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    """Null if one is not known."""
    counts = list(counts)
    return None if None in counts else sum(counts)
