"""The model of torch's caching allocator: its rules, and what a plan makes of it."""

import pytest
from job_helpers import composed, tiny
from omegaconf import OmegaConf

from harness.config import CONF
from harness.job.models import empty_weights
from harness.job.predict.caching_allocator import EXPANDABLE, MIB, CachingAllocator, Trace
from harness.job.predict.extrapolation import Line
from harness.job.predict.prediction import Predictor
from harness.sweep import planner
from harness.sweep.runner import BESIDE


def reserved(*sizes: int, steps=None) -> tuple[int, int]:
    """What is allocated and reserved after tensors of `sizes`."""
    allocator = CachingAllocator(steps)
    for number, size in enumerate(sizes):
        allocator.allocate(number, size)
    return allocator.allocated, allocator.reserved


@pytest.mark.parametrize(
    ("sizes", "allocated", "taken"),
    [
        ([0], 0, 0),
        ([1], 512, 2 * MIB),
        ([MIB, MIB], 2 * MIB, 2 * MIB),
        ([MIB + 1], MIB + 512, 20 * MIB),
        ([9 * MIB, 9 * MIB], 18 * MIB, 20 * MIB),
        ([10 * MIB], 10 * MIB, 10 * MIB),
        ([11 * MIB], 12 * MIB, 12 * MIB),  # a rest of 1 MiB is not split off
        ([11 * MIB, 9 * MIB, 9 * MIB], 30 * MIB, 32 * MIB),
    ],
)
def test_segments_of_fixed_sizes(sizes, allocated, taken):
    assert reserved(*sizes) == (allocated, taken)


@pytest.mark.parametrize(
    ("sizes", "allocated", "taken"),
    [
        ([1], 512, 2 * MIB),
        ([11 * MIB], 11 * MIB, 20 * MIB),
        ([11 * MIB, 11 * MIB], 22 * MIB, 40 * MIB),
        ([50 * MIB, 11 * MIB], 61 * MIB, 80 * MIB),
    ],
)
def test_segments_that_grow(sizes, allocated, taken):
    assert reserved(*sizes, steps=EXPANDABLE) == (allocated, taken)


@pytest.mark.parametrize("steps", [None, EXPANDABLE])
def test_a_hole_is_of_use_to_what_fits_into_it(steps):
    allocator = CachingAllocator(steps)
    for number in range(4):
        allocator.allocate(number, 40 * MIB)
    allocator.free(1)
    allocator.allocate(4, 30 * MIB)
    assert allocator.reserved == 160 * MIB
    allocator.allocate(5, 20 * MIB)  # no longer fits beside the 30
    assert allocator.reserved == 180 * MIB


def test_neighbours_that_are_free_are_one_block():
    allocator = CachingAllocator(EXPANDABLE)
    for number in range(4):
        allocator.allocate(number, 20 * MIB)
    for number in (0, 2, 1):
        allocator.free(number)
    allocator.allocate(4, 60 * MIB)
    assert allocator.reserved == 80 * MIB


def test_the_best_fit_is_taken():
    allocator = CachingAllocator()
    for number, size in enumerate([60, 20, 40, 20]):
        allocator.allocate(number, size * MIB)
    allocator.free(0)
    allocator.free(2)
    allocator.allocate(4, 30 * MIB)  # of the 40, so that 60 remain
    allocator.allocate(5, 60 * MIB)
    assert allocator.reserved == 140 * MIB


def test_what_is_wholly_free_is_given_back_when_memory_is_short():
    allocator = CachingAllocator(None, capacity=100 * MIB)
    allocator.allocate(0, 60 * MIB)
    allocator.free(0)
    allocator.allocate(1, 80 * MIB)
    assert (allocator.reserved, allocator.peak) == (80 * MIB, 80 * MIB)


def test_free_pages_of_a_segment_that_grows_are_given_back_when_memory_is_short():
    allocator = CachingAllocator(EXPANDABLE, capacity=100 * MIB)
    allocator.allocate(0, 30 * MIB)
    allocator.allocate(1, 10 * MIB)  # in the second page of 20 MiB
    allocator.free(0)
    allocator.allocate(2, 70 * MIB)  # beside the 10: it keeps its page, and the first is given back
    assert (allocator.reserved, allocator.peak) == (100 * MIB, 100 * MIB)
    allocator.free(2)
    allocator.allocate(3, 20 * MIB)
    allocator.allocate(4, 20 * MIB)
    allocator.allocate(5, 40 * MIB)
    assert allocator.allocated == 90 * MIB <= allocator.reserved <= allocator.peak == 100 * MIB


def test_with_nothing_to_spare_it_takes_what_live_blocks_touch():
    allocator = CachingAllocator(EXPANDABLE, capacity=0)
    for number in range(4):
        allocator.allocate(number, 40 * MIB)
        allocator.free(number)
        allocator.allocate(10 + number, 20 * MIB)
    assert allocator.peak == (3 * 20 + 40) * MIB


def test_a_trace_repeats_its_last_step():
    trace = Trace()
    trace.begin(1, 40 * MIB)  # weights
    trace.mark("begin")
    trace.mark("head")
    trace.begin(2, 60 * MIB)  # activations
    trace.end(2)
    trace.mark("optimizer")
    trace.begin(3, 20 * MIB)  # the state, in the place of the activations
    trace.mark("optimizer")
    trace.burst(20 * MIB)
    trace.close()
    trace.end(1)
    assert trace.reserved() == 120 * MIB  # the next step's activations no longer fit there


def line(**others: float) -> Line:
    """A probe whose largest tensor has 50 MiB."""
    return Line({"head": {"activations": 0.0}}, {"single": 50.0 * MIB} | others)


