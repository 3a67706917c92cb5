"""Offloads activations to the host's memory from the forward pass until the backward pass needs them.

Tensors saved for the backward pass are copied to pinned memory, freed on the device, and copied back on demand.
Weights, those of adapters that were cast for the pass, and small tensors stay. Copies are queued in the computing
stream, so no tensor is freed or used before its copy is done; gradients are the same to the bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import saved_tensors_hooks

from harness.errors import UserError
from harness.job.measure import device
from harness.job.measure.live_memory import parts_of
from harness.job.training.adapter_operands import prepared
from harness.settings import Settings

LEAST = 2**20  # bytes of the smallest storage that is moved
HOST = torch.device("cpu")


def check(settings: Settings) -> None:
    """Raise UserError if activations are to be offloaded, and the device is not a CUDA device."""
    here = device.here().type
    if settings.train.activation_offload and here != "cuda":
        raise UserError(f"train.activation_offload=true requires a CUDA device; this machine trains on {here}.")


def enable(net: nn.Module, host: torch.device = HOST, least: int | None = None) -> Callable[[], None]:
    """Offload what the forward passes of `net` save to `host`. Returns a function that undoes it.

    least: bytes of the smallest storage that is moved (null: LEAST).
    """
    offload = _Offload(net, host, LEAST if least is None else least)
    handles = (net.register_forward_pre_hook(offload.begin), net.register_forward_hook(offload.end, always_call=True))

    def disable() -> None:
        for handle in handles:
            handle.remove()

    return disable


@dataclass
class _Storage:
    """A storage in the host's memory. back: its copy on the device, until all `awaited` tensors in it were read."""

    host: Tensor
    device: torch.device
    awaited: int = 0
    back: Tensor | None = None


@dataclass
class _Saved:
    """A saved tensor: its place in its storage."""

    storage: _Storage
    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt
    dtype: torch.dtype


class _Offload:
    def __init__(self, net: nn.Module, host: torch.device, least: int):
        self._net, self._host, self._least = net, host, least
        self._open: tuple[_ForwardPass, saved_tensors_hooks] | None = None

    def begin(self, *_: Any) -> None:
        if torch.is_grad_enabled():
            weights = [*self._net.parameters(), *self._net.buffers(), *prepared(self._net)]
            one = _ForwardPass(weights, self._host, self._least)
            self._open = one, saved_tensors_hooks(one.pack, unpack)
            self._open[1].__enter__()

    def end(self, *_: Any) -> None:
        if self._open is not None:
            one, hooks = self._open
            hooks.__exit__(None, None, None)
            one.moved.clear()
            self._open = None


class _ForwardPass:
    """Offloads what one forward pass saves, but for the storages of `held`, its model's tensors.

    moved: what it has offloaded, by storage and version of its content.
    """

    def __init__(self, held: list[Tensor], host: torch.device, least: int):
        stored = [part for tensor in held for part in parts_of(tensor)]
        self._device, self._weights = held[0].device, {t.untyped_storage()._cdata for t in stored}
        self._host, self._least = host, least
        self.moved: dict[tuple[int, int], _Storage] = {}

    def pack(self, tensor: Tensor) -> Tensor | _Saved:
        storage = tensor.untyped_storage()
        key = (storage._cdata, tensor._version)
        if tensor.device != self._device or storage.nbytes() < self._least or key[0] in self._weights:
            return tensor
        if key not in self.moved:
            whole = tensor.detach().as_strided((storage.nbytes() // tensor.itemsize,), (1,), 0)
            pinned = self._device.type == "cuda" and not isinstance(tensor, FakeTensor)
            host = torch.empty_like(whole, device=self._host, pin_memory=pinned).copy_(whole, non_blocking=True)
            self.moved[key] = _Storage(host, tensor.device)
            weakref.finalize(storage, self.moved.pop, key, None)  # another storage may get its address
        moved = self.moved[key]
        moved.awaited += 1
        return _Saved(moved, tensor.size(), tensor.stride(), tensor.storage_offset(), tensor.dtype)


def unpack(saved: Tensor | _Saved) -> Tensor:
    """The tensor that was `saved`, on its device."""
    if isinstance(saved, Tensor):
        return saved
    moved = saved.storage
    if moved.back is None:
        moved.back = torch.empty_like(moved.host, device=moved.device).copy_(moved.host, non_blocking=True)
    back = moved.back
    moved.awaited -= 1
    if not moved.awaited:
        moved.back = None
    if saved.dtype != back.dtype:
        back = back.view(torch.uint8).view(saved.dtype)
    return back.as_strided(saved.size, saved.stride, saved.offset)
