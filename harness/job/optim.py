"""Builds the optimizer that a method's `optim` slot names, over whatever the method left trainable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.pytorch_utils import Conv1D


def build(
    model: nn.Module, *, optimizer: Callable[[list], Optimizer], matrices: dict[str, Any] | None = None
) -> Optimizer:
    """`optimizer` over the trainable weights of `model`.

    matrices: keys for a parameter group of its own that holds the attention and MLP matrices, as low-rank
        gradient optimizers want it (GaLore's rank, update_proj_gap, scale, proj_type); the rest (embeddings,
        head, norms, biases) stays a plain group.
    """
    trainable = {id(p): p for p in model.parameters() if p.requires_grad}
    if matrices is None:
        return optimizer(list(trainable.values()))
    inside = [p for p in matrices_of(model).values() if id(p) in trainable]
    rest = [p for p in trainable.values() if id(p) not in {id(q) for q in inside}]
    return optimizer([{"params": rest}, {"params": inside, **matrices}])


def matrices_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights by module name of all linear layers but the head, which may share its weight with the embedding."""
    head = model.get_output_embeddings()
    return {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def state(optimizer: Optimizer) -> list[Any]:
    """What the optimizer keeps between steps, objects of its own (GaLore's projectors) opened."""
    kept = [value for state in optimizer.state.values() for value in state.values()]
    return [vars(value) if hasattr(value, "__dict__") and not isinstance(value, Tensor) else value for value in kept]
