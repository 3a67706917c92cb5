"""AdaLoRA's part of a training step beside gradients: hooks of its optimizer (`optimizers.build`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.optim import Optimizer

KEPT = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # of each weight: sensitivity, its mean, and its uncertainty


def orthogonal(model: PeftModel, _optimizer: Optimizer) -> None:
    """Add the gradient of the regulariser that keeps A's rows and B's columns orthonormal (arXiv:2303.10512, eq. 4).

    peft adds it to the loss that the model returns; here it is added after clipping.
    """
    found = [(name, p) for name, p in _adapters(model) if "lora_E" not in name]
    weight = model.active_peft_config.orth_reg_weight / len(found)
    with torch.enable_grad():
        for name, p in found:
            gram = p @ p.T if "lora_A" in name else p.T @ p
            penalty = weight * torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=p.device, dtype=p.dtype))
            assert p.grad is not None  # the backward pass was before
            p.grad += torch.autograd.grad(penalty, p)[0]


def allocate(model: PeftModel, optimizer: Optimizer) -> None:
    """Measure the importance of each rank-one part of the adapters, and prune those above the budget.

    Measurements are kept in the optimizer's state, so that checkpoints have them. A step at learning rate 0 only
    measures, as it must not change weights.
    """
    tuner: Any = model.base_model  # peft's AdaLoraModel, whose parts torch types as any module's
    first = optimizer.param_groups[0]
    allocator, config, adapters = tuner.rankallocator, model.active_peft_config, dict(_adapters(model))
    for kind in KEPT:
        state = {name: optimizer.state[p] for name, p in adapters.items()}
        setattr(allocator, kind, {name: kept[kind] for name, kept in state.items() if kind in kept})
    first["taken"] = first.get("taken", 0) + 1
    if first["lr"] == 0:
        allocator.update_ipt(tuner.model)
    else:
        config.rank_pattern = first.get("rank_pattern")
        tuner.update_and_allocate(first["taken"])
        first["rank_pattern"] = config.rank_pattern
    for kind in KEPT:
        measured = getattr(allocator, kind)  # empty once the budget is reached
        for name, p in adapters.items():
            optimizer.state[p].pop(kind, None)
            optimizer.state[p] |= {kind: measured[name]} if name in measured else {}
    allocator.reset_ipt()


def _adapters(model: PeftModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by their names in peft's allocator."""
    return ((name, p) for name, p in model.get_base_model().named_parameters() if "lora_" in name and p.requires_grad)
