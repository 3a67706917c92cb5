"""lm-eval's index of tasks: the harness's own, and the stock ones."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind

from harness.settings import HELD_OUT

OURS = Path(__file__).parent / "tasks"


@functools.cache
def ours() -> TaskManager:
    """lm-eval's index of our tasks alone."""
    return TaskManager(include_path=str(OURS), include_defaults=False)


@functools.cache
def stock() -> TaskManager:
    """lm-eval's index of all tasks, ours included; thousands of files take seconds to read."""
    return TaskManager(include_path=str(OURS))


def index_of(names: Iterable[str]) -> TaskManager:
    """lm-eval's index of our tasks, and of stock tasks too if one of `names` is none of ours."""
    return ours() if set(names) <= {*ours().all_tasks, HELD_OUT} else stock()


def runs_code(index: dict[str, Entry], member: Any) -> bool:
    """Whether a task, or a task of a group or tag, runs code that the model writes. It is read from the task's files.

    member: a name, or an entry of a group's list.
    """
    if isinstance(member, dict):
        parts, config = [member.get("task")], member
    elif isinstance(member, list):
        parts, config = member, {}
    else:
        entry = index.get(member)
        config = (entry and entry.cfg) or {}
        parts = [*entry.tags] if entry and entry.kind is Kind.TAG else [config.get("task")]
    if config.get("unsafe_code", False) is not False:
        return True
    return any(runs_code(index, part) for part in parts if part not in (None, member))
