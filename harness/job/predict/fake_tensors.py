"""Models and optimizer steps in tensors without storage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt
from bitsandbytes.nn.parametrize import Bnb4bitParametrization
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.optim import Optimizer
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from harness.job.measure.live_memory import LiveBytes
from harness.job.models.empty_weights import NeedsValues
from harness.job.models.quantisation import quant_states

NUMBERS = {int, float, bool, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}
NUMBER = torch.ops.aten._local_scalar_dense.default  # the value of a tensor with one element


class SteppingTwice:
    """An optimizer that steps twice on the same gradients: once to create its state, once with it.

    Numbers that it reads from tensors (Adafactor the norm of a weight, for its step size) are 1, as memory does not
    depend on them. Only the second step's FLOPs count. Forward and backward passes would be the same a second time,
    except for the state beside them: see `peaks_by_window`.
    """

    def __init__(self, optimizer: Optimizer, live: LiveBytes):
        self._optimizer, self._live = optimizer, live

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups

    @property
    def state(self) -> dict[torch.Tensor, Any]:
        return self._optimizer.state

    def zero_grad(self) -> None:
        self._optimizer.zero_grad()

    def step(self) -> None:
        with self._live.replacing(NUMBER, lambda tensor: 1.0):
            with self._live.uncounted():
                self._optimizer.step()
            self._live.mark("optimizer")  # the same window goes on: a trace has the two steps apart
            self._optimizer.step()


def stepping_twice(build: Callable[[nn.Module], Optimizer], live: LiveBytes) -> Callable[[nn.Module], SteppingTwice]:
    """As `build`, each optimizer in SteppingTwice."""
    return lambda net: SteppingTwice(build(net), live)


@contextmanager
def in_groups() -> Iterator[None]:
    """A context in which torch clips all gradients at once, as it does those that have storage: it asks their class."""
    _foreach_utils._foreach_supported_types.append(FakeTensor)
    try:
        yield
    finally:
        _foreach_utils._foreach_supported_types.remove(FakeTensor)


@contextmanager
def valueless() -> Iterator[None]:
    """A context in which operations that need values raise NeedsValues."""
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
        raise NeedsValues from error
    except AssertionError as error:
        if "FakeTensor" not in str(error):
            raise
        raise NeedsValues from error  # of a tensor that is neither parameter nor buffer


class FakeTensors(FakeTensorMode):
    """Torch's mode, with another key of the operations that it keeps the results of: a tuple for each dense tensor.

    Torch goes through the fields of a dataclass instead, which takes a quarter of a prediction's time. Keys differ
    wherever torch's do, and results are torch's own.
    """

    def _prep_args_for_hash(self, result: list[Any], args: Iterable[Any], *others: Any) -> None:
        """Add what tells `args` from other arguments to `result`; others: torch's own, for other kinds of tensors."""
        if not isinstance(args, (list, tuple)):
            super()._prep_args_for_hash(result, args, *others)
            return
        result += (type(args), len(args))
        for arg in args:
            if isinstance(arg, FakeTensor) and (dense := self._dense(arg)) is not None:
                result.append(dense)
            elif type(arg) in NUMBERS:
                result += (type(arg), arg)
            elif isinstance(arg, (list, tuple)):
                self._prep_args_for_hash(result, arg, *others)
            else:
                super()._prep_args_for_hash(result, (arg,), *others)

    def _dense(self, tensor: FakeTensor) -> tuple[Any, ...] | None:
        """What tells a dense `tensor` of this mode from others; None of a tensor of another kind."""
        with torch._C.DisableTorchFunction():
            other = tensor.constant is not None or tensor.is_quantized or tensor._has_symbolic_sizes_strides
            if other or tensor.fake_mode is not self or tensor.layout is not torch.strided:
                return None
            return (
                tensor.dtype,
                tensor.shape,
                tensor.stride(),
                tensor.storage_offset(),
                tensor.untyped_storage().nbytes(),
                tensor.fake_device,
                tensor.requires_grad,
                tensor.is_conj(),
                tensor.is_neg(),
                tensor.is_inference(),
            )


class Params4bit(FakeTensor):
    """A packed matrix without storage. Its name is that of bitsandbytes' class, by which peft recognises it."""


def materialise(net: nn.Module, on: torch.device) -> None:
    """Move `net` from "meta" to the device `on`, in tensors without storage; tied parameters stay tied."""
    copies: dict[int, Any] = {}

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in copies:
            new: Any = _empty(tensor, on)
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            if (state := getattr(tensor, "quant_state", None)) is not None:
                new.__class__, new.quant_state = Params4bit, state
                for level in quant_states(tensor):
                    vars(level).update({k: moved(v) for k, v in vars(level).items() if isinstance(v, torch.Tensor)})
            if isinstance(tensor, Int8Params):
                new.CB = new.SCB = None  # its layer has them
            copies[id(tensor)] = (new, tensor)  # keeps the tensor, so that its id is not reused
        return copies[id(tensor)][0]

    for module in net.modules():
        for store in _stores(module):
            store.update({k: moved(tensor) for k, tensor in store.items() if isinstance(tensor, torch.Tensor)})


def _empty(tensor: torch.Tensor, on: torch.device) -> torch.Tensor:
    """A tensor like `tensor` on the device `on`; one of torchao's keeps the class that its parts are in."""
    if not is_traceable_wrapper_subclass(tensor):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=on)
    names, context = tensor.__tensor_flatten__()
    parts = {name: _empty(getattr(tensor, name), on) for name in names}
    return type(tensor).__tensor_unflatten__(parts, context, tensor.shape, tensor.stride())


def _stores(module: nn.Module) -> list[dict[str, Any]]:
    """The dicts that have tensors of `module`; some methods keep them in other dicts than torch's own."""
    others = [value for value in vars(module).values() if type(value) is dict]
    if isinstance(module, Linear8bitLt):
        others.append(vars(module.state))
    if isinstance(module, Bnb4bitParametrization):  # of a stack of experts
        others += [vars(level) for level in quant_states(module)]
    return [vars(module), *others]


def materialise_shares(net: nn.Module, on: torch.device) -> None:
    """As `materialise`, for a sharded `net`, whose packed matrices are packed only while they are whole."""

    def packed(layer: Linear4bit, _inputs: Any) -> None:
        weight: Any = layer.weight
        weight.__class__, weight.quant_state = Params4bit, layer.quant_state

    net.to_empty(device=on)
    for module in net.modules():
        for level in quant_states(module):
            vars(level).update(
                {k: torch.empty_like(v, device=on) for k, v in vars(level).items() if isinstance(v, torch.Tensor)}
            )
        if isinstance(module, Linear4bit):
            module.register_forward_pre_hook(packed)
