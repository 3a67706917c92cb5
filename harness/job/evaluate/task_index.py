"""lm-eval's index of tasks: the harness's own, the stock ones, and those of a user's own folder."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind

from harness.errors import UserError
from harness.job.data import sources
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


@dataclass(frozen=True)
class IncludedTasks:
    """A user's own folder of tasks. state: a digest of its files, as they may be edited."""

    path: str
    state: str

    @classmethod
    def of(cls, path: str | None) -> IncludedTasks | None:
        """The folder at `path`, as it is now. Raises UserError if there is none."""
        if path is None:
            return None
        if not Path(path).is_dir():
            raise UserError(f"eval.include_path must be a folder of lm-eval tasks, got {path}.")
        return cls(path, sources.folder_digest(path))


def index_of(names: Iterable[str], include: IncludedTasks | None = None) -> TaskManager:
    """lm-eval's index of our tasks; of stock tasks and `include` too if one of `names` is none of ours.

    Raises UserError if `include` has no task, or one with the name of another.
    """
    if include is not None:
        return _with_included(include)
    return ours() if set(names) <= {*ours().all_tasks, HELD_OUT} else stock()


@functools.lru_cache(4)
def _with_included(include: IncludedTasks) -> TaskManager:
    own = TaskManager(include_path=include.path, include_defaults=False).all_tasks
    if not own:
        raise UserError(f"eval.include_path={include.path} has no YAML file of a task.")
    if hidden := sorted({*own} & {*stock().all_tasks, HELD_OUT}):
        raise UserError(f"eval.include_path={include.path} has a task {hidden[0]}, as has lm-eval; rename it.")
    return TaskManager(include_path=[str(OURS), include.path])


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
