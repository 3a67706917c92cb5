"""What a slot `optim` can ask for: hooks around a step, several optimizers as one, steps in the backward pass."""

from __future__ import annotations

import math
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from bitsandbytes.optim.optimizer import Optimizer2State
from galore_torch import GaLoreAdamW, GaLoreAdamW8bit
from hydra.utils import instantiate
from job_helpers import prepared, run_tiny, tiny
from torch import nn
from torch.optim import SGD, AdamW
from transformers.optimization import Adafactor

from harness.errors import UserError
from harness.job.methods import adalora, galore, optimizers
from harness.job.models import checks
from harness.job.training import loop
from harness.validate import check


def net() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    made.get_output_embeddings = lambda: None
    return made


def backward(model: nn.Module) -> None:
    model(torch.ones(3, 4)).square().sum().backward()


# Hooks


def test_hooks_are_called_around_each_step_with_gradients():
    seen = []

    def hook(name):
        def called(model, optimizer):
            assert model is made
            assert isinstance(optimizer, SGD)
            assert model[0].bias.grad is not None
            seen.append((name, float(model[0].bias.detach()[0])))

        return called

    made = net()
    optimizer = optimizers.build(made, optimizer=lambda p: SGD(p, lr=1.0), before=hook("before"), after=hook("after"))
    for _ in range(2):
        backward(made)
        optimizer.step()
        optimizer.zero_grad()
    assert [name for name, *_ in seen] == ["before", "after"] * 2
    assert seen[0][1] != seen[1][1] == seen[2][1]


# Several as one


def test_several_optimizers_step_as_one():
    one, other = net(), net()
    made = optimizers.build(
        one, optimizer=lambda p: SGD(p, lr=0.1), matrices={}, rest=lambda p: AdamW(p, lr=0.01, weight_decay=0.0)
    )
    weights, biases = ([getattr(other[i], kind) for i in (0, 2)] for kind in ("weight", "bias"))
    alone = [SGD(weights, lr=0.1), AdamW(biases, lr=0.01, weight_decay=0.0)]
    assert [group["lr"] for group in made.param_groups] == [0.01, 0.1]
    made = Accelerator().prepare(made)  # which loads its state, and so has groups of its own
    schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda i: 0.5**i)
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda i: 0.5**i) for each in alone]
    for _ in range(3):
        for each in (one, other):
            each.zero_grad()
            backward(each)
        made.step()
        for each in alone:
            each.step()
        for each in (schedule, *schedules):
            each.step()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert {id(one[i].bias) for i in (0, 2)} <= {id(p) for p in made.state}


# Weight decay


def decayed(made: nn.Module, decay: float, **more) -> tuple[list[str], list[dict]]:
    """The names of the weights that a step without gradients makes smaller, and the optimizer's groups."""
    made.ia3_l = nn.Parameter(torch.ones(1, 8))
    optimizer = optimizers.build(made, optimizer=lambda p: AdamW(p, lr=0.1, weight_decay=decay), **more)
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    for p in made.parameters():
        p.grad = torch.zeros_like(p, dtype=p.grad_dtype)
    optimizer.step()
    return [name for name, p in made.named_parameters() if not torch.equal(p, before[name])], optimizer.param_groups


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "more", [{}, {"matrices": {}}, {"matrices": {}, "rest": lambda p: AdamW(p, lr=0.1, weight_decay=0.5)}]
)
def test_biases_and_scales_are_not_decayed(dtype, more):
    names, _ = decayed(net().to(dtype), 0.5, **more)
    assert names == ["0.weight", "2.weight"]


def test_biases_and_scales_alone_are_not_decayed_either():
    made = net()
    for layer in (made[0], made[2]):
        layer.weight.requires_grad_(False)
    names, groups = decayed(made, 0.5)
    assert names == []
    assert [group["weight_decay"] for group in groups] == [0.0]


