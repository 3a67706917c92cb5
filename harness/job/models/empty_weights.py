"""Builds a cell's model without storage, on the device "meta", to check it and to predict its memory."""

from __future__ import annotations

import copy
from contextlib import suppress

import torch
from hydra.errors import InstantiationException
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PretrainedConfig, TorchAoConfig
from transformers.quantizers import AutoHfQuantizer

from harness.errors import UserError, first_line
from harness.job.methods import optimizers
from harness.job.models import weight_only
from harness.job.models.adapting import adapt
from harness.job.models.loading import auto_class, cap_logits, load_slot, upcast
from harness.job.models.quantisation import check_packed, leave_for_kernels, pack, pack_experts, packed_experts
from harness.job.models.structure import count, decoder_layers, stacks
from harness.record import Cell


class NeedsValues(Exception):
    """A method reads the values of weights, so it can't be applied to a model without storage."""


def alike(config: PretrainedConfig, trusted: bool = False) -> bool:
    """Whether all decoder layers have the same kind and shapes, so that a few represent all."""
    kind = auto_class(config)
    with torch.device("meta"):
        layers = decoder_layers(kind.from_config(config, trust_remote_code=trusted), config)
    if layers is None:
        return False
    shapes = {tuple((name, p.shape) for name, p in layer.named_parameters()) for layer in layers}
    return len(shapes) == 1 and len(set(getattr(config.get_text_config(), "layer_types", None) or [])) <= 1


def with_depth(config: PretrainedConfig, depth: int) -> PretrainedConfig:
    """`config` with `depth` decoder layers of one kind."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = depth
    if vars(text).get("layer_types"):  # in some configs a property, which follows
        text.layer_types = text.layer_types[:1] * depth
    return config


def outline(cell: Cell, config: PretrainedConfig, depth: int, few: bool | None = None) -> nn.Module:
    """As `shell`, with `depth` layers, unless the layers differ or the method needs more.

    few: whether the layers are `alike` (null: it is looked up).
    """
    if alike(config, cell.settings.model.trust_remote_code) if few is None else few:
        with suppress(UserError):
            return shell(cell, with_depth(config, depth))[0]
    return shell(cell, config)[0]


def shell(cell: Cell, config: PretrainedConfig) -> tuple[nn.Module, set[str]]:
    """The cell's model on the device "meta", quantised and adapted, and the names of its adapters' parameters.

    Raises UserError if the method can't be applied or the rank is above the size of a matrix, and NeedsValues.
    """
    path = cell.settings.model.path
    slot, kind = load_slot(cell), auto_class(config)
    dtype = getattr(torch, slot["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise UserError(f"method.load.dtype must be a dtype of torch, such as bfloat16, got {slot['dtype']}.")
    keywords = {key: slot[key] for key in ("attn_implementation",) if key in slot}
    keywords |= {"trust_remote_code": cell.settings.model.trust_remote_code}
    try:
        with torch.device("meta"):
            base = kind.from_config(config, dtype=dtype, **keywords)
            cap_logits(base)
            if (quantization := slot.get("quantization_config")) is not None:
                leave_for_kernels(quantization, base)
                quantizer = AutoHfQuantizer.from_config(quantization)
                quantizer.preprocess_model(base, dtype=dtype, device_map={"": "meta"})
                quantizer.postprocess_model(base)
                pack(base, dtype)
                if isinstance(quantization, TorchAoConfig):
                    weight_only.pack(base, quantizer, quantization)
                pack_experts(base, quantization)
                check_packed(base)
            if cell.settings.model.upcast:
                upcast(base)
            _check_experts(base, cell)
            own = {id(p) for p in base.parameters()}
            net = adapt(base, cell)
    except (ValueError, InstantiationException) as error:  # peft knows no such targets, or no such keyword
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        raise UserError(f"method={cell.method} can't be applied to {path}: {first_line(cause or error)}.") from error
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error).lower():
            raise
        raise NeedsValues from error
    _check_rank(net, cell)
    return net, {name for name, p in net.named_parameters() if id(p) not in own}


def _check_experts(base: nn.Module, cell: Cell) -> None:
    """Raise ValueError if the method would leave out the experts of a mixture: most of its weights."""
    slots, unpacked = cell.settings.method, sum(weight.numel() for weight in stacks(base).values())
    if unpacked and slots.load.get("quantization_config"):
        share = unpacked / count(base)
        raise ValueError(
            f"bitsandbytes packs the experts in stacks, {share:.0%} of its weights, in 4 bits alone; use method=qlora, "
            "or method=base_nf4 for the untuned model"
        )
    low_rank = unpacked and (slots.optim or {}).get("matrices")
    if cell.settings.train.sharded and (low_rank or packed_experts(base)):
        raise ValueError("experts in stacks are sharded as plain weights alone; use method=lora or method=full")


def _check_rank(net: nn.Module, cell: Cell) -> None:
    if cell.rank is None:
        return
    path = cell.settings.model.path
    shapes = _ranked(net, cell)
    if not shapes:
        raise UserError(f"method={cell.method} applies to no matrix of {path}; check its target_modules.")
    name, shape = min(shapes.items(), key=lambda item: min(item[1]))
    if cell.rank > min(shape):
        raise UserError(
            f"rank must be at most {min(shape)}, the size of {name} ({shape[0]} × {shape[1]}) in {path}, got "
            f"rank={cell.rank}."
        )


def _ranked(model: nn.Module, cell: Cell) -> dict[str, tuple[int, ...]]:
    """Shapes by name of the matrices that the cell's rank applies to: the adapted ones, or those GaLore projects."""
    if cell.settings.method.adapt is None:
        return {name: tuple(weight.shape[-2:]) for name, weight in optimizers.projected_of(model).items()}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    weights = {name: _weight(layer) for name, layer in layers.items()}
    return {
        name: tuple(weight.quant_state.shape if hasattr(weight, "quant_state") else weight.shape)[-2:]
        for name, weight in weights.items()
        if weight is not None
    }


def _weight(layer: BaseTunerLayer) -> nn.Parameter | None:
    """The weight that an adapter belongs to: a matrix, or a stack of matrices."""
    return layer.get_param() if isinstance(layer, ParamWrapper) else getattr(layer.get_base_layer(), "weight", None)
