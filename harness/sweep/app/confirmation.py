"""The cells that confirm a choice: fresh seeds of each chosen setting, which had no part in choosing it.

The best of several settings looks better than it is, as far as validation and test share a seed's luck. Fresh seeds
have other luck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.record import Record

MARK = "confirmation=true"


def fresh_points(
    settings: Sequence[Sequence[Record]], overrides: Mapping[str, list[str]], seeds: Sequence[int]
) -> list[list[str]]:
    """The overrides of a cell with each of `seeds`, for each of `settings` that is trained.

    settings: the records that chose each setting. overrides: of each cell of the sweep, by id; settings of other sweeps
    have none.
    """
    points = [point for records in settings if (point := _of_sweep(records, overrides)) is not None]
    return [[*(o for o in point if not o.startswith("seed=")), f"seed={s}", MARK] for point in points for s in seeds]


def methods_of_other_sweeps(settings: Sequence[Sequence[Record]], overrides: Mapping[str, list[str]]) -> list[str]:
    """The trained methods of those of `settings` that this sweep does not have, and so can't confirm."""
    others = [records for records in settings if _of_sweep(records, overrides) is None]
    return sorted({records[0].cell.method for records in others if records[0].cell.seed is not None})


def _of_sweep(records: Sequence[Record], overrides: Mapping[str, list[str]]) -> list[str] | None:
    """The overrides of one of `records`; None if they are untuned, or if the sweep has none of them."""
    return next((overrides[r.cell.id] for r in records if r.cell.seed is not None and r.cell.id in overrides), None)
