"""Quantised weights: what a `load` slot asks for, and their form in a model without storage."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from bitsandbytes.functional import QuantState, name2qmap
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from bitsandbytes.nn.parametrize import Bnb4bitParametrization, replace_parameter_4bit
from torch import nn
from torch.nn.utils import parametrize
from transformers import BitsAndBytesConfig, TorchAoConfig
from transformers.quantizers.base import get_keys_to_not_convert

from harness.job.measure import device
from harness.job.models.structure import mamba_blocks, stacks
from harness.job.models.weight_only import is_torchao


def nf4(compute_dtype: str, double_quant: bool = True) -> BitsAndBytesConfig:
    """NF4 (QLoRA, Dettmers et al. 2023, section 3), its products computed in `compute_dtype`: auto, bf16 or fp32."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=device.compute_dtype(compute_dtype),
    )


def int8() -> BitsAndBytesConfig:
    """LLM.int8() (Dettmers et al. 2022, section 3): rows in 8 bits, columns of features above 6 in 16.

    On a CPU bitsandbytes quantises a layer's inputs only in inference; training computes with dequantised weights.
    """
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # it warns of rounding at every call
    return BitsAndBytesConfig(load_in_8bit=True)


def leave_for_kernels(config: BitsAndBytesConfig | TorchAoConfig, net: nn.Module) -> None:
    """Have `config` leave the last layer of each Mamba block of `net` in 16 bits: kernels read its weights."""
    if blocks := mamba_blocks(net):
        left = [*get_keys_to_not_convert(net), *(f"{name}.out_proj" for name in sorted(blocks))]
        if isinstance(config, TorchAoConfig):
            config.modules_to_not_convert = left
        else:
            config.llm_int8_skip_modules = left


def pack_experts(net: nn.Module, config: BitsAndBytesConfig | TorchAoConfig) -> None:
    """Pack the stacks of experts of `net` in 4 bits as `config` has it, which transformers leaves in 16 bits.

    Each stack is dequantised when its block computes. In 8 bits there is no form of it.
    """
    if isinstance(config, TorchAoConfig) or not config.load_in_4bit:
        return
    for name in stacks(net):
        owner, _, own = name.rpartition(".")
        with torch.device("cpu"):  # bitsandbytes reads values of its tables, also where the weights are on "meta"
            replace_parameter_4bit(
                net.get_submodule(owner),
                own,
                compress_statistics=config.bnb_4bit_use_double_quant,
                quant_type=config.bnb_4bit_quant_type,
            )
    for key in [key for key, table in name2qmap.items() if table.is_meta]:
        del name2qmap[key]  # a table that bitsandbytes keeps for the process, without the values that others need


def packed_experts(net: nn.Module) -> dict[str, nn.Parameter]:
    """The stacks that `pack_experts` has packed, by the names that they had."""
    return {
        f"{name}.{own}": parts.original
        for name, module in net.named_modules()
        if parametrize.is_parametrized(module)
        for own, parts in module.parametrizations.items()
        if any(isinstance(part, Bnb4bitParametrization) for part in parts)
    }


def unpack_experts(net: nn.Module) -> None:
    """Dequantise the stacks of experts of `net`, one after another."""
    for path in packed_experts(net):
        owner, _, own = path.rpartition(".")
        module = net.get_submodule(owner)
        values = getattr(module, own)
        parametrize.remove_parametrizations(module, own, leave_parametrized=False)
        setattr(module, own, nn.Parameter(values, requires_grad=False))


class PackedMatrix(Protocol):
    """A matrix in 4 bits: bitsandbytes' Params4bit, whose attributes its types lack, or one without storage."""

    quant_state: QuantState
    blocksize: int
    compress_statistics: bool
    quant_type: str
    quant_storage: torch.dtype


def packed_matrix(layer: Linear4bit) -> PackedMatrix:
    """The weight of `layer`, which bitsandbytes types as any tensor."""
    weight: Any = layer.weight
    return weight


def pack(net: nn.Module, dtype: torch.dtype) -> None:
    """Give each matrix on "meta" that is to be quantised the shape and scales that quantising `dtype` would give.

    In 8 bits no feature counts as an outlier: their number depends on values.
    """
    for module in net.modules():
        if isinstance(module, Linear8bitLt):
            shape = (module.out_features, module.in_features)
            module.weight = Int8Params(torch.empty(shape, dtype=torch.int8, device="meta"), requires_grad=False)
            module.state.CB, module.state.SCB = module.weight, torch.empty(shape[0], device="meta")
            module.state.threshold = 0.0
        if isinstance(module, Linear4bit):
            _pack_matrix(module, dtype)
    never_repack(net)


def _pack_matrix(module: Linear4bit, dtype: torch.dtype) -> None:
    weight, shape = packed_matrix(module), torch.Size((module.out_features, module.in_features))
    scales = -(-shape.numel() // weight.blocksize)

    def empty(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    state = {"shape": shape, "dtype": dtype, "blocksize": weight.blocksize, "code": empty(16)}
    if weight.compress_statistics:  # double quantisation: QLoRA, section 3
        nested = QuantState(empty(-(-scales // 256)), code=empty(256), blocksize=256, dtype=torch.float32)
        state |= {"absmax": empty(scales, dtype=torch.uint8), "offset": empty(), "state2": nested}
    else:
        state |= {"absmax": empty(scales)}
    size = (shape.numel() + 1) // 2 // weight.quant_storage.itemsize
    module.quant_state = QuantState(quant_type=weight.quant_type, **state)
    module.weight = Params4bit(
        empty(size, 1, dtype=weight.quant_storage),
        requires_grad=False,
        quant_state=module.quant_state,
        blocksize=weight.blocksize,
        compress_statistics=weight.compress_statistics,
        quant_type=weight.quant_type,
        quant_storage=weight.quant_storage,
        bnb_quantized=True,
        module=module,
    )


def quant_states(of: torch.Tensor | nn.Module) -> Iterator[QuantState]:
    """The quantisation state of a 4-bit parameter or layer, and with double quantisation the state of that.

    Of a sharded parameter only the layer has it.
    """
    state = getattr(of, "quant_state", None)
    while state is not None:
        yield state
        state = getattr(state, "state2", None)


def check_packed(net: nn.Module) -> None:
    """Raise ValueError if `net`, on "meta", has no packed matrix, or multiplies with one without the layer that
    dequantises it."""
    packed = (isinstance(module, Linear4bit | Linear8bitLt) for module in net.modules())
    if not any(packed) and not any(is_torchao(weight) for weight in net.parameters()):
        raise ValueError(
            "no layer of it would be quantised, as transformers quantises layers of torch's own class Linear alone; "
            "use a method that does not quantise them"
        )
    try:
        with torch.no_grad():
            net(input_ids=torch.ones(1, 2, dtype=torch.long))
    except Exception as error:  # other errors may come from missing values; the job itself will show
        if any(name in str(error) for name in ("uint8", "unsigned char", "Byte", "int8", "signed char", "Char")):
            raise ValueError(
                "the model multiplies with weights of linear layers directly, which does not work in 4 or 8 bits; use "
                "a method that does not quantise them."
            ) from error


def never_repack(net: nn.Module) -> None:
    """Stop bitsandbytes from repacking its weights in the first evaluation on an AVX-512 CPU with bf16.

    Repacking rounds their scales to bf16, and no gradient flows through repacked weights.
    """
    for module in net.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
