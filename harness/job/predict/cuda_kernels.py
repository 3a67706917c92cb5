"""Predicts CUDA's choice of kernels for tensors without storage on a CPU.

Predictions for a GPU are made on machines without one. Most allocations of a training step are the same on all devices.
Different are the kernels of attention and of 8-bit layers, the functions that autocast computes in fp32, and the
workspaces of kernels (harness/job/measure/workspaces.py). Tests compare this with tensors without storage on a GPU
(tests/fake_cuda).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from bitsandbytes.autograd import _functions
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
products: Any = _functions  # bitsandbytes' module, of which a class is replaced

HALF = (torch.float16, torch.bfloat16)
WIDEST = 256  # most channels of a head for FlashAttention
# Functions that autocast computes in fp32 on CUDA but not on a CPU (ATen/autocast_mode.h), of those that models and
# adapters call.
IN_FP32 = {
    *(
        "cosine_similarity",
        "cumprod",
        "cumsum",
        "exp",
        "expm1",
        "group_norm",
        "layer_norm",
        "log",
        "log1p",
        "log_softmax",
    ),
    *("logsumexp", "norm", "pow", "__pow__", "__rpow__", "prod", "reciprocal", "rsqrt", "softmax", "softplus"),
    *("linalg_norm", "linalg_vector_norm"),
}


class CudaKernels(TorchFunctionMode):
    """A context in which functions of CPU tensors use the operations that CUDA would use.

    autocast: whether CUDA's autocast appears to be on, for libraries that check it on any device (peft).
    """

    def __init__(self, autocast: bool):
        super().__init__()
        self._autocast = autocast

    def __enter__(self) -> CudaKernels:
        self._before = torch.is_autocast_enabled("cuda")
        torch.set_autocast_enabled("cuda", self._autocast)
        self._product = products.MatMul8bitFp  # what bitsandbytes trains 8-bit layers by on a CPU
        products.MatMul8bitFp = products.MatMul8bitLt
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.set_autocast_enabled("cuda", self._before)
        products.MatMul8bitFp = self._product

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (Tensor.backward, torch.autograd.backward):
            return self._backward(*args, **kwargs)
        if function is functional.scaled_dot_product_attention:
            return attention(*args, **kwargs)
        if function is functional.dropout:
            return dropout(*args, **kwargs)
        if torch.is_autocast_enabled("cpu"):
            name = getattr(function, "__name__", "")
            if name in IN_FP32:
                args, kwargs = tree_map_only(Tensor, _up, (args, kwargs))
            elif name == "sum" and args[0].dtype in HALF:  # in fp32, without a copy of its numbers
                kwargs = {"dtype": torch.float32} | kwargs
        return function(*args, **kwargs)

    def _backward(
        self,
        tensors: Tensor | Sequence[Tensor],
        grad_tensors: Tensor | Sequence[Tensor | None] | None = None,
        *,
        gradient: Tensor | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Sequence[Tensor] | None = None,
    ) -> None:
        """The backward pass under this mode, which torch turns off inside of it: layers are recomputed there.

        Arguments as of ``torch.autograd.backward`` and ``Tensor.backward``.
        """
        outer = gradient if grad_tensors is None else grad_tensors
        tensors = (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)
        gradients = (outer,) * len(tensors) if outer is None or isinstance(outer, Tensor) else tuple(outer)
        gradients = tuple(torch.ones_like(t) if g is None else g for t, g in zip(tensors, gradients, strict=True))
        TorchFunctionMode.__enter__(self)
        try:
            torch.autograd.Variable._execution_engine.run_backward(
                tensors,
                gradients,
                create_graph if retain_graph is None else retain_graph,
                create_graph,
                tuple(inputs or ()),
                allow_unreachable=True,
                accumulate_grad=True,
            )
        finally:
            TorchFunctionMode.__exit__(self, None, None, None)


def _up(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALF else tensor


def dropout(tensor: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout that keeps a mask of one byte per number; a CPU keeps one of the tensor's dtype."""
    if not training or p == 0 or inplace:
        return functional.dropout(tensor, p, training, inplace)
    return torch.native_dropout(tensor, p, True)[0]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` of [batch, heads, length, width] by the operation that CUDA uses.

    FlashAttention computes 16-bit tensors without a mask, also with fewer heads of keys and values; the
    memory-efficient kernel computes the rest (torch's sdp_utils.cpp).
    """
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    width = query.shape[-1]
    if attn_mask is None and query.dtype in HALF and value.shape[-1] == width <= WIDEST:
        scale = width**-0.5 if scale is None else scale
        padded = (functional.pad(tensor, (0, -width % 8)) if width % 8 else tensor for tensor in (query, key, value))
        out = aten._scaled_dot_product_flash_attention(*padded, dropout_p, is_causal, False, scale=scale)[0]
        return out[..., :width] if width % 8 else out
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    bias = None if attn_mask is None else _bias(attn_mask, query, key)
    trained = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, trained, dropout_p, is_causal, scale=scale
    )[0]


def _bias(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """`mask` as numbers to add to the scores, its rows aligned to 16 numbers as the kernel requires."""
    if mask.dtype is torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
    length = key.shape[2]
    if length % 16:
        mask = functional.pad(mask, (0, -length % 16))[..., :length]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], length)
