"""Trains weights that are stored in 16 bits; their optimizers see weights and gradients in fp32.

A step at a usual learning rate is smaller than half the last place of most bf16 weights (8 bits of precision), so
rounding to nearest loses it. There are three ways to keep it. Bytes a weight beside its own 2 and Adam's moments:

    masters     4: an fp32 copy of the weight is stepped; the model computes with it rounded (Micikevicius et al. 2018,
                arXiv:1710.03740, section 3.1). Moments are in fp32.
    stochastic  0: the stepped weight is rounded up or down with the probability that keeps its mean (Gupta et al. 2015,
                arXiv:1502.02551, section 3).
    kahan       2: the rounding error is kept in bf16, and added in the next step (Zamirai et al. 2020,
                arXiv:2010.06192, section 3).

The last two keep moments in bf16 too. Moments are rounded stochastically: Adam's second moment changes by at most 0.1%
a step, which rounding to nearest would lose.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from harness.job.training import distributed

Keeping = Literal["masters", "stochastic", "kahan"]


class InFp32(Optimizer):
    """Runs `inner` on fp32 copies of 16-bit weights and their gradients; fp32 weights are stepped directly.

    Groups and state are keyed by the model's weights; the state of a 16-bit weight has the state of `inner`, and what
    is kept beside it. So hooks, schedules and checkpoints work unchanged. Masters are created in the first step, from
    the weights at that time.

    grouped: whether weights that need fp32 copies are stepped together, as many as the largest weight has values, so
    that copies take no more memory than its own; otherwise one weight at a time. Copies and roundings of a group are
    one operation each.
    """

    def __init__(self, inner: Optimizer, keeping: Keeping):
        super().__init__(inner.param_groups, {})
        self.inner, self._keeping, self.grouped = inner, keeping, False
        for p, state in inner.state.items():  # some optimizers create it at once
            self.state[p] = state if _wide(p) else {"inner": state}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch's type wants closures taken too
        largest = max((p.numel() for group in self.param_groups for p in group["params"]), default=0)
        if self._keeping != "masters" and not any_sharded(p for group in self.param_groups for p in group["params"]):
            distributed.share_random_numbers()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            copied = self._keeping != "masters" or not all(_wide(p.grad) for p in weights)
            for part in self._parts(weights, largest) if copied or not weights else [weights]:
                self._step(group, part)

    def _parts(self, weights: list[Tensor], largest: int) -> list[list[Tensor]]:
        """The `weights` one at a time, or grouped in their order by at most `largest` values."""
        if not self.grouped or any_sharded(weights):
            return [[p] for p in weights]
        parts: list[list[Tensor]] = []
        room = 0
        for p in weights:
            if p.numel() > room:
                parts.append([])
                room = largest
            parts[-1].append(p)
            room -= p.numel()
        return parts

    def _step(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        widened = Widened([] if self._keeping == "masters" else [self.state[p].get("inner", {}) for p in weights])
        seen = dict(zip(weights, self._widened(weights, widened), strict=True))
        self.inner.param_groups = [group | {"params": [wide for wide, _ in seen.values()]}]
        self.inner.state = defaultdict(dict, seen.values())
        self.inner.step()
        self.inner.param_groups, self.inner.state = [], defaultdict(dict)
        stepped = {p: kept for p, kept in seen.items() if kept[0] is not p}
        for wide, _ in stepped.values():
            wide.grad = None
        if stepped:
            self._narrow(stepped, widened)

    def _widened(self, weights: list[Tensor], widened: Widened) -> list[tuple[Tensor, dict[str, Any]]]:
        """The `weights` in fp32 with their gradients, and their states, for the inner optimizer."""
        narrow = [p for p in weights if not _wide(p)]
        if self._keeping == "masters":
            for p in narrow:
                if "master" not in self.state[p]:
                    self.state[p]["master"] = p.detach().float()
            wide = {p: self.state[p]["master"] for p in narrow}
        else:
            wide = dict(zip(narrow, _all_wide([p.detach() for p in narrow]), strict=True))
            kept = [p for p in narrow if "compensation" in self.state[p]]
            if kept:
                torch._foreach_add_([wide[p] for p in kept], [self.state[p]["compensation"] for p in kept])
        gradients = _all_wide([p.grad for p in narrow if p.grad is not None])  # others are not stepped
        for p, gradient in zip(narrow, gradients, strict=True):
            wide[p].grad = gradient
        out = []
        for p in weights:
            state = self.state[p] if p not in wide else self.state[p].setdefault("inner", {})
            out.append((wide.get(p, p), state if p not in wide or self._keeping == "masters" else widened.state(state)))
        return out

    def _narrow(self, stepped: dict[Tensor, tuple[Tensor, dict[str, Any]]], widened: Widened) -> None:
        """Store stepped weights, and their states, in 16 bits: by weight its copy in fp32, and the state."""
        weights, wide = list(stepped), [copy for copy, _ in stepped.values()]
        if self._keeping == "stochastic":
            round_stochastically(wide)
        _copy_all(weights, wide)
        if self._keeping == "kahan":
            for p, copy in zip(weights, wide, strict=True):
                _put(self.state[p], "compensation", (copy - p).bfloat16())
        if self._keeping != "masters":
            widened.store()
            for p, (_, state) in stepped.items():
                _keep(self.state[p]["inner"], state, p.shape, widened)


class Widened:
    """The bf16 tensors of optimizer states, such as moments, cast to fp32: all by one operation, in one buffer."""

    def __init__(self, states: list[dict[str, Any]]):
        self._narrow = [tensor for state in states for tensor in _narrow_tensors(state)]
        self._wide = _all_wide(self._narrow)
        self._by_id = {id(narrow): wide for narrow, wide in zip(self._narrow, self._wide, strict=True)}
        self._copies = {id(wide) for wide in self._wide}

    def state(self, state: dict[str, Any]) -> dict[str, Any]:
        """`state` with the cast tensors; objects in it (GaLore's projectors) are copied likewise."""
        copied: dict[str, Any] = {}
        for key, value in state.items():
            if isinstance(value, Tensor):
                copied[key] = self._by_id.get(id(value), value)
            elif hasattr(value, "__dict__"):
                copied[key] = copy.copy(value)
                vars(copied[key]).update(self.state(vars(value)))
            else:
                copied[key] = value
        return copied

    def has(self, value: Tensor) -> bool:
        """Whether `value` is one of the cast tensors."""
        return id(value) in self._copies

    def store(self) -> None:
        """Round the cast tensors stochastically, and store them where they came from."""
        if self._wide:
            round_stochastically(self._wide)
            _copy_all(self._narrow, self._wide)


def _narrow_tensors(state: dict[str, Any]) -> list[Tensor]:
    """The bf16 tensors in `state` and in objects in it."""
    out = []
    for value in state.values():
        if isinstance(value, Tensor):
            out += [value] if value.dtype is torch.bfloat16 else []
        elif hasattr(value, "__dict__"):
            out += _narrow_tensors(vars(value))
    return out


def any_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether one of `tensors` is sharded, for which torch has not all operations."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def _all_wide(tensors: list[Tensor]) -> list[Tensor]:
    """`tensors` in fp32; those that are not yet are cast by one operation, into one buffer if there are several.

    Sharded ones, for which torch has no such operation, are cast one by one.
    """
    narrow = [tensor for tensor in tensors if not _wide(tensor)]
    if len(narrow) < 2 or any_sharded(narrow):
        return [tensor.float() for tensor in tensors]
    buffer = torch.empty(sum(tensor.numel() for tensor in narrow), device=narrow[0].device)
    parts = buffer.split([tensor.numel() for tensor in narrow])
    views = iter([part.view(tensor.shape) for part, tensor in zip(parts, narrow, strict=True)])
    wide = [tensor if _wide(tensor) else next(views) for tensor in tensors]
    torch._foreach_copy_([w for w, t in zip(wide, tensors, strict=True) if w is not t], narrow)
    return wide


def _copy_all(places: list[Tensor], tensors: list[Tensor]) -> None:
    """Copy `tensors` to `places`, by one operation unless they are sharded, for which torch has none."""
    if any_sharded(tensors):
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor)
    else:
        torch._foreach_copy_(places, tensors)


