"""Adapters' weights that are cast once for a pass: what later passes, steps and recomputation make of them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import peft
import pytest
import torch
from chains import TARGETS, Chain
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from harness.job.training import activation_offload, adapter_operands, fused_dora, fused_lora

pytestmark = pytest.mark.filterwarnings("ignore")  # peft warns of much that is meant
ENABLE = {"lora": fused_lora.enable, "dora": fused_dora.enable}
METHODS = tuple(ENABLE)
RATE = 1e-3


class Recomputed(Chain):
    """A chain that recomputes its forward pass in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


def pair(method: str, make: Callable[[str], nn.Module] = Chain) -> tuple[nn.Module, nn.Module]:
    """A net of bf16 with fp32 adapters, by peft and fused."""
    torch.manual_seed(0)
    dora = method == "dora"
    config = peft.LoraConfig(r=4, lora_alpha=10, use_dora=dora, target_modules=TARGETS)
    net = peft.get_peft_model(make("linear").bfloat16(), config)
    for name, p in net.named_parameters():
        if "lora_" in name:
            p.data += 0.1 * p.detach().abs().mean() + 0.05 * torch.randn_like(p)
    ours = copy.deepcopy(net)
    assert ENABLE[method](ours) == "on"
    return net, ours


def loss(net: nn.Module, seed: int) -> Tensor:
    x = torch.randn(6, 5, 32, generator=torch.Generator().manual_seed(seed)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        return net.train()(x).float().square().sum()


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def assert_near(ours: nn.Module, theirs: nn.Module) -> None:
    mine, expected = gradients(ours), gradients(theirs)
    assert mine.keys() == expected.keys()
    for name, value in expected.items():
        assert mine[name].dtype is value.dtype is torch.float32
        assert (mine[name] - value).norm() < 0.03 * value.norm(), name  # both round to bf16


class Names(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func._schema.name.partition("::")[2])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", METHODS)
def test_weights_and_gradients_are_cast_once_for_all_layers(method):
    _, ours = pair(method)
    with Names() as forward:
        total = loss(ours, 1)
    with Names() as backward:
        total.backward()
    for names in (forward.seen, backward.seen):
        assert names.count("_foreach_copy_") == 1
    assert backward.seen.count("_to_copy") <= 1  # of the loss


@pytest.mark.parametrize("method", METHODS)
def test_gradients_accumulate_over_passes(method):
    theirs, ours = pair(method)
    for net in (theirs, ours):
        for seed in range(3):
            loss(net, seed).backward()
    assert_near(ours, theirs)


@pytest.mark.parametrize("method", METHODS)
def test_two_passes_before_their_backward_passes(method):
    theirs, ours = pair(method)
    for net in (theirs, ours):
        first, second = loss(net, 1), loss(net, 2)
        with torch.no_grad():
            loss(net, 3)
        first.backward()
        second.backward()
    assert_near(ours, theirs)


@pytest.mark.parametrize("method", METHODS)
def test_a_pass_has_what_the_last_step_has_left(method):
    theirs, ours = pair(method)
    before = float(loss(ours, 1).detach())
    for net in (theirs, ours):
        for seed in range(3):
            net.zero_grad()
            loss(net, seed).backward()
            for p in net.parameters():
                if p.grad is not None:
                    p.data.sub_(p.grad, alpha=RATE)  # which leaves no trace in the version of p
        net.zero_grad()
        loss(net, 1).backward()
    assert_near(ours, theirs)
    assert float(loss(ours, 1).detach()) == pytest.approx(float(loss(theirs, 1).detach()), rel=0.01)
    assert float(loss(ours, 1).detach()) < 0.9 * before


@pytest.mark.parametrize("method", METHODS)
def test_a_recomputed_pass_gives_the_same_gradients(method):
    nets = [pair(method, make)[1] for make in (Chain, Recomputed)]
    for net in nets:
        for seed in (1, 2):
            loss(net, seed).backward()
    plain, recomputed = map(gradients, nets)
    assert all(torch.equal(recomputed[name], value) for name, value in plain.items())


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_is_called_by_itself_casts_its_own(method):
    theirs, ours = pair(method)
    loss(ours, 1).backward()
    ours.zero_grad()
    for net in (theirs, ours):
        with torch.autocast("cpu", torch.bfloat16):
            net.get_base_model().inner(torch.ones(3, 32).bfloat16()).float().sum().backward()
    assert_near(ours, theirs)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_kept_after_the_backward_pass(method):
    _, ours = pair(method)
    total = loss(ours, 1)
    assert len(list(adapter_operands.prepared(ours))) == 3 * (2 if method == "lora" else 3)
    total.backward()
    assert not list(adapter_operands.prepared(ours))


def test_what_is_cast_is_not_offloaded():
    _, ours = pair("lora")
    moved: list[tuple[int, ...]] = []
    pack = activation_offload._ForwardPass.pack

    def noted(self, tensor: Tensor):
        packed = pack(self, tensor)
        if isinstance(packed, activation_offload._Saved):
            moved.append(tuple(tensor.shape))
        return packed

    activation_offload.enable(ours, least=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activation_offload._ForwardPass, "pack", noted)
        loss(ours, 1).backward()
    assert (6, 5, 32) in moved
    assert not {(4, 32), (4, 64), (64, 4), (32, 4)} & set(moved)
