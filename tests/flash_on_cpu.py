"""A stand-in on CPUs for CUDA's FlashAttention over rows of sequences, below torch's `varlen_attn`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def flash_on_cpu() -> Iterator[None]:
    """A context in which the two operations of torch that `varlen_attn` calls have kernels for CPUs."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", _forward, "CPU")
    library.impl("_flash_attention_backward", _backward, "CPU")
    try:
        yield
    finally:
        library._destroy()


def _by_head(tensor: Tensor, heads: int) -> Tensor:
    """(tokens, heads, width) as (heads, tokens, width) in fp32, keys and values repeated for queries' `heads`."""
    return tensor.transpose(0, 1).float().repeat_interleave(heads // tensor.shape[1], dim=0)


def _scores(
    query: Tensor, key: Tensor, bounds: Tensor, key_bounds: Tensor, causal: bool, scale: float | None
) -> tuple[Tensor, float]:
    """The masked scores (heads, tokens, keys) of queries and keys by head, and their scale."""
    sequences = (torch.bucketize(torch.arange(int(each[-1])), each[1:], right=True) for each in (bounds, key_bounds))
    of, of_keys = sequences
    seen = of[:, None] == of_keys
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query @ key.transpose(1, 2) * scale
    return scores.masked_fill(~(seen.tril() if causal else seen), -torch.inf), scale


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    key_bounds: Tensor,
    _longest: int,
    _longest_key: int,
    _dropout: float,
    causal: bool,
    _debug: bool = False,
    *,
    scale: float | None = None,
    **_rest: Any,
) -> tuple[Tensor, ...]:
    widths = {tensor.shape[-1] for tensor in (query, key, value)}
    if len(widths) > 1 or widths.pop() % 8:  # as torch's flash_api.cpp checks
        raise RuntimeError("FlashAttention requires one width of queries, keys and values, a multiple of 8.")
    q, k, v = (_by_head(tensor, query.shape[1]) for tensor in (query, key, value))
    scores, _ = _scores(q, k, bounds, key_bounds, causal, scale)
    out = (scores.softmax(-1) @ v).transpose(0, 1).to(query.dtype).contiguous()
    return out, scores.logsumexp(-1), torch.zeros(2, dtype=torch.uint64), torch.empty(0), torch.empty(0)


def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _out: Tensor,
    _sums: Tensor,
    bounds: Tensor,
    key_bounds: Tensor,
    _longest: int,
    _longest_key: int,
    _dropout: float,
    causal: bool,
    *_random: Tensor,
    scale: float | None = None,
    **_rest: Any,
) -> tuple[Tensor, ...]:
    q, k, v, of_out = (_by_head(tensor, query.shape[1]) for tensor in (query, key, value, gradient))
    scores, scale = _scores(q, k, bounds, key_bounds, causal, scale)
    shares = scores.softmax(-1)
    of_shares = of_out @ v.transpose(1, 2)
    of_scores = shares * (of_shares - (shares * of_shares).sum(-1, keepdim=True)) * scale
    gradients = (of_scores @ k, of_scores.transpose(1, 2) @ q, shares.transpose(1, 2) @ of_out)
    return tuple(
        each.unflatten(0, (given.shape[1], -1)).sum(1).transpose(0, 1).to(given.dtype).contiguous()
        for each, given in zip(gradients, (query, key, value), strict=True)
    )
