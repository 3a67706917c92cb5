"""The cells of the shipped sweeps keep their ids: a changed id means that recorded cells are run again.

``python tests/sweep/test_golden_ids.py --write`` renews golden_ids.json after a change that is meant to change ids. Its
`before` stays as it is: the cells by name, without the id, as they were before settings were typed.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from harness.config import ROOT, SWEEPS

sys.path.append(str(ROOT / "benchmarks"))
import sweeps

FILE = Path(__file__).with_name("golden_ids.json")
GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))
GRIDS = sorted({path.stem for path in SWEEPS.glob("*.yaml")} - {"tune"})  # whose trials depend on results


def ids(name: str) -> dict[str, str]:
    return {cell.name: cell.id for cell in sweeps.cells(name, [])}


def test_every_grid_has_golden_ids():
    assert sorted(GOLDEN["ids"]) == GRIDS


@pytest.mark.parametrize("name", GRIDS)
def test_cells_keep_their_ids(name):
    found = ids(name)
    assert found == GOLDEN["ids"][name]
    if name in GOLDEN["before"]:
        assert Counter(cell.rpartition("-")[0] for cell in found) == GOLDEN["before"][name]


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit(__doc__)
    golden = GOLDEN | {"ids": {name: ids(name) for name in GRIDS}}
    FILE.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
