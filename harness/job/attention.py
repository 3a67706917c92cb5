"""Attention over sequences laid end to end in one row: each attends to itself alone, without padding and masks.

Transformers itself keeps such sequences apart, by a mask of the row against itself that their position ids imply
("packing without cross-contamination"). Here each sequence is its own causal attention instead: the same result
without the products across sequences. On CUDA it is one kernel for all.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from harness.job.data import Layout
from harness.job.model import inner, prompted

OFF = "off: asked for"  # of a switch, in the record
PROMPTED = "the method puts tokens of its own before each sequence"
NAME = "end_to_end"  # of the implementation, as transformers is asked for it


@dataclass(frozen=True)
class Row:
    """Sequences of these lengths, and on CUDA their bounds in the row: (sequences + 1,) as int32."""

    lengths: tuple[int, ...]
    bounds: Tensor | None


_row: ContextVar[Row | None] = ContextVar("row", default=None)


def layout(model: nn.Module, speedups: str, pad: int) -> tuple[Layout, dict[str, str]]:
    """How batches of `model` are laid by the setting `speedups`, and the switches that stands for, for the record."""
    if speedups == "off":
        return Layout(flat=False, every=True, pad=pad), dict.fromkeys(("padding_free", "answer_logits"), OFF)
    why = unsuited(model)
    return Layout(flat=why is None, pad=pad), {"padding_free": f"off: {why}" if why else "on", "answer_logits": "on"}


def unsuited(model: nn.Module) -> str | None:
    """Why the sequences of a row could not be kept apart in `model`; None where they can.

    All that mixes positions must be attention that transformers dispatches, told where each sequence begins.
    """
    if prompted(model):
        return PROMPTED
    net = inner(model)
    kinds = set(getattr(net.config, "layer_types", None) or [])
    if net._is_stateful or not kinds <= {"full_attention", "sliding_attention"}:
        return "the model has layers that are not attention"
    if not net._supports_attention_backend or net.config._attn_implementation not in ("sdpa", NAME):
        return f"the model's attention is {net.config._attn_implementation}"
    return None


def enable(model: nn.Module) -> None:
    """Let `model` attend as above inside `end_to_end`, and elsewhere by sdpa as before."""
    inner(model).set_attn_implementation(NAME)


@contextmanager
def end_to_end(model: nn.Module, lengths: tuple[int, ...] | None) -> Iterator[None]:
    """A context for a forward pass of `model` over one row of sequences of `lengths` (None: a padded batch).

    Where one is longer than the model's sliding window, attention is left to transformers' mask.
    """
    net = inner(model)
    window = getattr(net.config.get_text_config(), "sliding_window", None)
    if lengths is None or (window is not None and max(lengths) > window):
        yield
        return
    bounds = None
    if net.device.type == "cuda":
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=net.device)
    token = _row.set(Row(lengths, bounds))
    try:
        yield
    finally:
        _row.reset(token)


def _mask(*args: Any, **keywords: Any) -> Tensor | None:
    return sdpa_mask(*args, **keywords) if _row.get() is None else None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface: query [1, heads, tokens, width] to [1, tokens, heads, width]."""
    row = _row.get()
    if row is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **keywords)
    if row.bounds is not None and not dropout and query.dtype in (torch.float16, torch.bfloat16):
        return _flash(row, query, key, value, scaling), None
    precision = nullcontext()
    if query.device.type == "cpu":  # whose backward pass takes up to three times as long in the bf16 of autocast
        finest = functools.reduce(torch.promote_types, (query.dtype, key.dtype, value.dtype))
        query, key, value = (tensor.to(finest) for tensor in (query, key, value))
        precision = torch.autocast("cpu", enabled=False)
    apart = zip(*(tensor.split(row.lengths, dim=2) for tensor in (query, key, value)), strict=True)
    with precision:
        parts = [
            scaled_dot_product_attention(*qkv, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=True)
            for qkv in apart
        ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _flash(row: Row, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    longest = max(row.lengths)
    groups = query.shape[1] // key.shape[1]
    whole = (query, *(tensor.repeat_interleave(groups, dim=1) for tensor in (key, value)))
    flat = (tensor[0].transpose(0, 1) for tensor in whole)  # (tokens, heads, width)
    return varlen_attn(
        *flat,
        row.bounds,
        row.bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),  # causal
    ).unsqueeze(0)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)
