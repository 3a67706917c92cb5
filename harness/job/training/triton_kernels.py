"""Kernels in Triton for what decoder layers compute besides products and attention, each in one pass over memory.

They compute in fp32 and round where the formulas of transformers round, so results differ only where sums are taken in
another order. Nothing that they are given is overwritten. harness/job/training/layer_kernels.py says what they compute;
TRITON_INTERPRET=1 runs them on a CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # numbers of a program of elementwise kernels
PROGRAMS = 512  # at most, that sum the gradient of a norm's weight: a few for each processor of a card

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _rms_norm(x, weight, out, rstd, eps, width, BLOCK: tl.constexpr):
    """A row of `x` (rows, width) times the reciprocal of its root mean square, and times `weight`."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    values = tl.load(x + row * width + at, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(values * values, axis=0) / width + eps)
    rounded = (values * scale).to(x.dtype.element_ty).to(tl.float32)
    weights = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + at, (weights * rounded).to(out.dtype.element_ty), mask=inside)
    tl.store(rstd + row, scale)


# What is not specialised changes from step to step: the first multiple of 16 would compile the kernel anew.
@triton.jit(do_not_specialize=["rows", "programs"])
def _rms_norm_backward(
    gradient, x, weight, rstd, by_x, by_weight, rows, width, programs, WEIGHT: tl.constexpr, BLOCK: tl.constexpr
):
    """Gradients by `x`, and, if WEIGHT, by `weight` of every `programs`-th row."""
    first = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < width
    weights = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    summed = tl.zeros([BLOCK], dtype=tl.float32)
    for number in range(first, rows, programs):
        row = tl.cast(number, tl.int64)
        values = tl.load(x + row * width + at, mask=inside, other=0.0).to(tl.float32)
        incoming = tl.load(gradient + row * width + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(rstd + row)
        normed = values * scale
        if WEIGHT:
            summed += incoming * normed.to(x.dtype.element_ty).to(tl.float32)
        incoming = (incoming * weights).to(x.dtype.element_ty).to(tl.float32)
        along = tl.sum(incoming * normed, axis=0) / width
        tl.store(by_x + row * width + at, (scale * (incoming - normed * along)).to(by_x.dtype.element_ty), mask=inside)
    if WEIGHT:
        tl.store(by_weight + first * width + at, summed, mask=inside)


@triton.jit
def _turn(x, out, cos, sin, x_head, out_head, half, BACKWARD: tl.constexpr, ROUND: tl.constexpr, BLOCK: tl.constexpr):
    """Turn the pairs (first half, second half) of a head by the angles of its position."""
    at = tl.arange(0, BLOCK)
    inside = at < half
    first = tl.load(x + x_head + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + x_head + half + at, mask=inside, other=0.0).to(tl.float32)
    cos_first = tl.load(cos + at, mask=inside, other=0.0).to(tl.float32)
    cos_second = tl.load(cos + half + at, mask=inside, other=0.0).to(tl.float32)
    sin_first = tl.load(sin + at, mask=inside, other=0.0).to(tl.float32)
    sin_second = tl.load(sin + half + at, mask=inside, other=0.0).to(tl.float32)
    same = (first * cos_first).to(ROUND).to(tl.float32)
    same_second = (second * cos_second).to(ROUND).to(tl.float32)
    if BACKWARD:
        turned = (second * sin_second).to(ROUND).to(tl.float32)
        turned_second = -(first * sin_first).to(ROUND).to(tl.float32)
    else:
        turned = -(second * sin_first).to(ROUND).to(tl.float32)
        turned_second = (first * sin_second).to(ROUND).to(tl.float32)
    tl.store(out + out_head + at, (same + turned).to(out.dtype.element_ty), mask=inside)
    tl.store(out + out_head + half + at, (same_second + turned_second).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _rope(
    query,
    key,
    query_out,
    key_out,
    cos,
    sin,
    tokens,
    query_heads,
    key_heads,
    query_batch,
    query_head,
    query_token,
    key_batch,
    key_head,
    key_token,
    angles_batch,
    angles_token,
    half,
    BACKWARD: tl.constexpr,
    ROUND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A head of a token of `query` or `key`; results are laid out as (sequences, tokens, heads, width)."""
    place = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    sequence, token = place // tokens, place % tokens
    angles = sequence * angles_batch + token * angles_token
    if head < query_heads:
        start = sequence * query_batch + head * query_head + token * query_token
        end = (place * query_heads + head) * 2 * half
        _turn(query, query_out, cos + angles, sin + angles, start, end, half, BACKWARD, ROUND, BLOCK)
    else:
        head -= query_heads
        start = sequence * key_batch + head * key_head + token * key_token
        end = (place * key_heads + head) * 2 * half
        _turn(key, key_out, cos + angles, sin + angles, start, end, half, BACKWARD, ROUND, BLOCK)


@triton.jit
def _swiglu(gate, up, out, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    gates = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    ups = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    opened = (gates * tl.sigmoid(gates)).to(gate.dtype.element_ty).to(tl.float32)
    tl.store(out + at, (opened * ups).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward(gradient, gate, up, by_gate, by_up, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    incoming = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    gates = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    ups = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gates)
    opened = (gates * share).to(gate.dtype.element_ty).to(tl.float32)
    by_opened = (incoming * ups).to(gate.dtype.element_ty).to(tl.float32)
    tl.store(by_up + at, (incoming * opened).to(by_up.dtype.element_ty), mask=inside)
    slope = share * (1.0 + gates * (1.0 - share))
    tl.store(by_gate + at, (by_opened * slope).to(by_gate.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "programs"])
def _scaled_backward(gradient, result, factor, by_direction, parts, rows, width, programs, BLOCK: tl.constexpr):
    """`gradient` times `factor`, and the sums of `gradient` times `result` over every `programs`-th row."""
    first = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    factors = tl.load(factor + at, mask=inside, other=0.0).to(tl.float32)
    summed = tl.zeros([BLOCK], dtype=tl.float32)
    for number in range(first, rows, programs):
        row = tl.cast(number, tl.int64)
        incoming = tl.load(gradient + row * width + at, mask=inside, other=0.0).to(tl.float32)
        summed += incoming * tl.load(result + row * width + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(by_direction + row * width + at, (incoming * factors).to(by_direction.dtype.element_ty), mask=inside)
    tl.store(parts + first * width + at, summed, mask=inside)


def _warps(block: int) -> int:
    return 1 if block <= 256 else 4 if block <= 2048 else 8 if block <= 8192 else 16


def rms_norm(x: Tensor, weight: Tensor, out: Tensor, rstd: Tensor, eps: float) -> None:
    """Fill `out` and `rstd`; all tensors are contiguous, `x` is (..., width)."""
    width = x.shape[-1]
    block = triton.next_power_of_2(width)
    _rms_norm[(rstd.numel(),)](x, weight, out, rstd, eps, width, BLOCK=block, num_warps=_warps(block))


def rms_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, by_x: Tensor, by_weight: Tensor
) -> None:
    """Fill `by_x`, and `by_weight` (programs, width) with parts of a sum, if it has any rows."""
    rows, width = rstd.numel(), x.shape[-1]
    block, programs = triton.next_power_of_2(width), len(by_weight) or min(rows, 8 * PROGRAMS)
    arguments = (gradient, x, weight, rstd, by_x, by_weight, rows, width, programs)
    _rms_norm_backward[(programs,)](*arguments, WEIGHT=len(by_weight) > 0, BLOCK=block, num_warps=_warps(block))


def rope(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, query_out: Tensor, key_out: Tensor, backward: bool
) -> None:
    """Fill `query_out` and `key_out`, (sequences, tokens, heads, width) in memory; the rest as in layer_kernels."""
    sequences, query_heads, tokens, width = query.shape
    key_heads, half = key.shape[1], width // 2
    block = triton.next_power_of_2(half)
    angles = (cos.stride(0) if len(cos) > 1 else 0, cos.stride(1))
    sizes = (tokens, query_heads, key_heads, *query.stride()[:3], *key.stride()[:3], *angles, half)
    _rope[(sequences * tokens, query_heads + key_heads)](
        *(query, key, query_out, key_out, cos, sin),
        *sizes,
        BACKWARD=backward,
        ROUND=TYPES[query_out.dtype],
        BLOCK=block,
        num_warps=_warps(block),
    )


def swiglu(gate: Tensor, up: Tensor, out: Tensor) -> None:
    """Fill `out`; all tensors are contiguous."""
    _swiglu[(triton.cdiv(gate.numel(), BLOCK),)](gate, up, out, gate.numel(), BLOCK=BLOCK)


def swiglu_backward(gradient: Tensor, gate: Tensor, up: Tensor, by_gate: Tensor, by_up: Tensor) -> None:
    """Fill `by_gate` and `by_up`; all tensors are contiguous."""
    arguments = (gradient, gate, up, by_gate, by_up, gate.numel())
    _swiglu_backward[(triton.cdiv(gate.numel(), BLOCK),)](*arguments, BLOCK=BLOCK)


def scaled_backward(gradient: Tensor, result: Tensor, factor: Tensor, by_direction: Tensor, parts: Tensor) -> None:
    """Fill `by_direction`, and `parts` (programs, width) of a sum; all are contiguous, `gradient` is (..., width)."""
    width, programs = gradient.shape[-1], len(parts)
    if programs:
        rows = gradient.numel() // width
        grid = (programs, triton.cdiv(width, BLOCK))
        _scaled_backward[grid](gradient, result, factor, by_direction, parts, rows, width, programs, BLOCK=BLOCK)
