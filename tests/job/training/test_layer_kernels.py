"""The kernels of decoder layers: the results of transformers' operations, in models and one by one.

Triton's own run where it is installed: its interpreter computes them on a CPU, and its compiler makes them for cards
that are not here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from job_helpers import prepared, tiny
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM

from harness.config import ROOT
from harness.job import speedups
from harness.job.training import layer_kernels, loop

SCRIPTS = Path(__file__).parent / "triton_scripts"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
ALL = "on: rms_norm, rope, swiglu"
SIZES = {"vocab_size": 50, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}


def model_of(kind: str, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES), dtype=dtype)


def step(net, autocast: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss, and the gradients by name."""
    ids = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = net(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def difference(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of a gradient."""
    assert some.keys() == others.keys()
    return max(float((some[name] - others[name]).norm() / others[name].norm()) for name in some)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_a_model_has_the_same_loss_and_gradients(kind, dtype, autocast):
    net = model_of(kind, dtype)
    plain_loss, plain = step(net, autocast)
    assert layer_kernels.attach(net) == ALL
    loss, gradients = step(net, autocast)
    assert loss == plain_loss  # to the bit: results are rounded where transformers rounds them
    assert difference(gradients, plain) < (1e-4 if dtype is torch.float32 else 0.01)  # sums over tokens
    layer_kernels.detach(net)
    again, same = step(net, autocast)
    assert again == plain_loss
    assert difference(same, plain) == 0


@pytest.mark.parametrize(("kind", "expected"), [("gemma2", "on: rope"), ("phi3", "on: rms_norm")])
def test_layers_that_compute_something_else_are_left_alone(kind, expected):
    net = model_of(kind)
    plain_loss, plain = step(net, False)
    assert layer_kernels.attach(net) == expected
    loss, gradients = step(net, False)
    assert loss == plain_loss
    assert difference(gradients, plain) < 1e-6


def test_a_model_without_such_layers_says_so():
    sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1}
    net = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **sizes))
    assert layer_kernels.attach(net) == "off: no layer of the model has a kernel"


def test_other_activations_and_positions_are_left_alone():
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", hidden_act="gelu", **SIZES))
    assert layer_kernels.attach(net) == "on: rms_norm, rope"
    query, angles = torch.randn(1, 2, 3, 8), torch.randn(1, 3, 4)  # a part of the channels alone has positions
    with pytest.raises(RuntimeError, match="size of tensor"):  # as transformers' function says
        layer_kernels.rope(query, query, angles, angles)


@pytest.mark.parametrize("method", ["lora", "dora", "dora_fast", "ia3", "ln_tuning", "qlora", "full"])
def test_gradients_of_methods_are_the_same(method):
    """Also of those that keep their outputs, which kernels must not overwrite."""
    losses, gradients = [], []
    for kernels in (False, True):
        bench = prepared(tiny(f"method={method}"))
        if kernels:
            assert layer_kernels.attach(getattr(bench.net, "base_model", bench.net)) == ALL
        (micro,) = [bench.steps[0]]
        batch = micro[0] if isinstance(micro, list) else micro
        loss = loop.summed_loss(bench.net, batch)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append({name: p.grad for name, p in bench.net.named_parameters() if p.grad is not None})
    assert losses[0] == losses[1]
    norms = [name for name, gradient in gradients[0].items() if not gradient.any()]  # of lora's A, whose B is zero
    assert difference(*({n: g for n, g in each.items() if n not in norms} for each in gradients)) < 1e-5


@pytest.mark.parametrize("dtype", layer_kernels.TOLERANCE)
def test_operations_agree_with_themselves(dtype):
    assert layer_kernels.disagreement(torch.device("cpu"), dtype) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_agrees_on_a_gpu():
    assert layer_kernels._obstacle(torch.device("cuda", 0)) is None


def of_a_gpu(monkeypatch, disagreement) -> str | None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(layer_kernels, "disagreement", disagreement)
    return layer_kernels._obstacle.__wrapped__(torch.device("cuda", 0))


def test_kernels_that_do_not_work_on_a_card_are_left_off(monkeypatch):
    def failing(device, dtype):
        raise RuntimeError("PTX JIT compilation failed")

    assert of_a_gpu(monkeypatch, lambda device, dtype: None) is None
    assert of_a_gpu(monkeypatch, failing) == "the kernels raise RuntimeError"
    wrong = of_a_gpu(monkeypatch, lambda device, dtype: "rope" if dtype is torch.bfloat16 else None)
    assert wrong == "the kernel rope differs from torch's operations"


def test_a_process_that_holds_no_weights_finds_what_the_others_find(monkeypatch):
    """Of a model that is to be sharded, all devices but the first have no weights, and choose speed-ups among fakes."""
    real = layer_kernels.disagreement
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert of_a_gpu(monkeypatch, lambda device, dtype: real(torch.device("cpu"), dtype)) is None


def test_a_wrong_kernel_is_noticed(monkeypatch):
    right = layer_kernels.operations.swiglu
    calls = []

    def wrong_at_first(gate, up):
        calls.append(gate)
        return right(gate, up) * (1.05 if len(calls) == 1 else 1)

    monkeypatch.setattr(layer_kernels.operations, "swiglu", wrong_at_first)
    assert layer_kernels.disagreement(torch.device("cpu"), torch.bfloat16) == "swiglu"


def test_the_record_says_why_they_are_off():
    bench = prepared(tiny("method=lora"))
    states = [
        speedups.enable(bench.net, switch, 0, bench.accelerator, compiled=compiled)[1]["layer_kernels"]
        for switch, compiled in (("off", False), ("auto", True), ("auto", False))
    ]
    assert states == ["off: asked for", layer_kernels.COMPILED, layer_kernels.NOT_HERE]


def with_triton(script: str) -> list:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    run = subprocess.run([sys.executable, SCRIPTS / script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@needs_triton
@pytest.mark.slow
def test_tritons_interpreter_computes_the_same():
    for case, differences in with_triton("interpreted.py"):
        assert max(differences) < (0.01 if "bfloat16" in case else 1e-5), case


@needs_triton
@pytest.mark.slow
def test_they_compile_for_cards_that_are_not_here():
    assert all(size > 0 and not spilled for size, spilled in with_triton("compiled.py"))
