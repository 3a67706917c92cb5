"""Steps of many weights at once: the weights of steps one by one, in far fewer operations, and no more memory."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from job_helpers import prepared, run_tiny, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from harness.job.measure.live_memory import LiveBytes
from harness.job.methods import optimizers
from harness.job.training import loop

BF16 = ("model.dtype=bfloat16", "train.max_grad_norm=null", "train.warmup_ratio=0", "train.max_steps=3")
METHODS = ("full", "full_bf16", "full_kahan", "galore", "galore_bf16", "galore_rsvd", "galore_8bit")


def bench_of(method: str, *more: str, grouped: bool):
    bench = prepared(tiny(f"method={method}", *BF16, *more))
    optimizer = getattr(bench.optimizer, "optimizer", bench.optimizer)  # in accelerate's
    if grouped:
        assert optimizers.group_steps(optimizer)
    bench.net.train()
    return bench


def stepped(bench, micro) -> None:
    loop.take_step(bench.net, bench.optimizer, micro, None, bench.accelerator, str)


def weights_of(method: str, grouped: bool, *more: str) -> dict[str, torch.Tensor]:
    bench = bench_of(method, *more, grouped=grouped)
    torch.manual_seed(0)
    for micro in bench.steps:
        stepped(bench, micro)
    return {name: p.detach().clone() for name, p in bench.net.named_parameters()}


@pytest.mark.parametrize("method", METHODS)
def test_the_weights_are_those_of_steps_one_by_one(method):
    """To the bit where weights have masters; stochastic rounding draws in another order, which is a unit or two."""
    alone, together = (weights_of(method, grouped) for grouped in (False, True))
    for name, p in alone.items():
        difference = (together[name].float() - p.float()).abs()
        if method in ("full", "full_kahan"):
            near = 2**-8 * p.float().abs() * (method == "full_kahan")  # moments are rounded stochastically
            assert (difference <= near).mean(dtype=torch.float) == 1, name
        else:
            assert float(difference.norm() / p.float().norm()) < 2**-7, name


@pytest.mark.parametrize("proj_type", ["std", "reverse_std", "right", "left"])
def test_galore_in_fp32_has_the_same_weights(proj_type):
    more = ("model.dtype=float32", f"method.optim.matrices.proj_type={proj_type}", "train.weight_decay=0.1", "lr=1e-3")
    alone, together = (weights_of("galore", grouped, *more) for grouped in (False, True))
    for name, p in alone.items():
        torch.testing.assert_close(together[name], p, rtol=1e-5, atol=1e-6)


class Counted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.names[str(function)] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("method", "times"), [("full_bf16", 4), ("galore", 2), ("galore_bf16", 2)])
def test_they_take_far_fewer_operations(method, times):
    counts = []
    for grouped in (False, True):
        bench = bench_of(method, grouped=grouped)
        stepped(bench, bench.steps[0])
        for p in bench.net.parameters():
            p.grad = torch.ones_like(p, dtype=p.grad_dtype)
        with Counted() as counted:
            bench.optimizer.step()
        counts.append(counted.names.total())
    assert counts[0] > times * counts[1], counts


@pytest.mark.parametrize("method", ["full", "full_bf16", "full_kahan", "galore", "galore_bf16"])
def test_their_peak_is_no_higher(method):
    """The tiny model's largest weight is its embedding; copies of a group are no larger."""
    peaks = []
    for grouped in (False, True):
        bench = bench_of(method, grouped=grouped)
        for micro in bench.steps[:2]:
            stepped(bench, micro)
        for p in bench.net.parameters():
            p.grad = torch.ones_like(p, dtype=p.grad_dtype)
        with LiveBytes(torch.device("cpu")) as live:
            live.see(list(bench.net.parameters()))
            live.see([p.grad for p in bench.net.parameters()])
            live.see(optimizers.state(bench.optimizer))
            bench.optimizer.step()
        peaks.append(live.peak)
    assert peaks[1] <= 1.001 * peaks[0]


@pytest.mark.long
def test_the_record_says_so(tmp_path):
    states = {}
    for method, switch in (("full_bf16", "auto"), ("full_bf16", "off"), ("lora", "auto")):
        short = ("model.dtype=bfloat16", "train.max_steps=1", "eval.tasks=[]", f"speedups={switch}")
        record = run_tiny(tmp_path / f"{method}{switch}", f"method={method}", *short)
        states[method, switch] = record.environment["speedups"].get("grouped_steps")
    assert states == {("full_bf16", "auto"): "on", ("full_bf16", "off"): "off: asked for", ("lora", "auto"): None}
