"""Whether two files of data, or the folders of two models, have one name in a study, or the study itself has two.

Comparisons know data, models and studies by their names: they would take both files as one, and the study as two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from harness import data_files
from harness.grouping import grouped
from harness.record import Cell, Record


def shared_name(records: Sequence[Record], cells: Iterable[Cell], data_root: str | None) -> str | None:
    """A sentence on the first name that stands for two things, in `cells` and the `records` of their study.

    Files of the same bytes are one, wherever they lie. Imported records name what another machine had, and don't count.
    """
    recorded = [record for record in records if record.source is None]
    files = {r.cell.settings.data.path: r.fingerprints["file"] for r in recorded if "file" in r.fingerprints}
    everything = [*(record.cell for record in recorded), *cells]
    return _two_files(everything, files, data_root) or _two_models(everything)


def other_study(records: Sequence[Record], folder: Path, name: str) -> str | None:
    """A sentence if `records` in the `folder` of the study `name` are of another one: it was copied or renamed."""
    other = next((record.study for record in records if record.study != name), None)
    if other is None:
        return None
    return (
        f"records in {folder} are of the study {other}, so tables will show what is added, of the study {name}, apart "
        "from them; give the folder its name back, or take another study=NAME."
    )


def _two_files(cells: Iterable[Cell], recorded: dict[str | None, str], data_root: str | None) -> str | None:
    """recorded: the hash of a file, by its path, when a cell ran with it."""
    paths = {(cell.data, path): None for cell in cells if (path := cell.settings.data.path) is not None}
    for name, files in grouped(paths).items():
        digests = {file: recorded.get(file) or data_files.digest(file, data_root) for file in files if len(files) > 1}
        for file in files[1:]:
            if digests[file] is None or digests[file] != digests[files[0]]:
                remedy = "rename one" if name.startswith(Path(file).name) else "set data.name for one"
                return _sentence("data.path", files[0], file, name, remedy)
    return None


def _two_models(cells: Iterable[Cell]) -> str | None:
    paths = {(cell.model, path): None for cell in cells if (path := cell.settings.model.path) is not None}
    for name, models in grouped(paths).items():
        for model in models[1:]:
            if not _is_one_place(models[0], model):
                return _sentence("model.path", models[0], model, name, "set model.name for one")
    return None


def _is_one_place(one: str, other: str) -> bool:
    return Path(one).exists() and Path(other).exists() and Path(one).samefile(other)


def _sentence(setting: str, one: str, other: str, name: str, remedy: str) -> str:
    return (
        f"{setting}={one} and {setting}={other} would be compared as one, as both are named {name}; {remedy}, or take "
        "a study for each (study=NAME)."
    )
