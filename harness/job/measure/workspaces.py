"""What CUDA kernels allocate and free inside one operation, computed from the operation's arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.attention.varlen  # defines its operations
from torch import Tensor

aten = torch.ops.aten


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _flash_backward(tokens: int, rows: int, heads: int, width: int, few: Tensor) -> int:
    """Bytes that FlashAttention's backward pass allocates beside its results (torch's flash_api.cpp, mha_bwd).

    Gradients of queries are summed in fp32, with one more number a row. Gradients of shared keys and values are first
    computed for each head. rows: of queries, rounded up. few: the keys, with fewer heads or not.
    """
    summed = 4 * rows * heads * (_rounded(width, 32 if width <= 128 else 64) + 1)
    shared = few.shape[-2] != heads
    return summed + (2 * tokens * heads * width * few.element_size() if shared else 0)


def _batched(gradient: Tensor, query: Tensor, key: Tensor, *_rest: Any, **_keywords: Any) -> int:
    batch, heads, rows, width = query.shape
    return _flash_backward(batch * key.shape[2], batch * _rounded(rows, 128), heads, width, key.transpose(1, 2))


def _varlen(gradient: Tensor, query: Tensor, key: Tensor, *rest: Any, **_keywords: Any) -> int:
    rows, heads, width = query.shape
    bounds = rest[3]
    return _flash_backward(key.shape[0], rows + 128 * (len(bounds) - 1), heads, width, key)


# Bytes that the CUDA kernel of an operation allocates and frees while it runs, beside its results.
WORKSPACES: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_backward: _batched,
    torch.ops.torch_attn._varlen_attn_backward: _varlen,
}
