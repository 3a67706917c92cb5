"""The loss chunk by chunk: the same loss, gradients and FLOPs as by all logits, or the reason why it is left off."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from job_helpers import prepared, tiny
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from harness.job.evaluate import linear_weights
from harness.job.measure.live_memory import LiveBytes
from harness.job.phases import load
from harness.job.training import loop, loss

VOCABULARY, WIDTH = 37, 8


def by_logits(weight: Tensor, hidden: Tensor, targets: Tensor, bias: Tensor | None) -> Tensor:
    return cross_entropy(linear(hidden, weight, bias).float(), targets, ignore_index=-100, reduction="sum")


def drawn(rows: int, trained: bool, biased: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Weight, hidden, targets (every third ignored) and bias."""
    torch.manual_seed(0)
    weight, hidden = torch.randn(VOCABULARY, WIDTH).requires_grad_(trained), torch.randn(rows, WIDTH).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (rows,))
    targets[::3] = -100
    return weight, hidden, targets, torch.randn(VOCABULARY).requires_grad_(trained) if biased else None


def taken(kernel, *of: Tensor | None) -> list[Tensor | None]:
    """The loss, scaled as a step's mean is, and its gradients by weight, hidden and bias."""
    for tensor in of:
        if tensor is not None:
            tensor.grad = None
    value = kernel(*of) / 7
    value.backward()
    weight, hidden, _, bias = of
    return [value.detach(), weight.grad, hidden.grad, None if bias is None else bias.grad]


def near(found: list[Tensor | None], expected: list[Tensor | None], rel: float) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert torch.allclose(a, b, rtol=rel, atol=rel * float(b.abs().max())) if b.numel() else True


