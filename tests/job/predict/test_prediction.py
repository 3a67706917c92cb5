"""Predictions: against what a run measures, against themselves at full depth, and the command that shows them."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shlex
import signal
import time
from pathlib import Path

import pytest
import torch
from job_helpers import composed, run_here, tiny
from omegaconf import OmegaConf
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from harness import units
from harness.config import CONF
from harness.errors import UserError
from harness.job.data import batching
from harness.job.models import checks, empty_weights, loading
from harness.job.predict import pool, prediction, shapes, workers
from harness.job.predict.cuda_kernels import CudaKernels
from harness.protocol import CardRates, PlanCells, PlannedCell
from harness.record import (
    Calibration,
    Cell,
    Kinds,
    Parameters,
    Probe,
    Record,
    Source,
    TimedKernel,
    Tokens,
    Train,
    read_study,
    write,
)
from harness.settings import REFERRING, Settings, TrainSettings
from harness.sweep import plan_view
from harness.sweep import planner as planning
from harness.sweep.estimates import rates, times
from harness.sweep.estimates.card import Card
from harness.units import count, parse_size

METHODS = ["base", "base_nf4", "dora", "dora_fast", "full", "galore", "galore_rsvd", "lora", "qdora", "qlora"]
# One each of what else there is: hooks of a step, a part frozen, two optimizers, tokens, tensors that are no buffers
OTHERS = ["adalora", "lorafa", "muon", "prompt_tuning", "fourierft"]
SIXTEEN = ("model.dtype=bfloat16", "train.batch_size=1", "train.grad_accum=2")
PACKED = ("train.packing=true", "train.max_length=256")
BUDGET = 2**40
UNTIMED = times.Times(Path("nowhere"), {}, "cuda")


def predicted(
    cell: Cell,
    architecture: dict | None = None,
    budget: int | None = None,
    auto: str = "fp32",
    kernels: str = "cpu",
) -> dict:
    return prediction.Predictor(None, auto, kernels).predict(cell, architecture, budget)


RUNS = [
    *((method, ("train.batch_size=2",)) for method in METHODS),
    ("lora", ("train.batch_size=3", "train.grad_accum=2")),
    ("qlora", ("train.batch_size=2", "train.gradient_checkpointing=true")),
    ("lora", ("train.batch_size=2", *PACKED, "speedups=auto")),
    ("prompt_tuning", ("train.batch_size=2", "train.max_steps=60")),
    ("lora_8bit", ("train.batch_size=2",)),
    ("galore_layer", ("train.batch_size=2", "train.max_grad_norm=null")),
    ("adamw_8bit", ("train.batch_size=2",)),
    ("full", SIXTEEN),
]
LONG_RUNS = [
    *((method, ("train.batch_size=3", "train.grad_accum=2")) for method in METHODS if method != "lora"),
    ("lora", ("train.batch_size=2", "train.gradient_checkpointing=true")),
    ("lora", ("train.batch_size=2", *PACKED, "speedups=off")),
    *((method, ("train.batch_size=2", "train.max_steps=60")) for method in OTHERS if method != "prompt_tuning"),
    ("base_int8", ("train.batch_size=2",)),
    ("adamw_layer", ("train.batch_size=2", "train.max_grad_norm=null")),
    *((method, ("train.batch_size=2",)) for method in ("adafactor", "galore_8bit")),
    ("lora", ("train.batch_size=2", "method.adamw=8bit")),
    *((method, SIXTEEN) for method in ("full_kahan", "galore_bf16")),
    ("galore_8bit_layer", ("model.dtype=bfloat16", "train.batch_size=2", "train.max_grad_norm=null")),
]


@pytest.mark.parametrize(
    ("method", "shape"), [*RUNS, *(pytest.param(*run, marks=pytest.mark.long) for run in LONG_RUNS)]
)
def test_a_prediction_is_what_a_run_measures(tmp_path, method, shape):
    cell = tiny(f"method={method}", "rank=4", "eval.tasks=[]", "infer.repeats=0", *shape)
    measured, found = run_here(tmp_path, cell), predicted(cell)
    assert measured.status == "ok", measured.failure
    assert Kinds(**found["peak"]) == measured.probe.peak
    resident = dataclasses.replace(measured.probe.resident, activations=0)  # but for the batch
    assert Kinds(**found["resident"] | {"activations": 0}) == resident
    assert (found["total"], found["trainable"]) == (measured.parameters.total, measured.parameters.trainable)
    if measured.train:
        assert found["shape"]["raw"] == measured.train.tokens.raw
        assert found["shape"]["padded"] == measured.train.tokens.padded
        per_token = measured.probe.flops_per_token + measured.probe.recomputed_flops_per_token
        assert found["flops"] == pytest.approx(per_token * measured.train.tokens.padded)


@pytest.mark.long
@pytest.mark.slow
def test_beside_an_accelerator_processes_are_begun_anew_and_see_no_gpu(monkeypatch):
    asked = PlanCells([PlannedCell(tiny("method=lora"))], None, BUDGET, 0, 1.0, "cpu")
    _, forked = pool.answer(asked)
    begun = []
    context, submit = pool.get_context, pool.ProcessPoolExecutor.submit

    def submitted(*arguments):
        begun.append(os.environ["CUDA_VISIBLE_DEVICES"])
        return submit(*arguments)

    monkeypatch.setattr(pool, "get_context", lambda how: begun.append(how) or context(how))
    monkeypatch.setattr(pool.ProcessPoolExecutor, "submit", submitted)
    monkeypatch.setattr(workers.device, "here", lambda: prediction.CPU)
    monkeypatch.setattr(pool.torch.accelerator, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    _, anew = pool.answer(asked)
    assert begun == ["spawn", "", "1"]  # the process, which imports libraries, and then predicts
    assert anew == forked
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize("gpu", ["T4", "A100"])
def test_a_budget_near_the_memory_of_the_gpu_here_is_its_own(monkeypatch, gpu):
    formats = {"T4": torch.float32, "A100": torch.bfloat16}
    monkeypatch.setattr(workers.device, "compute_dtype", lambda precision: formats[gpu])
    memory = {"T4": 15_642_329_088, "A100": 42_314_694_656}[gpu]

    def in_bf16(budget: int | None, kernels: str = "cuda", memory: int | None = memory) -> bool:
        request = PlanCells([], None, budget, 0, 1.0, kernels)
        return workers._in_bf16(request, kernels, workers._is_here(request, kernels, memory))

    own = gpu == "A100"
    assert [in_bf16(budget) for budget in (None, 10 * 2**30, 16 * 2**30)] == [own, own, own]
    assert in_bf16(80 * 2**30)  # of another GPU
    assert in_bf16(16 * 2**30, memory=None)  # on a machine without one
    assert in_bf16(None, "cpu", None) == own


def test_what_the_gpu_here_lacks_is_said_by_a_plan(monkeypatch):
    cells = [tiny("method=lora", f"model.dtype={dtype}", "train.precision=fp32") for dtype in ("float32", "bfloat16")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75"])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    lacking = workers._lacking([PlannedCell(cell) for cell in cells])
    assert lacking.keys() == {1}
    assert (
        "model.dtype=bfloat16 requires a GPU of compute capability 8.0 or more, got Tesla T4"
        in lacking[1]["impossible"]
    )


@pytest.mark.parametrize("method", ["shira", "frod"])
def test_what_looks_at_values_is_not_predicted_but_may_be_run(method):
    cell = tiny(f"method={method}")
    with pytest.raises(empty_weights.NeedsValues):
        predicted(cell)
    (found,) = workers._predict(prediction.Predictor(None, "fp32"), [PlannedCell(cell)], BUDGET)
    assert found["unknown"].startswith(f"method={method} depends on values")
    point = planning.Planned(cell.name, cell, found)
    made = planning.Plan([point], 1, {}, "cpu")
    assert made.fits(point)
    assert plan_view.lines(made, UNTIMED) == [f"Not predicted: {cell.name}: {found['unknown']}"]


def test_layers_that_a_method_names_are_there():
    for layers, adapted in ((1, 1), (2, 2), (0, 2)):  # of one layer there is no second to adapt; 0 are all
        cell = tiny("method=adaption_prompt", f"method.knobs.layers={layers}")
        assert predicted(cell)["trainable"] == adapted * (100 * 64 + 1)
    with pytest.raises(UserError, match=r"method=adaption_prompt can't be applied to .*'3'"):
        checks.check(tiny("method=adaption_prompt", "method.knobs.layers=3"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["base", "full", "qdora", "galore"])
def test_two_shallow_models_tell_of_a_deep_one(monkeypatch, method):
    cell = composed("model=smollm2_135m", f"method={method}", "train.precision=fp32")
    _extrapolates(monkeypatch, cell, loading.config_of(cell.settings.model).to_dict() | {"num_hidden_layers": 8})


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_first_layer_that_computes_less_than_the_others_is_no_measure(monkeypatch, method):
    """Its MLP reads the frozen embedding, beside an attention that alone is adapted."""
    where = "method.adapt.target_modules=[q_proj,v_proj]"
    cell = composed("model=smollm2_135m", f"method={method}", where, "train.precision=fp32")
    sizes = {"hidden_size": 256, "intermediate_size": 4096, "num_attention_heads": 4, "vocab_size": 512}
    _extrapolates(monkeypatch, cell, {"model_type": "phi", "num_hidden_layers": 8, **sizes})


QV = "method.adapt.target_modules=[q_proj,v_proj]"


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [
        ("method=lora", "+method.adapt.layers_to_transform=[0,3,6]", QV),
        ("method=lora", "+method.adapt.rank_pattern={layers.5.self_attn.q_proj:64}"),
        ("method=adaption_prompt", "train.gradient_checkpointing=true"),
    ],
    ids=["layers", "ranks", "uppermost"],
)
def test_layers_that_a_method_treats_unlike_are_all_built(monkeypatch, settings):
    cell = composed("model=smollm2_135m", "train.precision=fp32", *settings)
    _extrapolates(monkeypatch, cell, loading.config_of(cell.settings.model).to_dict() | {"num_hidden_layers": 8})


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ({"adapt": {"target_modules": ["w1", "fc2", "q_proj"], "layers_to_transform": None}}, False),
        ({"name": "adamw_8bit", "optim": {"optimizer": {"_target_": "bitsandbytes.optim.AdamW8bit"}}}, False),
        ({"adapt": {"target_modules": r".*[.](3|5)[.].*q_proj"}}, True),
        ({"adapt": {"exclude_modules": ["layers.0.mlp.up_proj"]}}, True),
        ({"adapt": {"alpha_pattern": {"layers.20.q_proj": 8}}}, True),
    ],
)
def test_a_method_may_name_layers(method, names):
    assert prediction._names_layers(method) == names


def _extrapolates(monkeypatch, cell, architecture):
    shape, layout = shapes.Shape([[(64, 30), (50, 20)]], 1, 114, 114, True), batching.Layout(flat=True)
    shallow = prediction.Predictor(None, "fp32")._line(cell, shape, 1, layout, architecture)
    monkeypatch.setattr(empty_weights, "alike", lambda *asked: False)  # then all layers are built
    deep = prediction.Predictor(None, "fp32")._line(cell, shape, 1, layout, architecture)
    assert deep.others.pop("flops_per_token") == pytest.approx(shallow.others.pop("flops_per_token"))
    assert (shallow.peak, shallow.others) == (deep.peak, deep.others)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_layers_meet_the_kernels_of_cuda(reentrant):
    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            names.append(operation.name())
            return operation(*args, **kwargs or {})

    names: list[str] = []
    with FakeTensorMode(), CudaKernels(autocast=False), Operations():
        query = torch.empty(1, 4, 8, 16, dtype=torch.bfloat16, requires_grad=True)
        key = torch.empty(1, 2, 8, 16, dtype=torch.bfloat16)  # of fewer heads: a CPU's kernel would refuse it

        def layer(x: torch.Tensor) -> torch.Tensor:
            return functional.dropout(functional.scaled_dot_product_attention(x, key, key, is_causal=True), 0.1)

        out = checkpoint(layer, query, use_reentrant=reentrant, preserve_rng_state=False)
        names.clear()
        out.sum().backward()
    assert "aten::_scaled_dot_product_flash_attention" in names
    assert "aten::native_dropout" in names
    assert query.grad.shape == query.shape


def test_layers_that_differ_are_all_built():
    def config(**dimensions):
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
        return loading.AutoConfig.for_model(**sizes, vocab_size=64, num_hidden_layers=4, **dimensions)

    assert empty_weights.alike(config(model_type="llama"))
    assert not empty_weights.alike(config(model_type="gemma3_text", head_dim=8, sliding_window_pattern=2))
    experts = {"num_experts": 2, "moe_intermediate_size": 8, "mlp_only_layers": [1]}
    assert not empty_weights.alike(config(model_type="qwen3_moe", **experts))


@pytest.mark.long
def test_the_largest_batch_fits_and_one_more_does_not():
    at = {size: sum(predicted(tiny("method=lora", f"train.batch_size={size}"))["peak"].values()) for size in (1, 4)}
    # The tiny model's batches differ in length; one shape is taken for both ends of the line.
    assert at[1] < at[4]
    cell = tiny("method=lora", "train.batch_size=1", "train.max_steps=1")
    planner = prediction.Predictor(None, "fp32")
    layout = planner._layout(cell, None)
    shape = planner._shape(cell, layout, 1)
    budget = 3 * sum(planner.predict(cell, None)["peak"].values())
    most = planner.predict(cell, None, budget)["largest_batch"]

    def peak(sequences: int) -> float:
        return sum(planner._line(cell, shape, sequences, layout, None).peak.values())  # probed, not on a line

    assert most > 1
    assert peak(most) <= budget < peak(most + 1)
    assert planner.predict(cell, None, 1000)["largest_batch"] is None


@pytest.mark.long
@pytest.mark.parametrize("packing", ["false", "true"])
def test_the_largest_batch_is_counted_as_the_setting_is(packing):
    cell = tiny("method=lora", "train.batch_size=3", f"train.packing={packing}", "train.max_length=256")
    found = predicted(cell)
    assert (found["shape"]["sequences"] > 3) == (packing == "true")
    assert predicted(cell, budget=sum(found["peak"].values()) + 1)["largest_batch"] == 3


def test_points_that_take_the_same_are_worked_out_once(monkeypatch):
    probed = []
    probe = prediction.Predictor._probe
    monkeypatch.setattr(prediction.Predictor, "_probe", lambda *a: (probed.append(a[1].name), probe(*a))[1])
    planner = prediction.Predictor(None, "fp32")
    cells = [tiny("method=lora", f"lr={lr}", f"alpha={alpha}") for lr in (1e-4, 1e-3) for alpha in (4, 8)]
    found = [planner.predict(cell, None, BUDGET) for cell in cells]
    assert found[0] == found[1] == found[2] == found[3]
    assert len(set(probed)) == 1


def test_a_hub_model_needs_its_dimensions_alone():
    # Of the hub: neither weights nor tokenizer nor even a config is here, so memory is that of full sequences.
    architecture = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "llama_3_1_8b.yaml").architecture)
    cell = composed("model=llama_3_1_8b", "method=full", "train.batch_size=1", "train.max_length=64")
    found = predicted(cell, architecture, auto="bf16")
    weights = 8_030_261_248
    assert found["total"] == found["trainable"] == weights
    assert found["precision"] == "bf16"
    assert found["resident"]["weights"] == pytest.approx(2 * weights, rel=1e-6)
    assert found["resident"]["optimizer"] == pytest.approx(3 * 4 * weights, rel=1e-6)  # masters and two moments, fp32
    assert found["shape"] | {"raw": 0, "padded": 0} == {
        "sequences": 1,
        "tokens": 64,
        "steps": 200,
        "raw": 0,
        "padded": 0,
        "real": False,
        "lengths": "characters",
    }


def test_the_steps_of_passes_are_known_where_the_data_is(tmp_path):
    assert (
        predicted(tiny("method=lora", "train.max_steps=null", "train.epochs=1.5"))["shape"]["steps"] == 48
    )  # of 64 items, 2 a step
    assumed = shapes.assumed_shape(TrainSettings(max_length=64, batch_size=2, epochs=1.5), 2, marked=False)
    assert (assumed.steps, assumed.raw) == (None, 128)
    write(known("lora", 50.0, {"device": {"type": "cuda", "name": "A"}}), tmp_path / "s" / "one.json")
    speed, planned = times.Times(tmp_path, {"device": {"type": "cuda", "name": "A"}}, "cuda"), point("lora")
    assert speed.seconds(planned) == 1000 / 50
    planned.prediction["shape"]["steps"] = None
    assert times.Times(tmp_path, {}, "cuda", throughput=100.0).seconds(planned) is None


@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
def test_the_work_of_products_is_their_flops(method):
    published = CardRates(bf16=None, fp32=1e9, bandwidth=math.inf)
    for shape in (("train.batch_size=2",), ("train.batch_size=1", "train.gradient_checkpointing=true")):
        cell = tiny(f"method={method}", "train.max_steps=3", *shape)
        found = prediction.Predictor(None, "fp32", rates=published).predict(cell, None)
        work = found["work"]
        assert work["products"] + 2 * work["attention"] == pytest.approx(found["flops"] / 1e9)
        assert work["moved"] == 0


def test_gradients_are_clipped_all_at_once_as_on_a_device(monkeypatch):
    norm, gradients = torch._foreach_norm, []
    monkeypatch.setattr(torch, "_foreach_norm", lambda group, *rest: gradients.append(len(group)) or norm(group, *rest))
    prediction.Predictor(None, "fp32").predict(tiny("method=full", "train.max_steps=3"), None)
    assert min(gradients) >= 12, "those of a layer, or more"


@pytest.mark.long
def test_operations_that_the_host_begins_are_of_a_micro_batch():
    published = CardRates(bf16=None, fp32=math.inf, bandwidth=math.inf)

    def work(*settings):
        cell = tiny("method=lora", "train.max_steps=3", *settings)
        return prediction.Predictor(None, "fp32", rates=published).predict(cell, None)["work"]

    once, twice = work("train.batch_size=2"), work("train.batch_size=1", "train.grad_accum=2")
    four = work("train.batch_size=1", "train.grad_accum=4")
    assert once["launches"] > 3 * 100  # that many kernels has a step of two layers
    assert 1.5 * once["launches"] < twice["launches"] < 2.5 * once["launches"]
    assert four["launches"] == pytest.approx(2 * twice["launches"], rel=0.05)
    assert work("train.compile=true")["launches"] < 0.7 * work()["launches"]
    assert prediction.Predictor(None, "fp32").predict(tiny("method=lora"), None)["work"] is None


def test_a_calibration_gives_the_time_of_kernels():
    kernels = [TimedKernel("mm", "f", 10**9, 1, 1.0), TimedKernel("add", "f", 0, 10**9, 1e-9)]
    timed = Calibration(["cpu", "x", 1], "now", "2", 0.0, False, kernels)
    found = prediction.Predictor(None, "fp32", calibration=timed).predict(tiny("train.max_steps=3"), None)
    assert found["work"] is None
    assert found["calibrated_seconds"] == pytest.approx(found["flops"] / 1e9, rel=1e-6)
    assert prediction.Predictor(None, "fp32").predict(tiny(), None)["calibrated_seconds"] is None


@pytest.mark.parametrize("settings", [("method=galore",), ("method=galore_layer", "train.max_grad_norm=null")])
def test_a_calibration_gives_the_time_of_decompositions(settings):
    """Each of tiny's two layers has two matrices of 64 × 64, two of 64 × 32 and three of 64 × 128."""
    product = TimedKernel("mm", "f", 10**9, 1, 1.0)
    numbers = {(64, 32): 2, (64, 64): 2, (128, 64): 3}
    svds = [
        TimedKernel("_linalg_svd", "f", 6 * m * n * n + 20 * n**3, 4 * (2 * m * n + n + n * n), 1e-3 * m + n)
        for m, n in numbers
    ]
    all_of_them = 2 * sum((1e-3 * m + n) * number for (m, n), number in numbers.items())
    cell = tiny(*settings, "rank=4", "train.max_steps=3", "train.batch_size=2")
    for kernels, seconds in (([product, *svds], all_of_them), ([product], None)):
        timed = Calibration(["cpu", "x", 1], "now", "2", 0.0, False, kernels)
        found = prediction.Predictor(None, "fp32", calibration=timed).predict(cell, None)
        assert found["decomposition_seconds"] == (None if seconds is None else pytest.approx(seconds))
    timed = Calibration(["cpu", "x", 1], "now", "2", 0.0, False, [product])
    lora = prediction.Predictor(None, "fp32", calibration=timed).predict(tiny("method=lora"), None)
    assert lora["decomposition_seconds"] == 0


