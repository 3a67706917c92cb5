"""Attention over sequences end to end in one row: each attends to itself only, without padding and masks.

Transformers separates such sequences by a mask over the row, which their position ids imply ("packing without
cross-contamination"). Here each sequence has its own causal attention: the same result without products across
sequences. On a CPU neighbouring sequences of one length form a batch, and all may attend to a cached prefix; on CUDA
one kernel computes all. Keys that sequences share there take a second call, and the two results are merged.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import AuxRequest, varlen_attn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from harness.job.data.batching import Layout
from harness.job.models.structure import inner, mixes_tokens, prompted, recurrent

OFF = "off: asked for"  # of a switch, in the record
PROMPTED = "the method puts tokens of its own before each sequence"
MIXED = "the method's adapters depend on all tokens of a batch"
HALF = (torch.float16, torch.bfloat16)  # what CUDA's kernel for rows computes in
WIDEST = 256  # channels of a head that it takes at most
STEP = 8  # of which the channels are a multiple
CAUSAL = (-1, 0)  # a window without end to the left
NAME, ON_CUDA = "end_to_end", "end_to_end_cuda"  # names of the implementations in transformers
# Torch 2.11 has no such argument, and does not require equal numbers of heads.
GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


@dataclass(frozen=True)
class SharedKeys:
    """What sequences of a row attend to besides themselves, in whole: groups of queries, each with its keys.

    queries: indices of tokens, group after group; null for all tokens. keys: indices of tokens; null for the prefix's.
    query_bounds, key_bounds: begin and end of the groups in these, as `bounds_of` makes them.
    """

    queries: Tensor | None
    keys: Tensor | None
    query_bounds: Tensor
    key_bounds: Tensor


@dataclass(frozen=True)
class SequenceRow:
    """The lengths of a row's sequences, and the tokens of the prefix before them.

    bounds: on CUDA, the begin and end of the sequences: (sequences + 1,) as int32. shared: on CUDA, what they attend to
    besides; the prefix, if there is one. No gradients go through it.
    """

    lengths: tuple[int, ...]
    prefix: int
    bounds: Tensor | None
    shared: SharedKeys | None = None


_row: ContextVar[SequenceRow | None] = ContextVar("row", default=None)


def layout(model: nn.Module, speedups: str | None, pad: int) -> tuple[Layout, dict[str, str]]:
    """The layout of batches of `model` under the setting `speedups`, and the state of its speed-ups for the record."""
    if speedups == "off":
        return Layout(flat=False, every=True, pad=pad), dict.fromkeys(("padding_free", "answer_logits"), OFF)
    why = unsuited(model)
    return Layout(flat=why is None, pad=pad), {"padding_free": f"off: {why}" if why else "on", "answer_logits": "on"}


def unsuited(model: nn.Module) -> str | None:
    """Why `model` can't separate the sequences of a row; None if it can.

    Only attention that transformers dispatches may mix positions.
    """
    if prompted(model):
        return PROMPTED
    if mixes_tokens(model):
        return MIXED
    net = inner(model)
    kinds = set(getattr(net.config, "layer_types", None) or [])
    if recurrent(net) or not kinds <= {"full_attention", "sliding_attention"}:
        return "the model has layers that are not attention"
    if not net._supports_attention_backend or net.config._attn_implementation not in ("sdpa", NAME, ON_CUDA):
        return f"the model's attention is {net.config._attn_implementation}"
    return None


def enable(model: nn.Module, kernels: str | None = None) -> None:
    """Have `model` use this attention inside `end_to_end`, and sdpa elsewhere.

    kernels: ``cpu`` or ``cuda``; null for those of the model's device.
    """
    kernels = kernels or inner(model).device.type
    inner(model).set_attn_implementation(ON_CUDA if kernels == "cuda" else NAME)


@contextmanager
def enabled(model: nn.Module) -> Iterator[None]:
    """A context in which `model` uses this attention, if it can."""
    net = inner(model)
    before = net.config._attn_implementation
    if unsuited(model) is None and before == "sdpa":
        enable(model)
    try:
        yield
    finally:
        if net.config._attn_implementation != before:
            net.set_attn_implementation(before)


def keep_from_compilation(on: bool) -> None:
    """Set whether torch.compile skips this attention, whose shapes change with the batch."""
    for name in (NAME, ON_CUDA):
        AttentionInterface.register(name, torch.compiler.disable(_attend) if on else _attend)


@contextmanager
def end_to_end(model: nn.Module, lengths: tuple[int, ...] | None, prefix: int = 0) -> Iterator[bool]:
    """A context for a forward pass of `model` over one row of sequences of `lengths` (None: a padded batch).

    prefix: tokens in the model's cache before the row; 0 on CUDA.
    Yields whether this attention applies, which needs no mask. It does not if the model uses another, or if a sequence
    is longer than the model's sliding window.
    """
    net = inner(model)
    kind = net.config._attn_implementation
    if lengths is None or kind not in (NAME, ON_CUDA) or not within_window(model, prefix + max(lengths)):
        yield False
        return
    bounds = bounds_of(lengths, net.device) if kind == ON_CUDA else None
    with over(SequenceRow(lengths, prefix, bounds)):
        yield True


def in_one_kernel(model: nn.Module, dtype: torch.dtype) -> bool:
    """Whether CUDA's kernel for rows computes the attention of `model` in `dtype`; else each length takes a call."""
    text = inner(model).config.get_text_config()

    def channels(*names: str) -> int:
        return sum(getattr(text, name, None) or 0 for name in names)

    latent = channels("qk_nope_head_dim", "qk_rope_head_dim"), channels("v_head_dim")
    widths = channels("head_dim"), channels("global_head_dim"), *latent, text.hidden_size // text.num_attention_heads
    return dtype in HALF and max(widths) <= WIDEST


