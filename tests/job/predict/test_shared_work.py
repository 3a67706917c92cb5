"""What predictions do once for many operations, probes and cells, and that no figure changes by it."""

from __future__ import annotations

import pickle

import pytest
import torch
from job_helpers import composed, tiny
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.job.models import empty_weights, loading
from harness.job.predict import fake_probe, prediction, workers
from harness.job.predict.fake_tensors import FakeTensors
from harness.job.training import loss

ROOM = 2**40
SHAPE = ("train.batch_size=2", "train.max_steps=2", "train.max_length=64")


def operands() -> list[torch.Tensor]:
    """Matrices that differ in one thing alone."""
    half = torch.empty(4, 4, dtype=torch.bfloat16)
    column_first, behind = torch.empty(4, 4).t(), torch.empty(20)[4:].view(4, 4)
    return [torch.empty(4, 4), half, column_first, behind, torch.empty(4, 4, device="meta"), torch.empty(4, 3)]


@pytest.mark.parametrize("mode", [FakeTensorMode, FakeTensors])
def test_tensors_that_differ_are_told_apart(mode):
    with mode():
        for _ in range(2):  # the second time by what was kept
            for tensor in operands():
                out = tensor + 1
                assert (out.dtype, out.shape, out.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
                assert out.device == tensor.device
                assert tensor.t().storage_offset() == tensor.storage_offset()
                assert torch.sum(tensor, dim=1).shape != torch.sum(tensor, dim=0, keepdim=True).shape
                assert torch.cat([tensor, tensor], dim=1).shape[1] == 2 * tensor.shape[1]
            assert (torch.ones(2, dtype=torch.int64) * 2).dtype is torch.int64
            assert (torch.ones(2, dtype=torch.int64) * 2.0).dtype is torch.float32


def test_an_operation_is_looked_up_the_second_time():
    FakeTensorMode.cache_clear()
    with FakeTensors():
        for _ in range(3):
            torch.empty(5, 7) @ torch.empty(7, 3)
    assert FakeTensorMode.cache_info().hits == 6
    assert not FakeTensorMode.cache_info().bypasses


@pytest.mark.long
@pytest.mark.parametrize("kernels", ["cuda", pytest.param("cpu", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "method",
    [
        "qlora",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("full", "dora", "galore", "lora_8bit", "base")),
    ],
)
def test_figures_are_those_of_torchs_mode_and_of_a_try_in_each_probe(monkeypatch, method, kernels):
    cell = tiny(f"method={method}", "rank=4", *SHAPE)
    figures = prediction.Predictor(None, "bf16", kernels).predict(cell, None, ROOM)
    monkeypatch.setattr(fake_probe, "FakeTensors", FakeTensorMode)
    enable = loss.enable
    monkeypatch.setattr(loss, "enable", lambda net, kernels, by_token, fused: enable(net, kernels, by_token))
    assert prediction.Predictor(None, "bf16", kernels).predict(cell, None, ROOM) == figures


@pytest.mark.long
def test_whether_a_model_changes_its_logits_is_tried_once(monkeypatch):
    tries, changes = [], loss._changes_logits
    monkeypatch.setattr(loss, "_changes_logits", lambda *model: tries.append(model) or changes(*model))
    predictor = prediction.Predictor(None, "fp32")
    for rate in ("1e-3", "1e-4"):
        for size in (1, 2):
            predictor.predict(tiny("method=lora", f"lr={rate}", f"train.batch_size={size}"), None, ROOM)
    assert len(tries) == 1
    predictor.predict(tiny("method=full"), None)
    assert len(tries) == 2


@pytest.mark.long
def test_where_a_model_changes_its_logits_each_probe_leaves_them(monkeypatch):
    states, enable = [], loss.enable
    monkeypatch.setattr(loss, "enable", lambda *asked: states.append(enable(*asked)) or states[-1])
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 64, "layer_types": ["full_attention"] * 3}
    dimensions = {"model_type": "gemma3_text", "final_logit_softcapping": 0.5, **sizes}
    prediction.Predictor(None, "fp32").predict(composed("model=llama_3_2_1b", "method=lora", *SHAPE), dimensions, ROOM)
    assert len(states) == 4  # two depths, two batches
    assert {state.partition(":")[0] for state in states} == {"off"}


def test_layers_are_compared_once_for_a_model(monkeypatch):
    asked, alike = [], empty_weights.alike
    monkeypatch.setattr(empty_weights, "alike", lambda *model: asked.append(model) or alike(*model))
    predictor = prediction.Predictor(None, "fp32")
    for method in ("lora", "full"):
        predictor.predict(tiny(f"method={method}"), loading.config_of(tiny("method=lora").settings.model).to_dict())
    assert len(asked) == 1


def test_a_process_keeps_what_its_cells_share():
    pickled = pickle.dumps(prediction.Predictor(None, "fp32"))
    assert workers._unpickled(pickled) is workers._unpickled(bytes(pickled))
