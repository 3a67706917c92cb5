"""The fused loss: the same loss and gradients as by the logits, or the reason why it is left off."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from job_helpers import prepared, tiny
from torch.nn.functional import cross_entropy, linear
from transformers import AutoConfig, AutoModelForCausalLM

from harness.job import fused, train

needs_liger = pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("liger_kernel") is None,
    reason="needs a CUDA device and liger-kernel",
)


def by_products(weight, hidden, targets, bias):
    """What the kernel computes, by torch."""
    return cross_entropy(linear(hidden, weight, bias).float(), targets, ignore_index=-100, reduction="sum")


def losses(method: str, kernel) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses by logits and by `kernel`, whose gradients were held against each other."""
    bench = prepared(tiny(f"method={method}", "train.batch_size=3"))
    batch = bench.steps[0][0]

    def taken() -> tuple[torch.Tensor, list[torch.Tensor]]:
        bench.net.zero_grad()
        loss = train.summed_loss(bench.net, batch)
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in bench.net.parameters() if p.requires_grad]

    plain, expected = taken()
    assert fused.kernel_of(bench.net) is None
    assert fused.attach(bench.net, kernel) == "on"
    found, gradients = taken()
    for a, b in zip(gradients, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * float(b.abs().max()) + 1e-9)
    return plain, found


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_head_s_inputs_reach_the_kernel(method):
    seen = []

    def kernel(weight, hidden, targets, bias):
        seen.append((tuple(weight.shape), hidden.shape[1], len(targets), bias))
        return by_products(weight, hidden, targets, bias)

    plain, found = losses(method, kernel)
    assert torch.allclose(plain, found, rtol=1e-6)
    (check, (weight, width, targets, bias)) = seen
    assert (check[2], weight, width, bias) == (15, (1024, 64), 64, None)
    assert targets > 15


def test_logits_that_are_changed_after_the_head_are_left_alone():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "gemma3_text", **sizes, num_key_value_heads=1, vocab_size=64, final_logit_softcapping=0.5
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(50)  # at its small initial weights any logits give a loss of ln 64
    assert fused.attach(model, by_products) == "off: the model changes its logits after the head"
    assert fused.kernel_of(model) is None


def test_without_cuda_or_the_package_it_is_off():
    told = fused.enable(prepared(tiny("method=full")).net)
    expected = (
        {"off: no CUDA device"} if not torch.cuda.is_available() else {"off: liger-kernel is not installed", "on"}
    )
    assert told in expected


@pytest.mark.gpu
@needs_liger
def test_liger_gives_the_same_on_a_gpu():
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    plain, found = losses("full", LigerFusedLinearCrossEntropyLoss(ignore_index=-100, reduction="sum"))
    assert torch.allclose(plain, found, rtol=1e-3)