def test_a_model_that_would_not_be_quantised_is_refused():
    """Falcon's layers are of a class of its own, which transformers leaves as they are."""
    sizes = {"model_type": "falcon", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    falcon = sizes | {"vocab_size": 512}
    with pytest.raises(UserError, match=r"method=qlora can't be applied to .*: no layer of it would be quantised"):
        predicted(composed("model=smollm2_135m", "method=qlora", "rank=4"), falcon)
    assert predicted(composed("model=smollm2_135m", "method=lora", "rank=4"), falcon)["trainable"] > 0


def test_a_rank_above_a_matrix_is_refused():
    with pytest.raises(UserError, match=r"rank must be at most .*, got rank=65"):
        predicted(tiny("method=lora", "rank=65"))
    with pytest.raises(UserError, match=r"rank must be at most .*, got rank=65"):
        predicted(tiny("method=qlora", "rank=65"))


def test_a_plan_says_what_it_leaves_out():
    prediction, said = predicted(tiny("method=lora")), {}
    for settings in ("method=lora", "method=lora train.compile=true", "method=qlora_paged"):
        plan = planning.Plan([planning.Planned("it", tiny(*settings.split()), prediction)], BUDGET, {}, "cuda")
        words = " ".join(plan_view.lines(plan, UNTIMED))
        said[settings] = ["counted as uncompiled" in words, "paged memory are left out" in words]
    assert list(said.values()) == [[False, False], [True, False], [False, True]]


@pytest.mark.long
def test_a_plan_says_that_it_counts_the_pass_of_the_base():
    """By every objective of the plan that has a reference model."""
    cell, named = tiny("method=lora"), set()
    for objective, flops in {None: 0.0, "simpo": 0.0, "dpo": 5e9, "ipo": 5e9, "kto": 5e9}.items():
        train = dataclasses.replace(cell.settings.train, objective=objective)
        paired = dataclasses.replace(cell, settings=dataclasses.replace(cell.settings, train=train))
        prediction = predicted(cell) | {"reference_flops": flops}
        points = [planning.Planned("it", paired, prediction), planning.Planned("other", cell, predicted(cell))]
        words = " ".join(plan_view.lines(planning.Plan(points, BUDGET, {}, "cuda"), UNTIMED))
        if "forward pass of the base" in words:
            named |= {objective} if f"train.objective={objective}" in words else set()
        assert units.count(prediction["flops"] + flops) in words
    assert named == set(REFERRING)


# Times


def known(
    method: str,
    steady: float,
    device: dict,
    flops: float | None = None,
    source: Source | None = None,
    total: int = 1000,
    minute: int = 0,
) -> Record:
    settings = Settings(train=TrainSettings(max_steps=10))
    cell = Cell(method, method, method, "tiny", "wordmath", None, None, None, 0, {}, settings)
    found = Record(cell, "s", "ok", f"2026-01-01T00:{minute:02}:00+00:00", 30.0, device, source=source)
    found.parameters = Parameters(total, 1)
    found.train = Train(1, Tokens(100, 200, 50), [1.0], 0, steady, steady, [], "b")
    if flops is not None:
        nothing = Kinds(0, 0, 0, 0, 0)
        found.probe = Probe(nothing, nothing, 0, flops)
    return found


def test_time_is_by_records_of_the_same_device(tmp_path):
    here = {"device": {"type": "cuda", "name": "A"}, "cpu": {"name": "x"}}
    there = {"device": {"type": "cuda", "name": "B"}, "cpu": {"name": "x"}}
    for name, record in {
        "one": known("lora", 50.0, here, flops=10.0),
        "two": known("lora", 150.0, here),
        "three": known("lora", 1e9, there, flops=1e9),
        "imported": known("lora", 1e9, here, source=Source("peft", "lora.json", "0" * 64, [])),
    }.items():
        write(record, tmp_path / "s" / f"{name}.json")
    speed = times.Times(tmp_path, here, "cuda")
    assert speed.seconds(point("lora")) == 1000 / 100  # the median of its method's rates
    assert len(speed.used) == 2
    assert speed.seconds(point("dora")) == 5000 / (10.0 * 50.0 * 200 / 100)  # by FLOP/s, padding included
    assert times.Times(tmp_path, here, "cuda", throughput=500.0).seconds(point("lora")) == 2.0
    other = there | {"device": {"type": "cuda", "name": "C"}}
    assert times.Times(tmp_path, other, "cuda").seconds(point("lora")) is None


def point(method: str, raw: int = 1000, total: int = 1000) -> planning.Planned:
    prediction = {"trainable": 1, "total": total, "shape": {"raw": raw, "steps": 10}, "flops": 5000.0}
    prediction |= {"reference_flops": 0.0, "work": None, "calibrated_seconds": None, "decomposition_seconds": None}
    return planning.Planned(method, known(method, 1.0, {}).cell, prediction)


def test_a_gpus_time_is_not_by_records_of_the_cpu(tmp_path):
    here = {"device": {"type": "cpu"}, "cpu": {"name": "x"}}
    write(known("lora", 50.0, here, flops=10.0), tmp_path / "s" / "one.json")
    found = [times.Times(tmp_path, here, kernels).seconds(point("lora")) for kernels in ("cpu", "cuda")]
    assert found == [20.0, None]


def work_of(seconds: float) -> dict[str, float]:
    """Work that takes so many seconds on a card whose products reach what most reach."""
    return {"products": seconds * rates.PRODUCTS, "attention": 0.0, "moved": 0.0, "launches": 0.0}


def test_a_cards_time_is_by_its_records_else_by_its_rates(tmp_path):
    card = Card("a", ["A"], 24.0, 100.0, 50.0, 1000.0, price=3.6)
    there, here = {"device": {"type": "cuda", "name": "A"}}, {"device": {"type": "cpu"}, "cpu": {"name": "x"}}
    of = times.Times(tmp_path, here, "cuda", card)
    by_rates = point("lora")
    assert of.seconds(by_rates) is None
    assert of.range(by_rates) is None
    by_rates.prediction["work"] = work_of(2000.0)
    assert of.seconds(by_rates) == pytest.approx(2000.0)
    assert of.range(by_rates) == pytest.approx(tuple(2000 * end for end in rates.SPREAD))
    assert (of.by_rates, of.used) == (True, set())
    assert of.dollars(by_rates) == pytest.approx(2.0)
    faster = times.Times(tmp_path, here, "cuda", dataclasses.replace(card, reached=1.0))
    assert faster.seconds(by_rates) == pytest.approx(2000 * rates.PRODUCTS)
    write(known("lora", 50.0, there), tmp_path / "s" / "one.json")
    of = times.Times(tmp_path, here, "cuda", card, price=7.2)
    assert of.seconds(by_rates) == 1000 / 50
    assert of.range(by_rates) is None
    assert (of.by_rates, len(of.used)) == (False, 1)
    assert of.dollars(by_rates) == pytest.approx(7.2 * 20 / 3600)
    by_rates.cell.settings = dataclasses.replace(by_rates.cell.settings, train=TrainSettings(devices=4))
    by_rates.prediction["work"] = work_of(1000.0)  # of each of them
    assert of.seconds(by_rates) == pytest.approx(1000.0)
    assert of.dollars(by_rates) == pytest.approx(4 * 7.2 * 1000 / 3600)


def test_timed_kernels_come_before_records_of_other_methods_and_before_rates(tmp_path):
    card = Card("a", ["A"], 24.0, 100.0, 50.0, 1000.0)
    there = {"device": {"type": "cuda", "name": "A"}}
    write(known("lora", 50.0, there, flops=10.0), tmp_path / "s" / "one.json")
    of, dora, lora = times.Times(tmp_path, there, "cuda", card), point("dora"), point("lora")
    for planned in (dora, lora):
        planned.prediction |= {"work": work_of(2000.0), "calibrated_seconds": 300.0}
    assert (of.seconds(dora), of.range(dora), of.calibrated) == (300.0, None, True)
    assert of.seconds(lora) == 1000 / 50


def decomposing(every: int, **matrices: str) -> planning.Planned:
    """A point of ten steps whose optimizer decomposes its gradients, but for random projections."""
    planned = point("galore")
    optim = {"matrices": {"update_proj_gap": every, **matrices}}
    settings = planned.cell.settings
    planned.cell.settings = dataclasses.replace(settings, method=dataclasses.replace(settings.method, optim=optim))
    return planned


def test_the_time_has_decompositions_where_they_were_timed(tmp_path):
    here = {"device": {"type": "cuda", "name": "A"}}
    card = Card("a", ["A"], 24.0, 100.0, 50.0, 1000.0)
    of = times.Times(tmp_path, here, "cuda", card)
    for planned, number in ((decomposing(4), 3), (decomposing(200), 1), (decomposing(4, proj="random"), 0)):
        planned.prediction |= {"calibrated_seconds": 300.0, "decomposition_seconds": 20.0}
        assert of.seconds(planned) == 300 + 20 * number
    assert not of.undecomposed
    planned.prediction |= {"decomposition_seconds": None}
    assert (of.seconds(planned), of.undecomposed) == (300, set())  # it has none
    planned = decomposing(4)
    planned.prediction |= {"calibrated_seconds": 300.0}
    assert (of.seconds(planned), of.undecomposed) == (300, {"galore"})


def test_the_time_by_records_has_what_a_first_step_took_longer_for_each_decomposition(tmp_path):
    here = {"device": {"type": "cuda", "name": "A"}}
    slow = known("galore", 50.0, here, flops=10.0)
    slow.train = dataclasses.replace(slow.train, steps=2, step_seconds=[31.0, 1.0])  # a step of 50 tokens takes 1 s
    write(slow, tmp_path / "s" / "one.json")
    of = times.Times(tmp_path, here, "cuda")
    assert of.seconds(decomposing(4)) == 1000 / 50 + 3 * 30
    assert of.seconds(decomposing(4, proj="random")) == 1000 / 50
    lora = point("lora")
    assert of.seconds(lora) is not None
    assert not of.undecomposed
    other = decomposing(4)
    other.cell.method = "galore_rsvd"
    assert of.seconds(other) is not None  # by the FLOPs of other methods
    assert of.undecomposed == {"galore_rsvd"}


def test_the_time_has_the_pass_of_the_base_that_an_objective_refers_to(tmp_path):
    here = {"device": {"type": "cuda", "name": "A"}}
    card, referring = Card("a", ["A"], 24.0, 100.0, 50.0, 1000.0), point("lora")
    referring.prediction |= {"reference_flops": 2000.0, "work": work_of(100.0)}
    assert times.Times(tmp_path, here, "cuda", card).seconds(referring) == pytest.approx(1.4 * 100)
    assert times.Times(tmp_path, here, "cuda", throughput=500.0).seconds(referring) == pytest.approx(1.4 * 2)
    write(known("lora", 50.0, here), tmp_path / "s" / "one.json")
    assert times.Times(tmp_path, here, "cuda").seconds(referring) == pytest.approx(1.4 * 1000 / 50)


def test_time_is_by_models_and_steps_of_a_like_size(tmp_path):
    here = {"device": {"type": "cuda", "name": "A"}}
    write(known("lora", 50.0, here, flops=10.0), tmp_path / "s" / "one.json")
    speed = times.Times(tmp_path, here, "cuda")
    asked = [point("lora"), point("lora", raw=10_000), point("dora"), point("dora", total=10_000)]
    assert [speed.seconds(one) is not None for one in asked] == [True, False, True, False]


@pytest.mark.parametrize(
    ("part", "change", "by_flops"),
    [
        ("model", {"dtype": "float32"}, False),
        ("train", {"precision": "fp32"}, False),
        ("train", {"compile": True}, False),
        (None, {"speedups": "off"}, False),
        ("train", {"gradient_checkpointing": True}, True),
        ("train", {"packing": True}, True),
    ],
)
def test_time_is_by_records_of_the_same_arithmetic_and_work(tmp_path, part, change, by_flops):
    """By FLOP/s at most, where the same arithmetic does more work or less."""
    here = {"device": {"type": "cuda", "name": "A"}}
    write(known("lora", 50.0, here, flops=10.0), tmp_path / "s" / "one.json")
    planned = point("lora")
    settings = planned.cell.settings
    if part is not None:
        change = {part: dataclasses.replace(getattr(settings, part), **change)}
    planned.cell.settings = dataclasses.replace(settings, **change)
    seconds = times.Times(tmp_path, here, "cuda").seconds(planned)
    assert seconds == (5000 / (10.0 * 50.0 * 200 / 100) if by_flops else None)


def test_time_is_by_records_that_ran_alone(tmp_path):
    here = {"device": {"type": "cuda", "name": "A", "id": "0"}, "boot": "b"}
    beside = here | {"device": here["device"] | {"id": "1"}}
    for name, record in {
        "one": known("lora", 1.0, here),
        "same-time": known("dora", 1.0, here),
        "other-gpu": known("lora", 100.0, beside),
        "later": known("dora", 100.0, here, minute=5),
    }.items():
        write(record, tmp_path / "s" / f"{name}.json")
    speed = times.Times(tmp_path, here, "cuda")
    assert [speed.seconds(point(method)) for method in ("lora", "dora")] == [10.0, 10.0]


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * 10**9), ("24GiB", 24 * 2**30), ("1.5 tb", 1.5e12), ("512mib", 2**29), ("7B", 7)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["24", "GB", "-3GB", "1.2.3GB", "24 gigabytes", "0GB", ""])
def test_no_sizes(text):
    with pytest.raises(UserError):
        parse_size(text)


