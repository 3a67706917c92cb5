"""Instruments: windows of memory and time, live tensors by kind, parts of a step, energy, the device's matmul peak.

Live tensors are counted by the same instrument on every device: a dispatch mode that sees each operation, follows each
storage from its first sight to its end, and on the way adds up the operations' FLOPs. Beside it stands what the device
reports of itself: CUDA's allocator, NVML, the kernel's account of the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.attention.varlen  # defines its operations
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from harness.job.cuda_kernels import WORKSPACES
from harness.job.measure import heap, nvml
from harness.record import Kinds, Memory, Phase

clock = time.perf_counter
Kind = Literal["weights", "adapters", "gradients", "optimizer", "activations"]


_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)


@contextlib.contextmanager
def recomputation() -> Iterator[None]:
    """A context for operations that were done before, and are done again as their results were not kept."""
    token = _recomputing.set(True)
    try:
        yield
    finally:
        _recomputing.reset(token)


def synchronize() -> None:
    """Wait until the accelerator, if any, has done all that was asked of it."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


@dataclass
class Peak:
    """The most live bytes there were in a window, by kind, and how many storages had been seen by then."""

    total: int = 0
    kinds: dict[Kind, int] = field(default_factory=dict)
    seen: int = 0


class LiveBytes(TorchDispatchMode):
    """Counts bytes of live tensor storages on `device`, by kind, and the most there were at one moment.

    A storage counts once however many views it has, at its allocated size, from the first operation that takes or
    gives it until it is freed. It is of the kind that `see` was told, else an activation; told later, it counts as of
    that kind from its first sight on. What a kernel allocates and frees inside one operation counts as an activation
    where `workspaces` tells it; else it is not seen.

    Of a sharded tensor the share of this process counts. Storages that are resized count at their size of the moment,
    once a sharded tensor was seen: to gather weights is to do that.

    windows: the peak in each window that `mark` began, by name; before the first, in "".
    flops: of all matrix products and attentions seen, by torch's formulas; a multiplication and an addition are two.
        recomputed: of those within `recomputation`, which are no part of them.
    attention: how often each operation of attention was seen going forward, by its name and its query's dtype, as in
        ``varlen bfloat16``.
    instead: by operation, what is called in its place; what that calls is not seen.
    workspaces: by operation, the bytes that its kernel takes for itself, of its arguments; null for those of CUDA on a
        CUDA device, and none elsewhere.
    """

    def __init__(self, device: torch.device, workspaces: dict[Any, Callable[..., int]] | None = None):
        super().__init__()
        if workspaces is None:
            workspaces = WORKSPACES if device.type == "cuda" else {}
        self._workspaces = workspaces
        self.instead: dict[torch._ops.OpOverload, Callable[..., Any]] = {}
        self._device = device.type
        self._live: dict[int, tuple[int, Kind, int]] = {}  # bytes, kind, when it was first seen
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._sharded = False
        self._now: dict[Kind, int] = dict.fromkeys((f.name for f in dataclasses.fields(Kinds)), 0)
        self._seen = 0
        self.windows = {"": Peak()}
        self._window = self.windows[""]
        self.now = self.flops = self.recomputed = 0
        self.attention: Counter[str] = Counter()

    @property
    def now_by_kind(self) -> Kinds:
        self._measure()
        return Kinds(**self._now)

    @property
    def peak(self) -> int:
        return max(window.total for window in self.windows.values())

    @property
    def peak_by_kind(self) -> Kinds:
        highest = max(self.windows.values(), key=lambda window: window.total)
        return Kinds(**(self._now | highest.kinds))

    def mark(self, window: str) -> None:
        """From here on peaks are those of `window`, which may be come back to."""
        self._window = self.windows.setdefault(window, Peak())
        self._note()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:  # tensors without storage are asked so, four times an operation
            return args[0].device
        kwargs = kwargs or {}
        self.see(args)
        if kwargs:
            self.see(list(kwargs.values()))
        out = self.instead.get(func, func)(*args, **kwargs)
        self.see(out)
        if (workspace := self._workspaces.get(func._overloadpacket)) is not None:
            self._hold_for_a_moment(workspace(*args, **kwargs))
        formula = FLOPS.get(func._overloadpacket)
        if formula is not None:
            count = formula(*args, **kwargs, out_val=out)
            if _recomputing.get():
                self.recomputed += count
            else:
                self.flops += count
        name = ATTENTION.get(func._overloadpacket)
        if name is not None and (args[0].ndim == 4 or name == "varlen"):  # a router's softmax is no attention
            self.attention[f"{name} {str(args[0].dtype).removeprefix('torch.')}"] += 1
        return out

    def see(self, tree: Any, kind: Kind | None = None) -> None:
        """Take notice of all tensors in `tree` (lists, tuples and dicts of them), and of what kind they are."""
        if isinstance(tree, torch.Tensor):
            if isinstance(tree, DTensor):
                self._sharded = True
                tree = tree._local_tensor
            if tree.layout is torch.sparse_coo:  # its parts have storages, it has none
                self.see([tree._indices(), tree._values()], kind)
            elif tree.device.type == self._device:
                storage = tree.untyped_storage()
                key = storage._cdata  # the C++ storage: python wrappers of it come and go
                known = self._live.get(key)
                if known is not None and self._sharded and known[0] != storage.nbytes():
                    self._resize(key, storage.nbytes())
                    self._note()
                if known is None:
                    self._begin(key, storage, kind or "activations")
                elif kind is not None and known[1] != kind:
                    self._relabel(key, kind)
        elif isinstance(tree, list | tuple):
            for part in tree:
                self.see(part, kind)
        elif isinstance(tree, dict):
            for part in tree.values():
                self.see(part, kind)

    def burst(self, size: int) -> None:
        """Count `size` bytes that an operation takes and frees in itself, as activations."""
        self.now += size
        self._now["activations"] += size
        self._note()
        self.now -= size
        self._now["activations"] -= size

    def _begin(self, key: int, storage: torch.UntypedStorage, kind: Kind) -> None:
        size = storage.nbytes()
        self._seen += 1
        self._live[key] = (size, kind, self._seen)
        self._storages[key] = weakref.ref(storage)
        weakref.finalize(storage, self._end, key)
        self._now[kind] += size
        self.now += size
        self._note()

    def _hold_for_a_moment(self, size: int) -> None:
        self._now["activations"] += size
        self.now += size
        self._note()
        self._now["activations"] -= size
        self.now -= size

    def _note(self) -> None:
        if self.now > self._window.total:
            self._measure()
        if self.now > self._window.total:
            self._window.total, self._window.kinds, self._window.seen = self.now, dict(self._now), self._seen

    def _measure(self) -> None:
        """Take notice of storages that were resized; nothing else tells when one was freed that way."""
        if self._sharded:
            for key, (size, _, _) in list(self._live.items()):
                storage = self._storages[key]()
                if storage is not None and storage.nbytes() != size:
                    self._resize(key, storage.nbytes())

    def _resize(self, key: int, size: int) -> None:
        before, kind, born = self._live[key]
        self._live[key] = (size, kind, born)
        self._now[kind] += size - before
        self.now += size - before

    def _relabel(self, key: int, kind: Kind) -> None:
        size, before, born = self._live[key]
        self._live[key] = (size, kind, born)
        self._now[before] -= size
        self._now[kind] += size
        for window in self.windows.values():
            if born <= window.seen:  # it lives now, so it was there at that peak
                window.kinds[before] -= size
                window.kinds[kind] += size

    def _end(self, key: int) -> None:
        size, kind, _ = self._live.pop(key)
        del self._storages[key]
        self._now[kind] -= size
        self.now -= size


