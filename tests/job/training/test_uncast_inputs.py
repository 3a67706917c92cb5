"""Adapters read their inputs uncast under autocast: loss and gradients are the same to the bit, for each method."""

from __future__ import annotations

import copy
import functools
from types import SimpleNamespace

import peft
import pytest
import torch
from accelerate.utils import set_seed
from job_helpers import composed, encoded, run_tiny, tiny
from omegaconf import OmegaConf
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from smaller import SMALLER, need_extra
from torch import Tensor, nn

from harness.config import CONF
from harness.job.data import batching, sources
from harness.job.models import adapting, loading
from harness.job.predict.prediction import Predictor
from harness.job.training import attention, fused_dora, fused_lora, layer_kernels, loop, uncast_inputs

pytestmark = [pytest.mark.filterwarnings("ignore")]  # peft warns of much that is meant
CPU = torch.device("cpu")
FILES = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
ADAPTERS = [
    method for method in FILES if tiny(f"method={method}", *SMALLER.get(method, [])).settings.method.adapt is not None
]
CORE = {"dora", "dora_fast", "lora", "qlora", "vera"}
# Methods that cast nothing, or whose casts change results: there the input is multiplied and added to in fp32.
NOT_PRODUCTS = {"road"}


@functools.cache
def place(dtype: str) -> SimpleNamespace:
    cell = tiny("method=base", f"model.dtype={dtype}")
    tokenizer = loading.tokenizer(cell.settings.model)
    texts = encoded(tokenizer, sources.splits(cell.settings.data, None)["train"], 128)
    return SimpleNamespace(base=loading.load(cell, CPU), texts=texts)


def net_of(method: str, dtype: str, *overrides: str) -> nn.Module:
    """The tiny model by `method`, all that it trains moved away from where it starts."""
    need_extra(method)
    cell = tiny(f"method={method}", f"model.dtype={dtype}", *SMALLER.get(method, []), *overrides)
    set_seed(0)
    quantised = "quantization_config" in cell.settings.method.load
    base = loading.load(cell, CPU) if quantised else copy.deepcopy(place(dtype).base)
    padded, texts = batching.Layout(flat=False, pad=0), place(dtype).texts
    net = adapting.adapt(base, cell, lambda size: (padded.batch(texts[i : i + size]) for i in range(0, 8, size)))
    torch.manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.add_(0.02 * torch.randn_like(p))
    return net


def step(net: nn.Module) -> dict[str, Tensor]:
    """The loss of a batch under autocast in training mode, and the gradients."""
    layout = batching.Layout(flat=attention.unsuited(net) is None, pad=0)
    if layout.flat:
        attention.enable(net)
    torch.manual_seed(2)
    net.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loop.summed_loss(net, layout.batch(place("bfloat16").texts[:3]))
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def peft_casts(monkeypatch) -> list[tuple[torch.dtype, torch.dtype]]:
    """A list that fills with the casts of peft's layers."""
    plain, casts = BaseTunerLayer._cast_input_dtype, []

    def noted(self, x, dtype):
        if x is not None and x.dtype is not dtype:
            casts.append((x.dtype, dtype))
        return plain(self, x, dtype)

    monkeypatch.setattr(BaseTunerLayer, "_cast_input_dtype", noted)
    return casts


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "method", [method if method in CORE else pytest.param(method, marks=pytest.mark.long) for method in ADAPTERS]
)
def test_loss_and_gradients_are_the_same_to_the_bit(monkeypatch, method, dtype):
    casts = peft_casts(monkeypatch)
    before = step(net_of(method, dtype))
    needless = bool(casts) and method not in NOT_PRODUCTS
    casts.clear()
    net = net_of(method, dtype)
    state = uncast_inputs.enable(net)
    after = step(net)
    assert after.keys() == before.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    if needless:
        assert state == "on"
    if state == "on":
        assert not casts


