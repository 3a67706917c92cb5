"""Finds and counts the parts of a model, which may be a peft model."""

from __future__ import annotations

from typing import Any

import peft
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
)


def stacks(net: nn.Module) -> dict[str, nn.Parameter]:
    """Weights by name that stack the matrices of a mixture's experts: (experts, rows, columns), in no linear layer."""
    return {
        f"{name}.{own}": weight
        for name, module in net.named_modules()
        if not isinstance(module, _ConvNd)
        for own, weight in module.named_parameters(recurse=False)
        if weight.ndim == 3 and min(weight.shape) > 1
    }


def decoder_layers(model: nn.Module, config: PretrainedConfig) -> nn.ModuleList | None:
    """The list of decoder layers, as long as `config` says; None if the model has no such list."""
    depth = getattr(config.get_text_config(), "num_hidden_layers", None)
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return next((layers for layers in lists if len(layers) == depth), None)


def prompted(net: nn.Module) -> bool:
    """Whether `net` prepends virtual tokens to each sequence (prompt learning)."""
    return isinstance(net, peft.PeftModel) and net.active_peft_config.is_prompt_learning


def inner(net: nn.Module) -> PreTrainedModel:
    """The transformers model in `net`, which may be a peft model, and wrapped by DDP."""
    if isinstance(net, DistributedDataParallel):
        net = net.module
    model: Any = net.get_base_model() if isinstance(net, peft.PeftModel) else net  # no other is loaded or adapted
    return model


def count(net: nn.Module, trainable: bool = False) -> int:
    """Number of weights of `net`. A packed 4-bit matrix counts two a byte, in whatever dtype it is stored."""
    return sum(
        p.numel() * (2 * p.itemsize if type(p).__name__ == "Params4bit" else 1)
        for p in net.parameters()
        if p.requires_grad or not trainable
    )


def describe(net: nn.Module) -> dict[str, Any]:
    """For the record's environment. dtypes: bytes of the parameters by dtype (NF4 counts as uint8)."""
    dtypes: dict[str, int] = {}
    for parameter in net.parameters():
        packed = type(parameter).__name__ == "Params4bit"
        name = "uint8" if packed else str(parameter.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + parameter.nbytes
    return {"dtypes": dtypes}
