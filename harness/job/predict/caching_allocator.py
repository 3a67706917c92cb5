"""A model of torch's caching allocator for CUDA: what it reserves of the device for the tensors that it hands out.

Reserved memory is what runs out: blocks are rounded, freed ones are kept, and holes between live blocks are of use only
to what fits into them. The rules are those of torch 2.4 to 2.11 (c10/cuda/CUDACachingAllocator.cpp) with one stream and
default options but for `expandable_segments`, which the harness sets for its jobs.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

MIB = 2**20
ROUNDING = 512  # bytes: sizes of blocks are multiples
SMALL = MIB  # up to here a block is of the small pool
SMALL_SEGMENT, LARGE_SEGMENT = 2 * MIB, 20 * MIB  # of a small block, and of a large one below LARGE
LARGE = 10 * MIB  # from here on a segment is as large as its block, rounded up to SEGMENT_ROUNDING
SEGMENT_ROUNDING = 2 * MIB
EXPANDABLE = (SMALL_SEGMENT, LARGE_SEGMENT)  # with PYTORCH_ALLOC_CONF=expandable_segments:True, which jobs have


@dataclass(eq=False)
class Block:
    """A piece of a segment. before, after: its neighbours there; None at the segment's ends."""

    address: int
    size: int
    before: Block | None = None
    after: Block | None = None
    free: bool = True

    @property
    def order(self) -> tuple[int, int]:
        """By which free blocks are sorted: the best fit is the smallest, and of equal ones the lowest."""
        return self.size, self.address


