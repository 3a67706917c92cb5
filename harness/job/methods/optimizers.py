"""Builds the optimizer of a method's `optim` slot over the trainable weights."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable, Container, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import torch
from galore_torch import GaLoreAdamW
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.pytorch_utils import Conv1D
from transformers.trainer_pt_utils import get_parameter_names

from harness.errors import UserError
from harness.job.methods.galore import GroupedGaLoreAdamW, project_stacks
from harness.job.methods.master_weights import InFp32, Keeping
from harness.job.models.structure import inner, stacks

Make = Callable[[list[Any]], Optimizer]
Hook = Callable[[nn.Module, Optimizer], None]

# Patterns of the names of weights that are not decayed. Decay pulls a weight to zero, where an adapter's matrices leave
# the model as it is, but a norm's weight or an adapter's scale sets it to zero. The first five are those of
# transformers' Trainer; the others are scales of IA3, BOFT, RoAd, PSOFT, DoRA and FRoD, and what DEFT puts in place of
# a part of the weights. Names are matched in small letters.
NOT_DECAYED = ["bias", "layernorm", "rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
NOT_DECAYED += ["ia3_l", "boft_s", "road_alpha", "vector_[ab]", "lora_magnitude_vector", "frod_lambda_l", "deft_r"]


def build(
    model: nn.Module,
    *,
    optimizer: Make,
    matrices: dict[str, Any] | None = None,
    rest: Make | None = None,
    before: Hook | None = None,
    after: Hook | None = None,
    per_layer: bool = False,
    keeping: Keeping = "masters",
) -> Optimizer:
    """`optimizer` over the trainable weights of `model`.

    matrices: settings of a separate parameter group for the attention and MLP matrices, as low-rank gradient
        optimizers need it (GaLore's rank, update_proj_gap, scale, proj_type), with stacks of experts. Other weights
        (embeddings, head, norms, biases, gates) are in a plain group, or have the optimizer `rest`.
    before, after: called with the model and the optimizer before and after each step, while gradients exist.
    per_layer: see `in_backward`.
    keeping: how steps of 16-bit weights are kept: harness.job.methods.master_weights.

    Weight decay leaves norms, biases and adapters' scales alone: NOT_DECAYED.

    Raises ValueError if there are stacks of experts, and `optimizer` takes matrices alone.
    """
    if matrices is not None:
        optimizer = _projecting_stacks(optimizer, model)
    decayed = set(get_parameter_names(model, [nn.LayerNorm], NOT_DECAYED))
    scales = {id(p) for name, p in model.named_parameters() if name not in decayed}
    optimizer = _sparing(optimizer, scales)
    rest = None if rest is None else _sparing(rest, scales)
    trainable = {id(p): p for p in model.parameters() if p.requires_grad}
    if any(p.dtype is not torch.float32 for p in trainable.values()):
        optimizer = _in_fp32(optimizer, keeping)
        rest = None if rest is None else _in_fp32(rest, keeping)
    if keeping == "masters" and not torch.distributed.is_initialized():
        # Gradients are summed in fp32; on several devices in the weights' dtype, as in DDP's buckets.
        for p in trainable.values():
            p.grad_dtype = torch.float32
    if matrices is None:
        made = optimizer(list(trainable.values()))
    else:
        inside = [p for p in projected_of(model).values() if id(p) in trainable]
        others = [p for p in trainable.values() if id(p) not in {id(q) for q in inside}]
        group = {"params": inside, **matrices}
        made = optimizer([{"params": others}, group]) if rest is None else Together(rest(others), optimizer([group]))
    if before is not None:
        made.register_step_pre_hook(lambda stepping, *_: before(model, stepping))
    if after is not None:
        made.register_step_post_hook(lambda stepping, *_: after(model, stepping))
    return in_backward(made) if per_layer else made


def _projecting_stacks(make: Make, model: nn.Module) -> Make:
    """`make`, whose optimizer projects the stacks of experts of `model` too. Raises ValueError if it takes none."""
    if not stacks(model):
        return make
    kind = getattr(make, "func", None)  # of Hydra's partial
    if not (isinstance(kind, type) and issubclass(kind, GaLoreAdamW)):
        raise ValueError("it does not take experts in stacks; use method=galore or method=full")

    def made(params: list[Any]) -> Optimizer:
        optimizer = make(params)
        if isinstance(optimizer, GaLoreAdamW):
            project_stacks(optimizer)
        return optimizer

    return made


def _sparing(make: Make, scales: Container[int]) -> Make:
    """`make`, whose optimizer does not decay the parameters of these ids. Groups without decay stay whole."""

    def made(params: list[Any]) -> Optimizer:
        optimizer = make(params)
        for group in [*optimizer.param_groups]:
            spared = [p for p in group["params"] if id(p) in scales]
            if not group.get("weight_decay") or not spared:
                continue
            if len(spared) == len(group["params"]):
                group["weight_decay"] = 0.0
            else:
                group["params"] = [p for p in group["params"] if id(p) not in scales]
                optimizer.add_param_group({**group, "params": spared, "weight_decay": 0.0})
        return optimizer

    return made


def _in_fp32(make: Make, keeping: Keeping) -> Make:
    return lambda params: InFp32(make(params), keeping)


class Together(Optimizer):
    """Several optimizers as one; each steps its own parameters."""

    def __init__(self, *parts: Optimizer):
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch's type wants closures taken too
        groups = iter(self.param_groups)  # a schedule sets their rates, and loading a state replaces them
        for part in self.parts:
            part.state, part.param_groups = self.state, list(islice(groups, len(part.param_groups)))
            part.step()


def group_steps(optimizer: Optimizer) -> bool:
    """Have `optimizer` step many weights together where it would step them one by one. Returns whether it does so."""
    if isinstance(optimizer, Together):
        return bool(sum(map(group_steps, optimizer.parts)))  # of each, not up to the first
    if isinstance(optimizer, InFp32):
        group_steps(optimizer.inner)
        optimizer.grouped = True
        return True
    if isinstance(optimizer, GaLoreAdamW):
        optimizer.__class__ = GroupedGaLoreAdamW  # groups, state and hooks are the same, only the step is another
        optimizer._patch_step_function()  # which calls the hooks
        return True
    return False


def set_betas(optimizer: Optimizer, betas: Sequence[float] | None) -> None:
    """Have the groups of `optimizer` that step by Adam decay their moments by both `betas` (null: as they do)."""
    if betas is None:
        return
    for group in optimizer.param_groups:
        if "betas" in group:
            group["betas"] = tuple(betas)


def in_backward(optimizer: Optimizer) -> Optimizer:
    """Have `optimizer` step each parameter in the backward pass, as soon as its gradient exists, and free the gradient.

    No two gradients are held at once ("per-layer weight updates", GaLore, section 4.3). So gradients can't be
    accumulated over micro-batches, and their norm is unknown and can't be clipped.
    """
    stepping = weakref.ref(optimizer)

    def step(parameter: nn.Parameter) -> None:
        owner = stepping()
        assert owner is not None  # with it go the hooks
        owner.step()  # only this parameter has a gradient
        parameter.grad = None

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    hooks = [p.register_post_accumulate_grad_hook(step) for p in parameters]
    weakref.finalize(optimizer, lambda: [hook.remove() for hook in hooks])
    return optimizer


def packaged(params: list[Any], *, name: str, extra: str, **keywords: Any) -> Optimizer:
    """The optimizer `name` of a package from one of the project's extras. Raises UserError if it is not installed.

    APOLLO's random projections have seeds, which are the parameters' numbers. Here they follow torch's seed too.
    """
    module, _, kind = name.rpartition(".")
    try:
        made = getattr(importlib.import_module(module), kind)
    except ImportError:
        raise UserError(
            f"{name} requires the extra `{extra}`: pip install -e '.[{extra}]' in the project's folder."
        ) from None
    optimizer: Optimizer = made(params, **keywords)
    seeded = [state for state in optimizer.state.values() if "seed" in state]
    for state in seeded:
        state["seed"] = (state["seed"] + torch.initial_seed() * len(seeded)) % 2**63
    return optimizer


def matrices_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights by module name of all linear layers except the head, which may share its weight with the embedding."""
    head = inner(model).get_output_embeddings()
    return {
        name: _weight(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def projected_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights by name whose gradients have a low rank: matrices, but for gates of one output, and stacks of them."""
    gates = gates_of(model)
    return {name: weight for name, weight in matrices_of(model).items() if name not in gates} | stacks(model)


def gates_of(model: nn.Module) -> set[str]:
    """Names of the linear layers that have one output, as of an expert that all tokens share."""
    return {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer.out_features == 1}


def _weight(module: nn.Linear | Conv1D) -> nn.Parameter:
    """The matrix of `module`, which torch types as any tensor."""
    weight: Any = module.weight
    return weight


class Stateful(Protocol):
    """What has an optimizer's state, by the tensors that it is kept for."""

    @property
    def state(self) -> Mapping[Tensor, Any]: ...


def state(optimizer: Stateful) -> list[Any]:
    """The optimizer's state between steps; its own objects (GaLore's projectors) as dicts."""
    return [_opened(kept) for kept in optimizer.state.values()]


def _opened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _opened(part) for key, part in value.items()}
    return _opened(vars(value)) if hasattr(value, "__dict__") and not isinstance(value, Tensor) else value
