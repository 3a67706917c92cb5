"""Refuses cells that can't run on this machine, before any of them is run."""

from __future__ import annotations

from harness.job import own_files, prepared_inputs
from harness.job.data import cached, chat, columns
from harness.job.evaluate import answer_engines, scoring
from harness.job.evaluate.task_index import IncludedTasks
from harness.job.measure import device
from harness.job.models import checks, loading
from harness.job.training import activation_offload, compiled
from harness.protocol import NO_PATHS, LocalPaths
from harness.record import Cell
from harness.settings import HELD_OUT


def check(cells: list[Cell], data_root: str | None, local: LocalPaths = NO_PATHS, elsewhere: bool = False) -> list[str]:
    """What the user should know before the cells run, as sentences: what of their models is not trained, how files of
    the user's own are read, and how their test parts are scored.

    elsewhere: whether they run on other machines. Raises UserError if the model, the data, a task or the rank of a cell
    does not work here, or its engine.
    """
    sentences: list[str] = []
    include = IncludedTasks.in_folder(local.include_path)
    tasks, splits = [], []  # seen before: the cells of a grid mostly share them, and loading them takes seconds
    for cell in cells:
        if (note := check_cell(cell, local, elsewhere)) is not None:
            sentences.append(note)
        if cell.settings.eval.chat_template:
            scoring.check_template(cell.settings.eval, loading.tokenizer(cell.settings.model))
        asked, data = cell.settings.eval, cell.settings.data
        if data not in splits:
            loaded = cached.splits(data, data_root)
            if any(columns.CHAT in item for item in loaded["train"][:1]):
                chat.require(loading.tokenizer(cell.settings.model))
            splits.append(data)
        if data.own or data.too_long is not None:
            own_files.fitted(cell.settings, data_root)
        of = (asked, data if HELD_OUT in asked.tasks else None)
        if of not in tasks:
            own = prepared_inputs.own_task(asked, data, data_root)
            scoring.Tasks(asked, data_root, own, include)
            sentences += [] if own is None else own.notes
            tasks.append(of)
    return list(dict.fromkeys([*own_files.notes(cells, data_root), *sentences]))


def check_cell(cell: Cell, local: LocalPaths = NO_PATHS, elsewhere: bool = False) -> str | None:
    """As harness.job.models.checks.check. Raises UserError too if a setting does not work on this machine.

    elsewhere: whether the cell runs on another machine, so that this one's devices say nothing.
    """
    if not elsewhere:
        device.check_formats(cell.settings)
        checks.check_device(cell.settings)
        compiled.check(cell.settings)
        activation_offload.check(cell.settings)
    answer_engines.check(cell.settings, local)
    return checks.check(cell)
