"""Weights that are made ready once for all that a model answers: the answers are those that it gives without."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from job_helpers import moved
from torch import nn

from harness.job.evaluate import linear_weights

IDS = torch.arange(5, 25)[None]


@torch.no_grad()
def logits(net: nn.Module, dtype: torch.dtype | None) -> torch.Tensor:
    net.eval()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        return net(input_ids=IDS).logits


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["base_nf4", "qlora", "qdora"])
def test_expanded_weights_answer_to_the_bit_as_those_in_4_bits(method, precision, monkeypatch):
    net = moved(f"method={method}", f"train.precision={precision}").net
    dtype = torch.bfloat16 if precision == "bf16" else None
    packed = [module for module in net.modules() if isinstance(module, Linear4bit)]
    before, read = logits(net, dtype), []
    for layer in packed:
        monkeypatch.setattr(layer, "forward", lambda x, layer=layer: read.append(layer))
    with linear_weights.expanded(net) as told:
        assert told == {"expanded": "on"}
        assert torch.equal(logits(net, dtype), before)
        assert torch.equal(logits(net, dtype), before)  # and from what the first one kept
        assert not read
    monkeypatch.undo()
    assert [module for module in net.modules() if isinstance(module, Linear4bit)] == packed
    assert torch.equal(logits(net, dtype), before)


def test_weights_that_would_fill_the_memory_stay_packed(monkeypatch):
    net = moved("method=qlora").net
    monkeypatch.setattr(linear_weights.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**16))
    with linear_weights.expanded(net) as told:
        assert told["expanded"].startswith("off: 0.0 GiB of weights")
        assert any(isinstance(module, Linear4bit) for module in net.modules())


def test_other_models_have_nothing_to_expand():
    with linear_weights.expanded(moved("method=lora").net) as told:
        assert told == {}


@pytest.mark.skipif(not linear_weights._packs(), reason="oneDNN has no bf16 on this processor")
@pytest.mark.parametrize("method", ["full", "lora", "qlora", "dora"])
def test_packed_weights_answer_to_the_bit_as_those_that_are_not(method):
    net = moved(f"method={method}", "train.precision=bf16").net
    with linear_weights.expanded(net):
        if linear_weights.only_multiplied(net):
            linear_weights.cast(net, torch.bfloat16)
        before = logits(net, torch.bfloat16)
        layers = [
            layer for layer in net.modules() if isinstance(layer, nn.Linear) and layer.weight.dtype is torch.bfloat16
        ]
        assert bool(layers) == (method != "dora")  # which reads its weights for its norms, too
        with linear_weights.packed(net) as state:
            assert state == ({"packed": "on"} if layers else {})
            assert all("forward" in vars(layer) for layer in layers)
            assert torch.equal(logits(net, torch.bfloat16), before)
        assert not any("forward" in vars(layer) for layer in layers)
        assert torch.equal(logits(net, torch.bfloat16), before)


@pytest.mark.skipif(not linear_weights._packs(), reason="oneDNN has no bf16 on this processor")
def test_weights_are_not_packed_where_the_memory_is_short(monkeypatch):
    net = moved("method=full").net
    linear_weights.cast(net, torch.bfloat16)
    monkeypatch.setattr(linear_weights.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**16))
    with linear_weights.packed(net) as state:
        assert state["packed"].startswith("off: ")
    with linear_weights.packed(moved("method=full").net) as state:  # in fp32
        assert state == {}


def test_cast_weights_answer_as_those_that_autocast_casts_and_can_be_had_back():
    net = moved("method=full").net
    before, own = logits(net, torch.bfloat16), dict(net.named_parameters(remove_duplicate=False))
    undo = linear_weights.cast(net, torch.bfloat16)
    assert net.get_output_embeddings().weight.dtype == torch.bfloat16
    assert net.get_input_embeddings().weight.dtype == torch.float32
    assert torch.equal(logits(net, torch.bfloat16), before)
    undo()
    assert all(own[name] is p for name, p in net.named_parameters(remove_duplicate=False))


@pytest.mark.parametrize("wait", [False, True])
def test_weights_of_a_gpu_wait_elsewhere_while_their_copies_compute(monkeypatch, wait):
    """Those of an embedding that is tied to the head stay, as the embedding reads them."""
    net = moved("method=full").net
    net.get_output_embeddings().weight = net.get_input_embeddings().weight
    before, own = logits(net, torch.bfloat16), dict(net.named_parameters(remove_duplicate=False))
    values = {name: p.detach().clone() for name, p in own.items()}
    monkeypatch.setattr(linear_weights, "_on_gpu", lambda weight: wait)
    undo = linear_weights.cast(net, torch.bfloat16)
    assert torch.equal(logits(net, torch.bfloat16), before)
    cast = {name for name, p in values.items() if p.ndim == 2 and "embed" not in name and name != "lm_head.weight"}
    assert cast
    assert {name for name, p in own.items() if p.numel() == 0} == (cast if wait else set())
    with torch.inference_mode():
        undo()
    assert all(torch.equal(p, values[name]) and p is own[name] for name, p in net.named_parameters())
    assert not any(p.is_inference() for p in net.parameters())


def test_weights_that_were_cast_while_scoring_can_be_moved_away_and_back():
    """As vLLM has them moved: `Module.to` another device replaces what a parameter holds."""
    net = moved("method=full").net
    with torch.inference_mode():
        linear_weights.cast(net, torch.bfloat16)
        before = logits(net, torch.bfloat16)
        with torch.inference_mode(False):
            net._apply(torch.clone)
        assert torch.equal(logits(net, torch.bfloat16), before)


@pytest.mark.parametrize(
    ("method", "only"),
    [
        ("full", True),
        ("lora", True),
        ("qlora", True),
        ("dora", False),
        ("qdora", False),
        ("ia3", False),
        ("prompt_tuning", False),
        ("adaption_prompt", False),
    ],
)
def test_weights_that_are_read_for_more_than_products_are_told(method, only):
    assert linear_weights.only_multiplied(moved(f"method={method}").net) is only
