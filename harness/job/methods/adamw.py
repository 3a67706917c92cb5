"""bitsandbytes' AdamW in place of torch's: moments in 8 bits, in paged memory, or both (setting `method.adamw`).

8-bit moments are blocks of 256 values with a scale each (Dettmers et al. 2021, arXiv:2110.02861); weights with fewer
than 4,096 values have fp32 moments. Paged moments are in memory that CUDA moves between device and host as needed
(Dettmers et al. 2023, arXiv:2305.14314, section 3); weights with fewer than 100,000 values have theirs on the device.
Both limits are bitsandbytes'.

Paged memory counts as the host's: neither torch's allocator, nor the count of live tensors, nor a prediction includes
it.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import torch
from bitsandbytes import functional
from bitsandbytes.optim.optimizer import Optimizer2State
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

LEAST_PAGED = 100_000  # values of a weight


class Bitsandbytes(Optimizer2State):
    """bitsandbytes' AdamW that also steps tensors without storage, never waits for CUDA, and frees paged memory."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch's type wants closures taken too
        """As in bitsandbytes, which also waits for CUDA after each weight; the order of the stream is enough."""
        for number, group in enumerate(self.param_groups):
            for index, p in enumerate(group["params"]):
                if p.grad is not None:
                    self._step(group, p, number, index)

    def _step(self, group: dict[str, Any], p: Tensor, number: int, index: int) -> None:
        """Step `p`, parameter `index` of group `number`."""
        if "state1" not in self.state[p]:
            self.init_state(group, p, number, index)
        self.prefetch_state(p)
        self.update_step(group, p, number, index)

    def fill_qmap(self) -> None:
        """Create the two tables of 256 values that 8-bit moments index. Sorting them needs values."""
        p = self.param_groups[0]["params"][0]
        if isinstance(p, FakeTensor):
            self.name2qmap |= {name: torch.empty(256, device=p.device) for name in ("dynamic", "udynamic")}
        else:
            super().fill_qmap()

    def get_state_buffer(self, p: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Zeros for a moment of `p`."""
        if not self.is_paged or p.numel() < LEAST_PAGED:
            return torch.zeros_like(p, dtype=dtype)
        if isinstance(p, FakeTensor):
            buffer: Any = torch.zeros_like(p, dtype=dtype, device="meta")  # a device without counted memory
            buffer.is_paged = True
            return buffer
        buffer = super().get_state_buffer(p, dtype)
        # bitsandbytes never frees it, and keeps a list of all buffers.
        self.page_mng.paged_tensors.pop()
        weakref.finalize(self, functional.lib.cudaFree, ctypes.c_void_p(buffer.data_ptr())).atexit = False
        return buffer

    def prefetch_state(self, p: Tensor) -> None:
        if not isinstance(p, FakeTensor):
            super().prefetch_state(p)


class EightBitAdamW(Bitsandbytes):
    """Moments take 2 bytes a weight instead of 8."""

    def __init__(self, params: Any, fused: bool = True, **keywords: Any):
        """fused: ignored, for torch's AdamW only."""
        super().__init__("adam", params, optim_bits=8, **keywords)


class PagedAdamW(Bitsandbytes):
    """Moments are in fp32, and leave the device when memory runs short."""

    def __init__(self, params: Any, fused: bool = True, **keywords: Any):
        """fused: ignored, for torch's AdamW only."""
        super().__init__("adam", params, optim_bits=32, is_paged=True, **keywords)


class PagedEightBitAdamW(Bitsandbytes):
    """Moments take 2 bytes a weight, and leave the device when memory runs short."""

    def __init__(self, params: Any, fused: bool = True, **keywords: Any):
        """fused: ignored, for torch's AdamW only."""
        super().__init__("adam", params, optim_bits=8, is_paged=True, **keywords)
