"""Finds the cell that a command line names: by name or id, the beginning of either, or STUDY/CELL."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.program import PROGRAM
from harness.record import STUDY_NAME, Record, read_study
from harness.sweep.store import Study

SHOWN = 4  # cells that an ambiguous text may mean


@dataclass(frozen=True)
class CellRef:
    """A cell of a study. It may have a record or a log, or so far only a place in the plan."""

    study: Study
    name: str

    def __str__(self) -> str:
        return f"{self.study.name}/{self.name}"

    @property
    def record(self) -> Path:
        return self.study.folder / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return self.study.folder / f"{self.name}.log"


def find(results: Path, names: Sequence[str], text: str) -> CellRef:
    """The one cell that `text` names in the studies `names`; UserError if there is none, or several.

    Names are compared first, then ids, so a cell with a damaged record is found too.
    """
    where, _, cell = text.rpartition("/")
    if where:
        if where not in names and not (STUDY_NAME.fullmatch(where) and (results / where).is_dir()):
            raise UserError(f"There is no study {where} in {results}; there is: {', '.join(names)}.")
        names = [where]
    studies = [Study(results, name) for name in names]
    named = {(study, name): name for study in studies for name in _names(study)}
    matches = _matching(named, cell) or _matching({key: i for study in studies for key, i in _ids(study)}, cell)
    if not matches:
        near = difflib.get_close_matches(cell, set(named.values()), n=1)
        where = f" {names[0]}" if len(names) == 1 else ""
        hint = f" Did you mean {near[0]}?" if near else f" `{PROGRAM} status{where}` lists the cells that are not done."
        raise UserError(f"There is no cell {text} in {', '.join(names)}.{hint}")
    if len(matches) > 1:
        examples = [str(match) for match in matches[:SHOWN]] + ["…"] * (len(matches) > SHOWN)
        raise UserError(f"{text} matches {len(matches)} cells; type more of one: {', '.join(examples)}.")
    return matches[0]


def settled_study(
    results: Path, names: Sequence[str], text: str, purpose: str
) -> tuple[Study, str | None, list[Record], list[str]]:
    """The study that `text` means, one of `names` or that of a cell, with the cell's name (null: all cells are meant).

    Interrupted writes to it are settled; its records follow, and a sentence for each file that is none. Raises
    UserError if there is no such cell, or if it has no record, so that there is nothing to `purpose`.
    """
    if text in names:
        study, cell = Study(results, text), None
    else:
        match = find(results, names, text)
        study, cell = match.study, match.name
        if not match.record.is_file():
            raise UserError(f"{match} has no record yet; there is nothing to {purpose}.")
    study.settle()
    return study, cell, *read_study(study.folder)


def _matching(texts: dict[tuple[Study, str], str], text: str) -> list[CellRef]:
    """The cells whose name or id is `text`, or else begins with it."""
    exact = [key for key, value in texts.items() if value == text]
    return [CellRef(*key) for key in exact or [key for key, value in texts.items() if text and value.startswith(text)]]


def _names(study: Study) -> list[str]:
    """The names of all cells that have a record or a log, are running, or are planned."""
    left = {path.stem for ending in ("json", "log") for path in study.folder.glob(f"*.{ending}")}
    with contextlib.suppress(UserError):  # with a damaged plan, recorded cells are still found
        left |= {cell.name for cell in study.planned()}
    return sorted(left | set(study.running()))


def _ids(study: Study) -> list[tuple[tuple[Study, str], str]]:
    """The id of each recorded or planned cell."""
    cells = [record.cell for record in read_study(study.folder)[0]]
    with contextlib.suppress(UserError):
        cells += study.planned()
    return [((study, cell.name), cell.id) for cell in cells]
