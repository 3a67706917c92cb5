"""Plug-ins: all that is not needed to run a grid of cells and compare it.

A plug-in is a package ``harness/plugins/NAME`` whose attribute ``PLUGIN`` is a `Plugin`; a distribution of others names
such an object as an entry point of the group ``harness.plugins``. The core imports none of them: it asks `installed`,
so that without a plug-in its commands, settings and choices are not there, and nothing else changes.

What a plug-in adds is named as ``module:name`` and imported when it is needed: help and completion import only the
packages' ``__init__``.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "plugins"
GROUP = "harness.plugins"


@dataclass(frozen=True)
class Plugin:
    """What a plug-in adds to the core; it may leave out all but its name.

    name: of its folder.
    commands: a function that takes the CommandLine and adds commands to it.
    settings: by name, the dataclasses of its groups of settings, as those in harness/config.py.
    check: a function that takes the composed config, and raises UserError if settings can't work.
    conf: a folder of config groups, as conf/. A group of the plug-in's own has a choice ``none``, which is the default.
    figures: by name, functions of StudyResults that draw a figure (harness/report/figures), or return None.
    page_blocks: functions of StudyResults that return a PageBlock, a part of a report's page.
    frames: by the name of a method of `RecordedStudy`, functions that take its arguments and return what makes a data
        frame of studies: of each its records and folder.
    doc_blocks: by KIND, functions that render what README.md and docs/ have between ``<!-- KIND: ARGUMENT -->`` and
        ``<!-- end -->``; they take the argument, and return Markdown.
    doc_files: by path in the project, functions without arguments that render a file as `make publish` writes it.
    requests: the classes of what it asks of jobs (harness/protocol.py); each names the function that serves it.
    engines: by name, as eval.engine has it, an AnswerEngine (harness/job/evaluate/answer_engines.py): a class without
        arguments that has answers written elsewhere.
    stop_rule: a function that takes the composed config, and returns the StopRule by which its cell may end early;
        None if no rule of the plug-in's may end it.
    early_stop: a function that takes a cell, its EarlyStopping (harness/protocol.py), the tokens of each step and a
        Meter, and returns the EarlyStop (harness/job/training/early_stop.py) that the cell's training asks.
    cells: a class without arguments, a CellRunner (harness/cell_runner.py), that runs cells the core can't.
    """

    name: str
    commands: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    check: str | None = None
    conf: Path | None = None
    figures: Mapping[str, str] = field(default_factory=dict)
    page_blocks: tuple[str, ...] = ()
    frames: Mapping[str, str] = field(default_factory=dict)
    doc_blocks: Mapping[str, str] = field(default_factory=dict)
    doc_files: Mapping[str, str] = field(default_factory=dict)
    requests: tuple[str, ...] = ()
    engines: Mapping[str, str] = field(default_factory=dict)
    stop_rule: str | None = None
    early_stop: str | None = None
    cells: str | None = None


@functools.cache
def installed() -> tuple[Plugin, ...]:
    """All plug-ins, by name: those in harness/plugins, and those of other distributions."""
    packages = sorted(module.name for module in pkgutil.iter_modules([str(FOLDER)]) if module.ispkg)
    own = [importlib.import_module(f"{GROUP}.{name}").PLUGIN for name in packages]
    others = [entry.load() for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)]
    return (*own, *others)


def load(target: str) -> Any:
    """The function or class that ``module:name`` names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
