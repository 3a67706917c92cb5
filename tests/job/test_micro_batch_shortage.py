"""Cells that run out of memory: what is recorded of it, and the same steps in smaller micro-batches.

A hook asks for a pebibyte where a micro-batch is too large, so that torch's own allocator fails for real.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from job_helpers import no_peak, run_here, run_leased, run_request, tiny  # noqa: F401
from records import make_record

from harness.job.data import batching
from harness.job.models import adapting
from harness.job.predict import prediction, shapes
from harness.protocol import Progress
from harness.record import Cell, Failure, Precautions, Record, SmallerBatches, read
from harness.sweep import micro_batch, runner
from harness.sweep.app.pending import to_run
from harness.sweep.app.point import point_of
from harness.sweep.store import Study

VALIDATED = {"max_length": 512, "validation_items": 4, "precision": "fp32"}  # what every cell that runs here has
SHORT = ("eval.tasks=[]", "infer.repeats=0", "lr=0.01", "train.max_steps=4")


@pytest.fixture
def hungry(monkeypatch):
    """hungry(when) has every model ask for too much where `when(model, keywords)`, which each forward pass asks."""

    def make(when: Callable[[torch.nn.Module, dict], bool]) -> None:
        adapt = adapting.adapt

        def adapted(base, cell, samples=None):
            def hook(net, arguments, keywords) -> None:
                if when(net, keywords):
                    torch.empty(2**50)

            net = adapt(base, cell, samples)
            net.register_forward_pre_hook(hook, with_kwargs=True)
            return net

        monkeypatch.setattr(adapting, "adapt", adapted)

    return make


def weights(net) -> int:
    return sum(p.nbytes for p in net.parameters())


# What is recorded


def test_in_the_probe_all_kinds_are_told(tmp_path, hungry):
    passes = []

    def second_step(net, keywords) -> bool:
        if net.training:
            passes.append(weights(net))
        return net.training and len(passes) == 2

    hungry(second_step)
    record = run_here(tmp_path, tiny(*SHORT, "method=full"))
    assert (record.status, record.failure.phase, record.failure.step) == ("oom", "probe", None)
    assert "can't allocate memory" in record.failure.reason
    memory = record.failure.memory
    assert memory.weights >= passes[0]  # and buffers
    assert memory.weights < 1.01 * passes[0]
    assert memory.adapters == memory.gradients == 0  # gradients are freed after a step
    assert 2 * passes[0] <= memory.optimizer < 2.01 * passes[0]  # Adam's two moments
    assert memory.rest > 0  # the batch
    kinds = (memory.weights, memory.adapters, memory.gradients, memory.optimizer, memory.rest)
    assert memory.allocated == sum(kinds)
    assert memory.largest_free is None
    assert read(next(tmp_path.glob("*.json"))) == record


def test_in_training_the_step_is_told_and_what_can_be_counted(tmp_path, hungry):
    passes = []

    def fifth(net, keywords) -> bool:
        if net.training:
            passes.append(net)
        return len(passes) == 2 * 2 + 2 * 2 + 2  # two steps of the probe, two of training, half of the third

    hungry(fifth)
    record = run_here(tmp_path, tiny(*SHORT, "method=lora", "train.grad_accum=2"))
    assert (record.status, record.failure.phase, record.failure.step) == ("oom", "train", 3)
    memory = record.failure.memory
    assert memory.adapters == 4 * record.parameters.trainable == memory.gradients
    assert memory.optimizer >= 2 * memory.adapters
    assert (memory.rest, memory.allocated) == (None, None)  # on CPU nothing counts all tensors while steps are timed


def test_other_failures_have_no_memory(tmp_path):
    record = run_here(tmp_path, tiny(*SHORT, "method=full", "method.optim.optimizer._target_=torch.optim.Adamw"))
    assert (record.status, record.failure.memory) == ("failed", None)


# Smaller micro-batches


def test_a_step_is_cut_without_loss_or_disorder():
    step = [["a", "b", "c"], ["d", "e", "f"]]
    assert batching.cut(step, 3) == batching.cut(step, 4) == step
    assert batching.cut(step, 2) == [["a", "b"], ["c"], ["d", "e"], ["f"]]
    assert batching.cut(step, 1) == [[x] for x in "abcdef"]


@pytest.mark.long
@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.parametrize("speedups", ["auto", "off"])
def test_smaller_micro_batches_take_the_same_steps(tmp_path, size, speedups):
    settings = ("method=lora", f"train.batch_size={size}", "train.bucketing=2", f"speedups={speedups}")
    cell = tiny(*SHORT, *settings, "train.grad_accum=2")
    whole = run_here(tmp_path / "whole", cell)
    smaller = SmallerBatches(2, 4, [Failure("train", 1, "no memory")])
    small = run_request(cell, "test", tmp_path / "small.json", None, lambda event: None, smaller=smaller)
    assert (whole.smaller_batches, small.smaller_batches) == (None, smaller)
    assert small.cell.id == whole.cell.id
    assert small.train.batches == whole.train.batches
    assert (small.train.tokens.raw, small.train.tokens.supervised) == (
        whole.train.tokens.raw,
        whole.train.tokens.supervised,
    )
    assert [p.loss for p in small.train.loss] == pytest.approx([p.loss for p in whole.train.loss], rel=1e-5)
    assert [p.grad_norm for p in small.train.loss] == pytest.approx([p.grad_norm for p in whole.train.loss], rel=1e-4)
    assert small.validation[-1].loss == pytest.approx(whole.validation[-1].loss, rel=1e-5)
    assert sum(dataclasses.astuple(small.probe.peak)) < sum(dataclasses.astuple(whole.probe.peak))


def out_of_memory(size: int, accum: int | None = 1, phase: str = "train") -> Record:
    settings = {"method": {"optim": {}}, "train": VALIDATED | {"batch_size": size, "grad_accum": accum}}
    record = make_record("lora", status="oom", settings=settings)
    record.failure = Failure(phase, 3, "no memory")
    return record


def halvings(record: Record) -> list[tuple[int, int]]:
    found = []
    while (smaller := micro_batch.smaller(record)) is not None:
        record.smaller_batches = smaller
        found.append((smaller.batch_size, smaller.grad_accum))
        assert len(smaller.after) == len(found)
    return found


def test_a_micro_batch_is_halved_until_it_is_one_sequence():
    assert halvings(out_of_memory(8)) == [(4, 2), (2, 4), (1, 8)]
    assert halvings(out_of_memory(4, 3)) == [(2, 6), (1, 12)]
    assert halvings(out_of_memory(5)) == [(3, 2), (2, 3), (1, 5)]
    assert halvings(out_of_memory(1)) == []
    assert halvings(out_of_memory(2, None, "probe")) == [(1, 2)]


def test_a_micro_batch_is_halved_only_if_that_helps():
    assert halvings(out_of_memory(8, phase="score")) == halvings(out_of_memory(8, phase="load")) == []
    assert micro_batch.smaller(None) is None
    assert micro_batch.smaller(make_record("lora")) is None
    broken = out_of_memory(8)
    assert micro_batch.for_rerun(broken).batch_size == 4
    broken.smaller_batches, broken.status = SmallerBatches(2, 4, []), "failed"
    assert micro_batch.for_rerun(broken).batch_size == 2  # it fitted, and broke otherwise
    assert micro_batch.for_rerun(None) is None


def test_recorded_cells_that_could_be_helped_are_run_again_if_asked(compose):
    plain, asked = (point_of(compose(*overrides), []) for overrides in ((), ("retry.on_oom=true",)))
    assert not to_run(out_of_memory(8), plain)
    assert to_run(out_of_memory(8), asked)
    assert not to_run(out_of_memory(1), asked)
    assert not to_run(make_record("lora"), asked)


# Through the sweep


def factory(size: int | str, limit: int, *more: str) -> Cell:
    """A LoRA cell of `size` sequences a micro-batch, whose job can hold `limit` at a time."""
    slot = ("method.optim._target_=hungry.build", f"+method.optim.limit={limit}")
    return tiny(*SHORT, *more, "method=lora", f"train.batch_size={size}", *slot)


@pytest.mark.faults
def test_a_cell_is_run_again_until_it_fits_and_the_record_says_so(tmp_path, capfd):
    cell, study = factory(4, 1), Study(tmp_path, "study")
    events: list[Progress] = []
    record = run_leased(cell, study, None, events.append, Precautions(on_oom=True))
    assert record.status == "ok"
    assert (record.smaller_batches.batch_size, record.smaller_batches.grad_accum) == (1, 4)
    assert [(f.phase, f.memory.adapters) for f in record.smaller_batches.after] == [
        ("probe", 4 * record.parameters.trainable)
    ] * 2
    assert (cell.settings.train.batch_size, cell.settings.train.grad_accum) == (4, 1)
    assert study.recorded(cell) == record
    assert [e.phase for e in events].count("start") == 3
    assert len(list(study.folder.glob("*.json"))) == 1
    log = study.log(cell).read_text()
    assert log.count("can't allocate memory") >= 2
    err = capfd.readouterr().err
    assert f"{cell.name} ran out of memory; again with 2 sequences per micro-batch." in err
    assert f"{cell.name} ran out of memory; again with 1 sequence per micro-batch." in err


@pytest.mark.faults
def test_without_being_asked_or_where_it_is_no_help_it_is_out_of_memory(tmp_path):
    study = Study(tmp_path, "study")
    cell = factory(2, 0)
    first = run_leased(cell, study, None, lambda event: None)
    assert (first.status, first.smaller_batches) == ("oom", None)
    events: list[Progress] = []
    record = run_leased(cell, study, None, events.append, Precautions(on_oom=True))
    assert [e.phase for e in events].count("start") == 1  # as it was asked for it was tried before
    assert (record.status, record.smaller_batches) == ("oom", SmallerBatches(1, 2, [first.failure]))


# The largest micro-batch that fits

AUTO = ("train.batch_size=auto", "train.global_batch=6")


def test_a_step_is_cut_as_evenly_as_can_be():
    assert shapes.even_parts(8, 1) == [8, 4, 3, 2, 1]
    assert shapes.even_parts(6, 2) == [3, 1]  # of two sequences each there would be three, which two can't share
    assert all(-(-60 // size) % 4 == 0 for size in shapes.even_parts(60, 4))


@pytest.mark.long
@pytest.mark.parametrize("more", [(), ("train.packing=true", "train.max_length=256")])
def test_the_largest_micro_batch_that_fits_is_planned(tmp_path, more):
    cell, planner = tiny(*SHORT, *AUTO, *more), prediction.Predictor(None, "fp32")

    def predicted(budget: int) -> dict:
        return planner.predict(cell, None, budget)

    whole, least = predicted(2**40), predicted(0)
    assert (whole["micro_batch"], least["micro_batch"]) == (6, 1)
    between = sum(whole["peak"].values()) - 1
    found = predicted(between)
    assert found["micro_batch"] == 3
    measured = run_request(
        cell, "test", tmp_path / "a.json", None, lambda event: None, smaller=micro_batch.planned(cell, found)
    )
    peak = sum(dataclasses.astuple(measured.probe.peak))
    assert peak == pytest.approx(sum(found["peak"].values()), rel=0.01)
    assert peak <= between


def test_nothing_is_cut_where_nothing_can_be_predicted():
    cell = tiny(*AUTO)
    assert micro_batch.planned(cell, {"unknown": "its values"}) == SmallerBatches(6, 1, [])
    assert micro_batch.planned(cell, {"micro_batch": 4}) == SmallerBatches(4, 2, [], 4)


def test_a_cell_is_its_steps_however_they_are_cut(compose):
    auto, fixed = tiny(*AUTO), tiny("train.batch_size=6")
    assert auto.id != fixed.id
    assert auto.id != tiny("train.batch_size=auto", "train.global_batch=12").id
    assert tiny("method=base", *AUTO).id == tiny("method=base", "train.batch_size=8").id  # it takes no steps


def test_micro_batches_that_were_planned_are_halved_without_being_asked(compose):
    train = VALIDATED | {"batch_size": "auto", "global_batch": 24, "grad_accum": 1}
    record = make_record("lora", status="oom", settings={"method": {"optim": {}}, "train": train})
    record.failure, record.smaller_batches = Failure("probe", None, "no memory"), SmallerBatches(12, 2, [], 12)
    assert to_run(record, point_of(compose(), []))
    assert halvings(record) == [(6, 4), (3, 8), (2, 12), (1, 24)][: len(record.smaller_batches.after)]
    assert record.smaller_batches.planned == 12


@pytest.mark.faults
def test_a_planned_micro_batch_is_tried_then_halved_with_the_same_steps(tmp_path, capfd):
    whole = run_leased(factory(6, 6), Study(tmp_path, "whole"), None, lambda event: None)
    cell = factory("auto", 2, "train.global_batch=6")
    events: list[Progress] = []
    record = run_leased(cell, Study(tmp_path, "study"), None, events.append)
    assert record.status == "ok", record.failure
    assert [e.phase for e in events if e.phase in ("plan", "start")] == ["plan", "start", "start", "start"]
    ran = record.smaller_batches
    assert (ran.batch_size, ran.grad_accum, ran.planned) == (2, 3, None)  # the hook looks at values
    assert [failure.phase for failure in ran.after] == ["probe", "probe"]
    assert not record.precautions.on_oom
    assert "again with 2 sequences per micro-batch." in capfd.readouterr().err
    assert record.train.batches == whole.train.batches
    assert [p.loss for p in record.train.loss] == pytest.approx([p.loss for p in whole.train.loss], rel=1e-5)
    assert record.validation[-1].loss == pytest.approx(whole.validation[-1].loss, rel=1e-5)


@pytest.mark.faults
def test_the_job_plans_for_the_memory_of_its_machine(tmp_path, monkeypatch):
    cell = tiny(*SHORT, *AUTO)
    peak = sum(prediction.Predictor(None, "fp32").predict(cell, None, 2**40)["peak"].values())
    memory = runner.plan([], None)["budget"]
    monkeypatch.setattr(runner, "TIGHT", 1.0)
    monkeypatch.setattr(runner, "BESIDE", memory - peak + 1)  # so that it all but fits
    record = run_leased(cell, Study(tmp_path, "study"), None, lambda event: None)
    assert record.status == "ok", record.failure
    assert record.smaller_batches == SmallerBatches(3, 2, [], 3)
    assert sum(dataclasses.astuple(record.probe.peak)) < peak
