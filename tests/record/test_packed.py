"""Long series of numbers of a record that was read: small, and equal to what was written."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import FrozenInstanceError

import pytest
from records import make_record, measured, reseal

from harness.config import ROOT
from harness.record import LossPoint, encode, read, read_study, write

STEPS = 2_000
(REAL,) = (ROOT / "results" / "reference" / "quickstart").glob("lora-*.json")


@pytest.fixture
def long(tmp_path):
    """A record of many steps, where every other gradient has no norm."""
    record = make_record("lora", 16, 32.0, 2e-4)
    train = record.train
    train.steps, train.step_seconds = STEPS, [0.1 + i / 7 for i in range(STEPS)]
    train.loss = [LossPoint(i + 1, 400 * i, 3 / (i + 1), 1e-4, None if i % 2 else 1 / (i + 3)) for i in range(STEPS)]
    path = tmp_path / "lora.json"
    write(measured(record), path)
    return record, path


def test_what_is_packed_equals_what_was_written(long):
    record, path = long
    found = read(path)
    assert found == record
    assert record == found
    train = found.train
    assert (train.loss[3], train.loss[-1], train.loss[:2]) == (
        record.train.loss[3],
        record.train.loss[-1],
        record.train.loss[:2],
    )
    assert [point.grad_norm for point in train.loss][:2] == [1 / 3, None]
    assert isinstance(train.loss[0].step, int)
    assert train.loss != record.train.loss[:-1]
    assert train.laps["forward"] != record.train.laps["backward"]


def test_a_record_that_was_read_is_written_as_it_was(long):
    _, path = long
    before = path.read_bytes()
    write(read(path), path)
    assert path.read_bytes() == before
    told = json.loads(REAL.read_text())
    assert encode(read(REAL))["train"] == told["train"] | {"resumed_at": [], "compile_seconds": []}


def test_a_step_takes_little_memory(long):
    """8 bytes for each of its nine numbers."""
    _, path = long
    read(path)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    found = read(path)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.train.loss) == STEPS
    assert (held - before) / STEPS < 90


def test_a_point_can_not_be_changed_in_vain(long):
    _, path = long
    with pytest.raises(FrozenInstanceError):
        read(path).train.loss[0].loss = 1.0


@pytest.mark.parametrize(
    "change",
    [
        lambda train: train.update(loss=[dict(reversed(point.items())) for point in train["loss"]]),  # another order
        lambda train: train["loss"][1].update(lr=2),  # a whole number for a float
        lambda train: train.update(step_seconds=[1, *train["step_seconds"]]),
        lambda train: train.update(loss=[], step_seconds=[], laps={}),
    ],
)
def test_what_another_program_wrote_is_read_too(long, change):
    _, path = long
    value = json.loads(path.read_text())
    change(value["train"])
    reseal(path, value)
    assert encode(read(path))["train"] == value["train"] | {"resumed_at": [], "compile_seconds": []}


def test_equal_settings_and_environments_of_a_study_are_one_object(tmp_path):
    for seed in range(2):
        record = make_record("lora", 16, 32.0, 2e-4, seed)
        write(record, tmp_path / f"{record.cell.name}.json")
    (one, other), _ = read_study(tmp_path)
    assert one.cell.settings.model is other.cell.settings.model
    assert one.cell.settings.method is other.cell.settings.method
    assert one.environment["versions"] is other.environment["versions"]
    assert one.environment is not other.environment
