"""Gives the ranks their shares of a model that only the first rank has read.

The first rank has the weights on its host. The others have the same model on the device "meta", sharded alike. Tensor
by tensor the first sends what it has, and each keeps its share: no rank but the first ever holds the model, and no
device more than the shares and one tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from harness.grouping import grouped
from harness.job.models.quantisation import quant_states

REGISTERED = ("_parameters", "_buffers", "_modules")
SCALES = "quant_state."  # in the names of the scales of packed matrices


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of `model` by name: parameters, buffers, scales of packed matrices, and what modules keep beside."""
    named = {name: p.data for name, p in model.named_parameters()} | dict(model.named_buffers())
    return named | {name: store[key] for name, store, key in _unregistered(model)}


def forget_scales(model: nn.Module) -> None:
    """Have the packed matrices of `model` on "meta" forget their scales, which their layers keep.

    Before it shards a model accelerate asks for its state_dict, which would need their values.
    """
    for layer in (module for module in model.modules() if isinstance(module, Linear4bit)):
        weight: Any = layer.weight
        weight.quant_state = None


def distribute(model: nn.Module, values: dict[str, Tensor], first: bool, on: torch.device) -> None:
    """Give the sharded `model` on the device `on` its share of `values`, which are used up.

    values: of the `first` rank, as `tensors` has them before sharding. The model of the others is on "meta". Random
    numbers of all go on as those of the first, which drew new adapters. Raises RuntimeError if the models differ.
    """
    if first:  # FSDP moves parameters and buffers alone
        for _, store, key in [*_unregistered(model)]:
            store[key] = store[key].to(on)
    else:
        _allocate(model, on)
    mine = tensors(model)
    _check_alike(mine)
    with torch.no_grad():
        for name, tensor in mine.items():
            whole = values.pop(name) if first else torch.empty(tensor.shape, dtype=tensor.dtype, device=on)
            whole = whole.to(on).contiguous()
            torch.distributed.broadcast(whole, src=0)
            if not first:
                _keep_share(tensor, whole)
    state = [torch.get_rng_state()]
    broadcast_object_list(state)
    torch.set_rng_state(state[0])


def _keep_share(tensor: Tensor, whole: Tensor) -> None:
    """Copy to `tensor` its share of `whole`."""
    if isinstance(tensor, DTensor):
        # The ranks are one line, along which FSDP divides the first dimension; the last ones may have nothing.
        # (distribute_tensor remembers meshes, also those of predictions in the process that this one was forked of.)
        shares = whole.chunk(torch.distributed.get_world_size())
        if (rank := torch.distributed.get_rank()) < len(shares):
            tensor.to_local().copy_(shares[rank])
    else:
        tensor.copy_(whole)


def _allocate(model: nn.Module, on: torch.device) -> None:
    """Give the sharded `model` on "meta" storage on the device `on`; tied parameters stay tied."""
    names = grouped((id(p), name) for name, p in model.named_parameters(remove_duplicate=False))
    model.to_empty(device=on)
    for one, *others in names.values():
        for other in others:
            module, _, own = other.rpartition(".")
            setattr(model.get_submodule(module), own, model.get_parameter(one))
    model.to(on)  # moves nothing: FSDP takes note of what parameters it has now
    for _, store, key in [*_unregistered(model)]:
        store[key] = torch.empty_like(store[key], device=on)


def _unregistered(model: nn.Module) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """The tensors of `model` that are neither parameters nor buffers: a name, and where it is by which key."""
    for name, module in model.named_modules():
        stores = {"": vars(module)}
        stores |= {key: value for key, value in vars(module).items() if type(value) is dict and key not in REGISTERED}
        stores |= {f"{SCALES}{level}": vars(state) for level, state in enumerate(quant_states(module))}
        for path, store in stores.items():
            for key in [key for key, value in store.items() if isinstance(value, Tensor)]:
                yield f"{name}.{path}.{key}", store, key


def _check_alike(mine: dict[str, Tensor]) -> None:
    """Raise RuntimeError if the ranks' tensors have other names, shapes or types."""
    outline = repr([(name, tuple(tensor.shape), tensor.dtype) for name, tensor in mine.items()])
    if len(set(gather_object([hashlib.sha256(outline.encode()).hexdigest()]))) > 1:
        raise RuntimeError("The model without weights, which the other devices start from, differs from the one read.")
