"""DoRA by one operation, held against peft's layers: losses, gradients, norms, files, merges, and what stays peft's."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from chains import KINDS, TARGETS, Chain
from job_helpers import composed, run_tiny
from omegaconf import OmegaConf
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from harness.config import CONF
from harness.job.methods.dora import FastDoraConfig
from harness.job.predict.prediction import Predictor
from harness.job.training import fused_dora, fused_lora

pytestmark = pytest.mark.filterwarnings("ignore")  # peft warns of much that is meant


def chain(
    kind: str = "bias", dtype: torch.dtype = torch.float32, make: type[peft.LoraConfig] = peft.LoraConfig, **keywords
) -> peft.PeftModel:
    """A chain by DoRA, adapters and magnitudes away from where they start, scaled by 2.5."""
    torch.manual_seed(0)
    net = Chain(kind)
    if kind != "nf4":
        net.to(dtype)
    net = peft.get_peft_model(net, make(r=4, lora_alpha=10, use_dora=True, target_modules=TARGETS, **keywords))
    for name, p in net.named_parameters():
        if "lora_" in name:
            p.data += 0.3 * p.detach().abs().mean() + 0.1 * torch.randn_like(p)
    return net


def fused(net: nn.Module) -> nn.Module:
    net = copy.deepcopy(net)
    assert fused_dora.enable(net) == "on"
    return net


def passed(net: nn.Module, bf16: bool = False) -> dict[str, Tensor]:
    """The output of `net`, and the gradients of its input and of all that is trained."""
    torch.manual_seed(3)
    x = torch.randn(8, 8, 32, requires_grad=True)
    net.train()
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = net(x)
    (out.float() * torch.randn(out.shape)).sum().backward()
    return {"out": out.detach(), "x": x.grad} | {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [peft.LoraConfig, FastDoraConfig])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_peft_in_fp32(kind, make):
    assert_close(passed(fused(chain(kind, make=make))), passed(chain(kind)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_in_bf16_they_are_as_near_to_the_exact_ones_as_those_of_peft(kind, dtype):
    net = chain(kind, dtype)
    exact = passed(copy.deepcopy(net).float() if kind != "nf4" else copy.deepcopy(net))
    theirs, ours = passed(copy.deepcopy(net), bf16=True), passed(fused(net), bf16=True)
    assert {name: value.dtype for name, value in ours.items()} == {name: v.dtype for name, v in theirs.items()}
    for name, value in exact.items():
        off = [float((each[name].float() - value).norm() / value.norm()) for each in (ours, theirs)]
        assert off[0] < 1.3 * off[1] + 1e-3, name


def test_layers_of_other_ranks_and_scales_have_their_own():
    patterns = {"rank_pattern": {"middle": 8}, "alpha_pattern": {"outer": 3}}
    assert_close(passed(fused(chain("linear", **patterns))), passed(chain("linear", **patterns)))


@pytest.mark.parametrize("factor", [1e-3, 1.0, 30.0])
def test_norms_are_those_of_the_sum(factor):
    net = fused(chain("linear"))
    layer = net.get_base_model().middle
    layer.lora_B["default"].weight.data *= factor
    layer.lora_magnitude_vector["default"].weight.data.fill_(1)
    ((a, b, inverse),) = fused_dora._prepare({layer: "default"}, lambda: None)
    expected = torch.linalg.vector_norm(layer.get_base_layer().weight.double() + 2.5 * b.double() @ a.double(), dim=1)
    torch.testing.assert_close(1 / inverse.double(), expected, rtol=1e-5, atol=0)


def test_norms_follow_the_adapter_and_the_weights():
    net = chain("linear")
    ours = fused(net)
    for each in (net, ours):
        optimizer = torch.optim.SGD([p for p in each.parameters() if p.requires_grad], lr=1e-3)
        for _ in range(3):
            passed(each)
            optimizer.step()
        with torch.no_grad():
            each.get_base_model().inner.get_base_layer().weight.mul_(2)
    assert_close(passed(ours), passed(net))


def test_a_magnitude_of_zero_has_a_gradient():
    net = chain("linear")
    net.get_base_model().inner.lora_magnitude_vector["default"].weight.data[:3] = 0
    ours = passed(fused(net))
    assert_close(ours, passed(net))
    assert (ours["base_model.model.inner.lora_magnitude_vector.default.weight"][:3] != 0).all()


@pytest.mark.parametrize("trained", ["lora_A", "lora_B", "lora_magnitude_vector"])
def test_what_is_frozen_has_no_gradient(trained):
    net = chain("linear")
    for name, p in net.named_parameters():
        p.requires_grad_(trained in name)
    assert_close(passed(fused(net)), passed(net))


@pytest.mark.parametrize("kind", KINDS)
def test_files_and_merges_are_those_of_peft(tmp_path, kind):
    net = chain(kind)
    ours = fused(net)
    theirs, saved = (peft.get_peft_model_state_dict(each) for each in (net, ours))
    assert saved.keys() == theirs.keys()
    assert all(torch.equal(saved[name], value) for name, value in theirs.items())
    passed(ours)
    if kind != "nf4":  # where merging rounds
        x = torch.randn(3, 32)
        assert torch.allclose(ours.merge_and_unload()(x), net(x), rtol=1e-4, atol=1e-4)


def test_what_is_more_than_one_adapter_that_trains_is_left_to_peft(monkeypatch):
    called: list[int] = []
    forward = DoraLinearLayer.forward
    monkeypatch.setattr(DoraLinearLayer, "forward", lambda *of, **more: (called.append(1), forward(*of, **more))[1])
    net, x = fused(chain()), torch.randn(2, 3, 32)
    net(x)
    assert not called
    with torch.no_grad():
        net(x)
    assert len(called) == 4
    net.add_adapter("second", net.active_peft_config)
    net.base_model.set_adapter(["default", "second"])
    net(x)
    assert len(called) == 12


@pytest.mark.parametrize(
    ("keywords", "given", "state"),
    [
        ({"lora_dropout": 0.1}, {}, "off: dropout comes before the products"),
        ({}, {"sharded": True}, "off: the weights are sharded"),
        ({}, {"compiled": True}, "off: train.compile fuses these itself"),
    ],
)
def test_where_it_is_off_layers_are_pefts(keywords, given, state):
    net = chain("linear", **keywords)
    assert fused_dora.concerns(net)
    assert not fused_lora.concerns(net)
    assert fused_dora.enable(net, **given) == state
    assert not any("Fused" in type(module).__name__ for module in net.modules() if isinstance(module, LoraLayer))


def test_plain_lora_has_no_norms():
    net = peft.get_peft_model(Chain("linear"), peft.LoraConfig(target_modules=TARGETS))
    assert not fused_dora.concerns(net)
    assert fused_dora.enable(net) == "off: no linear layer has DoRA"


# In a cell and in a plan


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [
        "method=dora",
        "method=qdora train.gradient_checkpointing=true",
        pytest.param("method=dora_fast train.precision=bf16", marks=pytest.mark.long),
        pytest.param("method=dora train.precision=bf16 train.grad_accum=2", marks=pytest.mark.long),
    ],
)
def test_a_cell_learns_as_without_it_and_records_it(tmp_path, own_precision, settings):
    asked = (*settings.split(), "eval.tasks=[]", "lr=0.01")
    on, off = (run_tiny(tmp_path / s, *asked, f"speedups={s}") for s in ("auto", "off"))
    assert (on.status, off.status) == ("ok", "ok"), (on.failure, off.failure)
    assert on.environment["speedups"][fused_dora.NAME] == "on"
    assert off.environment["speedups"][fused_dora.NAME] == "off: asked for"
    assert [p.loss for p in on.train.loss] == pytest.approx([p.loss for p in off.train.loss], rel=1e-3)


@pytest.mark.long
def test_the_plan_for_a_gpu_takes_less_memory(monkeypatch):
    shape = ("rank=16", "train.batch_size=4", "train.max_length=2048", "train.packing=true")
    cell = composed("model=qwen3_1_7b", "method=dora", "train.gradient_checkpointing=false", *shape)
    architecture = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "qwen3_1_7b.yaml").architecture)

    def planned() -> int:
        return sum(Predictor(None, auto="bf16", kernels="cuda").predict(cell, architecture)["peak"].values())

    ours = planned()
    monkeypatch.setattr(fused_dora, "enable", lambda net, **keywords: "off")
    assert ours < 0.9 * planned()
