"""Rules on what a study lacks: a base row, more seeds, finished cells."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Hashable, Sequence

from harness.record import Record
from harness.report.lint.differences import Sentences, differ, finished, group_by, hashable, point, tuned
from harness.settings import MethodSettings, plain


def missing_base(records: Sequence[Record]) -> Sentences:
    """A base row serves all data sets of its model, since the weights are the same."""
    models = group_by(records, lambda record: record.cell.model)
    missing = [
        model
        for model, members in models.items()
        if not any(r.cell.method == "base" and r.status == "ok" and r.scores for r in members)
        and any(record.scores for record in members)
    ]
    if missing:
        where = f" for {', '.join(missing)}" if len(missing) < len(models) else ""
        yield f"No finished base row{where}: Δ is not shown.", ()


def seed_counts(records: Sequence[Record]) -> Sentences:
    tried = [record for record in tuned(finished(records)) if not record.confirmation]
    rows = group_by(tried, lambda r: (r.cell.model, r.cell.data, point(r), _unseeded(r)))
    counts = {len(members) for members in rows.values()}
    if counts == {1}:
        yield "Single seed: error bars exclude seed-to-seed variance.", ()
    elif len(counts) > 1:
        cells = {id(record): len(members) for members in rows.values() for record in members}
        known = [record for record in records if id(record) in cells]
        yield from differ("Numbers of seeds differ", known, lambda r: f"{cells[id(r)]} seed{'s' * (cells[id(r)] > 1)}")


def _unseeded(record: Record) -> Hashable:
    """All settings but the seed of the training: equal for cells that repeat each other."""
    settings = record.cell.settings
    method = hashable(plain(settings.method))  # as text: methods hash by their names alone
    return record.cell.method, method, dataclasses.replace(settings, method=MethodSettings(), seed=None)


def failed_cells(records: Sequence[Record]) -> Sentences:
    refused = [record for record in records if record.status == "unfit"]
    failed = [record for record in records if record.status not in ("ok", "unfit")]
    for subject, cells in (("Cells not run", refused), ("Failed cells", failed)):
        if cells:
            reasons = "; ".join(f"{record.cell.name}: {_reason(record)}" for record in cells)
            yield f"{subject}: {reasons}.", tuple(record.cell.name for record in cells)


def _reason(record: Record) -> str:
    failure = record.failure
    if failure is None:
        return record.status
    clause = re.split(r"[.;]\s|\n", failure.reason.strip())[0].rstrip(".;")
    place = failure.phase + (f", step {failure.step}" if failure.step is not None else "")
    return f"{textwrap.shorten(clause, 100, placeholder=' …')} ({place})"
