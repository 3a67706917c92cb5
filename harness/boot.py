"""Runs a module of this package in a child process: ``python harness/boot.py PARENT MODULE ARGUMENTS``.

A child imports neither from the working folder nor from the results folder: what lies there may be somebody else's, and
a record names what it imports. So PYTHONPATH can't name the folder of this package, which in a checkout holds
``results`` as well; this file makes the package known by its place instead. A process that multiprocessing spawns runs
this file before it needs the package, as the main module of its parent.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import runpy
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
PR_SET_PDEATHSIG, PR_GET_PDEATHSIG = 1, 2  # <linux/prctl.h>


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs `module` in a child process, with `environment`.

    The child dies with this process from its first moment on, until it calls `outlive`. The kernel sends the signal
    when the thread ends that started the child, so only a child of the main thread is asked to.
    """
    parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
    return [sys.executable, __file__, str(parent), module, *arguments]


def environment() -> dict[str, str]:
    """The environment of a child process: this one's, with an import path that leads to nobody else's files.

    PYTHONPATH keeps the absolute folders that the user set, but for those of `_is_foreign`. PYTHONSAFEPATH is what -P
    is, also for the child's own children: a queue.py in the working folder must not break a job. PYTHONUTF8: logs, and
    files that libraries open, are in UTF-8, whatever the terminal of the user is.
    """
    path = import_path(os.environ.get("PYTHONPATH", "").split(os.pathsep))
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONIOENCODING")}
    return own | ({"PYTHONPATH": os.pathsep.join(path)} if path else {}) | {"PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"}


def import_path(entries: Iterable[str]) -> list[str]:
    """Those of `entries` that a child process may import from."""
    return [entry for entry in entries if os.path.isabs(entry) and not _is_foreign(Path(entry).resolve())]


def _is_foreign(folder: Path) -> bool:
    """Whether `folder` is the working folder or the checkout, or lies in the ``results`` of one of them.

    A results_dir elsewhere is on nobody's import path unless the user puts it there.
    """
    root = PACKAGE.parent
    checkout = [root] if (root / "conf").is_dir() else []  # a wheel lies among the libraries
    return any(folder == place or folder.is_relative_to(place / "results") for place in (Path.cwd(), *checkout))


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies, which may be dead already. Only Linux can."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def outlive() -> None:
    """Live on when the parent dies: this process ends in order, by itself."""
    _prctl(PR_SET_PDEATHSIG, 0)


def dies_with_parent() -> bool:
    number = ctypes.c_int(0)
    _prctl(PR_GET_PDEATHSIG, ctypes.byref(number))
    return number.value > 0


def _prctl(option: int, argument: Any) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, argument)


def _make_known() -> None:
    spec = importlib.util.spec_from_file_location(
        "harness", PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)]
    )
    assert spec is not None  # as of every file that ends in .py
    assert spec.loader is not None
    package = sys.modules["harness"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


if "harness" not in sys.modules:
    sys.path[:] = import_path(sys.path)
    _make_known()

if __name__ == "__main__":
    if (parent := int(sys.argv[1])) > 0:
        die_with(parent)
    module, sys.argv[:] = sys.argv[2], sys.argv[2:]
    runpy.run_module(module, run_name="__main__")
