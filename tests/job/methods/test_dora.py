"""`dora_fast` held against peft's DoRA: outputs, gradients, files and merges, layer by layer and in a training."""

from __future__ import annotations

import json
from functools import partial

import peft
import pytest
import torch
from chains import KINDS, TARGETS, Chain
from job_helpers import prepared, tiny
from peft.helpers import DoraCaching
from peft.tuners import lora
from peft.tuners.lora.dora import DoraLinearLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.job.measure import disk_size
from harness.job.methods import dora
from harness.job.models import checks
from harness.job.predict import prediction
from harness.job.training import loop

R = 4
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")  # as in any cell: peft sets it itself
FAST = "method.adapt._target_=harness.job.methods.dora.FastDoraConfig"


def config(kind: type[peft.LoraConfig], **keywords) -> peft.LoraConfig:
    return kind(r=R, lora_alpha=3 * R, use_dora=True, target_modules=TARGETS, **keywords)


def stacks(kind: str = "bias", dtype: torch.dtype = torch.float32, **keywords) -> tuple[nn.Module, nn.Module]:
    """The same chain by peft and by ours, its adapters and magnitudes away from where they start."""
    pair = []
    for configuration in (peft.LoraConfig, dora.FastDoraConfig):
        torch.manual_seed(0)
        net = Chain(kind)
        if kind != "nf4":
            net.to(dtype)
        net = peft.get_peft_model(net, config(configuration, **keywords))
        for name, p in net.named_parameters():
            if "lora_" in name:
                p.data += 0.3 * p.detach().abs().mean() + 0.1 * torch.randn_like(p)
        pair.append(net)
    assert {type(m) for m in pair[1].modules() if isinstance(m, lora.LoraLayer)} == {
        dora.FastDoraLinear4bit if kind == "nf4" else dora.FastDoraLinear
    }
    return pair[0], pair[1]


def passed(net: nn.Module, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """The output of `net` for `x`, and the gradients of x and of all that is trained."""
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    out = net(x)
    net.zero_grad()
    out.float().square().sum().backward()
    grads = {name: p.grad for name, p in net.named_parameters() if p.requires_grad}
    return {"out": out.detach(), "x": x.grad} | grads


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], within: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        assert (found[name] - value).norm() <= within * value.norm(), name


def inputs(*shape: int) -> Tensor:
    return torch.randn(*(shape or (3, 5)), 32, generator=torch.Generator().manual_seed(1))


# Outputs and gradients


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_pefts(kind, dropout):
    theirs, ours = stacks(kind, lora_dropout=dropout)
    for net in (theirs, ours):
        net.train()
    for shape in ((3, 5), (7,), (0,), (2, 3, 2)):
        x = inputs(*shape)
        assert_close(passed(ours, x), passed(theirs, x))
    for net in (theirs, ours):
        net.eval()
    x = inputs()
    assert_close(passed(ours, x), passed(theirs, x))
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("which", [0, 1])
def test_outputs_and_gradients_are_the_papers(which):
    """W' = m (W + s B A) / ‖W + s B A‖, row by row (arXiv:2402.09353, eq. 5), the norm a constant (section 4.3)."""
    net = stacks("bias")[which].train()
    layers = [getattr(net.base_model.model, name) for name in ("inner", "middle", "outer")]
    found = passed(net, inputs())
    taken = [
        [layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.lora_magnitude_vector["default"].weight]
        for layer in layers
    ]
    own = [[p.detach().clone().requires_grad_() for p in parts] for parts in taken]

    def apply(x: Tensor, i: int) -> Tensor:
        base, (a, b, m) = layers[i].get_base_layer(), own[i]
        turned = base.weight + 3.0 * b @ a  # alpha / r is 3
        return x @ (m[:, None] * turned / turned.pow(2).sum(1, keepdim=True).sqrt().detach()).T + base.bias

    out = apply(torch.tanh(apply(apply(apply(inputs(), 0), 1), 1)), 2)
    assert torch.allclose(found["out"], out, rtol=1e-4, atol=1e-5)
    out.square().sum().backward()
    for parts, mine in zip(taken, own, strict=True):
        for p, q in zip(parts, mine, strict=True):
            assert (p.grad - q.grad).norm() <= 1e-4 * q.grad.norm()
    # At first the magnitude is the norm of the weights' rows.
    fresh = peft.get_peft_model(Chain("bias"), config(peft.LoraConfig)).base_model.model.inner
    rows = fresh.get_base_layer().weight.pow(2).sum(1).sqrt()
    assert torch.allclose(fresh.lora_magnitude_vector["default"].weight, rows)


