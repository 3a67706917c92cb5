"""FLOPs of matrix products and attention, by operation: torch's formulas, and ours where torch has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.attention.varlen  # defines its operations
from torch import Tensor
from torch.utils.flop_counter import flop_registry


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Both products of attention over [batch, heads, length, width], causal or not: torch's convention."""
    batch, heads, rows, width = query.shape
    return 2 * batch * heads * rows * key.shape[2] * (width + value.shape[3])


def _attention_backward_flops(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Five products: the scores again, and the gradients of scores, query, key and value."""
    batch, heads, rows, width = query.shape
    return 2 * batch * heads * rows * key.shape[2] * (3 * width + 2 * value.shape[3])


def _varlen_flops(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, key_bounds: Tensor, *_: Any, **__: Any
) -> int:
    """As `_attention_flops`, for sequences end to end in [tokens, heads, width], separated by `bounds`."""
    heads, width = query.shape[1:]
    pairs = sum(n * m for n, m in zip(_lengths(bounds), _lengths(key_bounds), strict=True))
    return 2 * heads * pairs * (width + value.shape[2])


def _varlen_backward_flops(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    sums: Tensor,
    bounds: Tensor,
    *_: Any,
    **__: Any,
) -> int:
    heads, width = query.shape[1:]
    return 2 * heads * sum(n * n for n in _lengths(bounds)) * (3 * width + 2 * value.shape[2])


def _lengths(bounds: Tensor) -> Sequence[int]:
    """Lengths of the sequences between `bounds`, which may have no values: harness.job.training.attention.bounds_of."""
    return bounds.lengths if hasattr(bounds, "lengths") else bounds.diff().tolist()


def _nf4_flops(a: Tensor, b: Tensor, shape: Sequence[int], *_: Any, **__: Any) -> int:
    """A product of `a` [..., in] with a packed 4-bit matrix of `shape` [out, in]."""
    return 2 * a.numel() * shape[0]


def _int8_flops(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """A product of `a` [rows, in] with an 8-bit matrix `b` [out, in]."""
    return 2 * a.numel() * b.shape[0]


def _int8_mixed_flops(a: Tensor, quantised: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """As `_int8_flops`; features computed in 16 bits are computed in 8 bits too, as zeros."""
    return _int8_flops(quantised, b)


def _svd_flops(matrix: Tensor, *_: Any, **__: Any) -> int:
    """Singular values and vectors of `matrix` [..., m, n]: 6mn² + 20n³ where m ≥ n, by QR first.

    Golub and Van Loan (2013), Matrix Computations, fourth edition, figure 8.6.1.
    """
    rows, columns = _tall(matrix)
    return matrix.shape[:-2].numel() * (6 * rows * columns**2 + 20 * columns**3)


def _qr_flops(matrix: Tensor, *_: Any, **__: Any) -> int:
    """Householder's factors of `matrix` [..., m, n]: 4mn² − 4n³/3 where m ≥ n, half of it to form Q (ibid., 5.2)."""
    rows, columns = _tall(matrix)
    return matrix.shape[:-2].numel() * (4 * rows * columns**2 - 4 * columns**3 // 3)


def _tall(matrix: Tensor) -> tuple[int, int]:
    """The longer and the shorter side of `matrix`."""
    return max(matrix.shape[-2:]), min(matrix.shape[-2:])


def _flops() -> dict[Any, Callable[..., int]]:
    """Torch's formulas by operation, and ours for bitsandbytes' products and for attention.

    Some of torch's formulas for attention need the values of bounds, those of torch 2.11 need equal numbers of heads,
    and none covers the CPU's kernel.
    """
    import bitsandbytes  # noqa: F401  # defines its operation

    aten = torch.ops.aten
    ours = {
        torch.ops.bitsandbytes.gemm_4bit: _nf4_flops,
        torch.ops.bitsandbytes.int8_scaled_mm: _int8_flops,
        torch.ops.bitsandbytes.int8_mixed_scaled_mm: _int8_mixed_flops,
        torch.ops.torch_attn._varlen_attn: _varlen_flops,
        torch.ops.torch_attn._varlen_attn_backward: _varlen_backward_flops,
    }
    for kernel in KERNELS:
        ours[getattr(aten, kernel)] = _attention_flops
        ours[getattr(aten, f"{kernel}_backward")] = _attention_backward_flops
    return flop_registry | ours


KERNELS = {
    "_scaled_dot_product_flash_attention": "flash",
    "_scaled_dot_product_efficient_attention": "efficient",
    "_scaled_dot_product_cudnn_attention": "cudnn",
    "_scaled_dot_product_flash_attention_for_cpu": "flash_for_cpu",
}
# Attention operations by their names in a record. Where torch (math) or a model (eager) composes attention from other
# operations, its softmax stands for it; the dtype is that of the scores.
ATTENTION = {
    **{getattr(torch.ops.aten, kernel): name for kernel, name in KERNELS.items()},
    torch.ops.torch_attn._varlen_attn: "varlen",
    torch.ops.aten._safe_softmax: "math",
    torch.ops.aten._softmax: "eager",
}
FLOPS = _flops()
# They are no part of a step's FLOPs: they are rare, and reach a small share of the rate of products.
DECOMPOSITIONS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._linalg_svd: _svd_flops,
    torch.ops.aten.linalg_qr: _qr_flops,
}