def within_window(model: nn.Module, tokens: int) -> bool:
    """Whether a sequence of so many tokens fits the sliding window of `model`, if it has one."""
    window = getattr(inner(model).config.get_text_config(), "sliding_window", None)
    return window is None or tokens <= window


@contextmanager
def over(row: SequenceRow | None) -> Iterator[None]:
    """A context in which attention is over `row` (None: a padded batch)."""
    token = _row.set(row)
    try:
        yield
    finally:
        _row.reset(token)


def row() -> SequenceRow | None:
    """The row that attention is over now."""
    return _row.get()


def bounds_of(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """The begins and ends of sequences of `lengths` in a row: (sequences + 1,) as int32.

    A GPU copies them from pinned memory, so that the host need not wait until all work before the copy is done.
    """
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, pin_memory=device.type == "cuda")
    return with_lengths(bounds.to(device, non_blocking=True), lengths)


def with_lengths(bounds: Tensor, lengths: Iterable[int]) -> Tensor:
    """`bounds` of sequences of `lengths`, with the attribute ``lengths``, which FLOPs are counted from.

    Reading values from the device would make it wait, and a tensor without storage has none.
    """
    bounds.lengths = tuple(lengths)  # type: ignore[attr-defined]  # ours, on torch's class
    return bounds


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
        if query.device.type == "cpu" and query.shape[2] == 1 and _is_plain(attention_mask, dropout, keywords):
            return _of_one(query, key, value, attention_mask, scaling), None
        if query.shape[2] == 1 and _is_plain(attention_mask, dropout, keywords):
            return _of_one_grouped(query, key, value, attention_mask, scaling), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **keywords)
    precision: AbstractContextManager[Any] = nullcontext()
    if row.bounds is not None:
        query, key, value = _as_autocast(query, key, value)
        if not dropout and query.dtype in HALF and max(query.shape[-1], value.shape[-1]) <= WIDEST:
            return _flash(row, row.bounds, query, key, value, scaling), None
        if row.shared is not None and row.shared.keys is not None:
            raise ValueError(f"Keys that sequences share within a row require 16 bits and heads of at most {WIDEST}.")
    elif query.device.type == "cpu":  # its backward pass is up to three times slower in autocast's bf16
        query, key, value = _finest(query, key, value)
        precision = torch.autocast("cpu", enabled=False)
    grouped = query.device.type == "cpu" or (query.dtype in HALF and query.shape[-1] <= WIDEST)
    if not grouped:  # CUDA's memory-efficient kernel takes no groups, and the one that then computes holds all scores
        groups = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    runs = [(length, len(list(run))) for length, run in groupby(row.lengths)]
    sizes = [length * count for length, count in runs]
    prefix = [tensor[:, :, : row.prefix] for tensor in (key, value)]
    parts = [tensor.split(sizes, dim=2) for tensor in (query, key[:, :, row.prefix :], value[:, :, row.prefix :])]
    how: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "enable_gqa": grouped}
    with precision:
        attended = [
            _causal(_batch(q, run), _batch(k, run), _batch(v, run), prefix, **how)
            for run, q, k, v in zip(runs, *parts, strict=True)
        ]
    return torch.cat([each.transpose(1, 2).flatten(0, 1) for each in attended])[None], None


def _batch(part: Tensor, run: tuple[int, int]) -> Tensor:
    """Reshape a run of a row [1, heads, tokens, width] to [sequences, heads, length, width]. run: length, sequences."""
    length, count = run
    return part[0].unflatten(1, (count, length)).transpose(0, 1)


def _causal(query: Tensor, key: Tensor, value: Tensor, prefix: list[Tensor], **keywords: Any) -> Tensor:
    """Attention of each token to the `prefix` (keys, values: [1, heads, tokens, width]) and to tokens up to itself."""
    before, own = prefix[0].shape[2], query.shape[2]
    if not before:
        return scaled_dot_product_attention(query, key, value, is_causal=True, **keywords)
    each = (tensor.expand(len(query), -1, -1, -1) for tensor in prefix)
    key, value = (torch.cat(parts, dim=2) for parts in zip(each, (key, value), strict=True))
    seen = torch.ones(own, before + own, dtype=torch.bool, device=query.device).tril(before)
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, **keywords)


