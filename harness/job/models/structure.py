"""Finds and counts the parts of a model, which may be a peft model."""

from __future__ import annotations

from typing import Any

import peft
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DistributedDataParallel
from transformers import PretrainedConfig, PreTrainedModel

from harness.job.measure.live_memory import parts_of

# Kinds of layers, as configs of transformers name them, that keep a state of fixed size instead of keys and values.
RECURRENT = frozenset(("linear_attention", "mamba", "conv", "hybrid", "hybrid_sliding"))


def stacks(net: nn.Module) -> dict[str, nn.Parameter]:
    """Weights by name that stack the matrices of a mixture's experts: (experts, rows, columns), in no linear layer."""
    return {
        f"{name}.{own}": weight
        for name, module in net.named_modules()
        if not isinstance(module, _ConvNd)
        for own, weight in module.named_parameters(recurse=False)
        if weight.ndim == 3 and min(weight.shape) > 1
    }


def mamba_blocks(net: nn.Module) -> set[str]:
    """Names of the modules that are Mamba's or Mamba 2's: a state's decay and a skip beside it.

    Their kernels read the weights of the layers after the first, and don't call these.
    """
    own = ((name, dict(module.named_parameters(recurse=False))) for name, module in net.named_modules())
    return {name for name, weights in own if {"A_log", "D"} <= weights.keys()}


def language_model(net: PreTrainedModel) -> nn.Module:
    """The part of `net` that reads text: all of it, unless `net` also sees or hears. The head may lie beside it."""
    return net if net.config.get_text_config() is net.config else net.get_decoder()


def senses(net: PreTrainedModel) -> dict[str, nn.Module]:
    """The layers of `net` by name that text does not pass through, such as those of a vision tower."""
    language, head = language_model(net), net.get_output_embeddings()
    if language is net:
        return {}
    text = {id(module) for part in (language, head) if part is not None for module in part.modules()}
    own = ((name, module) for name, module in net.named_modules() if id(module) not in text)
    return {name: module for name, module in own if next(module.parameters(recurse=False), None) is not None}


def freeze_senses(net: PreTrainedModel) -> None:
    """Freeze what text does not pass through: it would get no gradients, and count as trained."""
    for module in senses(net).values():
        for weight in module.parameters(recurse=False):
            weight.requires_grad_(False)


def decoder_layers(model: nn.Module, config: PretrainedConfig) -> nn.ModuleList | None:
    """The list of decoder layers, as long as `config` says; None if the model has no such list."""
    depth = getattr(config.get_text_config(), "num_hidden_layers", None)
    lists = (module for module in language_model(inner(model)).modules() if isinstance(module, nn.ModuleList))
    return next((layers for layers in lists if len(layers) == depth), None)


def prompted(net: nn.Module) -> bool:
    """Whether `net` prepends virtual tokens to each sequence (prompt learning)."""
    return isinstance(net, peft.PeftModel) and net.active_peft_config.is_prompt_learning


def mixes_tokens(net: nn.Module) -> bool:
    """Whether adapters of `net` are mixed by a mean over all tokens of a batch, as Lily's are."""
    return isinstance(net, peft.PeftModel) and net.active_peft_config.peft_type == peft.PeftType.LILY


def recurrent(net: nn.Module) -> bool:
    """Whether layers of `net` keep a state of all that they read, as Mamba's do.

    Models say so themselves until transformers 5.25, since which their configs name the kinds of all layers.
    """
    model = inner(net)
    kinds = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()
    return getattr(model, "_is_stateful", False) or not RECURRENT.isdisjoint(kinds)


def inner(net: nn.Module) -> PreTrainedModel:
    """The transformers model in `net`, which may be a peft model, and wrapped by DDP."""
    if isinstance(net, DistributedDataParallel):
        net = net.module
    model: Any = net.get_base_model() if isinstance(net, peft.PeftModel) else net  # no other is loaded or adapted
    return model


def is_packed(weight: nn.Parameter) -> bool:
    """Whether `weight` is in 4 bits, two a byte: a matrix, or a stack of experts."""
    return type(weight).__name__ == "Params4bit" or weight.dtype is torch.uint8


def count(net: nn.Module, trainable: bool = False) -> int:
    """Number of weights of `net`. A packed 4-bit matrix counts two a byte, in whatever dtype it is stored."""
    return sum(size(p) for p in net.parameters() if p.requires_grad or not trainable)


def size(weight: nn.Parameter) -> int:
    """Number of values of `weight`, which may be packed."""
    return weight.numel() * (2 * weight.itemsize if is_packed(weight) else 1)


def describe(net: nn.Module) -> dict[str, Any]:
    """For the record's environment. dtypes: bytes of the parameters by dtype (NF4 counts as uint8; torchao's matrices
    with their scales)."""
    dtypes: dict[str, int] = {}
    for parameter in net.parameters():
        for part in parts_of(parameter):
            name = "uint8" if is_packed(parameter) else str(part.dtype).removeprefix("torch.")
            dtypes[name] = dtypes.get(name, 0) + part.nbytes
    return {"dtypes": dtypes}