def _attention_flops(query, key, value, *args, out_val=None, **kwargs) -> int:
    """The two products of attention over [batch, heads, length, width], causal or not: torch's convention."""
    batch, heads, rows, width = query.shape
    return 2 * batch * heads * rows * key.shape[2] * (width + value.shape[3])


def _attention_backward_flops(gradient, query, key, value, *args, out_val=None, **kwargs) -> int:
    """Five products: the scores again, and the gradients of scores, query, key and value."""
    batch, heads, rows, width = query.shape
    return 2 * batch * heads * rows * key.shape[2] * (3 * width + 2 * value.shape[3])


def _varlen_flops(query, key, value, bounds, *args, out_val=None, **kwargs) -> int:
    """As `_attention_flops`, over sequences end to end in [tokens, heads, width] that `bounds` tells apart."""
    _, heads, width = query.shape
    return 2 * heads * sum(n * n for n in _lengths(bounds)) * (width + value.shape[2])


def _varlen_backward_flops(gradient, query, key, value, out, sums, bounds, *args, out_val=None, **kwargs) -> int:
    _, heads, width = query.shape
    return 2 * heads * sum(n * n for n in _lengths(bounds)) * (3 * width + 2 * value.shape[2])


def _lengths(bounds: torch.Tensor) -> Sequence[int]:
    """Of the sequences between `bounds`, which may have no values but those (harness.job.training.attention.bounds_of)."""
    return bounds.lengths if hasattr(bounds, "lengths") else bounds.diff().tolist()


