"""Gradient checkpointing: a decoder layer's activations are recomputed in the backward pass instead of kept.

Chen et al. 2016, arXiv:1604.06174, with a checkpoint at each decoder layer's input, by transformers and torch's
non-reentrant form (``torch.utils.checkpoint``). Losses and gradients are the same. Memory holds every layer's input
and the activations of one layer at a time; a step takes one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn

from harness.job.measure import live_memory
from harness.job.models.structure import inner
from harness.job.training import attention


def enable(model: nn.Module, stored: bool = True) -> Callable[[], None]:
    """Recompute the layers of `model`, which is adapted already, in the backward pass. Returns what undoes it.

    stored: whether tensors have values; without values the state of the random numbers is not kept.
    """
    net = inner(model)
    keywords = {"use_reentrant": False, "context_fn": _contexts, "preserve_rng_state": stored}
    # The name since transformers 5.24, and before.
    getattr(net, "activation_checkpointing_enable", net.gradient_checkpointing_enable)(keywords)
    net.disable_input_require_grads()  # for the reentrant form, which would lose the gradients of the first layer
    return getattr(net, "activation_checkpointing_disable", net.gradient_checkpointing_disable)


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts of a layer's forward pass and of its repetition, which may run in another thread."""
    return nullcontext(), _again(attention.row())


@contextmanager
def _again(row: attention.SequenceRow | None) -> Iterator[None]:
    with attention.over(row), live_memory.recomputation():
        yield
