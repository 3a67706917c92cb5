"""Which cell a command line means: by its name, an id, or the beginning of either; STUDY/CELL says of which study."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.record import STUDY_NAME, read_study
from harness.sweep.store import Study

SHOWN = 4  # of the cells that a text may mean


@dataclass(frozen=True)
class Found:
    """A cell of a study, which may have a record, a log, or as yet no more than a place in the plan."""

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


def find(results: Path, names: Sequence[str], text: str) -> Found:
    """The one cell that `text` means among those of the studies `names`; UserError if there is none, or several.

    A name is looked for first, then an id, so that a cell with a damaged record is found as well.
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
        hint = f" Did you mean {near[0]}?" if near else " `python -m harness status` shows those that are not done."
        raise UserError(f"There is no cell {text} in {', '.join(names)}.{hint}")
    if len(matches) > 1:
        shown = [str(match) for match in matches[:SHOWN]] + ["…"] * (len(matches) > SHOWN)
        raise UserError(f"{text} may be any of {len(matches)} cells; type more of one: {', '.join(shown)}.")
    return matches[0]


def _matching(texts: dict[tuple[Study, str], str], text: str) -> list[Found]:
    """The cells whose text is `text`, or else begins with it."""
    exact = [key for key, value in texts.items() if value == text]
    return [Found(*key) for key in exact or [key for key, value in texts.items() if text and value.startswith(text)]]


def _names(study: Study) -> list[str]:
    """Of all cells that left a record or a log, run, or are planned."""
    left = {path.stem for ending in ("json", "log") for path in study.folder.glob(f"*.{ending}")}
    with contextlib.suppress(UserError):  # a damaged plan is no reason not to find what is recorded
        left |= {cell.name for cell in study.planned()}
    return sorted(left | set(study.running()))


def _ids(study: Study) -> list[tuple[tuple[Study, str], str]]:
    """Each recorded or planned cell with its id."""
    cells = [record.cell for record in read_study(study.folder)[0]]
    with contextlib.suppress(UserError):
        cells += study.planned()
    return [((study, cell.name), cell.id) for cell in cells]
