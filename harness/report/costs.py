"""What rows cost beside each other: ratios of memory, speed and price, with 95% intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.record import Record
from harness.report import statistics
from harness.report.conditions import conditions, differing, started
from harness.report.frame import TRAIN_MEMORY
from harness.report.lint.environment import overlap
from harness.report.lint.training import resumed
from harness.report.statistics import MemoryPeak, Ratio, Run
from harness.report.tables.rows import Row

SAME = 0.02  # costs that differ by less than this share are not worth a word

Ratios = Callable[[Row, Row, Sequence[Row]], Ratio | None]
"""The ratio of a measure of one row to that of another, where `others` are all rows of the place; None if unknown."""


def memory_ratio(row: Row, reference: Row, others: Sequence[Row]) -> Ratio | None:
    """Of the headline memory. None of rows that ran under other conditions; of a single seed by an assumed spread."""
    ones, reference_ones = _peaks(row), _peaks(reference)
    if not ones or not reference_ones or differing(row.measured, reference.measured, conditions):
        return None
    field = [_peaks(other) for other in others if other is not row and other is not reference]
    return statistics.of_memory(ones, reference_ones, field=[peaks for peaks in field if peaks])


def _peaks(row: Row) -> list[MemoryPeak]:
    cells = zip(row.records, row.numbers, strict=True)
    peaks = [(record, numbers[TRAIN_MEMORY]) for record, numbers in cells if record.status == "ok"]
    return [MemoryPeak(value, record.cell.seed, record.cell.lr) for record, value in peaks if value]


def speed_ratios(records: Sequence[Record]) -> Ratios:
    """Of steady rates. records: all of the study."""
    return _ratios_of_runs(records, lambda row, i: row.numbers[i]["tokens_per_second_steady"])


def price_ratios(records: Sequence[Record], price: Callable[[Record], float | None]) -> Ratios:
    """Of what a cell costs. records: all of the study; price: of one, in dollars."""
    return _ratios_of_runs(records, lambda row, i: price(row.records[i]))


def disturbed_cells(records: Sequence[Record]) -> set[str]:
    """Names of cells whose times are not their own: others ran beside them, or they were interrupted and resumed."""
    return {name for rule in (overlap, resumed) for _, names in rule(records) for name in names}


def _ratios_of_runs(records: Sequence[Record], value: Callable[[Row, int], float | None]) -> Ratios:
    """Over runs that neither overlapped with others nor were resumed; None without two of each.

    value: of the record at a position of a row.
    """
    disturbed = disturbed_cells(records)

    def runs(row: Row) -> list[Run]:
        counted = ((record, value(row, i)) for i, record in enumerate(row.records))
        return [Run(v, r.cell.seed, started(r)) for r, v in counted if v and r.cell.name not in disturbed]

    def ratio(row: Row, reference: Row, others: Sequence[Row]) -> Ratio | None:
        if differing(row.measured, reference.measured, conditions):
            return None
        by_row = {str(id(side)): runs(side) for side in (row, reference, *others)}
        return statistics.of_times(by_row, str(id(row)), str(id(reference)))

    return ratio
