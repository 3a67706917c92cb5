"""Stops glibc from returning freed memory, so that the next tensor on the CPU reuses it.

glibc maps each allocation of 32 MiB and more by itself, unmaps it when it is freed, and returns the free end of its
heap. The system clears every page that it hands out again: about a tenth of a step of full fine-tuning, and more than
the products of a decoded token.
"""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # glibc's malloc.h
GROWTH = 64 * 2**20  # bytes by which the heap grows

_libc = ctypes.CDLL(None)


def keep(device: str = "cpu") -> str:
    """Have this process, and those forked from it, keep freed memory; returns "on", or "off: " and the reason.

    device: type of the device that holds the tensors.
    """
    if device != "cpu":
        return "off: the device has an allocator of its own"
    if not hasattr(_libc, "mallopt"):
        return "off: the C library is not glibc"
    # No allocation is mapped by itself and nothing is returned: all memory is the heap's.
    accepted = [_libc.mallopt(MMAP_MAX, 0), _libc.mallopt(TRIM_THRESHOLD, -1), _libc.mallopt(TOP_PAD, GROWTH)]
    return "on" if all(accepted) else "off: glibc does not take its settings"


def give_back() -> None:
    """Return freed memory to the system, so that the next phase's peak is its own."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
