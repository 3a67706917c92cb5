"""Gradient checkpointing: a decoder layer's activations are computed again in the backward pass instead of kept.

Chen et al. 2016, arXiv:1604.06174, with a checkpoint at each decoder layer's input, by transformers and torch's
non-reentrant form (``torch.utils.checkpoint``). Losses and gradients are the same. Of activations one layer's are held
at a time, beside every layer's input; a step takes another forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import nn

from harness.job.measure import live_memory
from harness.job.models.structure import inner
from harness.job.training import attention


def enable(model: nn.Module, stored: bool = True) -> Callable[[], None]:
    """Compute the layers of `model`, which is adapted already, again in the backward pass, while it trains; returns
    what ends that: what is made of the model next, such as a merged one, is to know nothing of it.

    stored: whether its tensors have values; else no random numbers are kept to be drawn again.
    """
    net = inner(model)
    keywords = {"use_reentrant": False, "context_fn": _contexts, "preserve_rng_state": stored}
    # The name since transformers 5.24, and before.
    getattr(net, "activation_checkpointing_enable", net.gradient_checkpointing_enable)(keywords)
    net.disable_input_require_grads()  # for the reentrant form, which would lose the gradients of the first layer
    return getattr(net, "activation_checkpointing_disable", net.gradient_checkpointing_disable)


def _contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
    """For a layer's forward pass, and for doing it again, which may be in another thread."""
    return nullcontext(), _again(attention.row())


@contextmanager
def _again(row: attention.Row | None) -> Iterator[None]:
    with attention.over(row), live_memory.recomputation():
        yield