@pytest.mark.parametrize(
    ("method", "spared"),
    [
        ("full", {"layernorm", "norm"}),
        ("lora", set()),
        ("dora", {"lora_magnitude_vector"}),
        ("fourierft", set()),
        ("boft", {"boft_s"}),
        ("frod", {"frod_lambda_l"}),
        ("deft", {"deft_R"}),
    ],
)
def test_matrices_of_any_rank_are_decayed_and_norms_and_scales_are_not(method, spared):
    """LoRA's matrices have one row or column at rank 1, as IA3's scales have, and FourierFT's update is a vector."""
    rank = ["rank=1"] if method in ("lora", "dora") else []
    bench = prepared(tiny(f"method={method}", "train.weight_decay=0.1", *rank))
    decays = {id(p): group["weight_decay"] for group in bench.optimizer.param_groups for p in group["params"]}
    trained = {name: decays[id(p)] for name, p in bench.net.named_parameters() if p.requires_grad}
    assert set(trained.values()) <= {0.0, 0.1}
    of_scales = {name for name in trained if any(part in name for part in spared)}
    assert bool(of_scales) == bool(spared)
    assert {name for name, decay in trained.items() if not decay} == of_scales


@pytest.mark.parametrize("method", ["beft", "bitfit", "ia3", "ln_tuning"])
def test_a_decay_that_would_act_on_nothing_is_refused(method):
    with pytest.raises(UserError, match="on which weight decay does not act"):
        tiny(f"method={method}", "train.weight_decay=0.1")
    bench = prepared(tiny(f"method={method}"))
    _, groups = decayed(bench.net, 0.5)
    assert {group["weight_decay"] for group in groups} == {0.0}


def test_groups_without_decay_stay_whole():
    names, groups = decayed(net(), 0.0)
    assert names == []
    assert [len(group["params"]) for group in groups] == [5]


# In the backward pass