def test_holes_grow_with_layers():
    one, two = line(unused=20.0 * MIB, holes=3.0 * MIB), line(unused=40.0 * MIB, holes=21.0 * MIB)
    assert one.through(two, 1, 2, 4).reserved == (40 + 2 * 18) * MIB


def test_a_large_tensor_without_a_place_is_not_repeated_with_each_layer():
    one, two = line(unused=20.0 * MIB, holes=3.0 * MIB), line(unused=20.0 * MIB, holes=900.0 * MIB)
    assert one.through(two, 1, 2, 30).reserved == 20 * MIB
    assert two.through(one, 1, 2, 30).reserved == 20 * MIB
    three = line(unused=70.0 * MIB, holes=53.0 * MIB)  # by the largest tensor
    assert one.through(three, 1, 2, 30).reserved == 70 * MIB


def with_a_large_embedding(method: str, size: int, budget: int | None = None) -> dict:
    """What 1.7B weights take that have 10 of their 28 layers, in micro-batches of `size` sequences."""
    settings = ("model=qwen3_1_7b", "model.dtype=bfloat16", f"method={method}", f"train.batch_size={size}")
    architecture = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "qwen3_1_7b.yaml").architecture)
    dimensions = architecture | {"num_hidden_layers": 10}
    return Predictor(None, "bf16", "cuda").predict(composed(*settings), dimensions, budget)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "galore"])
def test_with_a_large_embedding_what_fits_is_told_by_all_layers(monkeypatch, method):
    """Its gradient of 594 MiB finds a place in some depths and not in others."""
    budget = 40 * 2**30
    figures, shallow = with_a_large_embedding(method, 8, budget), with_a_large_embedding(method, 8)
    monkeypatch.setattr(empty_weights, "alike", lambda *_: False)
    assert figures["reserved"] == with_a_large_embedding(method, 8)["reserved"] != shallow["reserved"]
    most = figures["largest_batch"]
    assert with_a_large_embedding(method, most)["needed"] <= 1.05 * budget  # pages of 20 MiB hold holes, too
    assert with_a_large_embedding(method, round(1.1 * most))["needed"] > budget


@pytest.mark.long
@pytest.mark.slow
def test_not_all_layers_are_built_of_what_surely_does_not_fit(monkeypatch):
    built = []
    probe = Predictor._probe

    def counted(self, cell, config, *rest):
        built.append(config.num_hidden_layers)
        return probe(self, cell, config, *rest)

    monkeypatch.setattr(Predictor, "_probe", counted)
    assert with_a_large_embedding("full", 8, 8 * 2**30)["largest_batch"] is None
    assert max(built) == 2


def test_without_a_trace_nothing_is_said_of_reserved_memory():
    assert line().through(line(), 1, 2, 3).reserved is None


@pytest.mark.parametrize(("kernels", "method"), [("cpu", "lora"), ("cuda", "lora"), ("cuda", "base")])
def test_a_plan_says_what_cuda_reserves(kernels, method):
    figures = Predictor(None, "bf16", kernels).predict(tiny(f"method={method}"), None)
    peak = sum(figures["peak"].values())
    assert figures["reserved"] is None if kernels == "cpu" else figures["reserved"] >= peak


@pytest.mark.long
def test_of_a_sharded_cell_it_is_not_predicted():
    cell = tiny("method=lora", "train.devices=2", "train.parallel=fsdp", "model.dtype=bfloat16")
    assert Predictor(None, "bf16", "cuda").predict(cell, None)["reserved"] is None


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("method", "within"), [("lora", 0.02), ("full", 0.1)])
def test_two_shallow_models_tell_what_a_deep_one_reserves(monkeypatch, method, within):
    """Nearly: blocks of a deep model lie otherwise, and large ones leave large holes."""
    cell = composed("model=smollm2_135m", f"method={method}", "train.batch_size=8", "train.max_length=512")
    shallow = Predictor(None, "bf16", "cuda").predict(cell, None)["reserved"]
    monkeypatch.setattr(empty_weights, "alike", lambda *_: False)
    deep = Predictor(None, "bf16", "cuda").predict(cell, None)["reserved"]
    assert shallow == pytest.approx(deep, rel=within)


@pytest.mark.long
def test_experts_are_loaded_before_they_are_packed():
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 128, "moe_intermediate_size": 32, "num_experts": 8, "vocab_size": 512}
    cell = composed("model=tiny", "model.path=moe", "model.dtype=bfloat16", "method=qlora", "train.max_length=32")
    found = Predictor(None, "bf16", "cuda").predict(cell, {"model_type": "qwen3_moe", "head_dim": 16} | sizes, 2**30)
    experts = 3 * 8 * 3 * 32 * 64
    assert found["phases"]["load"] == found["resident"]["weights"] + experts * 3 // 2, "16 bits instead of 4"
    budget = found["phases"]["load"] + BESIDE - 1
    plan = planner.Plan([point := planner.Planned("qlora", cell, found)], budget, {}, "cuda")
    assert plan.shortage(point).phase == "load"


@pytest.mark.parametrize(
    ("needed", "reserved", "counted"),
    [
        (8.5, 12, "live tensors and holes between them"),
        (6.5, 12, "live tensors and holes between them"),
        (6, None, "live tensors"),
    ],
)
def test_what_the_allocator_can_not_do_without_must_fit(needed, reserved, counted):
    """What it would reserve with more memory is given back."""
    cell, gib = tiny("method=lora"), 2**30
    figures = {"peak": {"weights": 6 * gib}, "needed": needed * gib, "reserved": reserved and reserved * gib}
    plan = planner.Plan([point := planner.Planned("lora", cell, figures)], 9 * gib, {}, "cuda")
    assert plan.fits(point) is (needed < 8)
    assert f"of {counted} and 1.00 GiB of overhead" in planner.refusal(plan, point)
