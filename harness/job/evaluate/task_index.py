"""lm-eval's index of tasks: the harness's own, the stock ones, and those of a user's own folder."""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind

from harness import record
from harness.errors import UserError
from harness.job.data import sources
from harness.job.models import embedded
from harness.settings import HELD_OUT

OURS = Path(__file__).parent / "tasks"
STOCK = Path(lm_eval.tasks.__file__).parent
CHECKSUM = hashlib.sha256().digest_size  # bytes before an index in its file


@functools.cache
def ours() -> TaskManager:
    """lm-eval's index of our tasks alone."""
    return TaskManager(include_path=str(OURS), include_defaults=False)


@functools.cache
def stock() -> TaskManager:
    """lm-eval's index of all tasks, ours included."""
    return _with_stock(str(OURS))


@dataclass(frozen=True)
class IncludedTasks:
    """A user's own folder of tasks.

    state: a digest of its files, as they may be edited. working_folder: tasks may name their data by relative paths.
    """

    path: str
    state: str
    working_folder: str

    @classmethod
    def in_folder(cls, path: str | None) -> IncludedTasks | None:
        """The folder at `path`, as it is now. Raises UserError if there is none."""
        if path is None:
            return None
        if not Path(path).is_dir():
            raise UserError(f"eval.include_path must be a folder of lm-eval tasks, got {path}.")
        return cls(path, sources.folder_digest(path), os.getcwd())


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
    return _with_stock(str(OURS), include.path)


def _with_stock(*folders: str) -> TaskManager:
    """lm-eval's index of its own tasks and those in `folders`.

    lm-eval parses thousands of files for it, which takes 6 to 9 s on a slow CPU. So the index is kept in the cache of
    built models, in a file whose name changes with each of those files.
    """
    states = [sources.folder_digest(folder) for folder in (str(STOCK), *folders)]
    name = hashlib.sha256(" ".join([sys.version, version("lm_eval"), *states]).encode()).hexdigest()
    path = embedded.cache() / "task_index" / f"{name}.pickle"
    with suppress(OSError):
        content = path.read_bytes()
        if hashlib.sha256(content[CHECKSUM:]).digest() == content[:CHECKSUM]:
            return pickle.loads(content[CHECKSUM:])
    index = TaskManager(include_path=[*folders])
    with suppress(OSError):  # a folder where nothing can be written
        path.parent.mkdir(parents=True, exist_ok=True)
        for former in path.parent.glob("*.pickle"):
            former.unlink(missing_ok=True)
        pickled = pickle.dumps(index)
        with record.replacing(path) as aside:
            aside.write_bytes(hashlib.sha256(pickled).digest() + pickled)
    return index


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
