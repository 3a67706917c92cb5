"""method.adamw: bitsandbytes' AdamW in place of torch's, for every method that steps by it."""

from __future__ import annotations

import pytest
import torch
from job_helpers import prepared, tiny
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from harness import redact
from harness.config import ADAMW, CONF
from harness.errors import UserError
from harness.job import preflight
from harness.job.measure.live_memory import LiveBytes
from harness.job.methods import adamw, optimizers
from harness.job.training import loop
from harness.settings import plain


@pytest.mark.parametrize("method", ["full", "loraplus", "riemannian"])
def test_methods_step_by_torchs_adamw_unless_asked(method):
    before, after = tiny(f"method={method}"), tiny(f"method={method}", "method.adamw=8bit")
    leaves = [[value for _, value in redact.leaves(plain(cell.settings.method))] for cell in (before, after)]
    assert ADAMW["torch"] in leaves[0]
    assert leaves[1] == [ADAMW["8bit"] if value == ADAMW["torch"] else value for value in leaves[0]]
    assert before.id != after.id


def test_every_method_that_steps_by_adamw_alone_gives_the_choice():
    for path in (CONF / "method").glob("*.yaml"):
        assert ("torch.optim.AdamW" in path.read_text(encoding="utf-8")) == (path.stem == "muon"), path.name


@pytest.mark.parametrize("method", ["lora", "loraplus", "riemannian"])
def test_moments_in_eight_bits_learn_and_take_a_quarter(method):
    bench = prepared(tiny(f"method={method}", "method.adamw=8bit", "rank=64", "lr=0.003", "train.max_steps=5"))
    losses = [
        float(loop.take_step(bench.net, bench.optimizer, bench.steps[0], 1.0, bench.accelerator, str)[0])
        for _ in range(5)
    ]
    assert losses[-1] < losses[0] - 0.01
    trained = [p for p in bench.net.parameters() if p.requires_grad]
    assert {p.numel() < 4096 for p in trained} == {True, False}
    for p in trained:
        state = bench.optimizer.state[p]
        assert state["state1"].dtype is state["state2"].dtype is (torch.uint8 if p.numel() >= 4096 else torch.float32)


def test_paged_moments_of_large_weights_are_no_memory_of_the_device():
    kept = {}
    for kind in (adamw.PagedAdamW, adamw.PagedEightBitAdamW, adamw.EightBitAdamW):
        live = LiveBytes(torch.device("cpu"))
        with FakeTensorMode():
            weights = [nn.Parameter(torch.empty(size)) for size in (1000, adamw.LEAST_PAGED)]
            optimizer = kind(weights, lr=0.1, weight_decay=0.0, fused=True)
            for p in weights:
                p.grad = torch.empty_like(p)
            with live:
                optimizer.step()
                optimizer.step()
            live.see(optimizers.state(optimizer), "optimizer")
        kept[kind] = live.now_by_kind.optimizer
    small, scales = 2 * 4 * 1000, 2 * 4 * -(-adamw.LEAST_PAGED // 256) + 2 * 4 * 256
    assert kept[adamw.PagedAdamW] == small
    assert kept[adamw.PagedEightBitAdamW] == small + scales
    assert kept[adamw.EightBitAdamW] == small + scales + 2 * adamw.LEAST_PAGED


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("method.adamw=16bit",), r"^method\.adamw=16bit is unknown\. Did you mean 8bit\? There is: torch, 8bit"),
        (("method=galore", "method.adamw=paged"), r"^method\.adamw=paged requires a method that steps by AdamW"),
        (("method.adamw=paged", "train.save_every=5"), r"^method\.adamw=paged requires train\.save_every=null"),
        (
            ("method=full", "method.adamw=8bit", "train.devices=2", "train.parallel=fsdp"),
            r"adamw\.EightBitAdamW.*sharded",
        ),
    ],
)
def test_impossible_choices_are_refused(overrides, says):
    with pytest.raises(UserError, match=says):
        tiny(*overrides)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("method", [("qlora_paged", "paged"), ("lora", "paged_8bit")])
def test_paged_memory_requires_a_cuda_device(method):
    name, kind = method
    with pytest.raises(UserError, match=rf"^method\.adamw={kind} requires a CUDA device\.$"):
        preflight.check_cell(tiny(f"method={name}", f"method.adamw={kind}"))


@pytest.mark.parametrize("setting", ["method=qlora_paged", "train.activation_offload=true"])
def test_other_machines_are_not_judged_by_this_one(setting):
    preflight.check_cell(tiny("method=lora", setting), elsewhere=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_paged_steps_are_the_same_steps_and_leave_no_memory():
    torch.manual_seed(0)
    start, ends = torch.randn(512, 512, device="cuda"), []
    for kind in (adamw.PagedAdamW, torch.optim.AdamW):
        weight = nn.Parameter(start.clone())
        optimizer = kind([weight], lr=0.01, weight_decay=0.0)
        for _ in range(3):
            weight.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(weight.detach())
        if kind is adamw.PagedAdamW:
            assert optimizer.state[weight]["state1"].is_paged
    assert torch.allclose(*ends, atol=1e-6)
    del optimizer
    assert not adamw.functional.GlobalPageManager.get_instance().paged_tensors