def test_bf16_weights_and_bf16_adapters():
    for keywords in ({}, {"autocast_adapter_dtype": False}):
        pair = []
        for configuration in (peft.LoraConfig, dora.FastDoraConfig):
            torch.manual_seed(0)
            pair.append(peft.get_peft_model(Chain("bias").bfloat16(), config(configuration), **keywords))
        theirs, ours = pair
        assert_close(passed(ours, inputs().bfloat16()), passed(theirs, inputs().bfloat16()), within=2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_it_is_as_near_to_fp32_as_pefts(kind):
    theirs, ours = stacks(kind)
    exact = passed(theirs, inputs(64))
    with torch.autocast("cpu", torch.bfloat16):
        near, found = passed(theirs, inputs(64)), passed(ours, inputs(64))
    for name, value in exact.items():
        assert found[name].dtype == near[name].dtype, name
        error, allowed = ((x[name].float() - value).norm() / value.norm() for x in (found, near))
        assert error <= 1.3 * allowed + 2**-9, name  # where all is bf16, the direction is rounded once more


def test_under_autocast_nothing_is_lost_of_what_an_adapter_adds_at_first():
    added = []
    for net in stacks("linear"):
        layer = net.base_model.model.inner
        layer.get_base_layer().register_forward_hook(lambda *call: call[-1].float())  # as model.adapt does
        layer.lora_B["default"].weight.data *= 1e-5
        outputs = []
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
                outputs.append(layer(inputs(64)))
            layer.lora_B["default"].weight.data.zero_()
        assert outputs[0].dtype == torch.float32
        added.append(outputs[0] - outputs[1])
    assert 0 < added[0].norm() < 2**-9 * outputs[0].norm()
    assert (added[1] - added[0]).norm() < 0.1 * added[0].norm()


def test_frozen_weights_do_not_change():
    theirs, ours = stacks()
    for trained in ("lora_magnitude_vector", "lora_B"):
        for net in (theirs, ours):
            for name, p in net.named_parameters():
                p.requires_grad_(trained in name)
        assert_close(passed(ours, inputs()), passed(theirs, inputs()))


def test_a_magnitude_of_zero_has_a_gradient():
    theirs, ours = stacks()
    for net in (theirs, ours):
        net.base_model.model.inner.lora_magnitude_vector["default"].weight.data[:3] = 0
    found = passed(ours, inputs())
    assert_close(found, passed(theirs, inputs()))
    assert (found["base_model.model.inner.lora_magnitude_vector.default.weight"][:3] != 0).all()


def test_two_adapters_at_once():
    theirs, ours = stacks()
    for net, kind in ((theirs, peft.LoraConfig), (ours, dora.FastDoraConfig)):
        torch.manual_seed(1)
        net.add_adapter("other", config(kind, init_lora_weights=False))
        net.base_model.set_adapter(["default", "other"])
    assert_close(passed(ours, inputs()), passed(theirs, inputs()))


def test_other_layers_are_pefts_own():
    class Other(nn.Linear):
        pass

    net = nn.Sequential(nn.Embedding(8, 8), Other(8, 8), nn.Linear(8, 8))
    fast = peft.get_peft_model(net, dora.FastDoraConfig(r=2, use_dora=True, target_modules=["0", "1", "2"]))
    assert [type(m) for m in fast.base_model.model] == [lora.Embedding, lora.Linear, dora.FastDoraLinear]
    plain = peft.get_peft_model(nn.Sequential(nn.Linear(8, 8)), dora.FastDoraConfig(r=2, target_modules=["0"]))
    assert not plain.base_model.model[0].lora_variant


# Norms


def exact(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    return torch.linalg.vector_norm(weight.double() + scaling * b.double() @ a.double(), dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1, 1000, 2**22])
def test_norms_in_blocks_are_the_norms(monkeypatch, dtype, block):
    monkeypatch.setattr(dora, "BLOCK", block)
    torch.manual_seed(0)
    weight, a, b = torch.randn(100, 64).to(dtype), torch.randn(R, 64), torch.randn(100, R)
    for w in (weight, torch.randn(64, 100).to(dtype).T):
        with torch.autocast("cpu", torch.bfloat16):
            found = dora.row_norms(w, a, b, 0.7)
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), exact(w, a, b, 0.7), rtol=1e-6)


def test_norms_of_rows_that_nearly_cancel():
    torch.manual_seed(0)
    a, b = torch.randn(R, 64), torch.randn(100, R)
    weight = b @ a + 1e-3 * torch.randn(100, 64)
    found = dora.row_norms(weight, a, -b, 1.0)
    expected = exact(weight, a, -b, 1.0)
    assert expected.max() < 1e-3 * torch.linalg.vector_norm(weight, dim=1).max()
    assert torch.allclose(found.double(), expected, rtol=1e-4)
    assert torch.allclose(found, DoraLinearLayer(False).get_weight_norm(weight, -b @ a, 1.0), rtol=1e-5)


