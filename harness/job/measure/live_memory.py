"""Counts the bytes of live tensors by kind, with the same instrument on every device.

A dispatch mode sees each operation, follows each storage from its first use to its end, and adds up the FLOPs of the
operations on the way.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from harness.job.measure.flops import ATTENTION, FLOPS
from harness.job.measure.workspaces import WORKSPACES
from harness.record import Kinds

Kind = Literal["weights", "adapters", "gradients", "optimizer", "activations"]


_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)


@contextlib.contextmanager
def recomputation() -> Iterator[None]:
    """A context for operations that repeat earlier ones, because their results were not kept."""
    token = _recomputing.set(True)
    try:
        yield
    finally:
        _recomputing.reset(token)


def parts_of(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors that `tensor` stores its values in: itself, or the parts that a class of a library keeps."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from parts_of(getattr(tensor, name))


class OperationTimes(Protocol):
    """What tells the time of operations that only seem to run: harness/job/predict/roofline.py."""

    def reset(self) -> None: ...

    def add(self, operation: Any, arguments: Any, out: Any, flops: int) -> None: ...

    def add_uncounted(self, operation: Any, arguments: Any, out: Any) -> None: ...

    def lap(self, part: str) -> None: ...


class AllocationTrace(Protocol):
    """What keeps the order of allocations and frees: harness/job/predict/caching_allocator.py.

    number: of a storage, in the order in which they were first seen.
    """

    def begin(self, number: int, size: int) -> None: ...

    def end(self, number: int) -> None: ...

    def burst(self, size: int) -> None: ...

    def mark(self, window: str) -> None: ...

    def close(self) -> None: ...


@dataclass
class Peak:
    """The peak of a window: live bytes in total and by kind, and how many storages had been seen by then."""

    total: int = 0
    kinds: dict[Kind, int] = field(default_factory=dict)
    seen: int = 0


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensor storages on `device`, by kind, and their peak.

    A storage counts once, however many views it has, at its allocated size, from the first operation that uses it until
    it is freed. Its kind is the one given to `see`, else activations; a kind that is given later applies from the first
    use. What a kernel allocates and frees inside one operation counts as activations if `workspaces` has it; otherwise
    it is not seen.

    Of a sharded tensor this process's share counts. Once a sharded tensor was seen, resized storages count at their
    current size: gathering weights resizes them.

    windows: the peak of each window that `mark` began, by name; "" before the first.
    flops: of all matrix products and attentions seen, by torch's formulas; a multiply-add counts as two.
        recomputed: of those within `recomputation`; `flops` does not include them.
    attention: number of forward attention operations by name and dtype of the query, as in ``varlen bfloat16``.
    workspaces: by operation, the bytes that its kernel allocates for itself, from the operation's arguments; null for
        CUDA's on a CUDA device, and none elsewhere.
    roofline: adds up the times of the operations; null if they are not asked for.
    trace: gets all allocations, frees and marks in their order, while the mode is on; null if it is not asked for.
    """

    def __init__(
        self,
        device: torch.device,
        workspaces: dict[Any, Callable[..., int]] | None = None,
        roofline: OperationTimes | None = None,
        trace: AllocationTrace | None = None,
    ):
        super().__init__()
        self.roofline, self._counted, self._trace = roofline, True, trace
        if workspaces is None:
            workspaces = WORKSPACES if device.type == "cuda" else {}
        self._workspaces = workspaces
        self._replaced: dict[torch._ops.OpOverload, Callable[..., Any]] = {}
        self._device = device.type
        self._live: dict[int, tuple[int, Kind, int]] = {}  # bytes, kind, when it was first seen
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._sharded = False
        self._now: dict[Kind, int] = dict.fromkeys(get_args(Kind), 0)
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
        """Begin `window`, or continue it: from here on peaks belong to it."""
        self._window = self.windows.setdefault(window, Peak())
        self._note()
        if self._trace is not None:
            self._trace.mark(window)

    def __exit__(self, *error: Any) -> None:
        if self._trace is not None:
            self._trace.close()
        super().__exit__(*error)

    @contextlib.contextmanager
    def replacing(self, operation: torch._ops.OpOverload, function: Callable[..., Any]) -> Iterator[None]:
        """A context in which `function` is called in place of `operation`; what it calls is not seen."""
        self._replaced[operation] = function
        try:
            yield
        finally:
            del self._replaced[operation]

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """A context whose operations add no FLOPs and no time; their memory counts."""
        self._counted = False
        yield
        self._counted = True

    def reset_operations(self) -> None:
        """Count FLOPs, attentions and time from zero."""
        self.flops = self.recomputed = 0
        self.attention.clear()
        if self.roofline is not None:
            self.roofline.reset()

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.prim.device.default:  # asked of tensors without storage, four times an operation
            return args[0].device
        kwargs = kwargs or {}
        self.see(args)
        if kwargs:
            self.see(list(kwargs.values()))
        out = self._replaced.get(func, func)(*args, **kwargs)
        self.see(out)
        if (workspace := self._workspaces.get(func._overloadpacket)) is not None:
            self.burst(workspace(*args, **kwargs))
        if self._counted:
            self._add(func, args, kwargs, out)
        elif self.roofline is not None:
            self.roofline.add_uncounted(func, (args, kwargs), out)
        name = ATTENTION.get(func._overloadpacket)
        if name is not None and (args[0].ndim == 4 or name == "varlen"):  # not a router's softmax
            self.attention[f"{name} {str(args[0].dtype).removeprefix('torch.')}"] += 1
        return out

    def _add(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Count the FLOPs of an operation, and its time."""
        formula = FLOPS.get(func._overloadpacket)
        count = 0 if formula is None else formula(*args, **kwargs, out_val=out)
        if _recomputing.get():
            self.recomputed += count
        else:
            self.flops += count
        if self.roofline is not None:
            self.roofline.add(func, (args, kwargs), out, count)

    def see(self, tree: Any, kind: Kind | None = None) -> None:
        """Count all tensors in `tree` (lists, tuples and dicts of them), as `kind` if that is given."""
        if isinstance(tree, torch.Tensor):
            self._see_tensor(tree, kind)
        elif isinstance(tree, (list, tuple)):
            for part in tree:
                self.see(part, kind)
        elif isinstance(tree, dict):
            for part in tree.values():
                self.see(part, kind)

    def _see_tensor(self, tensor: torch.Tensor, kind: Kind | None) -> None:
        if isinstance(tensor, DTensor):
            self._sharded = True
            tensor = tensor._local_tensor
        if tensor.layout is torch.sparse_coo:  # its parts have storages, not itself
            self.see([tensor._indices(), tensor._values()], kind)
        elif is_traceable_wrapper_subclass(tensor):  # nor do torchao's weights
            self.see(list(parts_of(tensor)), kind)
        elif tensor.device.type == self._device:
            storage = tensor.untyped_storage()
            key = storage._cdata  # the C++ storage: python wrappers of it come and go
            entry = self._live.get(key)
            if entry is not None and self._sharded and entry[0] != storage.nbytes():
                self._resize(key, storage.nbytes())
                self._note()
            if entry is None:
                self._begin(key, storage, kind or "activations")
            elif kind is not None and entry[1] != kind:
                self._relabel(key, kind)

    def burst(self, size: int) -> None:
        """Count `size` bytes that one operation allocates and frees, as activations."""
        self.now += size
        self._now["activations"] += size
        self._note()
        self.now -= size
        self._now["activations"] -= size
        if self._trace is not None:
            self._trace.burst(size)

    def _begin(self, key: int, storage: torch.UntypedStorage, kind: Kind) -> None:
        size = storage.nbytes()
        self._seen += 1
        self._live[key] = (size, kind, self._seen)
        self._storages[key] = weakref.ref(storage)
        weakref.finalize(storage, self._end, key)
        self._now[kind] += size
        self.now += size
        self._note()
        if self._trace is not None:
            self._trace.begin(self._seen, size)

    def _note(self) -> None:
        if self.now > self._window.total:
            self._measure()
        if self.now > self._window.total:
            self._window.total, self._window.kinds, self._window.seen = self.now, dict(self._now), self._seen

    def _measure(self) -> None:
        """Update the sizes of resized storages: nothing else tells when one was freed that way."""
        if self._sharded:
            for key, (size, _, _) in list(self._live.items()):
                reference = self._storages.get(key)  # null of one that ends meanwhile, when Python collects garbage
                storage = None if reference is None else reference()
                if storage is not None and storage.nbytes() != size:
                    self._resize(key, storage.nbytes())

    def _resize(self, key: int, size: int) -> None:
        before, kind, born = self._live[key]
        self._live[key] = (size, kind, born)
        self._now[kind] += size - before
        self.now += size - before
        if self._trace is not None:
            self._trace.end(born)
            self._trace.begin(born, size)

    def _relabel(self, key: int, kind: Kind) -> None:
        size, before, born = self._live[key]
        self._live[key] = (size, kind, born)
        self._now[before] -= size
        self._now[kind] += size
        for window in self.windows.values():
            if born <= window.seen:  # it lives now, so it lived at that peak
                window.kinds[before] -= size
                window.kinds[kind] += size

    def _end(self, key: int) -> None:
        size, kind, born = self._live.pop(key)
        del self._storages[key]
        self._now[kind] -= size
        self.now -= size
        if self._trace is not None:
            self._trace.end(born)
