"""Runs a random sample of a recorded study's cells again, in a study of their own: `reproduced/STUDY`.

    harness reproduce STUDY --cells N --seed S

The published records stay as they are. What two runs of a cell say is compared in harness/report/reproduction.py.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.errors import UserError
from harness.protocol import NO_PATHS, LocalPaths
from harness.record import Record
from harness.studies import retry
from harness.sweep import runner
from harness.sweep.progress import SweepProgress
from harness.sweep.store import Study


def target(results: Path, name: str) -> Study:
    """The study that the cells of the study `name` run in again."""
    return Study(results, f"reproduced/{name}")


def sample(name: str, records: Sequence[Record], n: int, seed: int) -> list[Record]:
    """`n` of the finished cells of the study `name` that ran here on local weights, by a random choice that `seed`
    repeats; UserError if there are fewer."""
    able = [r for r in records if r.status == "ok" and r.source is None and not r.cell.settings.behind_api]
    if not able:
        raise UserError(f"{name} has no finished cell that this harness ran with local weights, so none can run again.")
    if len(able) < n:
        raise UserError(f"--cells must be at most {len(able)}, the cells of {name} that can run again, got {n}.")
    return random.Random(seed).sample(sorted(able, key=lambda record: record.cell.name), n)


def run_again(
    source: Study, study: Study, records: Sequence[Record], data_root: str | None, local: LocalPaths = NO_PATHS
) -> list[Record]:
    """Run the cells of `records`, of the study `source`, in `study`, with the recorded precautions; returns the new
    records, in order.

    Raises UserError, before anything runs, if a record is refused (`retry.require`) or its cell can't run here.
    """
    for recorded in records:
        retry.require(recorded, source.path(recorded.cell))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's stop is as orderly as Ctrl-C
    runner.check([recorded.cell for recorded in records], data_root, local=local)
    progress, new_records = SweepProgress([recorded.cell for recorded in records]), []
    try:
        for recorded in records:
            precautions = replace(recorded.precautions, save_every=None)
            request = runner.request_for(recorded.cell, study, data_root, local, precautions=precautions)
            with study.lease(recorded.cell) as lease:
                new_records.append(retry.run_shown(study, request, lease, progress))
    finally:
        progress.close()
    return new_records
