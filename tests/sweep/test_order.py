"""The order of a sweep's cells, and the repeats of one of them."""

from __future__ import annotations

import pytest
from job_helpers import tiny

from harness.record import read, read_study
from harness.report.frame import frame
from harness.sweep.app.order import random_key, repeated, with_repeats
from harness.sweep.store import Study

SMALL = (
    *("model=tiny", "rank=8", "train.precision=fp32", "train.max_steps=3", "train.batch_size=2"),
    *("train.validation_items=4", "+data.load.train=64", "+data.load.validation=8", "eval=facts", "eval.limit=4"),
    *("infer.repeats=0", "study=mine"),
)


def test_the_random_order_is_that_of_the_study_and_of_each_cell():
    cells = [tiny(f"seed={seed}") for seed in range(8)]
    order = sorted(cells, key=lambda cell: random_key(cell, "one"))
    assert order != cells
    assert sorted(cells[3:], key=lambda cell: random_key(cell, "one")) == [cell for cell in order if cell in cells[3:]]
    assert sorted(cells, key=lambda cell: random_key(cell, "other")) != order


@pytest.mark.parametrize(
    ("pending", "first", "every", "expected"),
    [
        ("abcde", "a", 2, "abc.de."),
        ("abcde", "c", 2, "cab.de."),
        ("abcde", None, 2, ".ab.cd.e."),
        ("abc", "a", 2, "abc."),
        ("a", "a", 20, "a."),
        ("ab", "a", 20, "ab."),
        ("b", None, 20, ".b."),
    ],
)
def test_repeats_stand_first_between_and_last(pending, first, every, expected):
    assert "".join(with_repeats(list(pending), first, ".", every)) == expected


def test_what_is_repeated_trains_and_finished_or_will_run():
    base, lora, full = tiny("method=base"), tiny("method=lora"), tiny("method=full")
    assert repeated([base, lora, full], {}, {lora.id, full.id}) == lora
    assert repeated([base, lora, full], {lora.id: None}, {full.id}) == full
    assert repeated([base], {}, {base.id}) is None


@pytest.mark.long
@pytest.mark.slow
def test_a_sweep_runs_in_random_order_and_repeats_a_cell(inside, tmp_path):
    """One sweep, looked at for its order, its repeats, and what a second one adds."""
    grid = ("method=base,full,lora", "seed=0,1")
    run = inside("sweep", *SMALL, *grid, "--drift=2")
    assert run.returncode == 0, run.stderr
    study = Study(tmp_path / "results", "mine")
    records, problems = read_study(study.folder)
    assert problems == []
    assert len(records) == len(frame(records)) == 5  # base has no seed
    assert [cell.method for cell in study.planned()] == ["base", "full", "full", "lora", "lora"]  # the grid's order
    (again,) = [record for record in records if record.repeats]
    order = sorted(records, key=lambda record: random_key(record.cell, "mine"))
    tuned = [record for record in order if record.cell.seed is not None]
    assert again is tuned[0]
    ran = sorted(records, key=lambda record: record.position)
    assert ran == [again, *(record for record in order if record is not again)]
    assert [record.position for record in ran] == [1, 2, 3, 5, 6]
    assert [(repeat.number, repeat.position, repeat.status) for repeat in again.repeats] == [(2, 4, "ok"), (3, 7, "ok")]
    for repeat in again.repeats:
        assert repeat.validation_loss == again.validation[-1].loss  # the same cell
        assert repeat.tokens_per_second_steady > 0
        assert repeat.started >= again.started
    assert f"{again.cell.name} is repeated 2 times, to measure drift." in run.stderr
    assert not list((study.folder / ".harness" / "repeats").glob("*"))
    assert study.log(again.cell).exists()

    # A sweep that goes on repeats the same cell, at its beginning and its end.
    lost = next(record for record in ran if record is not again)
    study.remove(lost.cell.name)
    run = inside("sweep", *SMALL, *grid, "--drift=2")
    assert run.returncode == 0, run.stderr
    later = read(study.path(again.cell))
    assert [(repeat.number, repeat.position) for repeat in later.repeats] == [(2, 4), (3, 7), (4, 1), (5, 3)]
    assert read(study.path(lost.cell)).position == 2
    assert later.scores == again.scores

    # Nothing is left to run: nothing is repeated.
    run = inside("sweep", *SMALL, *grid, "--drift=2")
    assert run.returncode == 0
    assert len(read(study.path(again.cell)).repeats) == 4

    # In grid order, without repeats.
    run = inside("sweep", *SMALL, *grid, "study=other", "--order", "grid")
    assert run.returncode == 0, run.stderr
    others = sorted(read_study(tmp_path / "results" / "other")[0], key=lambda record: record.position)
    assert [(record.cell.method, record.cell.seed) for record in others] == [
        ("base", None),
        ("full", 0),
        ("full", 1),
        ("lora", 0),
        ("lora", 1),
    ]
    assert not any(record.repeats for record in others)


@pytest.mark.long
@pytest.mark.slow
def test_drift_needs_a_cell_that_trains(inside):
    run = inside("sweep", *SMALL, "method=base", "--drift")
    assert run.returncode == 2
    assert "--drift requires a cell that is trained on this machine; the sweep has none." in run.stderr
