"""A plan counts each phase of a sharded cell, and its machines' own memory, and names what does not fit."""

from __future__ import annotations

import pytest
from job_helpers import tiny

from harness.job.predict import prediction
from harness.sweep import plan_view, planner
from harness.sweep.planner import Plan, Planned
from harness.sweep.runner import BESIDE

GIB = 2**30
# Dimensions of Llama 3.1 70B.
LARGE = {"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
LARGE |= {"num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192}
LARGE |= {"tie_word_embeddings": False}
SHARDED = ("train.parallel=fsdp", "train.batch_size=8", "train.gradient_checkpointing=true", "model.dtype=bfloat16")
WEIGHTS = 70_553_706_496 * 2  # bytes in bf16


def planned(budget: int, *overrides: str) -> Planned:
    """A cell of LoRA on 70B, predicted for CUDA devices with `budget` bytes, beside the overhead."""
    cell = tiny("method=lora", "rank=16", *SHARDED, *overrides)
    predictor = prediction.Predictor(None, "bf16", kernels="cuda")
    return Planned("lora", cell, predictor.predict(cell, LARGE, budget))


def plan_of(point: Planned, budget: int, host: int | None = None) -> Plan:
    return Plan([point], budget, {"cpu": {"memory_bytes": host}}, "cuda", host=host)


@pytest.mark.long
def test_eight_devices_hold_what_one_can_not_in_every_phase():
    point = planned(78 * GIB, "train.devices=8")
    phases = point.prediction["phases"]
    assert list(phases) == ["load", "train", "infer", "merge", "score"]
    assert phases["train"] == point.peak
    assert phases["score"] == pytest.approx(WEIGHTS / 8 / 0.9, rel=0.1)  # divided over the devices, not on one
    assert phases["merge"] > phases["score"]
    assert WEIGHTS / 8 < phases["load"] < phases["train"]
    assert point.prediction["host"] == {"first": pytest.approx(WEIGHTS, rel=0.01), "others": 0}
    assert plan_of(point, 79 * GIB).fits(point)


@pytest.mark.long
def test_the_phase_that_does_not_fit_is_named():
    budget = 30 * GIB
    alone = planned(budget, "train.devices=4", "train.nodes=2")  # 8 devices train, the first 4 of them score
    plan = plan_of(alone, budget + BESIDE)
    shortage = plan.shortage(alone)
    assert (shortage.phase, shortage.size) == ("infer", alone.prediction["phases"]["infer"])
    assert plan_view._fit(plan, alone) == "no: infer"
    assert "The phase infer does not fit: a device has 31.00 GiB" in plan_view._phase_note(plan, alone)
    assert planner.refusal(plan, alone).startswith("Its predicted peak in the phase infer, ")


@pytest.mark.long
def test_the_host_that_does_not_hold_the_weights_is_named():
    point = planned(78 * GIB, "train.devices=8")
    plan = plan_of(point, 79 * GIB, host=100 * GIB)
    assert plan_view._fit(plan, point) == "no: host"
    assert plan_view._phase_note(plan, point).endswith("That host has 100.00 GiB.")
    assert planner.refusal(plan, point) == (
        "Its first machine reads 132.19 GiB of weights, which exceeds that machine's memory of 100.00 GiB."
    )
    assert plan_of(point, 79 * GIB, host=200 * GIB).fits(point)


@pytest.mark.long
def test_a_cell_that_one_device_can_hold_is_not_divided():
    point = planned(200 * GIB, "train.devices=8", "infer.repeats=0", "eval.tasks=[]")
    assert list(point.prediction["phases"]) == ["load", "train", "merge"]
    assert point.prediction["phases"]["merge"] > WEIGHTS


def test_a_cell_that_is_not_sharded_has_its_peak_alone():
    cell = tiny("method=lora")
    point = Planned("lora", cell, prediction.Predictor(None, "fp32").predict(cell, None))
    assert "phases" not in point.prediction
    assert planner.phases_of(point) == {"train": point.peak}
