"""The least time that operations take on a card: the roofline (Williams, Waterman and Patterson 2009).

An operation takes at least its FLOPs at the card's rate for their format, and at least the bytes that it reads and
writes at the rate of the card's memory. Caches are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from harness.protocol import CardRates

# Seconds from the start of one operation to the next at the least: a host launches kernels one after the other. In the
# optimizer's part it does not count, where kernels on CUDA take many tensors at once.
LAUNCH = 5e-6
SIXTEEN = (torch.bfloat16, torch.float16)
NO_KERNEL = {  # what allocates or renames alone, besides views
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"),
}
ROWS = ("embedding",)  # what reads of its table only the rows that it returns


class Roofline:
    """Adds up the least seconds of operations on a card of these `rates`, by part of a step."""

    def __init__(self, rates: CardRates):
        self._rates = rates
        self.reset()

    def reset(self) -> None:
        self.laps: dict[str, float] = {}
        self._work = self._launched = 0.0

    def add(self, operation: Any, given: Any, out: Any, flops: int) -> None:
        """Count an `operation` with the arguments `given` and the result `out`."""
        name = operation._schema.name.partition("::")[2]
        if operation.is_view or name in NO_KERNEL:
            return
        moved = 2 * _bytes(out) if name in ROWS else _bytes(given) + _bytes(out)
        seconds = moved / self._rates.bandwidth
        if flops:
            seconds = max(seconds, flops / self._rate(given))
        self._work += seconds
        self._launched += max(seconds, LAUNCH)

    def lap(self, part: str) -> None:
        """End the part `part` of a step, as `harness.job.training.loop.PARTS` has them; parts of one name add up."""
        seconds = self._work if part == "optimizer" else self._launched
        self.laps[part] = self.laps.get(part, 0.0) + seconds
        self._work = self._launched = 0.0

    def _rate(self, given: Any) -> float:
        first = next(tensor for tensor in _tensors(given) if tensor.is_floating_point())
        return (first.dtype in SIXTEEN and self._rates.bf16) or self._rates.fp32


def _bytes(tree: Any) -> int:
    """Of all tensors in `tree`; of one that repeats a smaller storage, that of the storage."""
    return sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in _tensors(tree))


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        local = tree._local_tensor if isinstance(tree, DTensor) else tree
        if local.layout is torch.strided:
            yield local
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from _tensors(part)
