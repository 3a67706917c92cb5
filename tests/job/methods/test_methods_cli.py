"""The first ten methods through the command line: one sweep on the tiny model, its table, and nothing left to do."""

from __future__ import annotations

import pytest
from command_line import called

from harness.record import read_study

METHODS = [
    "base",
    "base_nf4",
    "dora",
    "dora_fast",
    "full",
    "galore",
    "galore_rsvd",
    "lora",
    "qdora",
    "qlora",
]
SETTINGS = (
    *("model=tiny", "rank=4", "train.max_steps=4", "train.batch_size=2", "train.validation_items=8", "eval.limit=8"),
    "study=methods",
)

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    arguments = ("sweep", f"method={','.join(METHODS)}", *SETTINGS, f"results_dir={folder / 'results'}")
    return folder, arguments, called(folder, *arguments)


def test_every_method_leaves_a_good_record(sweep):
    folder, _, done = sweep
    assert done.returncode == 0, done.stderr
    records, problems = read_study(folder / "results" / "methods")
    assert problems == []
    assert sorted(r.cell.method for r in records) == METHODS
    for record in records:
        assert record.status == "ok", record.failure
        assert {score.n for score in record.scores} == {8}
        assert (folder / "results" / "methods" / f"{record.cell.name}.items.parquet").is_file()
    assert len({record.train.batches for record in records if record.train}) == 1
    assert len({record.fingerprints["data"] for record in records}) == 1


def test_the_table_has_a_row_a_method(sweep):
    folder, _, _ = sweep
    done = called(folder, "table", "--study", "methods", "--columns", "method,status")
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:] for line in done.stdout.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip(" *`\\").replace("\\", "") for cell in row] for row in rows]
    assert sorted(next(cell for cell in row if cell in METHODS) for row in cells) == METHODS


def test_a_second_sweep_launches_nothing(sweep):
    folder, arguments, _ = sweep
    before = {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*.json")}
    done = called(folder, *arguments)
    assert done.returncode == 0, done.stderr
    assert f"{len(METHODS)} recorded, 0 to run" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*.json")} == before
