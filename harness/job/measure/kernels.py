"""Names the kernels that a step's operations start, with the work of each, and times them on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.job.measure.flops import DECOMPOSITIONS, FLOPS

NO_KERNEL = {  # what allocates or renames alone, besides views
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh")
}
ROWS = ("embedding",)  # what reads of its table only the rows that it returns
EVENT = 5e-7  # seconds that two events tell apart
BEFORE = 2_000_000  # cycles (about 1 ms) that CUDA is kept busy before a kernel is timed, so that it waits for no host


@dataclass(frozen=True)
class Kernel:
    """What an operation starts: fields as of harness.record.TimedKernel, without its time."""

    name: str
    formats: str
    flops: int
    moved: int


def kernel_of(operation: Any, arguments: Any, out: Any, flops: int) -> Kernel | None:
    """The kernel of an `operation` with the `arguments` and the result `out`; None if it starts none."""
    name = operation._schema.name.partition("::")[2]
    if operation.is_view or name in NO_KERNEL:
        return None
    inputs = list(tensors_in(arguments))
    outputs = list(tensors_in(out))
    moved = 2 * _bytes(outputs) if name in ROWS else _bytes(inputs) + _bytes(outputs)
    if not moved:
        return None
    numbers = next((t for t in (*inputs, *outputs) if t.is_floating_point()), (*inputs, *outputs)[0])
    result = (outputs or inputs)[0].dtype
    order = "".join("c" if tensor.is_contiguous() else "s" for tensor in inputs[:3])
    return Kernel(name, f"{_short(numbers.dtype)} {_short(result)} {order}", flops, moved)


def tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    """The dense tensors of `tree`: lists, tuples and dicts of them; of a sharded one this process's share."""
    if isinstance(tree, torch.Tensor):
        local = tree._local_tensor if isinstance(tree, DTensor) else tree
        if local.layout is torch.strided:
            yield local
    elif isinstance(tree, dict):
        yield from tensors_in(list(tree.values()))
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from tensors_in(part)


class KernelTimes(TorchDispatchMode):
    """Times the kernels of all operations within it, one after another.

    calls: in their order, each with its kernel and its seconds. Enter it before modes that only look on: what is
    entered last sees an operation first.
    """

    def __init__(self, device: torch.device):
        super().__init__()
        self._on_cuda = device.type == "cuda"
        self.calls: list[tuple[Kernel, float]] = []

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func.is_view:
            return func(*args, **kwargs)
        formula = FLOPS.get(func._overloadpacket) or DECOMPOSITIONS.get(func._overloadpacket)
        out, seconds = self._timed(func, args, kwargs)
        flops = 0 if formula is None else formula(*args, **kwargs, out_val=out)
        if (kernel := kernel_of(func, (args, kwargs), out, flops)) is not None:
            self.calls.append((kernel, seconds))
        return out

    def _timed(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, float]:
        if not self._on_cuda:
            start = time.perf_counter()
            out = func(*args, **kwargs)
            return out, time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(BEFORE)
        begin.record()
        out = func(*args, **kwargs)
        end.record()
        end.synchronize()
        return out, max(begin.elapsed_time(end) / 1000, EVENT)  # no kernel takes no time


def _bytes(tensors: list[torch.Tensor]) -> int:
    """Of all `tensors`; of one that repeats a smaller storage, that of the storage."""
    return sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in tensors)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