@pytest.mark.parametrize("method", sorted(NOT_PRODUCTS))
def test_a_cast_that_changes_results_stays(monkeypatch, method):
    casts = peft_casts(monkeypatch)
    net = net_of(method, "bfloat16")
    assert not uncast_inputs.concerns(net)
    assert uncast_inputs.enable(net) == "off: no adapter casts its input without need"
    before = step(net)
    assert casts
    monkeypatch.setattr(BaseTunerLayer, "_cast_input_dtype", lambda self, x, dtype: x)
    after = step(net_of(method, "bfloat16"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_variant_that_nobody_looked_into_keeps_its_casts(monkeypatch):
    casts = peft_casts(monkeypatch)
    net = net_of("lora", "bfloat16", "+method.adapt.init_lora_weights=mica")
    assert not uncast_inputs.concerns(net)
    assert uncast_inputs.enable(net) == "off: no adapter casts its input without need"
    step(net)
    assert casts


def test_before_dropout_casts_stay():
    net = net_of("lora", "bfloat16", "train.adapter_dropout=0.1")
    assert uncast_inputs.enable(net) == "off: dropout comes before the products"


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_outside_of_autocast_inputs_are_cast(monkeypatch, method):
    net, batch = net_of(method, "bfloat16"), batching.Layout(flat=False, pad=0).batch(place("bfloat16").texts[:2])
    with torch.no_grad():
        before = loop.answer_logits(net, batch)
        uncast_inputs.enable(net)
        assert torch.equal(loop.answer_logits(net, batch), before)


def test_norms_of_dora_are_computed_in_the_dtype_of_the_adapter(monkeypatch):
    """It takes it from its input. Only the products get the input as it is."""
    seen, forward = [], DoraLinearLayer.forward

    def noted(self, x, *, lora_A, **keywords):
        hook = lora_A.register_forward_hook(lambda _, inputs, __: seen.append((x.dtype, inputs[0].dtype)))
        try:
            return forward(self, x, lora_A=lora_A, **keywords)
        finally:
            hook.remove()

    monkeypatch.setattr(DoraLinearLayer, "forward", noted)
    net = net_of("dora", "bfloat16")
    uncast_inputs.enable(net)
    step(net)
    assert set(seen) == {(torch.float32, torch.float32), (torch.float32, torch.bfloat16)}  # of a unit matrix; of x


# In a cell


def test_a_cell_records_it(tmp_path, own_precision):
    asked = ("method=lora", "model.dtype=bfloat16", "train.precision=bf16", "eval.tasks=[]")
    on, off = (run_tiny(tmp_path / s, *asked, f"speedups={s}") for s in ("auto", "off"))
    assert (on.status, off.status) == ("ok", "ok")
    assert on.environment["speedups"][uncast_inputs.NAME] == "on"
    assert off.environment["speedups"][uncast_inputs.NAME] == "off: asked for"
    # What else differs, such as padding, is beyond bits.
    assert [p.loss for p in on.train.loss] == pytest.approx([p.loss for p in off.train.loss], rel=1e-3)


@pytest.mark.parametrize("settings", ["method=full train.precision=bf16", "method=lora train.precision=fp32"])
def test_a_cell_that_casts_nothing_records_nothing(tmp_path, own_precision, settings):
    record = run_tiny(tmp_path, *settings.split(), "model.dtype=bfloat16", "eval.tasks=[]")
    assert record.status == "ok", record.failure
    assert uncast_inputs.NAME not in record.environment["speedups"]


# In a plan, in GiB: by peft's layers, and without their casts


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "method", "cast", "uncast"),
    [
        ("llama_3_1_8b", "lora", 71.44, 62.75),
        pytest.param("qwen3_1_7b", "lora", 29.27, 25.46, marks=pytest.mark.long),
        pytest.param("qwen3_1_7b", "dora", 47.04, 43.42, marks=pytest.mark.long),
        # CUDA's layer over 4 bits does not cast under autocast.
        pytest.param("qwen3_1_7b", "qlora", 23.51, 23.51, marks=pytest.mark.long),
    ],
)
def test_the_plan_for_a_gpu_counts_no_copies_of_inputs(monkeypatch, model, method, cast, uncast):
    shape = ("rank=16", "train.batch_size=4", "train.max_length=2048", "train.packing=true")
    cell = composed(f"model={model}", f"method={method}", "train.gradient_checkpointing=false", *shape)
    architecture = OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{model}.yaml").architecture)

    def planned() -> float:
        peak = Predictor(None, auto="bf16", kernels="cuda").predict(cell, architecture)["peak"]
        return sum(peak.values()) / 2**30

    for fused in (fused_lora, fused_dora):
        monkeypatch.setattr(fused, "enable", lambda net, **keywords: "off")
    monkeypatch.setattr(layer_kernels, "attach", lambda net: "off")
    assert planned() == pytest.approx(uncast, abs=0.006)
    monkeypatch.setattr(uncast_inputs, "enable", lambda net: "off")
    assert planned() == pytest.approx(cast, abs=0.006)


def test_every_kind_of_adapter_in_the_table_is_tested_here():
    configs = {str(kind.value): f"peft.{config.__name__}" for kind, config in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    named = {OmegaConf.select(OmegaConf.load(CONF / "method" / f"{method}.yaml"), "adapt._target_") for method in FILES}
    assert {configs[kind.value] for kind in uncast_inputs.BY_PRODUCTS} <= named