def _nf4_flops(a, b, shape, *args, out_val=None, **kwargs) -> int:
    """A product of `a` [..., in] with a packed 4-bit matrix of `shape` [out, in]."""
    return 2 * a.numel() * shape[0]


def _int8_flops(a, b, *args, out_val=None, **kwargs) -> int:
    """A product of `a` [rows, in] with an 8-bit matrix `b` [out, in]."""
    return 2 * a.numel() * b.shape[0]


def _int8_mixed_flops(a, quantised, b, *args, out_val=None, **kwargs) -> int:
    """As `_int8_flops`; features that are taken in 16 bits are taken in 8 bits, as zeros, too."""
    return _int8_flops(quantised, b)


def _flops() -> dict[Any, Callable[..., int]]:
    """Torch's formulas by operation, and ours of bitsandbytes' products and of attention.

    Of torch's own for attention, some need the values of bounds, those of 2.11 an equal number of heads, and none is of
    the CPU's kernel.
    """
    import bitsandbytes  # noqa: F401  # defines its operation

    aten = torch.ops.aten
    ours = {
        torch.ops.bitsandbytes.gemm_4bit: _nf4_flops,
        torch.ops.bitsandbytes.int8_scaled_mm: _int8_flops,
        torch.ops.bitsandbytes.int8_mixed_scaled_mm: _int8_mixed_flops,
        torch.ops.torch_attn._varlen_attn: _varlen_flops,
        torch.ops.torch_attn._varlen_attn_backward: _varlen_backward_flops,
    }
    for kernel in KERNELS:
        ours[getattr(aten, kernel)] = _attention_flops
        ours[getattr(aten, f"{kernel}_backward")] = _attention_backward_flops
    return flop_registry | ours


KERNELS = {
    "_scaled_dot_product_flash_attention": "flash",
    "_scaled_dot_product_efficient_attention": "efficient",
    "_scaled_dot_product_cudnn_attention": "cudnn",
    "_scaled_dot_product_flash_attention_for_cpu": "flash_for_cpu",
}
# Operations of attention by the names that a record gives them. Where torch, or a model, puts it together from others
# (math, eager) it is told by its softmax, whose dtype is that of the scores.
ATTENTION = {
    **{getattr(torch.ops.aten, kernel): name for kernel, name in KERNELS.items()},
    torch.ops.torch_attn._varlen_attn: "varlen",
    torch.ops.aten._safe_softmax: "math",
    torch.ops.aten._softmax: "eager",
}
FLOPS = _flops()


