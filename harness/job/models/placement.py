"""Where a model goes that was trained sharded: to the first device, or, if that can't hold it, over all of them.

So it does when it is loaded again, to be scored, asked or exported.
"""

from __future__ import annotations

import torch

from harness import units
from harness.record import Record

# Parts of a device's memory that weights may take. The rest is for caches, activations, and what merging takes beside.
ROOM = 0.75  # if one device has them all
ROOM_DIVIDED = 0.9  # at most, if there is no other way


def over(size: int, memory: list[int]) -> dict[int, int] | None:
    """By device, how many bytes of weights of a model of `size` bytes it may get; null if the first device is enough.

    memory: bytes of each device. Raises MemoryError if all together are too few.
    """
    if not memory or size <= ROOM * memory[0]:
        return None
    rooms = _rooms(memory)
    if size > sum(rooms.values()):
        raise MemoryError(
            f"The whole model, which is merged, timed and scored, takes {units.size(size)}; {len(memory)} devices of "
            f"the first machine have room for {units.size(sum(rooms.values()))} of weights."
        )
    return rooms


def again(recorded: Record) -> dict[int, int] | None:
    """As `over`, for a model whose record says that it was divided; null for another, or if there is one device."""
    memory = devices()
    return _rooms(memory) if recorded.environment.get("divided_over") and len(memory) > 1 else None


def _rooms(memory: list[int]) -> dict[int, int]:
    return {number: int(ROOM_DIVIDED * each) for number, each in enumerate(memory)}


def devices() -> list[int]:
    """Bytes of memory of each CUDA device that this process sees.

    Not what is free: other processes of the cell, which are done, are about to free what they have.
    """
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.mem_get_info(number)[1] for number in range(torch.cuda.device_count())]
