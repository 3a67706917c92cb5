"""Whether an exception says that memory ran out: of the many libraries on a device, each says it in its own words."""

from __future__ import annotations

import errno
import re

import torch

# Of what raises a RuntimeError. A library that gets no workspace or handle says so by its status; only torch's own
# caching allocator has a class of exceptions for it.
SAID = re.compile(
    r"can't allocate memory"  # torch's allocator on a CPU
    r"|\b(CUDA|HIP)( driver)? error: out of memory"  # torch, for any call of the runtime or the driver
    r"|\bCUDA (ran )?out of memory"  # within a message of torch.compile; cuDNN, for kernels that it compiles
    r"|\bTriton Error \[(CUDA|HIP)\]: out of memory"
    r"|\b(CUBLAS|CUSOLVER|CUSPARSE|CUDNN)_STATUS_ALLOC_FAILED"
    r"|\bCUDNN_STATUS_INTERNAL_ERROR_(HOST|DEVICE)_ALLOCATION_FAILED"  # since cuDNN 9
    r"|\bCuda failure (\d+ )?'out of memory'"  # NCCL
)


def of_memory(error: BaseException) -> bool:
    """Whether `error`, what it was raised from or while, says that memory ran out, a device's or the machine's."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if _says_so(error):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _says_so(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM  # a file that can't be mapped, a process that can't be forked
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and SAID.search(str(error)) is not None
