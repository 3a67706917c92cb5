"""Whether a file of the user's own has changed since cells were recorded with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from harness import data_files
from harness.record import Cell, Record


def changed_since(
    records: Iterable[Record], cells: Iterable[Cell], replaced: Collection[str], data_root: str | None
) -> str | None:
    """`changed_file` of all `records` of a study that have a file of `cells`.

    replaced: ids of cells that run again, so that their records go. Cells of other settings count, too: a comparison
    puts them beside `cells`.
    """
    paths = {cell.settings.data.path for cell in cells} - {None}
    stay = [r for r in records if r.cell.settings.data.path in paths and r.cell.id not in replaced]
    return changed_file(stay, data_root)


def changed_file(records: Sequence[Record], data_root: str | None) -> str | None:
    """The beginning of a sentence if cells of `records` ran with other data than the user's own file holds now.

    By the file's bytes: nothing is loaded. Records from before its hash was kept, and files that are gone, say nothing.
    """
    paths = {record.cell.settings.data.path for record in records if "file" in record.fingerprints}
    now = {path: data_files.digest(path, data_root) for path in paths}
    changed = [
        record.cell
        for record in records
        if "file" in record.fingerprints
        and now[record.cell.settings.data.path] not in (None, record.fingerprints["file"])
    ]
    if not changed:
        return None
    others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"data.path={changed[0].settings.data.path} has changed since {changed[0].name}{others} ran with it"