# The commands

TINY = (
    "model=tiny",
    "rank=4",
    "train.max_steps=2",
    "train.batch_size=2",
    "train.validation_items=4",
    "infer.repeats=0",
)


@pytest.mark.long
def test_plan_tells_and_launches_nothing(inside, tmp_path):
    done = inside("plan", "method=base,full,lora,galore", "rank=4,500", *TINY[:1], *TINY[2:], "--budget", "2GB")
    assert done.returncode == 1, done.stderr  # some can't run
    rows = {line.split()[0].split("-")[0]: line for line in done.stdout.splitlines() if re.search("yes|no|tight", line)}
    assert {"base", "full", "lora", "galore"} <= rows.keys()
    assert "yes" in rows["full"]
    assert "with CUDA's kernels" in " ".join(done.stdout.split())  # a budget is that of a GPU
    assert done.stdout.count("Impossible: ") == 2  # lora and galore at rank 500
    assert re.search("rank must be at most .*, got rank=500", done.stdout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_plan_for_a_card_tells_what_it_costs(inside, tmp_path):
    """At a price that makes an hour a million dollars: the tiny model trains for milliseconds."""
    done = inside("plan", "method=lora,full", *TINY, "--device", "t4", "--price", "1e6", "model.dtype=float32")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^(?:lora|full)-.* \$\d", done.stdout, re.MULTILINE)) == 2
    said = " ".join(done.stdout.split())
    assert "Memory: live tensors, in fp32 with CUDA's kernels" in said  # it has no bf16
    assert "within 14.50 GiB" in said
    assert "estimated from the rates of t4 (8.1 TFLOP/s in fp32, 320 GB/s)" in said
    assert said.count("cells fit") == 1
    assert re.search(r"They train \S+(?: to \S+)? s in all, \$[\d,.]+\.", said)
    assert "Cost: the estimate within that range, at $1,000,000.00 an hour and device." in said
    refused = inside("plan", "method=lora", *TINY, "--device", "t4", "train.precision=bf16").stdout
    assert re.search(r"train\.precision=bf16 .* got t4", refused)


@pytest.mark.long
def test_advice_fits_keeps_the_step_and_can_be_typed(inside, tmp_path):
    """Into a card with room for less than the whole step at once."""
    settings = (*TINY[:3], "train.batch_size=4", "train.grad_accum=8", "train.max_length=256", *TINY[4:])
    settings = (*settings, "++method.adapt.target_modules=[q_proj]")
    at_once = composed("method=lora", "train.batch_size=32", *settings[:3], *settings[5:-1])
    whole = sum(predicted(at_once)["peak"].values())
    (tmp_path / "conf" / "device").mkdir(parents=True)
    card = {"memory_gib": (planning.BESIDE + whole / 2) / 2**30, "bf16_tflops": None, "fp32_tflops": 10.0}
    card |= {"bandwidth_gb": 500.0, "source": "a test"}
    OmegaConf.save(card, tmp_path / "conf" / "device" / "small.yaml")
    done = inside("plan", "method=lora,base", *settings, "--device", "small", "--advise")
    assert done.returncode == 0, done.stderr
    (typed,) = re.findall(r"^ *\S.* run (method=lora .*)$", done.stdout, re.MULTILINE)
    cell = composed(*(word for word in shlex.split(typed) if not word.startswith("++")))
    train = cell.settings.train
    assert train.batch_size * train.grad_accum == 32
    assert 1 <= train.batch_size < 32
    assert sum(predicted(cell)["peak"].values()) + planning.BESIDE <= card["memory_gib"] * 2**30
    assert "++method.adapt.target_modules=[q_proj]" in shlex.split(typed)
    card["memory_gib"] = 1.001
    OmegaConf.save(card, tmp_path / "conf" / "device" / "small.yaml")
    nothing = inside("plan", "method=lora", *settings, "--device", "small", "--advise")
    assert nothing.returncode == 2
    assert "Nothing fits small (1.00 GiB): with one sequence at a time, lora takes least, " in nothing.stderr
    assert len(nothing.stderr.strip().splitlines()) == 1


@pytest.mark.long
def test_plan_names_what_can_not_be_combined_and_goes_on(inside):
    done = inside("plan", "method=lora", "lr=1e-4,-1", *TINY)
    assert done.returncode == 1, done.stderr
    assert "lr=-1" in done.stdout
    assert "lora-r4-a8-lr1e-4" in done.stdout


@pytest.mark.long
def test_a_setting_of_adapters_holds_for_the_methods_that_have_one(inside):
    done = inside("plan", "method=full,lora", *TINY, "++method.adapt.target_modules=[q_proj]", "--budget", "2GB")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("method.adapt.target_modules=[q_proj] does not apply to method=full.") == 1
    assert "Impossible" not in done.stdout
    trainable = {line.partition("-")[0]: line.split()[1] for line in done.stdout.splitlines() if "-lr" in line}
    only = composed("method=lora", *TINY, "method.adapt.target_modules=[q_proj]")
    assert trainable.keys() == {"full", "lora"}
    assert trainable["lora"] == count(predicted(only)["trainable"])


def test_plan_of_nothing_that_can_be(inside):
    done = inside("plan", "method=lora", "lr=-1", *TINY)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("Impossible: ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("plan", "method=lora", "--budget", "24"), "'24' is no size in bytes"),
        (("plan", "method=lora", "--throughput", "0"), "must be positive"),
        (("sweep", "method=lora", "--budget", "24GB"), "requires `plan` or `sweep --fit`"),
        (("plan", "quickstrat"), "Did you mean quickstart?"),
        (("plan", "--device", "4090"), "--device=4090 is unknown. Did you mean rtx_4090?"),
        (("plan", "--device", "h100", "--price", "0"), "--price must be positive, got 0."),
        (("plan", "--device", "cuda", "--advise"), "--advise requires --device with a card"),
        (("sweep", "method=lora", "--device", "h100"), "--device requires `plan` or `sweep --fit`"),
    ],
)
def test_bad_options_are_one_sentence(inside, arguments, says):
    done = inside(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.long
def test_where_nothing_fits_the_plan_says_what_would(inside):
    big = ["method=full,lora", *TINY[:3], "train.batch_size=64", "train.max_length=512", "train.precision=fp32"]

    def peak(*settings):  # a budget is that of a GPU
        return sum(predicted(composed(*settings), kernels="cuda")["peak"].values())

    peaks = {method: peak(f"method={method}", *big[1:]) for method in ("full", "lora")}
    budget = planning.BESIDE + min(peaks.values()) // 2
    said = inside("plan", *big, "--budget", f"{budget}B").stdout
    found = re.findall(r"^(\w+)-\S+ fits with (.*)\.$", said, re.MULTILINE)
    assert {method for method, _ in found} == peaks.keys()
    for method, remedy in found:
        smaller = [*big[1:], *remedy.split()]
        assert peak(f"method={method}", *smaller) + planning.BESIDE <= budget
        train = composed(f"method={method}", *smaller).settings.train
        assert train.micro_batch * train.grad_accum == 64


@pytest.mark.long
def test_where_no_batch_fits_the_plan_says_so(inside):
    said = inside("plan", "method=lora", *TINY, "--budget", f"{planning.BESIDE + 1000}B").stdout
    assert re.search(r"fits with no batch size: it takes \S+ \w+ or more\.", said)


@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_leaves_out_what_does_not_fit_and_says_so(inside, tmp_path):
    # The budget lies between the two, beside what tensors don't get.
    grid = ("method=full,lora", *TINY, "eval.tasks=[]", "train.batch_size=1", "train.max_length=1024")
    cells = (composed(f"method={m}", *grid[1:], "data=wordmath") for m in ("full", "lora"))
    # As of a cell whose live tensors fit: by all layers, where two shallow models can't tell.
    full, lora = (predicted(cell, auto="bf16", kernels="cuda", budget=2**40)["reserved"] for cell in cells)
    assert lora < full
    budget = planning.BESIDE + (full + lora) // 2
    done = inside("sweep", *grid, "--fit", "--budget", f"{budget}B", "study=fit")
    assert done.returncode == 0, done.stderr
    records, _ = read_study(tmp_path / "results" / "fit")
    assert {r.cell.method: r.status for r in records} == {"full": "unfit", "lora": "ok"}
    (unfit,) = (r for r in records if r.status == "unfit")
    assert unfit.failure.phase == "plan"
    assert "exceeds the budget" in unfit.failure.reason
    assert "is skipped" in done.stderr
    assert "Done: 1 ok, 1 unfit." in done.stderr
    table = inside("table", "--study", "fit")
    assert "unfit" in table.stdout
    again = inside("sweep", *grid, "study=fit")  # without a budget it is asked anew, and runs
    assert again.returncode == 0, again.stderr
    assert {r.status for r in read_study(tmp_path / "results" / "fit")[0]} == {"ok"}


def _stay(*_: object) -> None:
    Path(os.environ["WORKER"]).write_text(str(os.getpid()))
    time.sleep(60)


def test_workers_end_with_a_process_that_is_killed(tmp_path, monkeypatch):
    note = tmp_path / "worker"
    monkeypatch.setenv("WORKER", str(note))
    monkeypatch.setattr(workers, "_predict", _stay)
    job = os.fork()
    if job == 0:
        list(pool.answer(PlanCells([PlannedCell(tiny("method=lora"))], None, BUDGET, 0, 1.0, "cpu")))
        os._exit(0)
    until = time.monotonic() + 30
    while not (note.is_file() and note.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    worker = int(note.read_text())
    os.kill(job, signal.SIGKILL)
    os.waitpid(job, 0)
    try:
        while _runs(worker) and time.monotonic() < until:
            time.sleep(0.05)
        assert not _runs(worker)
    finally:
        if _runs(worker):
            os.kill(worker, signal.SIGKILL)


def _runs(process: int) -> bool:
    """Whether it is there and no zombie."""
    stat = Path(f"/proc/{process}/stat")
    return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
