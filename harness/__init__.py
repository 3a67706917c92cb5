"""The harness from Python: read recorded studies, plan grids, run cells and sweeps.

    import harness

    study = harness.read("results/quickstart")
    study.best()                                                  # a DataFrame: each method in its best setting
    harness.plan("qwen3_1_7b", methods=["lora", "qlora"], batch_size=8, budget="24GiB")
    record = harness.run(model="tiny", method="lora", rank=8, max_steps=2)
    study = harness.sweep("quickstart", seed=[0, 1, 2])           # the same call resumes it

Importing this package loads neither torch nor pandas; the functions load what they need when they are called.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

    from harness.errors import UserError as UserError
    from harness.python.study import RecordedStudy as RecordedStudy
    from harness.record import Record as Record

__all__ = ["Record", "RecordedStudy", "UserError", "plan", "read", "run", "sweep"]

LAZY = {"Record": "harness.record", "RecordedStudy": "harness.python.study", "UserError": "harness.errors"}


def read(folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> RecordedStudy:
    """The records of a study's folder, such as ``results/quickstart``, or of several.

    A file that is no good record is named in `RecordedStudy.problems`; the others are read. Raises UserError if a
    folder is missing or holds no record, or if no record is good.
    """
    from harness.python.study import read_folders

    return read_folders(folders)


def plan(
    model: str | Sequence[str] | None = None,
    *,
    methods: str | Sequence[str] | None = None,
    sweep: str | None = None,
    budget: int | str | None = None,
    device: str | None = None,
    throughput: float | None = None,
    price: float | None = None,
    config_dir: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    quiet: bool = False,
    **axes: Any,
) -> pd.DataFrame:
    """What the cells of a grid would take, as `harness plan` computes it: a row a cell. Nothing is run.

    For a model with a hub id the config is downloaded, and with your own data the tokenizer.

    model: a name in conf/model/; several are an axis. methods: the same as ``method=``. sweep: the name of a sweep
    whose grid is planned. budget: memory in bytes, or as ``"24GiB"`` (null: this machine's), or money that the training
    may cost, such as ``"5USD"``. device: a card, such as
    ``"rtx_4090"``, or ``"cpu"`` or ``"cuda"``: whose kernels are predicted. throughput: raw tokens/s of every cell
    (null: taken from records). price: dollars for an hour of one device (null: the card's). config_dir: a further
    folder of configs. settings: settings by dotted name, such as ``{"train.max_length": 256}``. quiet: say nothing on
    standard error. axes: settings by name, such as ``batch_size=8``; a list is an axis.

    The columns are those of `harness.python.planned`. Raises UserError for input that can't work, and if training all
    cells costs more than a budget in money or its cost is not known.
    """
    from harness.python import planned

    grid = axes | {name: of for name, of in {"model": model, "methods": methods}.items() if of is not None}
    options = {"device": device, "throughput": throughput, "price": price}
    return planned.plan(sweep, grid, settings, budget, options, config_dir, quiet)


def run(
    *,
    budget: str | None = None,
    config_dir: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    quiet: bool = False,
    **named: Any,
) -> Record:
    """Run one cell in a process of its own, as `harness run` does, and return its record.

    A cell that is recorded already is not run again. A cell that fails has a record too, with the status ``failed``.

    budget: limit for models behind an API, such as ``"5USD"``. config_dir: a further folder of configs. settings:
    settings by dotted name, such as ``{"train.max_length": 256}``. quiet: say nothing on standard error. named:
    settings by name, such as ``method="dora", rank=16``.

    Raises UserError if the cell is refused, and KeyboardInterrupt when stopped.
    """
    from harness.python import launching

    return launching.run(named, settings, budget, config_dir, quiet)


def sweep(
    name: str | None = None,
    *,
    fit: bool = False,
    budget: int | str | None = None,
    device: str | None = None,
    order: Literal["random", "grid"] = "random",
    drift: int | None = None,
    skip_impossible: bool = False,
    confirm: int | None = None,
    config_dir: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    quiet: bool = False,
    **axes: Any,
) -> RecordedStudy:
    """Run the cells of a grid that are not recorded yet, as `harness sweep` does, and return the study.

    Interrupted, the same call resumes: finished cells are kept. Cells that failed are rows of the study, too.

    name: of a sweep in sweeps/ (null: the grid is `axes` alone). fit: skip cells that are predicted not to fit into
    memory. budget: memory for `fit`, in bytes or as ``"24GiB"`` (null: this machine's), or a limit for models behind an
    API, such as ``"5USD"``. device: for `fit`, as of `plan`. order: in which cells run. drift: run one cell again after
    each so many cells, to measure the machine's drift. skip_impossible: skip cells that can't work.
    confirm: then run so many fresh seeds of each method's best setting. config_dir: a further folder of configs.
    settings: settings by dotted name, such as ``{"train.max_length": [256, 512]}``. quiet: say nothing on standard
    error. axes: settings by name, such as ``seed=[0, 1, 2]``; a list is an axis.

    Raises UserError if a cell is refused, and KeyboardInterrupt when stopped.
    """
    from harness.python import launching

    options = {"fit": fit, "device": device, "order": order, "drift": drift}
    options |= {"skip_impossible": skip_impossible, "confirm": confirm}
    return launching.sweep(name, axes, settings, budget, options, config_dir, quiet)


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(importlib.import_module(LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _CallableRoom(ModuleType):
    """The package ``harness.sweep``, which is called as the function `sweep`: both have one name."""

    def __call__(self, *arguments: Any, **keywords: Any) -> RecordedStudy:
        return self.__wrapped__(*arguments, **keywords)


def _as_room(function: Any) -> ModuleType:
    """The package ``harness.sweep``, called as `function`. Importing it puts it into this namespace, in its place."""
    room = importlib.import_module(f"{__name__}.{function.__name__}")
    room.__class__ = _CallableRoom
    vars(room).update(__wrapped__=function, __doc__=function.__doc__)  # inspect finds the signature by the first
    return room


_as_room(sweep)
