"""Shortages of memory: which exceptions tell of one, and what the device holds when it happens."""

from __future__ import annotations

import errno
import re
import weakref

import torch
from torch import nn
from torch.optim import Optimizer

from harness.job.measure.device_memory import largest_free
from harness.job.measure.live_memory import LiveBytes
from harness.job.measure.phases import Meter
from harness.job.methods import optimizers
from harness.job.training import probe
from harness.record import Shortage

# Messages of a RuntimeError. A library that gets no workspace or handle says so by its status; only torch's own
# caching allocator has a class of exceptions for it.
MESSAGES = re.compile(
    r"can't allocate memory"  # torch's allocator on a CPU
    r"|: Cannot allocate memory \(12\)"  # torch, of a file that can't be mapped
    r"|\b(CUDA|HIP)( driver)? error: out of memory"  # torch, for any call of the runtime or the driver
    r"|\bCUDA (ran )?out of memory"  # within a message of torch.compile; cuDNN, for kernels that it compiles
    r"|\bTriton Error \[(CUDA|HIP)\]: out of memory"
    r"|\b(CUBLAS|CUSOLVER|CUSPARSE|CUDNN)_STATUS_ALLOC_FAILED"
    r"|\bCUDNN_STATUS_INTERNAL_ERROR_(HOST|DEVICE)_ALLOCATION_FAILED"  # since cuDNN 9
    r"|\bCuda failure (\d+ )?'out of memory'"  # NCCL
)


def of_memory(error: BaseException) -> bool:
    """Whether `error`, or an exception in its chain, says that memory ran out: a device's or the machine's."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        if _says_so(link):
            return True
        seen.add(id(link))
        link = link.__cause__ or link.__context__
    return False


def _says_so(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM  # a file that can't be mapped, a process that can't be forked
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and MESSAGES.search(str(error)) is not None


class Holders:
    """The model and the optimizer, which hold memory when it runs out.

    The references are weak, so that nothing lives longer for them.
    """

    def __init__(self) -> None:
        self._model: weakref.ref[nn.Module] | None = None
        self._optimizer: weakref.ref[Optimizer] | None = None
        self._adapters: set[int] = set()

    def set_model(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)

    def set_adapters(self, ids: set[int]) -> None:
        """ids: of the parameters that are adapters."""
        self._adapters = ids

    def set_optimizer(self, optimizer: Optimizer) -> None:
        self._optimizer = weakref.ref(optimizer)

    def shortage(self, meter: Meter) -> Shortage:
        """What the device of `meter` holds. Ask while the exception still holds what was in use."""
        device = meter.device
        counter = None if device.type == "cuda" else meter.counter
        # The counter may not have met the weights yet: it counts what operations use. So it is shown them.
        live = LiveBytes(device) if counter is None else counter
        model = None if self._model is None else self._model()
        optimizer = None if self._optimizer is None else self._optimizer()
        if model is not None:
            probe.see_weights(model, self._adapters, live)
            live.see([p.grad for p in model.parameters()], "gradients")
        if optimizer is not None:
            live.see(optimizers.state(optimizer), "optimizer")
        kinds, allocated = live.now_by_kind, None
        if device.type == "cuda":
            allocated = torch.cuda.memory_allocated(device)
        elif counter is not None:
            allocated = counter.now
        named = kinds.weights + kinds.adapters + kinds.gradients + kinds.optimizer
        rest = None if allocated is None else allocated - named
        return Shortage(
            kinds.weights, kinds.adapters, kinds.gradients, kinds.optimizer, rest, allocated, largest_free(device)
        )