class Meter:
    """Opens one window a phase, one after another; what each cost is in `phases`, by name."""

    def __init__(self, device: torch.device):
        self.device = device
        self.phases: dict[str, Phase] = {}
        self.counter: LiveBytes | None = None  # of the last window, if live tensors were counted in it

    @contextlib.contextmanager
    def window(self, name: str) -> Iterator[Memory]:
        """Measure the block as phase `name`, also if it raises; yields the phase's memory.

        On CPU `allocated_peak` stays null unless the block sets it (by `live`).
        """
        self.counter = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # else `reserved` would still hold the phase before
        heap.give_back()  # nor should the process
        self._reset_peaks()
        self._memory, self._earlier = Memory(), 0.0
        synchronize()
        self._start = clock()
        try:
            yield self._memory
        finally:
            self.phases[name] = self.so_far()

    def so_far(self) -> Phase:
        """What the window that is open has cost up to now."""
        synchronize()
        seconds, memory = self._earlier + clock() - self._start, self._memory
        if self.device.type == "cuda":
            memory.allocated_peak = _larger(memory.allocated_peak, torch.cuda.max_memory_allocated(self.device))
            memory.reserved_peak = _larger(memory.reserved_peak, torch.cuda.max_memory_reserved(self.device))
            memory.device_process = _larger(memory.device_process, nvml.process_bytes(self.device))
        memory.process_peak = _larger(memory.process_peak, _process_peak())
        return Phase(seconds, memory)

    def go_on_from(self, earlier: Phase) -> None:
        """Count what the phase that is open had cost in a process before this one as part of it."""
        self._earlier += earlier.seconds
        for name, value in vars(earlier.memory).items():
            setattr(self._memory, name, _larger(getattr(self._memory, name), value))

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """A block in a window whose seconds and memory are no part of it."""
        self.so_far()  # its peaks, which are then begun anew
        begin = clock()
        try:
            yield
        finally:
            synchronize()
            self._start += clock() - begin
            self._reset_peaks()

    def _reset_peaks(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        _reset_process_peak()

    @contextlib.contextmanager
    def live(self, memory: Memory) -> Iterator[Callable[[Any], None]]:
        """On CPU, count live tensors in the block into `memory.allocated_peak`.

        Yields a function that is shown tensors which exist without being the result of an operation in the block.
        """
        if self.device.type == "cuda":
            yield lambda tree: None
            return
        self.counter = counter = LiveBytes(self.device)
        try:
            with counter:
                yield counter.see
        finally:
            memory.allocated_peak = max(memory.allocated_peak or 0, counter.peak)


def in_use(device: torch.device) -> int | None:
    """Bytes held at this moment: allocated on a CUDA device, else the process's resident set; null off Linux."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def largest_free(device: torch.device) -> int | None:
    """Bytes of the largest block that CUDA's allocator could hand out, cached or still the device's; null on CPU."""
    if device.type != "cuda":
        return None
    segments = torch.cuda.memory_snapshot()
    cached = [block["size"] for segment in segments for block in segment["blocks"] if block["state"] == "inactive"]
    return max([torch.cuda.mem_get_info(device)[0], *cached])


def _larger(a: int | None, b: int | None) -> int | None:
    return max((value for value in (a, b) if value is not None), default=None)


def _reset_process_peak() -> None:
    with contextlib.suppress(OSError):  # not Linux, or not allowed: then no peak is reported
        Path("/proc/self/clear_refs").write_text("5")


def _process_peak() -> int | None:
    """Peak resident set in bytes since the last reset; null where the kernel can't reset it."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else None


class Stopwatch:
    """Times a step and its parts, in seconds.

    The step is taken by the host's clock, synchronised on both sides. On CUDA its parts are told apart by events in
    the stream, so that the host need not wait between them; elsewhere by the host's clock.
    """

    def __init__(self, device: torch.device):
        self._on_cuda = device.type == "cuda"

    def start(self) -> None:
        synchronize()
        self._marks = [("", self._now())]
        self._start = clock()

    def lap(self, name: str) -> None:
        """The part `name` ends here; parts of the same name add up."""
        self._marks.append((name, self._now()))

    def stop(self) -> tuple[float, dict[str, float]]:
        """Seconds from the start to this moment, and of each part."""
        synchronize()
        seconds = clock() - self._start
        parts: dict[str, float] = {}
        for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
            elapsed = before.elapsed_time(after) / 1000 if self._on_cuda else after - before
            parts[name] = parts.get(name, 0.0) + elapsed
        return seconds, parts

    def _now(self) -> Any:
        if not self._on_cuda:
            return clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Energy:
    """Joules that the whole device has used, by a counter of its own: NVML's on CUDA, else the packages' RAPL."""

    def __init__(self, device: torch.device, powercap: Path = Path("/sys/class/powercap")):
        self._device = device
        # intel-rapl:0 is a package (AMD's too); intel-rapl:0:1 is a part of it, counted there already
        self._packages = sorted(p for p in powercap.glob("intel-rapl:*") if p.name.count(":") == 1)

    def read(self) -> list[tuple[float, float]] | None:
        """Each counter's joules and where it wraps; None where there is none to be read."""
        if self._device.type == "cuda":
            total = nvml.joules(self._device)
            return None if total is None else [(total, 0.0)]
        try:
            micro = [[int((p / f).read_text()) for f in ("energy_uj", "max_energy_range_uj")] for p in self._packages]
        except (OSError, ValueError):
            return None  # most systems let only root read it
        return [(used / 1e6, span / 1e6) for used, span in micro] or None

    @staticmethod
    def between(before: list[tuple[float, float]] | None, after: list[tuple[float, float]] | None) -> float | None:
        """Joules used from one reading to a later one, less than one wrap apart; None if either is."""
        if before is None or after is None:
            return None
        return sum(b - a + (span if b < a else 0) for (a, span), (b, _) in zip(before, after, strict=True))


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s of the best of several products of square matrices: what this device reaches at most, as it is now.

    size: of the matrices; null for one that keeps the device busy.
    """
    kept_busy = 1024 if torch.get_num_threads() <= 4 else 2048
    large, times = (8192, 10) if device.type == "cuda" else (kept_busy, 8)
    size = size or large
    own = torch.Generator(device).manual_seed(0)  # training draws as if this had not been
    a, b = (torch.randn(size, size, device=device, generator=own).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(1 + times):
        synchronize()
        start = clock()
        a @ b
        synchronize()
        seconds.append(clock() - start)
    return 2 * size**3 / min(seconds[1:])