def _is_plain(mask: Tensor | None, dropout: float, keywords: dict[str, Any]) -> TypeGuard[Tensor]:
    """Whether attention depends on `mask` alone, the same for all heads."""
    apart = dropout or keywords.get("softcap") is not None or keywords.get("position_bias") is not None
    return not apart and mask is not None and mask.dtype is torch.bool and mask.shape[1] == 1


def _of_one(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float | None) -> Tensor:
    """Attention of one token in each of many sequences; torch's CPU kernel takes 1.5 times as long.

    seen: the keys that it attends to, at least one: (sequences, 1, 1, tokens).
    """
    query, key, value = _finest(query, key, value)
    sequences, _, _, width = query.shape
    heads = query.view(sequences, key.shape[1], -1, width)  # grouped by shared keys and values
    with torch.autocast("cpu", enabled=False):
        scores = heads * (width**-0.5 if scaling is None else scaling) @ key.transpose(2, 3)
        return (scores.masked_fill_(~seen, -torch.inf).softmax(-1) @ value).view(sequences, 1, query.shape[1], -1)


def _of_one_grouped(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float | None) -> Tensor:
    """As `_of_one`, by the device's kernel: queries that share keys and values lie beside each other as positions.

    With a mask transformers may repeat all keys and values instead (5.17 does), which takes most of a step.
    """
    sequences, heads, _, width = query.shape
    grouped = query.reshape(sequences, key.shape[1], heads // key.shape[1], width)
    attended = scaled_dot_product_attention(grouped, key, value, attn_mask=seen, scale=scaling)
    return attended.reshape(sequences, 1, heads, -1)


def _finest(*tensors: Tensor) -> tuple[Tensor, ...]:
    finest = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return tuple(tensor.to(finest) for tensor in tensors)


def _as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """`tensors` in autocast's dtype, if it is on, as it casts inputs of torch's attention."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors)


def _flash(
    row: SequenceRow, bounds: Tensor, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
) -> Tensor:
    """Attention by one kernel for all sequences of `row`, which `bounds` has, and by another call of it for the keys
    that they share.

    Keys and values may have fewer heads than queries.
    """
    # (tokens, heads, width). Selecting the one row instead would copy its gradient into zeros.
    query, key, value = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    if row.shared is None:
        return _varlen(query, key, value, bounds, bounds, scaling, window_size=CAUSAL).unsqueeze(0)
    shared = row.shared
    sums: dict[str, Any] = {"return_aux": AuxRequest(lse=True)}
    own = key[row.prefix :], value[row.prefix :]
    if shared.keys is None:
        whole = key[: row.prefix], value[: row.prefix]
    else:
        whole = own[0][shared.keys], own[1][shared.keys]
    chosen = slice(None) if shared.queries is None else shared.queries
    out, own_sums = _varlen(query, *own, bounds, bounds, scaling, window_size=CAUSAL, **sums)
    other = _varlen(query[chosen], *whole, shared.query_bounds, shared.key_bounds, scaling, **sums)
    out[chosen] = merged((out[chosen], own_sums[:, chosen]), other)
    return out.unsqueeze(0)


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    key_bounds: Tensor,
    scaling: float | None,
    **keywords: Any,
) -> Any:
    """Torch's kernel for sequences between `bounds`, each of which attends to the keys between its `key_bounds`.

    It takes one width for all, a multiple of STEP, so zeros are added: multi-head latent attention has narrower values.
    """
    longest, longest_key = (max(each.lengths) for each in (bounds, key_bounds))  # type: ignore[attr-defined]  # ours
    own, of_values = query.shape[-1], value.shape[-1]
    width = -(-max(own, of_values) // STEP) * STEP
    scale = own**-0.5 if scaling is None else scaling
    query, key, value = (
        pad(each, (0, width - each.shape[-1])) if each.shape[-1] < width else each for each in (query, key, value)
    )
    how = keywords | GROUPED
    result = varlen_attn(query, key, value, bounds, key_bounds, longest, longest_key, scale=scale, **how)
    if of_values == width:
        return result
    return (result[0][..., :of_values], *result[1:]) if isinstance(result, tuple) else result[..., :of_values]


def merged(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Attention to two sets of keys together, from attention to each: (tokens, heads, width).

    Of each set: the attention, and the log-sum-exp of the scores, (heads, tokens). With the sums of exponentials a and
    b, the second has the share b / (a + b), which is the sigmoid of the difference of their logarithms.
    """
    share = (second[1] - first[1]).sigmoid().transpose(0, 1)[..., None]
    return torch.lerp(first[0].float(), second[0].float(), share).to(first[0].dtype)


for name in (NAME, ON_CUDA):
    AttentionInterface.register(name, _attend)
    AttentionMaskInterface.register(name, _mask)
