"""Plain LoRA by one operation, held against peft's layers: losses, gradients, files, merges, and what stays peft's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import peft
import pytest
import torch
from chains import KINDS, TARGETS, Chain
from job_helpers import composed, run_tiny
from omegaconf import OmegaConf
from torch import Tensor, nn

from harness.config import CONF
from harness.job.predict.prediction import Predictor
from harness.job.training import fused_lora

pytestmark = pytest.mark.filterwarnings("ignore")  # peft warns of much that is meant


def chain(kind: str, dtype: torch.dtype = torch.float32, **keywords) -> peft.PeftModel:
    """A chain with adapters away from where they start, scaled by 2.5, and in fp32 whatever the dtype of the chain."""
    torch.manual_seed(0)
    net = Chain(kind, packed_bias=False)
    if kind != "nf4":
        net.to(dtype)
    config = peft.LoraConfig(r=4, lora_alpha=10, target_modules=TARGETS, **keywords)
    net = peft.get_peft_model(net, config)
    for name, p in net.named_parameters():
        if "lora_" in name:
            p.data += 0.1 * torch.randn_like(p)
    return net


def fused(net: nn.Module) -> nn.Module:
    net = copy.deepcopy(net)
    assert fused_lora.enable(net) == "on"
    return net


def passed(net: nn.Module, context: Callable[[], AbstractContextManager] = nullcontext) -> dict[str, Tensor]:
    """The output of `net`, and the gradients of its input and of all that is trained."""
    torch.manual_seed(3)
    x = torch.randn(2, 5, 32, requires_grad=True)
    net.train()
    with context():
        out = net(x)
    (out.float() * torch.randn(out.shape)).sum().backward()
    return {"out": out.detach(), "x": x.grad} | {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


def autocast() -> AbstractContextManager:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_peft_in_fp32(kind):
    net = chain(kind)
    theirs, ours = passed(net), passed(fused(net))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_in_bf16_they_are_as_near_to_the_exact_ones_as_those_of_peft(kind, dtype):
    net = chain(kind, dtype)
    exact = passed(copy.deepcopy(net).float() if kind != "nf4" else copy.deepcopy(net))
    theirs, ours = passed(copy.deepcopy(net), autocast), passed(fused(net), autocast)
    assert {name: value.dtype for name, value in ours.items()} == {name: v.dtype for name, v in theirs.items()}
    for name, value in exact.items():
        off = [float((each[name].float() - value).norm() / value.norm()) for each in (ours, theirs)]
        assert off[0] < 1.3 * off[1] + 1e-3, name


@pytest.mark.parametrize("kind", KINDS)
def test_files_and_merges_are_those_of_peft(tmp_path, kind):
    net = chain(kind)
    ours = fused(net)
    ours.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(
        Chain(kind, packed_bias=False) if kind == "nf4" else chain(kind).unload(), tmp_path
    )
    theirs, read = peft.get_peft_model_state_dict(net), peft.get_peft_model_state_dict(again)
    assert read.keys() == theirs.keys()
    assert all(torch.equal(read[name], value) for name, value in theirs.items())
    if kind != "nf4":
        x = torch.randn(3, 32)
        before = net(x)
        assert torch.allclose(ours.merge_and_unload()(x), before, atol=1e-5)


def test_what_is_more_than_one_product_is_left_to_peft(monkeypatch):
    called: list[int] = []
    apply = fused_lora._Summed.apply
    monkeypatch.setattr(fused_lora._Summed, "apply", lambda *given: (called.append(1), apply(*given))[1])
    net, x = fused(chain("bias")), torch.randn(2, 3, 32)
    net(x)
    assert len(called) == 4
    called.clear()
    with torch.no_grad():
        net(x)
    with net.disable_adapter():
        net(x)
    net.add_adapter("second", net.active_peft_config)
    net.base_model.set_adapter(["default", "second"])
    net(x)
    net.base_model.set_adapter("default")
    net.merge_adapter()
    net(x)
    assert not called


@pytest.mark.parametrize(
    ("keywords", "state"),
    [
        ({"lora_dropout": 0.1}, "off: dropout comes before the products"),
        ({"use_dora": True}, "off: no linear layer has plain LoRA"),
    ],
)
def test_other_than_plain_lora_stays_as_it_is(keywords, state):
    net = chain("linear", **keywords)
    kinds = [type(module) for module in net.modules()]
    assert fused_lora.enable(net) == state
    assert [type(module) for module in net.modules()] == kinds


def test_no_tensor_as_large_as_the_output_is_saved():
    def saved(net: nn.Module) -> list[tuple[int, ...]]:
        shapes: list[tuple[int, ...]] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (shapes.append(tuple(t.shape)), t)[1], lambda t: t):
            net.get_base_model().outer(torch.randn(2, 7, 64).requires_grad_())
        return shapes

    net = fused(chain("linear"))
    assert (2, 7, 32) not in saved(net)
    assert (14, 32) not in saved(net)
    assert (2, 7, 64) in saved(net), "the input, for the gradient of A"
    for name, p in net.named_parameters():
        p.requires_grad_("lora_B" in name)  # as LoRA-FA trains
    assert (2, 7, 64) not in saved(net)


# In a cell


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [
        "method=lora",
        "method=qlora train.gradient_checkpointing=true",
        pytest.param("method=pissa train.precision=bf16", marks=pytest.mark.long),
    ],
)
def test_a_cell_learns_as_without_it_and_records_it(tmp_path, own_precision, settings):
    asked = (*settings.split(), "eval.tasks=[]", "lr=0.01")
    on, off = (run_tiny(tmp_path / s, *asked, f"speedups={s}") for s in ("auto", "off"))
    assert (on.status, off.status) == ("ok", "ok"), (on.failure, off.failure)
    assert on.environment["speedups"][fused_lora.NAME] == "on"
    assert off.environment["speedups"][fused_lora.NAME] == "off: asked for"
    assert [p.loss for p in on.train.loss] == pytest.approx([p.loss for p in off.train.loss], rel=1e-3)


# In a plan


@pytest.mark.long
@pytest.mark.parametrize("method", ["lora", pytest.param("qlora", marks=pytest.mark.long)])
def test_the_plan_for_a_gpu_takes_no_more_memory(monkeypatch, method):
    shape = ("rank=16", "train.batch_size=4", "train.max_length=2048", "train.packing=true")
    cell = composed("model=qwen3_1_7b", f"method={method}", "train.gradient_checkpointing=false", *shape)
    architecture = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "qwen3_1_7b.yaml").architecture)

    def planned() -> int:
        return sum(Predictor(None, auto="bf16", kernels="cuda").predict(cell, architecture)["peak"].values())

    ours = planned()
    monkeypatch.setattr(fused_lora, "enable", lambda net, **keywords: "off")
    assert ours <= planned()  # the weights of adapters in bf16, which autocast keeps, take what is saved elsewhere


def test_a_compiled_layer_is_one_graph():
    net, x = fused(chain("bias")), torch.randn(2, 3, 32)
    layer = net.get_base_model().inner
    theirs = chain("bias").get_base_model().inner
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(x), theirs(x))
