"""The cells that confirm a choice: fresh seeds of each chosen setting, which had no part in choosing it.

The best of several settings looks better than it is, as far as validation and test share a seed's luck. Fresh seeds
have other luck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.record import Record

MARK = "confirmation=true"


def fresh_points(
    records: Sequence[Record], overrides: Mapping[str, list[str]], seeds: Sequence[int]
) -> list[list[str]]:
    """The overrides of a cell with each of `seeds`, for each of `records` that is trained.

    records: a record of each chosen setting. overrides: of each cell of the sweep, by id; settings of other sweeps have
    none.
    """
    points = [overrides[r.cell.id] for r in records if r.cell.seed is not None and r.cell.id in overrides]
    return [[*(o for o in point if not o.startswith("seed=")), f"seed={s}", MARK] for point in points for s in seeds]
