"""Liger's fused linear cross-entropy, on CUDA where it is installed: the logits of a batch are never all in memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.job.model import inner

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # weight, hidden, targets, bias -> summed loss
NEAR = 0.02  # relative difference of the losses by kernel and by logits, in bf16


def enable(model: nn.Module) -> str:
    """Have `kernel_of` give Liger's kernel for `model`; "on", or "off: " and why not."""
    if not torch.cuda.is_available():
        return "off: no CUDA device"
    if importlib.util.find_spec("liger_kernel") is None:
        return "off: liger-kernel is not installed"
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return attach(model, LigerFusedLinearCrossEntropyLoss(ignore_index=-100, reduction="sum"))


def attach(model: nn.Module, kernel: Kernel) -> str:
    """Take `kernel` for the head of `model`, if the loss is nothing but cross-entropy of that head's products."""
    head = _head(model)
    if type(head) is not nn.Linear:
        return f"off: the head is a {type(head).__name__}"
    ids = torch.arange(1, 17, device=head.weight.device)[None]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        with headless(model):
            hidden = model(input_ids=ids, use_cache=False).logits[0, :-1]
        plain = float(cross_entropy(logits, ids[0, 1:], reduction="sum"))
        fused = float(kernel(head.weight, hidden.to(head.weight.dtype), ids[0, 1:], head.bias))
    if abs(fused - plain) > NEAR * plain:
        return "off: the model changes its logits after the head"
    head.fused_loss = kernel
    return "on"


def kernel_of(model: nn.Module) -> Kernel | None:
    return getattr(_head(model), "fused_loss", None)


def summed(model: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats summed over `targets` (rows, k), from the head's inputs (rows, k, hidden size)."""
    head = _head(model)
    return head.fused_loss(head.weight, hidden.flatten(0, 1).to(head.weight.dtype), targets.flatten(), head.bias)


@contextmanager
def headless(model: nn.Module) -> Iterator[None]:
    """A context in which what `model` returns as logits are the inputs of its head."""
    head = _head(model)
    head.forward = lambda hidden: hidden
    try:
        yield
    finally:
        del head.forward


def _head(model: nn.Module) -> nn.Module:
    return inner(model).get_output_embeddings()