def round_stochastically(wide: list[Tensor]) -> None:
    """Round the fp32 tensors `wide` to numbers that bf16 has, in place, as `stochastic` does.

    Views that make up one buffer, as `_all_wide` casts tensors, are rounded as one.
    """
    base = wide[0]._base
    whole = base is not None and all(each._base is base for each in wide) and base.ndim == 1
    if whole and base is not None and base.numel() == sum(each.numel() for each in wide):
        _round(base)
    else:
        for each in wide:
            _round(each)


def _round(wide: Tensor) -> None:
    bits = (wide._local_tensor if isinstance(wide, DTensor) else wide).view(torch.int32)
    bits += torch.empty_like(bits).random_(1 << 16)
    bits &= -1 << 16


def _keep(kept: dict[str, Any], state: dict[str, Any], shape: torch.Size, widened: Widened) -> None:
    """Store `state` in `kept`, with the moments of a weight of `shape` (and projections) in bf16.

    What `widened` has is stored already. Counters, and the scales and tables of 8-bit moments, which have one
    dimension, stay as they are.
    """
    for key, value in state.items():
        if isinstance(value, Tensor):
            moment = _wide(value) and (value.ndim > 1 or value.shape == shape)
            if not widened.has(value):
                _put(kept, key, stochastic(value) if moment else value)
        elif hasattr(value, "__dict__"):
            _keep(vars(kept.setdefault(key, value)), vars(value), shape, widened)
        else:
            kept[key] = value


def _put(kept: dict[str, Any], key: str, value: Tensor) -> None:
    """Store `value` under `key`, in place if the tensor there has its shape and dtype."""
    there = kept.get(key)
    if isinstance(there, Tensor) and (there.shape, there.dtype) == (value.shape, value.dtype):
        there.copy_(value)
    else:
        kept[key] = value


def _wide(tensor: Tensor) -> bool:
    return tensor.dtype is torch.float32


def stochastic(wide: Tensor) -> Tensor:
    """Round fp32 `wide` to bf16, up or down with the probability that keeps the mean.

    A bf16 number is the upper half of an fp32 number. Adding 16 random bits to the lower half carries into the upper
    half in proportion to the lower half. Numbers that bf16 can represent do not change.
    """
    rounded = wide.clone()
    _round(rounded)
    return rounded.bfloat16()
