"""A micro-batch is begun without waiting for a GPU: no operation reads values of tensors on the host.

What passes between host and GPU is seen on a GPU that is not there: tests/job/predict/test_fake_cuda.py.
"""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from job_helpers import prepared, tiny
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.job.models import structure
from harness.job.training import attention, gradient_checkpointing, loop

METHODS = ("dora", "full", "galore", "lora", "qlora")
BY_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Reads(TorchDispatchMode):
    """Names operations whose result, or its shape, is known to the host only once values are."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indexed = func is torch.ops.aten.index.Tensor  # by numbers the shape is known, by a mask it is not
        if BY_VALUES & set(func.tags) and (not indexed or _masks(args[1])):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def _masks(indices) -> bool:
    return any(index.dtype is torch.bool for index in tree_leaves(indices) if isinstance(index, torch.Tensor))


@pytest.fixture(scope="module", params=METHODS)
def bench(request) -> SimpleNamespace:
    bench = prepared(tiny(f"method={request.param}", "train.max_steps=1"))
    with torch.no_grad():  # else B A is zero, and so is the gradient of A
        for name, p in bench.net.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    return bench


def passes(bench: SimpleNamespace) -> tuple[torch.Tensor, ...]:
    """The loss of a micro-batch, its gradients, and the loss of a batch in validation."""
    bench.net.train()
    torch.manual_seed(0)  # of dropout
    bench.net.zero_grad()
    loss = loop.ANSWERS.summed(bench.net, bench.steps[0][0])
    loss.backward()
    gradients = [p.grad for p in bench.net.parameters() if p.grad is not None]
    bench.net.eval()
    with torch.no_grad():
        return loss.detach(), *gradients, loop.ANSWERS.summed(bench.net, bench.held_out[0])


@contextmanager
def recomputed(net: torch.nn.Module):
    undo = gradient_checkpointing.enable(net)
    try:
        yield
    finally:
        undo()


def test_no_micro_batch_reads_a_value(bench):
    with Reads() as reads:
        passes(bench)
    assert reads.names == []
    with Reads() as reads, recomputed(bench.net):
        passes(bench)
    assert reads.names == []


def test_nothing_changes_by_the_mask_that_spares_the_reading(bench, monkeypatch):
    spared, plain = passes(bench), attention.end_to_end

    @contextmanager
    def unsaid(*arguments):
        with plain(*arguments):
            yield False

    monkeypatch.setattr(attention, "end_to_end", unsaid)
    with Reads() as reads:
        searched = passes(bench)
    assert reads.names, "transformers reads nothing any more: then no mask is needed"
    assert len(spared) == len(searched) > 2
    assert all(torch.equal(one, other) for one, other in zip(spared, searched, strict=True))


def test_a_model_with_another_attention_is_given_no_mask():
    """Then transformers keeps sequences apart by the mask that it makes of their positions."""
    bench = prepared(tiny("method=lora", "train.max_steps=1"))
    bench.net.eval()
    assert len(bench.held_out[0].lengths) > 1
    with torch.no_grad():
        ours = loop.answer_logits(bench.net, bench.held_out[0])
        structure.inner(bench.net).set_attn_implementation("sdpa")
        theirs = loop.answer_logits(bench.net, bench.held_out[0])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