@pytest.mark.parametrize("rows", [0, 1, 4, 5, 23])
@pytest.mark.parametrize(("trained", "biased"), [(False, False), (False, True), (True, False), (True, True)])
def test_chunks_give_the_loss_and_gradients_of_all_logits(rows, trained, biased):
    of, size = drawn(rows, trained, biased), 4 * 4 * VOCABULARY  # four rows a chunk

    def chunked(*of: Tensor | None) -> Tensor:
        return loss.chunked(*of, size=size)

    expected = taken(by_logits, *of)
    near(taken(chunked, *of), expected, rel=1e-6)
    near(taken(loss.chunked, *of), expected, rel=1e-6)  # all in one
    with torch.no_grad():
        assert torch.allclose(chunked(*of) / 7, expected[0], rtol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        expected = taken(by_logits, *of)
        near(taken(chunked, *of), expected, rel=2**-6)


def test_in_16_bits_gradients_are_added_up_in_32():
    weight, hidden, targets, _ = drawn(3000, True, False)
    exact = taken(by_logits, weight, hidden, targets, None)[1]
    of = [t.detach().bfloat16().requires_grad_() for t in (weight, hidden)]

    def chunked(*of: Tensor | None) -> Tensor:
        return loss.chunked(*of, size=4 * 4 * VOCABULARY)

    errors = [(taken(kernel, *of, targets, None)[1].float() - exact).abs().max() for kernel in (chunked, by_logits)]
    assert errors[0] < 2 * errors[1]
    assert errors[0] < 0.01 * exact.abs().max()


@pytest.mark.parametrize(("dtype", "products"), [(torch.float32, 10), (torch.bfloat16, 3)])
def test_in_16_bits_the_gradient_of_the_head_takes_few_products(dtype, products):
    """Each is added to a sum as large as the head, which takes a GPU longer than the product."""
    weight, hidden, targets, _ = drawn(10, True, False)
    of = weight.detach().to(dtype).requires_grad_(), hidden.detach().to(dtype).requires_grad_(), targets, None
    with Counted() as counted:
        found = taken(lambda *of: loss.chunked(*of, size=4 * VOCABULARY), *of)  # a row a chunk
    assert counted.shapes[VOCABULARY, WIDTH] == products
    near(found, taken(by_logits, *of), rel=1e-6 if dtype is torch.float32 else 2**-6)


class Counted(TorchDispatchMode):
    """The number of products by the shape of what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.shapes[tuple(out.shape)] += 1
        return out


def test_no_chunk_outlives_its_turn():
    weight, hidden, targets, _ = drawn(64, True, False)
    row = 4 * VOCABULARY
    peaks = []
    for size in (4 * row, 64 * row):
        with LiveBytes(torch.device("cpu")) as live:
            live.see([weight, hidden, targets], "weights")
            before = live.now
            taken(lambda *of, size=size: loss.chunked(*of, size=size), weight, hidden, targets, None)
        peaks.append(live.peak - before - weight.nbytes - hidden.nbytes)
    assert peaks[0] < peaks[1] / 4


def test_a_loss_that_is_held_holds_no_gradients():
    weight, hidden, targets, _ = drawn(9, True, False)
    held = loss.chunked(weight, hidden, targets, None, size=loss.CHUNK["cpu"])
    with LiveBytes(torch.device("cpu")) as live:
        held.backward()
        weight.grad = hidden.grad = None
        left = live.now
    assert left <= 8  # the loss itself, and what it was scaled by


def moved(bench, batch) -> tuple[Tensor, list[Tensor], int]:
    """The loss of `batch`, its gradients by trained weights, and the FLOPs of both."""
    bench.net.zero_grad()
    with LiveBytes(torch.device("cpu")) as live:
        value = loop.summed_loss(bench.net, batch)
        value.backward()
    return value.detach(), [p.grad.clone() for p in bench.net.parameters() if p.requires_grad], live.flops


def held_against_logits(cell, kernel) -> None:
    bench = prepared(cell)
    batch = bench.steps[0][0]
    expected, gradients, flops = moved(bench, batch)
    assert loss.attach(bench.net, kernel) == "on: chunked"
    found, others, counted = moved(bench, batch)
    assert torch.allclose(found, expected, rtol=1e-6)
    for a, b in zip(others, gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * float(b.abs().max()) + 1e-9)
    assert counted == flops


def small(*of: Tensor | None) -> Tensor:
    return loss.chunked(*of, size=4 * 7 * 1024)  # seven rows of the tiny model's vocabulary


PROMPTS = ["prompt_tuning", "p_tuning", "prefix_tuning", "adaption_prompt", "cartridge"]


@pytest.mark.parametrize("method", ["full", "lora", *PROMPTS])  # a tied head trained, one frozen; tokens before the ids
def test_a_model_s_loss_is_that_of_its_logits(method):
    held_against_logits(tiny(f"method={method}", "train.batch_size=3"), small)


def test_padded_rows_have_the_same_loss():
    held_against_logits(tiny("method=lora", "train.batch_size=3", "speedups=off"), small)


@pytest.mark.parametrize("method", ["lora", *PROMPTS])
def test_a_kernel_s_arguments_are_weight_inputs_targets_and_bias(method):
    seen = []

    def kernel(weight, hidden, targets, bias):
        seen.append((weight.shape, hidden.shape, targets.shape, bias))
        return by_logits(weight, hidden, targets, bias)

    held_against_logits(tiny(f"method={method}", "train.batch_size=3"), kernel)
    ((weight, (rows, width), (targets,), bias),) = seen
    assert (weight, width, bias) == ((1024, 64), 64, None)
    assert rows == targets > 0


def test_a_step_of_micro_batches_is_the_same():
    found = []
    for chunks in (False, True):
        bench = prepared(tiny("method=full", "train.grad_accum=2", "train.max_steps=2"))
        if chunks:
            assert loss.attach(bench.net, small) == "on: chunked"
        taken = [
            loop.take_step(bench.net, bench.optimizer, micro, 1.0, bench.accelerator, lambda part: None)
            for micro in bench.steps
        ]
        found.append([float(value) for step in taken for value in step])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_the_layers_may_be_computed_again():
    bench = prepared(tiny("method=full", "train.batch_size=3", "speedups=off"))
    batch = bench.steps[0][0]
    expected, gradients, _ = moved(bench, batch)
    bench.net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    bench.net.train()
    assert loss.attach(bench.net, small) == "on: chunked"
    found, others, _ = moved(bench, batch)
    assert torch.allclose(found, expected, rtol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-5 * float(b.abs().max())) for a, b in zip(others, gradients, strict=True))


def test_logits_that_are_changed_after_the_head_are_left_alone():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "gemma3_text", **sizes, num_key_value_heads=1, vocab_size=64, final_logit_softcapping=0.5
    )
    model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    assert loss.attach(model, by_logits) == "off: the model changes its logits after the head"
    assert model.get_output_embeddings() is head
    with loss.at_head(model, torch.zeros(1, 1)) as on:
        assert not on


def test_a_head_with_a_loss_is_cast_as_any_linear_layer():
    net = prepared(tiny("method=full")).net
    weight = net.get_output_embeddings().weight
    assert loss.enable(net).startswith("on")
    undo = linear_weights.cast(net, torch.bfloat16)
    assert net.get_output_embeddings().weight.dtype == torch.bfloat16
    undo()
    assert net.get_output_embeddings().weight is weight


def test_an_adapter_on_the_head_is_left_alone():
    bench = prepared(tiny("method=lora", "method.adapt.target_modules=[q_proj,lm_head]"))
    assert loss.enable(bench.net) == "off: the head has an adapter"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_the_same_on_a_gpu(own_precision, dtype):
    bench = prepared(tiny("method=full", "train.batch_size=3", f"model.dtype={dtype}"))
    batch = bench.steps[0][0].to(bench.accelerator.device)
    expected = loop.summed_loss(bench.net, batch)
    assert loss.enable(bench.net) == "on: chunked"
    assert torch.allclose(loop.summed_loss(bench.net, batch), expected, rtol=1e-3)


@pytest.mark.parametrize("method", ["lora", "dora_fast", "loha", "lokr", "waveft"])
def test_weights_without_values_are_enough_to_know_it(method):
    """The other ranks of a sharded cell have no values yet; the last three adapters compute nothing without."""
    net = prepared(tiny(f"method={method}", "speedups=off")).net.to("meta")
    with load._valueless(net):
        assert loss.enable(net) == "on: chunked"
    assert not any(layer.disable_adapters for layer in net.modules() if isinstance(layer, BaseTunerLayer))
