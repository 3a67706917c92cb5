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
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

Keeping = Literal["masters", "stochastic", "kahan"]


class InFp32(Optimizer):
    """Runs `inner` on fp32 copies of 16-bit weights and their gradients; fp32 weights are stepped directly.

    Groups and state are keyed by the model's weights; the state of a 16-bit weight has the state of `inner`, and what
    is kept beside it. So hooks, schedules and checkpoints work unchanged. Masters are created in the first step, from
    the weights at that time.
    """

    def __init__(self, inner: Optimizer, keeping: Keeping):
        super().__init__(inner.param_groups, {})
        self._inner, self._keeping = inner, keeping
        for p, state in inner.state.items():  # some optimizers create it at once
            self.state[p] = state if _wide(p) else {"inner": state}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch's type wants closures taken too
        for group in self.param_groups:
            held = [p for p in group["params"] if p.grad is not None]
            # One weight at a time if it needs fp32 copies, so that no two copies exist at once.
            copied = self._keeping != "masters" or not all(_wide(p.grad) for p in held)
            for weights in [[p] for p in held] if copied or not held else [held]:
                self._step(group, weights)

    def _step(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        seen = {p: self._widened(p) for p in weights}
        self._inner.param_groups = [group | {"params": [wide for wide, _ in seen.values()]}]
        self._inner.state = defaultdict(dict, seen.values())
        self._inner.step()
        self._inner.param_groups, self._inner.state = [], defaultdict(dict)
        for p, (wide, state) in seen.items():
            if wide is not p:
                wide.grad = None
                self._narrow(p, wide, state)

    def _widened(self, p: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """`p` in fp32 with its gradient, and its state, for the inner optimizer."""
        kept = self.state[p]
        if _wide(p):
            return p, kept
        state = kept.setdefault("inner", {})
        if self._keeping == "masters":
            if "master" not in kept:
                kept["master"] = p.detach().float()
            wide = kept["master"]
        else:
            wide, state = p.detach().float(), _copy(state)
            if "compensation" in kept:
                wide += kept["compensation"]
        assert p.grad is not None  # others are not stepped
        wide.grad = p.grad.float()
        return wide, state

    def _narrow(self, p: Tensor, wide: Tensor, state: dict[str, Any]) -> None:
        """Store the stepped `p` and its state in 16 bits."""
        kept = self.state[p]
        if self._keeping == "stochastic":
            p.copy_(stochastic(wide))
        else:
            p.copy_(wide)
        if self._keeping == "kahan":
            _put(kept, "compensation", (wide - p).bfloat16())
        if self._keeping != "masters":
            _keep(kept["inner"], state, p.shape)


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    """`state` with bf16 tensors cast to fp32; objects in it (GaLore's projectors) are copied likewise."""
    copied: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            copied[key] = value.float() if value.dtype is torch.bfloat16 else value
        elif hasattr(value, "__dict__"):
            copied[key] = copy.copy(value)
            vars(copied[key]).update(_copy(vars(value)))
        else:
            copied[key] = value
    return copied


def _keep(kept: dict[str, Any], state: dict[str, Any], shape: torch.Size) -> None:
    """Store `state` in `kept`, with the moments of a weight of `shape` (and projections) in bf16.

    Counters, and the scales and tables of 8-bit moments, which have one dimension, stay as they are.
    """
    for key, value in state.items():
        if isinstance(value, Tensor):
            moment = _wide(value) and (value.ndim > 1 or value.shape == shape)
            _put(kept, key, stochastic(value) if moment else value)
        elif hasattr(value, "__dict__"):
            _keep(vars(kept.setdefault(key, value)), vars(value), shape)
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
    bits = (rounded._local_tensor if isinstance(rounded, DTensor) else rounded).view(torch.int32)
    bits += torch.empty_like(bits).random_(1 << 16)
    bits &= -1 << 16
    return rounded.bfloat16()
