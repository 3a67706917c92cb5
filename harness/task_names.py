"""Names of lm-eval's tasks by the text of its files, as its own index takes seconds to import and to build."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from harness.errors import UserError

OURS = Path(__file__).parent / "job" / "evaluate" / "tasks"
NAMES = re.compile(rb"""^[\s\-"']*(?:task|group|tag)["']?:[ \t]*["']?([\w.+-]+)""", re.MULTILINE)


def require(names: Iterable[str], include: str | None = None) -> None:
    """Raise UserError for the first of `names` that no file of tasks contains.

    A name may stand in a list, or be made of parts, so what a file contains need not be a task: the index knows.

    include: the user's own folder of tasks.
    """
    folders = [OURS, *_stock(), *([Path(include)] if include else [])]
    sought = {name for name in names if not any((folder / name).is_dir() for folder in folders)}
    defined: set[str] = set()
    for text in _texts(folders):
        if not sought:
            return
        defined |= {name.decode() for name in NAMES.findall(text)}
        sought = {name for name in sought if not _has_word(text, name.encode())}
    for name in names:
        if name in sought:
            raise unknown(name, defined, include)


def unknown(name: str, names: Collection[str], include: str | None) -> UserError:
    """The sentence on a task that is none of `names`."""
    near = difflib.get_close_matches(name, names, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    if not near and include is None:
        hint = " A task of your own requires eval.include_path= (`retry` and `score`: --include-path)."
    return UserError(f"eval.tasks={name} is unknown to lm-eval.{hint}")


def _has_word(text: bytes, word: bytes) -> bool:
    return word in text and re.search(rb"(?<![\w.-])" + re.escape(word) + rb"(?![\w.-])", text) is not None


def _stock() -> list[Path]:
    """The folder of lm-eval's own tasks; none if it is not installed, as only jobs need it."""
    spec = find_spec("lm_eval")
    return [Path(place) / "tasks" for place in (spec and spec.submodule_search_locations) or ()]


def _texts(folders: Iterable[Path]) -> Iterator[bytes]:
    """The files of tasks in `folders`: YAML, whatever its suffix, and code."""
    for folder in folders:
        for place, _, files in os.walk(folder):
            for file in files:
                if "yaml" in file or file.endswith((".yml", ".py")) or "." not in file:
                    yield Path(place, file).read_bytes()