class Pool:
    """Blocks of the small or of the large pool.

    step: bytes of the pages by which its one segment grows; None of a pool of many segments, each of a fixed size.
    Pages of that segment that were given back are taken again when a block needs them.
    """

    def __init__(self, small: bool, step: int | None):
        self._small, self._step = small, step
        self._free: list[tuple[int, int]] = []  # sorted, by Block.order
        self._blocks: dict[int, Block] = {}  # free ones by address
        self._last: Block | None = None  # of the segment that grows
        self._end = 0  # address after the last segment
        self._missing: set[int] = set()  # pages that were given back, by number
        self.reserved = 0

    def lacks(self, size: int) -> int:
        """Bytes that the pool takes of the device for a block of `size` bytes; 0 if there is room in what it has."""
        at = bisect.bisect_left(self._free, (size, -1))
        if at < len(self._free):
            return self._lacks_pages(self._free[at][1], size) if self._step else 0
        return _segment_size(size) if self._step is None else _rounded(size, self._step)

    def release(self) -> None:
        """Give back the segments that are wholly free, and the free pages of one that grows."""
        for block in list(self._blocks.values()):
            if self._step is not None:
                free = range(-(-block.address // self._step), (block.address + block.size) // self._step)
                whole = set(free) - self._missing
                self._missing |= whole
                self.reserved -= len(whole) * self._step
            elif block.before is None and block.after is None:
                self._remove(block)
                self.reserved -= block.size

    def take(self, size: int) -> Block:
        """A block of at least `size` bytes, which is a multiple of ROUNDING."""
        at = bisect.bisect_left(self._free, (size, -1))
        if at < len(self._free):
            block = self._blocks[self._free[at][1]]
            self._remove(block)
        else:
            block = self._segment(size) if self._step is None else self._grown(size, self._step)
        if self._missing and self._step is not None:
            self.reserved += self._lacks_pages(block.address, size)
            self._missing -= set(self._pages(block.address, size))
        if self._splits(block.size - size):
            self._split(block, size)
        block.free = False
        return block

    def give_back(self, block: Block) -> None:
        """Free `block`, and merge it with free neighbours."""
        block.free = True
        if (before := block.before) is not None and before.free:
            self._remove(before)
            block = self._merged(before, block)
        if (after := block.after) is not None and after.free:
            self._remove(after)
            block = self._merged(block, after)
        self._add(block)

    def _pages(self, address: int, size: int) -> range:
        """The pages in which the `size` bytes at `address` lie, by number."""
        step = self._step or 1
        return range(address // step, -(-(address + size) // step))

    def _lacks_pages(self, address: int, size: int) -> int:
        """Bytes of pages at `address` that were given back."""
        return len(self._missing.intersection(self._pages(address, size))) * (self._step or 0) if self._missing else 0

    def _splits(self, rest: int) -> bool:
        return rest > SMALL if self._step is None and not self._small else rest >= ROUNDING

    def _split(self, block: Block, size: int) -> None:
        rest = Block(block.address + size, block.size - size, before=block, after=block.after)
        if rest.after is not None:
            rest.after.before = rest
        else:
            self._last = rest if self._last is block else self._last
        block.size, block.after = size, rest
        self._add(rest)

    def _merged(self, first: Block, second: Block) -> Block:
        first.size, first.after = first.size + second.size, second.after
        if second.after is not None:
            second.after.before = first
        elif self._last is second:
            self._last = first
        return first

    def _segment(self, size: int) -> Block:
        """A segment of its own for `size` bytes, as one block."""
        total = _segment_size(size)
        block = Block(self._end, total)
        self._end += total
        self.reserved += total
        return block

    def _grown(self, size: int, step: int) -> Block:
        """A block of at least `size` bytes at the end of the segment, with what is free there."""
        last = self._last
        lacking = size - last.size if last is not None and last.free else size
        more = Block(self._end, _rounded(lacking, step), before=last)
        self._end += more.size
        self.reserved += more.size
        self._last = more
        if last is None:
            return more
        last.after = more
        if not last.free:
            return more
        self._remove(last)
        return self._merged(last, more)

    def _add(self, block: Block) -> None:
        bisect.insort(self._free, block.order)
        self._blocks[block.address] = block

    def _remove(self, block: Block) -> None:
        del self._free[bisect.bisect_left(self._free, block.order)]
        del self._blocks[block.address]


class CachingAllocator:
    """What is reserved while tensors are allocated and freed.

    steps: bytes by which the segments of the small and of the large pool grow; None for segments of fixed sizes.
    capacity: bytes from which on it gives back what is free before it takes more; None: none is short. With 0 it takes
    the least that it can do with.
    allocated: bytes of all blocks handed out, as torch.cuda.memory_allocated has it. peak: of what is reserved.
    """

    def __init__(self, steps: tuple[int, int] | None = EXPANDABLE, capacity: int | None = None):
        self._capacity, self.peak = capacity, 0
        small, large = (None, None) if steps is None else steps
        self._pools = Pool(True, small), Pool(False, large)
        self._blocks: dict[int, tuple[Pool, Block]] = {}
        self.allocated = 0

    @property
    def reserved(self) -> int:
        """Bytes taken of the device, as torch.cuda.memory_reserved has it."""
        return sum(pool.reserved for pool in self._pools)

    def allocate(self, key: int, size: int) -> None:
        """Hand out `size` bytes, to be freed by `key`."""
        self.free(key)  # of a step before, which did not free it
        if size == 0:
            return
        rounded = _rounded(size, ROUNDING)
        pool = self._pools[rounded > SMALL]
        if self._capacity is not None:
            lacking = pool.lacks(rounded)
            if lacking and self.reserved + lacking > self._capacity:
                for each in self._pools:
                    each.release()
        block = pool.take(rounded)
        self.peak = max(self.peak, self.reserved)
        self._blocks[key] = pool, block
        self.allocated += block.size

    def free(self, key: int) -> None:
        """Take back what `key` has, if anything."""
        if key in self._blocks:
            pool, block = self._blocks.pop(key)
            self.allocated -= block.size
            pool.give_back(block)


@dataclass
class Trace:
    """Allocations and frees of a probe, in their order, as `LiveBytes` sees them.

    parts: events between marks of the names BOUNDS. An event is the number of a tensor and its bytes, or None where it
    is freed.
    """

    parts: list[list[tuple[int, int | None]]] = field(default_factory=lambda: [[]])
    _closed: bool = False

    def begin(self, number: int, size: int) -> None:
        self._add(number, size)

    def end(self, number: int) -> None:
        self._add(number, None)

    def burst(self, size: int) -> None:
        self._add(0, size)
        self._add(0, None)

    def mark(self, window: str) -> None:
        if window in BOUNDS and not self._closed:
            self.parts.append([])

    def close(self) -> None:
        """Take no more events: what follows frees the probed model."""
        self._closed = True

    def _add(self, number: int, size: int | None) -> None:
        if not self._closed:
            self.parts[-1].append((number, size))

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor."""
        return max((size for part in self.parts for _, size in part if size is not None), default=0)

    def reserved(self, steps: tuple[int, int] | None = EXPANDABLE, capacity: int | None = None) -> int:
        """The most bytes that the allocator has reserved in the probe and two further steps like its last.

        steps, capacity: as of CachingAllocator.
        """
        allocator = CachingAllocator(steps, capacity)
        first, *later = self.parts
        _replay(allocator, first)
        for part in later + (later[:1] + later[-1:]) * 2 if later else []:
            _replay(allocator, part)
        return allocator.peak


BOUNDS = ("begin", "optimizer")  # of the parts of a step: forward and backward passes, the optimizer's steps


def _replay(allocator: CachingAllocator, events: Iterable[tuple[int, int | None]]) -> None:
    for number, size in events:
        if size is None:
            allocator.free(number)
        else:
            allocator.allocate(number, size)


def _segment_size(size: int) -> int:
    """Bytes of a segment that is taken for a block of `size`."""
    if size <= SMALL:
        return SMALL_SEGMENT
    return LARGE_SEGMENT if size < LARGE else _rounded(size, SEGMENT_ROUNDING)


def _rounded(size: int, to: int) -> int:
    return math.ceil(size / to) * to
