"""The command that would decide what a study leaves open: its own sweeps, with more seeds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from harness.record import PLAN, Record, repeated_sweeps

MOST_LISTED = 12  # seeds that are written one by one


def with_seeds(records: Sequence[Record], folder: Path | None, count: int) -> tuple[int, str]:
    """How to run the study of `records` with at least `count` seeds: with how many, as those that it has are among
    them, and its commands between backticks, or what they are to have.

    folder: of the study, where its commands are noted. Seeds that confirm chosen settings become more of those. Of a
    study with a plan, what is added after a look is exploratory: fresh seeds confirm it, or a new study does.
    """
    confirming = any(record.confirmation for record in records)
    if folder is not None and (folder / PLAN).exists():
        return count, _planned(records, folder, count, confirming)
    used = {r.cell.seed for r in records if r.cell.seed is not None and r.confirmation == confirming}
    unused = (seed for seed in itertools.count() if seed not in used)
    seeds = sorted([*used, *itertools.islice(unused, max(0, count - len(used)))])
    arguments = ["--confirm", str(len(seeds))] if confirming else [f"seed={seed_list(seeds)}"]
    commands = repeated_sweeps(folder, arguments) if folder else []
    how = f"`{' && '.join(commands)}`" if commands else f"repeat its sweep with {' '.join(arguments)}"
    return len(seeds), how


def _planned(records: Sequence[Record], folder: Path, count: int, confirmed: bool) -> str:
    """The command of `with_seeds` for a study with a plan.

    confirmed: whether it has fresh seeds already, so that it takes new ones.
    """
    study = [f"study={records[0].study}_fresh"] if confirmed else []
    arguments = [*study, "--confirm", str(count)]
    commands = repeated_sweeps(folder, arguments)
    return f"`{' && '.join(commands)}`" if commands else f"repeat its sweep with {' '.join(arguments)}"


def seed_list(seeds: Sequence[int]) -> str:
    """Seeds as an override writes them: many in a row as a range."""
    if len(seeds) > MOST_LISTED and list(seeds) == list(range(len(seeds))):
        return f"range(0,{len(seeds)})"
    return ",".join(map(str, seeds))
