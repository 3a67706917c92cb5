"""``harness ask``: finds the models and prompts that a command line names, for a job that asks them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness import gate
from harness.errors import UserError
from harness.plugins.api import requests
from harness.plugins.api.requests import AskModels, LocalModel
from harness.protocol import Progress
from harness.record import Record, read, read_study
from harness.settings import ModelSettings
from harness.studies import verify
from harness.studies.find import CellRef, find
from harness.sweep import runner
from harness.sweep.store import Study

AS_TYPED = "{question}"  # the template that adds nothing


def prompts(typed: Sequence[str], file: Path | None) -> list[str]:
    """The typed prompts, then those of a file: one a line, or JSON lines with a "prompt" or a "question"."""
    found = list(typed)
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} can't be read ({getattr(error, 'strerror', 'it is no text')}).") from None
        numbered = [(n, line) for n, line in enumerate(lines, start=1) if line.strip()]
        found += [_prompt(file, n, line) if file.suffix == ".jsonl" else line.strip() for n, line in numbered]
    if not found:
        raise UserError("There is nothing to ask: type a prompt, or name a file of prompts with --prompts.")
    return found


def _prompt(file: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    text = (value.get("prompt") or value.get("question")) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise UserError(f'{file}, line {number} is no JSON object with a text "prompt" or "question".')
    return text


def tuned(results: Path, studies: Sequence[str], cells: Sequence[str]) -> tuple[list[CellRef], list[str]]:
    """The named cells, or all cells of `studies` with saved weights, and a sentence for each of these that is refused.

    Raises UserError if a named one is refused or has no weights.
    """
    if cells:
        named = [find(results, studies, cell) for cell in cells]
        for ref in named:
            if not ref.record.is_file():
                raise UserError(f"{ref} has no record yet; there is nothing to ask.")
            record = read(ref.record)
            if record.cell.settings.method.tuned and not record.saved:
                raise UserError(f"{ref} has no saved weights; run it again with save=adapter or save=merged.")
            _require(ref, record)
        return named, []
    admitted, refused = [], []
    for name in studies:
        records, problems = read_study(results / name)
        refused += problems
        for record in records:
            if record.saved:
                ref = CellRef(Study(results, name), record.cell.name)
                try:
                    _require(ref, record)
                except UserError as error:
                    refused.append(str(error))
                else:
                    admitted.append(ref)
    return admitted, refused


def _require(ref: CellRef, record: Record) -> None:
    """Raise UserError if the cell's model is not to be loaded from its record, or is not the one that was saved."""
    gate.require(record, ref.record)
    if problems := verify.check(ref.record):
        raise UserError(problems[0])


def ask(
    cells: Sequence[CellRef], as_typed: bool, on_event: Callable[[Progress], None], **options: Any
) -> dict[str, Any]:
    """The answers of the untuned base models of `cells`, of `cells`, and of the models that `options` name.

    as_typed: put prompts as they are, not in the template of the cell's data. options: the other fields of AskModels.
    """
    records = [(found, read(found.record)) for found in cells]
    bases: dict[tuple[ModelSettings, str | None], tuple[CellRef, Record]] = {}  # one for each model and template
    for found, record in records:
        bases.setdefault((record.cell.settings.model, record.question_template), (found, record))
    if options["api"] or options["judge"]:
        requests.require("Models behind an API require")  # before any model here has answered
    local = [
        _local("base" if len(bases) == 1 else f"base {record.cell.model}", found, record, False, as_typed)
        for found, record in bases.values()
    ]
    several = len({found.study.name for found in cells}) > 1
    for found, record in records:
        if record.saved:
            local.append(_local(str(found) if several else found.name, found, record, True, as_typed))
    return runner.ask(AskModels(local=local, **options), on_event)


def _local(label: str, found: CellRef, record: Record, tuned: bool, as_typed: bool) -> LocalModel:
    prompt = AS_TYPED if as_typed else record.question_template
    return LocalModel(label, str(found.record.absolute()), tuned, prompt)
