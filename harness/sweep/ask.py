"""``python -m harness ask``: which models a command line means, for a job that puts prompts to them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.record import Record, read, read_study
from harness.sweep import worker
from harness.sweep.find import Found, find
from harness.sweep.store import Study

AS_TYPED = "{question}"  # a prompt that nothing is put around


def prompts(typed: Sequence[str], file: Path | None) -> list[str]:
    """Those that were typed, then those of a file: one a line, or JSON lines with a "prompt" or a "question"."""
    found = list(typed)
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} can't be read ({getattr(error, 'strerror', 'it is no text')}).") from None
        lines = [(n, line) for n, line in enumerate(lines, start=1) if line.strip()]
        found += [_prompt(file, n, line) if file.suffix == ".jsonl" else line.strip() for n, line in lines]
    if not found:
        raise UserError("There is nothing to ask: type a prompt, or name a file of them with --prompts.")
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


def tuned(results: Path, studies: Sequence[str], cells: Sequence[str]) -> list[Found]:
    """The cells that are named, or else all of the studies that left weights; UserError if one named left none."""
    if not cells:
        found = [Found(Study(results, name), r.cell.name) for name in studies for r in read_study(results / name)[0]]
        return [of_it for of_it in found if _weights(of_it).is_dir()]
    found = [find(results, studies, cell) for cell in cells]
    for of_it in found:
        if not of_it.record.is_file():
            raise UserError(f"{of_it} has no record yet; there is nothing to ask.")
        if _trained(read(of_it.record)) and not _weights(of_it).is_dir():
            raise UserError(f"{of_it} left no weights; run it anew with save=adapter or save=merged to ask it.")
    return found


def ask(cells: Sequence[Found], as_typed: bool, on_event: Callable[[dict], None], **asking: Any) -> dict[str, Any]:
    """The answers of the untuned models of `cells`, of `cells`, and of the models that `asking` names.

    as_typed: whether prompts are put as they are; else as the cell's data puts its questions. asking: the other fields
    of ``harness.job.ask.Asking``.
    """
    records = [read(found.record) for found in cells]
    local = _untuned(records, as_typed)
    several = len({found.study.name for found in cells}) > 1
    for found, record in zip(cells, records, strict=True):
        if _trained(record):
            label = str(found) if several else found.name
            local.append(_local(label, record, str(_weights(found).absolute()), as_typed))
    return worker.ask({"local": local, **asking}, on_event)


def _untuned(records: Sequence[Record], as_typed: bool) -> list[dict[str, Any]]:
    """Of each model and way to put a question one untuned model, loaded plainly."""
    found = {}
    for record in records:
        of_it = record.cell.settings
        load = {k: v for k, v in of_it["method"]["load"].items() if k != "quantization_config"}
        cell = dataclasses.replace(record.cell, settings=of_it | {"method": of_it["method"] | {"load": load}})
        key = json.dumps([of_it["model"], of_it["data"]["prompt"]])
        found.setdefault(key, (record.cell.model, dataclasses.replace(record, cell=cell)))
    models = [name for name, _ in found.values()]
    return [
        _local("base" if len(models) == 1 else f"base {name}", record, None, as_typed)
        for name, record in found.values()
    ]


def _local(label: str, record: Record, folder: str | None, as_typed: bool) -> dict[str, Any]:
    prompt = AS_TYPED if as_typed else record.cell.settings["data"]["prompt"]
    return {"label": label, "cell": dataclasses.asdict(record.cell), "folder": folder, "prompt": prompt}


def _weights(found: Found) -> Path:
    """Where a cell's weights lie, if they were saved: a folder beside the record, called as that is."""
    return found.record.with_suffix("")


def _trained(record: Record) -> bool:
    return record.cell.settings["method"]["optim"] is not None