@pytest.mark.parametrize("method", ["adamw", "galore"])
def test_steps_in_the_backward_pass_are_the_same_steps(method):
    plain, layer = ("full", "adamw_layer") if method == "adamw" else ("galore", "galore_layer")
    overrides = ("lr=0.003", "train.max_steps=5", "train.max_grad_norm=null")
    knob = ("method.knobs.update_proj_gap=2",) if method == "galore" else ()
    benches = [prepared(tiny(f"method={m}", *overrides, *knob)) for m in (plain, layer)]
    told = []
    for bench in benches:
        steps = [loop.take_step(bench.net, bench.optimizer, m, None, bench.accelerator, str) for m in bench.steps]
        told.append(steps)
    assert [float(loss) for loss, _ in told[0]] == [float(loss) for loss, _ in told[1]]
    assert all(norm > 0 for _, norm in told[0])
    assert all(norm is None for _, norm in told[1]), "no gradient is left to take the norm of"
    for a, b in zip(benches[0].net.parameters(), benches[1].net.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.long
def test_no_two_gradients_are_held_and_the_record_has_no_norm(tmp_path):
    cells = ("eval.tasks=[]", "infer.repeats=0", "train.max_grad_norm=null", "train.max_steps=2")
    whole, layer = (run_tiny(tmp_path, f"method={m}", *cells) for m in ("full", "adamw_layer"))
    assert [r.status for r in (whole, layer)] == ["ok", "ok"]
    assert whole.probe.gradients == 4 * whole.parameters.trainable
    assert layer.probe.gradients == 0
    assert layer.probe.resident == whole.probe.resident
    assert layer.probe.peak.gradients < whole.probe.gradients / 2
    assert [p.loss for p in layer.train.loss] == [p.loss for p in whole.train.loss]
    assert [p.grad_norm for p in layer.train.loss] == [None, None]


def test_an_optimizer_that_is_gone_steps_no_more():
    made = net()
    optimizer = optimizers.build(made, optimizer=lambda p: SGD(p, lr=1.0), per_layer=True)
    gone = weakref.ref(optimizer)
    before = made[0].weight.detach().clone()
    del optimizer
    assert gone() is None, "nothing holds it but who asked for it, so its memory is free at once"
    backward(made)
    assert torch.equal(made[0].weight, before)
    assert made[0].weight.grad is not None


@pytest.mark.parametrize("method", ["adamw_layer", "galore_layer"])
def test_steps_in_the_backward_pass_neither_accumulate_nor_clip(compose, method):
    with pytest.raises(UserError, match=r"train\.max_grad_norm=1\.0: it steps within .* train\.max_grad_norm=null"):
        check(compose(f"method={method}"))
    with pytest.raises(UserError, match=r"can't be combined with train\.grad_accum=2: .*gradients cannot accumulate"):
        check(compose(f"method={method}", "train.max_grad_norm=null", "train.grad_accum=2"))
    check(compose(f"method={method}", "train.max_grad_norm=null"))


# Numbers of others


def stepped(kind, shape: tuple[int, int], size: float, steps: int = 12) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A weight after steps of the optimizer `kind` by gradients of about `size`, later of a fifth; and these."""
    torch.manual_seed(0)
    weight, rows = nn.Parameter(0.02 * torch.randn(shape)), 0.1 + torch.rand(shape[0], 1)
    gradients = [torch.randn(shape) * rows * size * (1 if i < steps / 2 else 0.2) for i in range(steps)]
    optimizer = kind([weight])
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach(), gradients


def made_by(method: str, slot: str = "optimizer", *overrides: str):
    """What a slot of the file of `method` makes of parameters."""
    return instantiate(tiny(f"method={method}", *overrides).settings.method.optim[slot], _convert_="all")


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-5])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_adafactor_takes_the_steps_of_the_paper_at_small_gradients_too(shape, size):
    """Those of transformers' Adafactor, which adds 1e-30 to squares as the paper does."""
    ours, _ = stepped(made_by("adafactor"), shape, size)
    theirs, _ = stepped(lambda p: Adafactor(p, lr=1e-3, scale_parameter=True, relative_step=False), shape, size)
    assert torch.allclose(ours, theirs, atol=1e-8)


def test_adafactor_leaves_rows_without_gradient_alone():
    weight = nn.Parameter(torch.ones(4, 8))
    optimizer = made_by("adafactor")([weight])
    weight.grad = torch.ones(4, 8) * torch.tensor([[1e-4], [0], [1e-4], [0]])
    optimizer.step()
    assert weight.isfinite().all()
    assert torch.equal(weight[1::2], torch.ones(2, 8))


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """`matrix` after five of Muon's Newton-Schulz iterations, in fp32."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm()
    for _ in range(5):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide if wide.shape == matrix.shape else wide.T


@pytest.mark.parametrize("size", [1.0, 1e-5])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_muon_takes_its_steps_at_the_size_of_adamws(shape, size):
    """Nesterov momentum, orthogonalised (in bf16 by torch), at 0.2 of the larger side's root; decay is decoupled."""
    make = made_by("muon", "optimizer", "lr=0.01", "train.weight_decay=0.1")
    ours, gradients = stepped(make, shape, size, 5)
    torch.manual_seed(0)
    start = weight = 0.02 * torch.randn(shape)
    momentum = torch.zeros(shape)
    for gradient in gradients:
        momentum = 0.95 * momentum + gradient
        step = 0.2 * max(shape) ** 0.5 * orthogonal(gradient + 0.95 * momentum)
        weight = weight * (1 - 0.01 * 0.1) - 0.01 * step
    assert float((ours - weight).norm()) < 0.05 * float((weight - start).norm())
    assert float(step.square().mean()) ** 0.5 == pytest.approx(0.2, rel=0.3)


def test_muon_has_the_matrices_of_layers_and_adamw_all_else():
    bench = prepared(tiny("method=muon"))
    inside = {id(p) for group in bench.optimizer.param_groups if "momentum" in group for p in group["params"]}
    names = {name for name, p in bench.net.named_parameters() if id(p) in inside}
    assert names == {name for name, p in bench.net.named_parameters() if name.endswith("proj.weight")}


def test_riemannian_steps_are_adamws_of_preconditioned_gradients():
    bench = prepared(tiny("method=riemannian", "rank=4", "lr=0.01", "train.weight_decay=0.1", "train.max_steps=3"))
    pairs = {name: p for name, p in bench.net.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, p in pairs.items():
            p += 0.1 * torch.randn_like(p) if "lora_B" in name else 0
    ours = {name: nn.Parameter(p.detach().clone()) for name, p in pairs.items()}
    adam = AdamW(ours.values(), lr=0.01, weight_decay=0.1)
    for micro in bench.steps:
        loop.summed_loss(bench.net, micro[0]).backward()
        for name, p in pairs.items():
            other = ours[name.replace("lora_A", "lora_B") if "lora_A" in name else name.replace("lora_B", "lora_A")]
            gram = other.T @ other if "lora_A" in name else other @ other.T
            inverse = torch.linalg.inv(gram.detach() + 0.01 * torch.eye(4))
            ours[name].grad = inverse @ p.grad if "lora_A" in name else p.grad @ inverse
        adam.step()
        bench.optimizer.step()
        bench.optimizer.zero_grad()
    for name, p in pairs.items():
        assert torch.allclose(p, ours[name], atol=1e-4), name


def test_osf_trains_at_right_angles_and_decay_acts_on_three_factors():
    bench = prepared(tiny("method=osf", "lr=0.01", "train.weight_decay=0.1", "train.max_steps=1"))
    layer = next(module for module in bench.net.modules() if "default" in getattr(module, "osf_svd_params", {}))
    factors = layer.osf_svd_params["default"]
    assert not layer.get_delta_weight("default").any()
    weight = layer.get_base_layer().weight
    leading = torch.linalg.svd(weight.detach())[0][:, : min(weight.shape) // 2]
    loop.summed_loss(bench.net, bench.steps[0][0]).backward()
    gradient = factors["U_low"].grad
    assert float((leading.T @ gradient).norm()) < 1e-4 * float(gradient.norm())
    sizes = []
    for _ in range(2):
        sizes.append(float((factors["U_low"] * factors["S_low"] @ factors["V_low"]).norm()))
        for p in bench.net.parameters():
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        bench.optimizer.step()
    assert sizes[1] / sizes[0] == pytest.approx((1 - 0.01 * 0.1) ** 3, rel=1e-5)


def apollo(weight: torch.Tensor, gradients: list[torch.Tensor], seed: int, rank: int, scale: float) -> torch.Tensor:
    """The weight (m, n) after steps of APOLLO's algorithm 1 at a rate of 0.01; of rank 1 that of APOLLO-Mini."""
    small, limit, first, second = min(weight.shape), math.inf, 0.0, 0.0
    of = (rank, small) if weight.shape[0] >= weight.shape[1] else (small, rank)
    projection = torch.randn(of, generator=torch.Generator().manual_seed(seed)) / rank**0.5
    for t, gradient in enumerate(gradients, start=1):
        low = gradient @ projection.T if of[0] == rank else projection.T @ gradient
        first, second = 0.9 * first + 0.1 * low, 0.999 * second + 0.001 * low**2
        scaled = first / (second.sqrt() + 1e-6)
        across = {} if rank == 1 else {"dim": 1 if of[0] == rank else 0, "keepdim": True}
        step = gradient * scaled.norm(**across) / low.norm(**across)
        step = step * min(1.0, 1.01 * limit / float(step.norm()))  # grows by 1% at most
        limit = float(step.norm())
        rate = 0.01 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
        weight = (weight - rate * scale**0.5 * step) * (1 - 0.01 * 0.1)
    return weight


@pytest.mark.parametrize("method", ["apollo", "apollo_mini"])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_apollo_takes_the_steps_of_its_algorithm(method, shape):
    pytest.importorskip("apollo_torch")
    overrides = ("rank=4", "lr=0.01", "train.weight_decay=0.1")
    group = tiny(f"method={method}", *overrides).settings.method.optim["matrices"]
    make = made_by(method, "optimizer", *overrides)
    weight, gradients = stepped(lambda params: make([{"params": params, **group}]), shape, 1.0, 5)
    torch.manual_seed(0)
    start = 0.02 * torch.randn(shape)
    assert torch.allclose(weight, apollo(start, gradients, 1, group["rank"], group["scale"]), atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_random_projections_of_a_package_follow_the_seed(monkeypatch, seed):
    class Projecting(SGD):
        def __init__(self, params, **keywords):
            super().__init__(params, **keywords)
            for number, p in enumerate(params, start=1):
                self.state[p]["seed"] = number

    monkeypatch.setitem(sys.modules, "projecting", SimpleNamespace(Projecting=Projecting))
    params = [*net().parameters()]
    torch.manual_seed(seed)
    made = optimizers.packaged(params, name="projecting.Projecting", extra="apollo", lr=0.1)
    seeds = [state["seed"] for state in made.state.values()]
    assert seeds == ([number + 4 * seed for number in range(1, 5)] if seed < 2 else [1, 2, 3, 4])


def test_apollo_moves_weights_as_far_as_adamw_does():
    """The scale of fine-tuning is the size of a matrix over the rank: 32 at a rank of 1/32."""
    group = tiny("method=apollo", "rank=8").settings.method.optim["matrices"]
    theirs, gradients = stepped(lambda params: AdamW(params, lr=0.01, weight_decay=0.1), (256, 256), 1.0, 1)
    torch.manual_seed(0)
    start = 0.02 * torch.randn(256, 256)
    ours = apollo(start, gradients, 1, group["rank"], group["scale"])
    assert float((ours - start).norm()) == pytest.approx(float((theirs - start).norm()), rel=0.2)


# Packages, devices


def test_an_optimizer_of_an_extra_says_what_to_install():
    with pytest.raises(UserError, match=r"^no_such\.Thing requires the extra `apollo`: pip install -e '\.\[apollo\]'"):
        optimizers.packaged([], name="no_such.Thing", extra="apollo")


def test_an_optimizer_that_can_not_be_made_is_refused_before_anything_runs():
    with pytest.raises(UserError, match=r"^The optimizer of method=full does not work here: .*momentum"):
        checks.check(tiny("method=full", "+method.optim.optimizer.momentum=0.9"))
    with pytest.raises(
        UserError, match=r"^The optimizer of method=muon does not work here: Muon only supports 2D parameters"
    ):
        checks.check(tiny("method=muon", "method.optim.matrices=null"))


def eight_bits(where: str) -> None:
    """On matrices as large as bitsandbytes' blocks: 8-bit GaLore goes where GaLore goes, and keeps a quarter."""
    torch.manual_seed(0)
    target, start = torch.randn(256, 64, device=where), torch.randn(256, 64, device=where)
    ends, kept = [], []
    for kind in (GaLoreAdamW, galore.EightBitGaLoreAdamW):
        weight = nn.Parameter(start.clone())
        group = {"params": [weight], "rank": 32, "update_proj_gap": 10, "scale": 1.0, "proj_type": "std"}
        optimizer = kind([group], lr=0.05, weight_decay=0.0, no_deprecation_warning=True)
        for _ in range(40):
            (weight - target).square().sum().backward()  # beside which eps, which differs, is nothing
            optimizer.step()
            optimizer.zero_grad()
        ends.append(float((weight - target).square().mean()))
        kept.append(sum(moment.nbytes for moment in optimizer.state[weight].values() if torch.is_tensor(moment)))
    begun = float((start - target).square().mean())
    assert ends[0] < 0.6 * begun
    assert ends[1] == pytest.approx(ends[0], rel=0.05)
    assert kept == [2 * 4 * 256 * 32, 2 * (256 * 32 + 32 * 4 + 256 * 4)]  # a scale a block of 256, a table of values


def test_galore_in_eight_bits_goes_where_galore_goes():
    eight_bits("cpu")


class TheirGaLore(GaLoreAdamW8bit):
    """galore-torch's own, its arguments handed over as bitsandbytes takes them today."""

    def __init__(self, params, lr, weight_decay):
        Optimizer2State.__init__(self, "adam", params, lr=lr, weight_decay=weight_decay, optim_bits=8)


@pytest.mark.parametrize("shape", [(128, 64), (64, 128)])
def test_galore_8bit_takes_the_reference_steps_without_transfers(monkeypatch, shape):
    waits, ends = [], []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: waits.append(True))
    for kind in (TheirGaLore, galore.EightBitGaLoreAdamW):
        torch.manual_seed(0)
        matrix, bias = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(4096))
        places = (matrix.data_ptr(), bias.data_ptr())
        group = {"params": [matrix], "rank": 32, "update_proj_gap": 2, "scale": 0.5, "proj_type": "std"}
        keywords = {} if kind is TheirGaLore else {"no_deprecation_warning": True}
        optimizer = kind([{"params": [bias]}, group], lr=0.05, weight_decay=0.1, **keywords)
        for _ in range(5):
            (matrix.square().sum() + bias.pow(4).sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append((matrix.detach(), bias.detach()))
        if kind is TheirGaLore:
            assert waits
            waits.clear()
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])
    assert not waits
    assert (matrix.data_ptr(), bias.data_ptr()) == places


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_galore_in_eight_bits_on_cuda(tmp_path, own_precision):
    eight_bits("cuda")
    record = run_tiny(tmp_path, "method=galore_8bit", "train.precision=auto", "lr=0.003", "train.max_steps=10")
    assert record.status == "ok"
    assert record.train.loss[-1].loss < record.train.loss[0].loss


# AdaLoRA


def ada(steps: int, *overrides: str) -> SimpleNamespace:
    return prepared(tiny("method=adalora", f"train.max_steps={steps}", "rank=4", "lr=0.02", *overrides))


def ranks(bench) -> int:
    return sum(int((p != 0).sum()) for n, p in bench.net.named_parameters() if "lora_E" in n)


def test_the_budget_is_kept():
    bench = ada(10, "method.adapt.tinit=2", "method.adapt.tfinal=3")
    held = []
    for micro in bench.steps:
        loop.take_step(bench.net, bench.optimizer, micro, 1.0, bench.accelerator, str)
        held.append(ranks(bench))
    start, target = 14 * 8, 14 * 4
    cubic = [int((start - target) * (1 - (step - 2) / 5) ** 3 + target) for step in range(3, 8)]
    assert held == [start] * 2 + cubic + [target] * 3
    kept = [set(state) for state in bench.optimizer.state.values()]
    assert not any(state & set(adalora.KEPT) for state in kept), "spent, the budget needs no measure any more"


def test_the_regulariser_is_the_papers():
    bench = ada(10)
    loop.summed_loss(bench.net, bench.steps[0][0]).backward()
    adapters = {n: p for n, p in bench.net.named_parameters() if p.requires_grad and "lora_E" not in n}
    before = {n: p.grad.clone() for n, p in adapters.items()}
    adalora.orthogonal(bench.net, bench.optimizer)
    penalty = sum(
        torch.norm((p @ p.T if "lora_A" in n else p.T @ p) - torch.eye(8), p="fro") for n, p in adapters.items()
    )
    expected = torch.autograd.grad(0.5 * penalty / len(adapters), list(adapters.values()))
    for (name, p), gradient in zip(adapters.items(), expected, strict=True):
        assert torch.allclose(p.grad - before[name], gradient, rtol=1e-3, atol=1e-6), name


# LoRA's own optimizers


def test_b_learns_faster_than_a_in_loraplus():
    bench = prepared(tiny("method=loraplus", "lr=1e-3"))
    rates = {id(p): group["lr"] for group in bench.optimizer.param_groups for p in group["params"]}
    found = {n: rates[id(p)] for n, p in bench.net.named_parameters() if p.requires_grad}
    assert {rate for n, rate in found.items() if "lora_A" in n} == {1e-3}
    assert {rate for n, rate in found.items() if "lora_B" in n} == {16e-3}


@pytest.mark.parametrize("method", ["loraplus", "lorafa"])
def test_optimizers_of_peft_decay_as_told(method):
    bench = prepared(tiny(f"method={method}", "train.weight_decay=0.1"))
    optimizers.set_betas(bench.optimizer, [0.8, 0.9])
    groups = [group for group in bench.optimizer.param_groups if group["params"]]
    assert {group["weight_decay"] for group in groups} == {0.1}
    assert {group["betas"] for group in groups} == {(0.8, 0.9)}


def test_lorafa_follows_the_nearest_gradient():
    bench = prepared(tiny("method=lorafa", "lr=1e-3", "alpha=16", "rank=8"))
    loop.summed_loss(bench.net, bench.steps[0][0]).backward()
    layer = next(m for m in bench.net.modules() if hasattr(m, "lora_A"))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    scaled = b.grad @ torch.linalg.inv(a @ a.T) / 2.0**2
    bench.optimizer.step()
    # Adam's first step is the sign of its gradient, where that is not near nothing.
    sure = scaled.abs() > 0.05 * scaled.abs().max()
    assert torch.equal(-b.detach().sign()[sure], scaled.sign()[sure])
    assert a.grad is None
