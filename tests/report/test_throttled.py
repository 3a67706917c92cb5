"""Rows whose GPU throttled while they were timed are marked in every table that has their speed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from records import make_record, measured

from harness.record import Gpu, Record
from harness.report.tables.best import tables
from harness.report.tables.formats import FORMATS
from harness.report.tables.table import Table

MARK = " ‡"
COOL = Gpu(60, 1980.0, 1980, 2619.0, 2619, 700.0, 60, [], 70.0)
HOT = Gpu(60, 1410.0, 1980, 2619.0, 2619, 700.0, 87, ["sw_thermal_slowdown"], 70.0)
FULL_LOAD = Gpu(60, 1755.0, 1980, 2619.0, 2619, 700.0, 71, ["sw_power_cap"], 70.0)
UNTOLD = Gpu(60, None, None, None, None, None, None, None, None)


def study(**gpus: Gpu) -> list[Record]:
    records = [measured(make_record(method, 16, lr=1e-4)) for method in ("lora", "dora", "full")]
    for record in records:
        record.gpus = [gpus[record.cell.method]] if record.cell.method in gpus else []
    return records


def speeds(table: Table, column: str = "Tokens/s") -> dict[str, bool]:
    """Whether the speed of each method is marked."""
    method, speed = (table.columns.index(name) for name in ("Method", column))
    return {row[method]: row[speed].endswith(MARK) for row in table.rows}


def explained(shown: Sequence[Table]) -> list[bool]:
    return [any(line.startswith("‡") for line in table.caption) for table in shown]


def test_a_cell_that_throttled_is_marked():
    shown = tables(study(lora=COOL, dora=HOT, full=UNTOLD), None)
    for table in shown:
        assert speeds(table) == {"lora": False, "dora": True, "full": False}
    assert explained(shown) == [True, True]
    assert "daggerdbl" in FORMATS["latex"](shown)


def test_so_is_one_that_throttled_while_its_decoding_was_timed():
    records = study(lora=COOL, dora=COOL)
    records[1].decoding_gpus = [HOT]
    (table,) = tables(records, None, ["method", "steady", "decode"])
    assert speeds(table, "Decode tokens/s") == {"lora": False, "dora": True, "full": False}
    assert explained([table]) == [True]
    (table,) = tables(records, None, ["method", "memory"])
    assert explained([table]) == [False]


@pytest.mark.parametrize("gpus", [{}, {"lora": COOL, "dora": FULL_LOAD}, {"full": UNTOLD}])
def test_without_a_gpu_that_says_so_there_is_no_mark(gpus):
    """Nor for a card at its own power limit, which any full load reaches."""
    shown = tables(study(**gpus), None)
    assert not any(mark for table in shown for mark in speeds(table).values())
    assert explained(shown) == [False, False]


def test_a_row_of_several_devices_is_marked_and_compared_with_none():
    records = [measured(make_record("lora", 16, lr=1e-4, seed=seed)) for seed in (0, 1)]
    records += [measured(make_record("dora", 16, lr=1e-4, seed=seed)) for seed in (0, 1)]
    for record, card in zip(records, ("H100", "A100", "H100", "H100"), strict=True):
        record.environment["device"] = {"type": "cuda", "name": card}
    (table,) = tables(records, None, ["method", "steady"])
    speed = dict(table.rows)
    assert speed["lora"].endswith(" §")
    assert "×" not in speed["lora"] + speed["dora"]
    assert "§" not in speed["dora"]
    assert [line[:2] for line in table.caption if "different devices" in line] == ["§ "]
    assert r"\S{}" in FORMATS["latex"]([table])