def test_pefts_cache_for_inference_is_kept(monkeypatch):
    theirs, ours = stacks()
    calls = []
    row_norms = dora.row_norms
    monkeypatch.setattr(dora, "row_norms", lambda *a: (calls.append(1), row_norms(*a))[1])
    for net in (theirs, ours):
        net.eval()
    with torch.no_grad(), DoraCaching():
        for _ in range(2):
            assert torch.allclose(ours(inputs()), theirs(inputs()), rtol=1e-5, atol=1e-6)
        assert len(calls) == 3  # the middle layer is called twice
        ours.train()
        ours(inputs())
        assert len(calls) == 7


# Files and merging


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_files_of_pefts(tmp_path, kind):
    theirs, ours = stacks(kind)
    assert peft.get_peft_model_state_dict(ours).keys() == peft.get_peft_model_state_dict(theirs).keys()
    for net, name in ((ours, "ours"), (theirs, "theirs")):
        net.save_pretrained(tmp_path / name)
    texts = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("ours", "theirs")]
    assert [set(text.pop("target_modules")) for text in texts] == [{"inner", "middle", "outer"}] * 2
    assert texts[0] == texts[1]
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert disk_size.adapter(ours) == disk_size.adapter(theirs)

    torch.manual_seed(0)
    plain = peft.PeftModel.from_pretrained(Chain(kind), tmp_path / "ours", is_trainable=True)
    assert type(plain.peft_config["default"]) is peft.LoraConfig
    assert_close(passed(plain, inputs()), passed(ours, inputs()))
    _, fresh = stacks(kind)
    for p in fresh.parameters():
        if p.requires_grad:
            p.data.normal_()
    peft.set_peft_model_state_dict(fresh, weights[1])
    assert_close(passed(fresh, inputs()), passed(theirs, inputs()))


@pytest.mark.filterwarnings("ignore:.*rounding errors")
@pytest.mark.parametrize("kind", KINDS)
def test_merging_is_pefts(kind):
    theirs, ours = stacks(kind)
    x = inputs()
    with torch.no_grad():
        for net in (theirs, ours):
            net.eval()
        before = ours(x)
        with ours.disable_adapter(), theirs.disable_adapter():
            assert torch.equal(ours(x), theirs(x))
            assert not torch.allclose(ours(x), before, rtol=0.1)
        for net in (theirs, ours):
            net.merge_adapter()
        assert torch.equal(ours(x), theirs(x))
        for net in (theirs, ours):
            net.unmerge_adapter()
        assert torch.allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
        if kind != "nf4":  # where merging rounds
            assert torch.allclose(ours(x), before, rtol=1e-4, atol=1e-4)
        merged = [net.merge_and_unload(safe_merge=True) for net in (theirs, ours)]
    assert {type(m) for m in merged[1].modules()} == {type(m) for m in merged[0].modules()}
    for (name, a), b in zip(merged[0].state_dict().items(), merged[1].state_dict().values(), strict=True):
        assert torch.equal(a, b), name


# In a cell


@pytest.mark.parametrize("method", ["dora", "dora_fast", "qdora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_magnitudes_start_at_the_norms_of_the_weights_rows(method, dtype):
    cell = tiny(f"method={method}", f"model.dtype={dtype}", "train.precision=bf16")
    checks.check(cell)  # on weights without values too
    net = prepared(cell).net
    layers = [layer for layer in net.modules() if isinstance(layer, lora.LoraLayer)]
    assert len(layers) == 14
    for layer in layers:
        weight = dequantize_module_weight(layer.get_base_layer())
        magnitude = layer.lora_magnitude_vector["default"].weight
        assert magnitude.dtype == torch.float32
        assert magnitude.requires_grad
        norms = torch.linalg.vector_norm(weight.double(), dim=1)
        assert torch.allclose(magnitude.double(), norms, rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("base", ["dora", "qdora"])
def test_a_training_is_the_same_and_takes_less(base):
    fast = ("method=dora_fast",) if base == "dora" else (f"method={base}", FAST)
    losses, plans = [], []
    for method in ((f"method={base}",), fast):
        cell = tiny(*method, "rank=4", "lr=0.01", "train.max_steps=6", "speedups=off")
        bench = prepared(cell)
        step = partial(loop.take_step, bench.net, bench.optimizer)
        losses.append([float(step(micro, 1.0, bench.accelerator, str)[0]) for micro in bench.steps])
        plans.append(prediction.Predictor(None, "fp32").predict(cell, None))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0] - 0.1
    assert plans[1]["trainable"] == plans[0]["trainable"]
    for kind in ("weights", "adapters", "optimizer"):
        assert plans[1]["resident"][kind] == plans[0]["resident"][kind]
    assert sum(plans[1]["peak"].values()) < 0.95 * sum(plans[0]["peak"].values())
