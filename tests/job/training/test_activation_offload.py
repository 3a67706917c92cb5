"""Activations in the host's memory: the same gradients to the bit, each storage moved once, weights never.

Here the host's memory is also the device's: what is moved is a copy all the same.
"""

from __future__ import annotations

import pytest
import torch
from job_helpers import prepared, tiny

from harness.errors import UserError
from harness.job import preflight
from harness.job.measure import device
from harness.job.measure.live_memory import LiveBytes
from harness.job.predict import prediction
from harness.job.training import activation_offload, loop

OFFLOAD = "train.activation_offload=true"


@pytest.fixture
def moved(monkeypatch):
    """The storages that were moved: whose they were, and their copies."""
    seen = []
    pack = activation_offload._ForwardPass.pack

    def packed(self, tensor):
        found = pack(self, tensor)
        if isinstance(found, activation_offload._Saved):
            seen.append((tensor.untyped_storage(), tensor._version, found.storage))
        return found

    monkeypatch.setattr(activation_offload._ForwardPass, "pack", packed)
    return seen


def gradients(bench) -> list[torch.Tensor]:
    bench.net.zero_grad()
    loop.summed_loss(bench.net, bench.steps[0][0]).backward()
    return [p.grad.clone() for p in bench.net.parameters() if p.requires_grad]


@pytest.mark.parametrize("settings", [("method=full",), ("method=lora", "speedups=off"), ("method=dora",)])
def test_gradients_are_the_same_to_the_bit(settings, moved):
    bench = prepared(tiny(*settings, "train.batch_size=3"))
    expected = gradients(bench)
    disable = activation_offload.enable(bench.net, least=0)
    found = gradients(bench)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    storages = {(storage._cdata, version): copy for storage, version, copy in moved}
    assert len(moved) > len(storages) > 10  # several tensors lie in one
    assert all(copy is storages[storage._cdata, version] for storage, version, copy in moved)
    assert not {storage._cdata for storage, *_ in moved} & {p.untyped_storage()._cdata for p in bench.net.parameters()}
    moved.clear()
    disable()
    gradients(bench)
    assert not moved


def test_small_activations_stay_on_the_device(moved):
    bench = prepared(tiny("method=full", "train.batch_size=3"))
    activation_offload.enable(bench.net, least=40_000)
    gradients(bench)
    assert {storage.nbytes() >= 40_000 for storage, *_ in moved} == {True}
    moved.clear()
    with torch.no_grad():
        loop.summed_loss(bench.net, bench.steps[0][0])
    assert not moved


def test_inputs_of_recomputed_layers_are_moved(moved):
    bench = prepared(tiny("method=full", "train.batch_size=3", "speedups=off"))
    activation_offload.enable(bench.net, least=0)
    gradients(bench)
    all_of_them, expected = len({id(copy) for *_, copy in moved}), gradients(bench)
    moved.clear()
    bench.net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    bench.net.train()
    found = gradients(bench)
    assert len({id(copy) for *_, copy in moved}) < all_of_them / 2
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


def test_the_device_holds_less_between_forward_and_backward():
    bench = prepared(tiny("method=full", "train.batch_size=3"))
    held = []
    for on in (False, True):
        if on:
            activation_offload.enable(bench.net, host=torch.device("meta"), least=0)  # whose tensors have no storage
        with LiveBytes(torch.device("cpu")) as live:
            live.see(list(bench.net.parameters()), "weights")
            loss = loop.summed_loss(bench.net, bench.steps[0][0])
            held.append(live.now_by_kind.activations)
        del loss
    assert held[1] < held[0] / 4


@pytest.mark.long
def test_a_plan_counts_what_stays_on_the_device(monkeypatch):
    monkeypatch.setattr(activation_offload, "LEAST", 0)
    cell = tiny("method=lora", "train.batch_size=4")
    moving = tiny("method=lora", "train.batch_size=4", OFFLOAD)
    planner = prediction.Predictor(None, "fp32")  # one, which remembers
    peaks = [planner.predict(each, None)["peak"]["activations"] for each in (cell, moving)]
    assert peaks[1] < 0.7 * peaks[0]


def test_offloading_is_part_of_a_cell_and_refused_without_a_gpu(cell, monkeypatch):
    assert cell("method=lora").id == cell("method=lora", "train.activation_offload=false").id
    asked = tiny("method=lora", OFFLOAD)
    assert asked.id != tiny("method=lora").id
    monkeypatch.setattr(device, "here", lambda: torch.device("cpu"))
    with pytest.raises(UserError, match=r"train\.activation_offload=true requires a CUDA device"):
        preflight.check([asked], None)
    with pytest.raises(UserError, match=r"can't be combined with train\.parallel=fsdp: weights that are gathered"):
        cell("method=lora", "train.devices=2", "train.parallel=fsdp", OFFLOAD)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_copies_are_pinned(moved, own_precision):
    bench = prepared(tiny("method=full", "train.batch_size=3"))
    bench.steps[0][0] = bench.steps[0][0].to(bench.accelerator.device)
    expected = gradients(bench)
    activation_offload.enable(bench.net, least=0)
    found = gradients(bench)
    assert all(copy.host.is_pinned() for *_, copy in moved)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(found, expected, strict=True))
