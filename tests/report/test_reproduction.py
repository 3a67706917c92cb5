"""Cells that ran again agree with their records within what the study's own runs allow, and no further."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
from records import make_record, sound

from harness.record import LossPoint, Repeat
from harness.report.reproduction import PublishedStudy, recheck, reproduction_table

LOSS = 1.25
NOWHERE = Path("nowhere")  # no items lie there


def trained(seed=0, loss=LOSS, **fields):
    """A record of LoRA with this validation loss, and a training loss like it."""
    record = make_record("lora", 16, 32.0, 2e-4, seed, **fields)
    record.validation[-1].loss = loss
    record.train.loss = [LossPoint(step, 100 * step, 2 * loss, 1e-4, 1.0) for step in (1, 2)]
    return record


def again(record, **changes):
    """Another run of `record`: its loss, its tokens/s or its device times a factor or anew."""
    found = copy.deepcopy(record)
    found.validation[-1].loss *= changes.get("loss", 1.0)
    factor = changes.get("loss", 1.0)
    found.train.loss = [replace(point, loss=factor * point.loss) for point in found.train.loss]
    found.phases["train"].memory.allocated_peak *= changes.get("memory", 1)
    found.train.tokens_per_second_steady *= changes.get("speed", 1.0)
    if device := changes.get("device"):
        found.environment = found.environment | {"device": found.environment["device"] | {"name": device}}
    return found


def repeated(record, *factors):
    """`record` with repeats, whose losses, peaks and speeds are its own times these factors."""
    own = record.phases["train"].memory
    for number, factor in enumerate(factors, 2):
        memory = replace(own, allocated_peak=round(own.allocated_peak * factor))
        rate, loss = record.train.tokens_per_second_steady * factor, record.validation[-1].loss * factor
        run = Repeat(number, "ok", record.started, 1.0, record.environment, None, rate, loss, memory, [])
        record.repeats.append(run)
    return record


def checks(records, other, folder=NOWHERE, folder_again=NOWHERE):
    """By quantity, what is said of the first of `records` and its other run."""
    study = PublishedStudy(records, folder)
    return {check.quantity: check for check in recheck(study, [(records[0], other)], folder_again)}


def test_a_run_that_is_equal_is_told_so():
    record = trained()
    found = checks([record], again(record))
    assert {name: check.agreement for name, check in found.items()} == {
        "inputs": "equal",
        "validation loss": "equal",
        "mean training loss": "equal",
        "peak train memory": "equal",
        "gsm8k, exact match, strict format (%)": "equal",
        "tokens/s": "not compared",
    }
    table = reproduction_table("demo", list(found.values()), [(record, again(record))])
    assert table.answer == ["1 of 1 cells agree with their published records."]
    assert "same device, libraries and harness" in table.caption[-1]


@pytest.mark.parametrize(("factor", "said"), [(1.002, "agrees"), (0.998, "agrees"), (1.05, "disagrees")])
def test_repeats_say_how_far_a_run_may_be_off(factor, said):
    record = repeated(trained(), 1.002, 0.998, 1.001, 0.999)
    found = checks([record], again(record, loss=factor, speed=factor))
    for name in ("validation loss", "mean training loss", "tokens/s"):
        assert (found[name].agreement, found[name].why) == (said, "4 repeats in the study")


def test_repeats_that_are_all_equal_allow_nothing():
    record = repeated(trained(), 1.0, 1.0)
    assert checks([record], again(record, memory=2))["peak train memory"].agreement == "disagrees"
    found = checks([record], again(record, loss=1.0001))
    assert found["validation loss"].agreement == "disagrees"
    assert found["peak train memory"].agreement == "equal"


def test_a_wide_limit_is_written_out():
    """Two seeds that differ tell little: the limit is many times the value."""
    records = [trained(1, LOSS), trained(2, LOSS * 1.5)]
    allowed = checks(records, again(records[0]))["validation loss"].allowed
    assert "e+" not in allowed
    assert float(allowed.strip("±%").replace(",", "")) > 1_000


def test_repeats_say_nothing_of_another_device():
    """Nor does a time there: the seeds say how far the loss may be off, else a spread is assumed."""
    record = repeated(trained(), 1.0, 1.0)
    other = again(record, loss=1.02, speed=3.0, device="NVIDIA L4")
    found = checks([record], other)
    assert found["validation loss"].agreement == "agrees"
    assert found["validation loss"].why == "assumed, 1% a run: the study has no repeats or seeds"
    assert (found["tokens/s"].agreement, found["tokens/s"].why) == ("not compared", "the runs differ in device")
    seeds = [trained(seed, LOSS * factor) for seed, factor in enumerate((1.0001, 0.9999, 1.0002, 0.9998, 1.0), 1)]
    found = checks([record, *seeds], other)["validation loss"]
    assert (found.agreement, found.why) == ("disagrees", "seeds of lora in the study")
    table = reproduction_table("demo", [found], [(record, other)])
    assert table.answer == [
        "0 of 1 cells agree with their published records.",
        f"{record.cell.name} disagrees in validation loss: 1.250 → 1.275 (seeds of lora in the study).",
    ]
    assert "device: NVIDIA L4, published NVIDIA H100." in table.caption


def test_what_may_have_moved_a_number_is_named():
    record = trained()
    record.environment = record.environment | {"speedups": {"fused_loss": "off: no CUDA device", "kept_memory": "on"}}
    other = again(record)
    other.environment = other.environment | {
        "git": {"commit": "c" * 40, "dirty": False},
        "speedups": {"fused_loss": "on: chunked", "kept_memory": "on"},
        "allocator": {"MALLOC_ARENA_MAX": "x" * 80},
    }
    _, *facts = reproduction_table("demo", [], [(record, other)]).caption
    assert facts == [
        "harness commit: cccccccccccc, published 0123456789ab.",
        "speed-up fused_loss: on: chunked, published off: no CUDA device.",
    ]


def test_other_batches_are_no_reproduction():
    record = trained()
    other = again(record)
    other.train.batches = "c" * 16
    found = checks([record], other)["inputs"]
    assert (found.agreement, found.why) == ("disagrees", "other hash of batches")


def test_a_cell_that_fails_disagrees_with_its_reason():
    record = trained()
    (found,) = checks([record], make_record("lora", 16, 32.0, 2e-4, status="oom")).values()
    assert (found.agreement, found.again) == ("disagrees", "oom")
    assert found.why.startswith("CUDA out of memory")


@pytest.mark.parametrize(("lost", "said"), [(0, "equal"), (2, "agrees"), (60, "disagrees")])
def test_scores_are_paired_by_item(tmp_path, lost, said):
    record = trained()
    values = (1.0, 0.0) * 100
    sound(record, tmp_path / "a", values)
    other = again(record)
    sound(other, tmp_path / "b", tuple(0.0 if i < 2 * lost else value for i, value in enumerate(values)))
    found = checks([record], other, tmp_path / "a", tmp_path / "b")["gsm8k, exact match, strict format (%)"]
    assert found.agreement == said
    assert found.why == f"200 paired items, {lost} answered otherwise"


def unstable(record):
    """`record` with a third step, whose gradient is steep and whose loss is lost again."""
    record.train.loss.append(LossPoint(3, 300, 8 * LOSS, 1e-4, 5.1))
    return record


def test_of_an_unstable_training_only_what_came_before_is_compared(tmp_path):
    """Rounding alone took a cell of study_facts from a validation loss of 0.48 to 5.90; another seed does less."""
    record = unstable(trained())
    seeds = [trained(seed, LOSS * factor) for seed, factor in enumerate((1.001, 0.999, 1.002, 0.998, 1.0), 1)]
    other = again(record)
    other.validation[-1].loss *= 9
    other.train.loss[-1] = replace(other.train.loss[-1], loss=80 * LOSS)
    for side, folder in ((record, "a"), (other, "b")):
        sound(side, tmp_path / folder, tuple(float(folder == "a") for _ in range(40)))
    unequal = checks([record, *seeds], other, tmp_path / "a", tmp_path / "b")
    why = "its published training was unstable from step 3"
    for name in ("validation loss", "gsm8k, exact match, strict format (%)"):
        assert (unequal[name].agreement, unequal[name].why) == ("not compared", why)
    assert unequal["mean training loss before step 3"].agreement == "equal"
    assert unequal["peak train memory"].agreement == "equal"
    earlier = checks([record, *seeds], again(record, loss=1.2))
    assert earlier["mean training loss before step 3"].agreement == "disagrees"


def test_an_unstable_training_may_diverge_again_and_a_stable_one_may_not():
    other = make_record("lora", 16, 32.0, 2e-4, status="diverged")
    assert checks([unstable(trained())], other)["status"].agreement == "not compared"
    assert checks([trained()], other)["status"].agreement == "disagrees"
    assert checks([unstable(trained())], make_record("lora", 16, 32.0, 2e-4, status="oom"))["status"].agreement == (
        "disagrees"
    )


def test_a_rerun_that_alone_is_unstable_disagrees():
    record = trained()
    other = unstable(again(record))
    other.validation[-1].loss *= 9
    assert checks([record], other)["validation loss"].agreement == "disagrees"


def test_a_cell_of_which_nothing_is_compared_does_not_agree():
    published, other = unstable(trained()), make_record("lora", 16, 32.0, 2e-4, status="diverged")
    rechecks = list(checks([published], other).values())
    table = reproduction_table("demo", rechecks, [(published, other)])
    assert table.answer == [
        "0 of 1 cells agree with their published records.",
        "Of 1 cell nothing could be compared.",
    ]
