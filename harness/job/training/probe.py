"""Probes the memory and FLOPs of two optimizer steps (of an untuned model: one forward pass), apart from timed steps.

A run probes its real model before it trains; a prediction probes tensors without storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from bitsandbytes.nn import Linear8bitLt
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from harness.job.data.batching import Batch
from harness.job.measure.busy import measure as measure_busy
from harness.job.measure.live_memory import Kind, LiveBytes
from harness.job.methods import optimizers
from harness.job.models.quantisation import quant_states
from harness.job.training import loop
from harness.job.training.loop import AnyObjective
from harness.record import Probe

SVD = torch.ops.aten._linalg_svd.default


def steps(
    model: nn.Module,
    added: set[int],
    build: Callable[[nn.Module], Optimizer],
    micro: list[Batch],
    max_grad_norm: float | None,
    accelerator: Accelerator,
    live: LiveBytes,
    count: int = 2,
    busy: bool = False,
    objective: AnyObjective = loop.ANSWERS,
) -> Probe:
    """Probe `count` steps on the micro-batches `micro`.

    added: ids of the parameters that are adapters. The first step creates the optimizer's state (GaLore decomposes its
    gradients in it), the second starts with it; the peak is over both.

    The steps have learning rate 0 and an optimizer of their own, so the weights stay the same to the bit. Singular
    value decompositions only allocate their results, except for the first matrix of each shape on CUDA.

    busy: whether to take further steps on a CUDA device, without counting, that measure how busy it is.

    Each of several processes probes itself. Under DDP gradients stay in the all-reduce buckets. Of a sharded model,
    gathered weights count as weights, and whole gradients before they are scattered as activations.
    """
    plain = accelerator.unwrap_model(model)
    # Hooks come before the optimizer, which may use up each gradient at once.
    trainable = [p for p in plain.parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(lambda p: live.see(p.grad, "gradients")) for p in trainable]
    hooks += _show_gathered(plain, added, live)
    optimizer = build(plain)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    gradients = 0

    def after(part: str) -> None:
        nonlocal gradients
        if live.roofline is not None:
            live.roofline.lap(part)
        if part == "backward":
            live.see([p.grad for p in trainable], "gradients")  # in their present storages, which buckets may share
            gradients = live.now_by_kind.gradients
            live.mark("optimizer")

    model.train()
    with live, live.replacing(SVD, _Undecomposed(live)):
        see_weights(plain, added, live)
        live.see([list(vars(batch).values()) for batch in loop.own(micro, accelerator)])  # what an end of a step uses
        for _ in range(count):
            live.reset_operations()
            live.mark("begin")
            loop.take_step(model, optimizer, micro, max_grad_norm, accelerator, after, objective)
            live.see(optimizers.state(optimizer), "optimizer")
        resident = live.now_by_kind
    for hook in hooks:
        hook.remove()
    padded = sum(batch.padded for batch in loop.own(micro, accelerator))
    found = None
    if busy:
        again = partial(
            loop.take_step, model, optimizer, micro, max_grad_norm, accelerator, lambda part: None, objective
        )
        found = measure_busy(again, accelerator.device)
    return Probe(
        live.peak_by_kind,
        resident,
        gradients,
        live.flops / padded,
        dict(live.attention),
        live.recomputed / padded,
        *(found or (None, None)),
    )


@torch.no_grad()
def forward(
    model: nn.Module, batch: Batch, accelerator: Accelerator, live: LiveBytes, objective: AnyObjective = loop.ANSWERS
) -> Probe:
    """Probe one forward pass without gradients over `batch`, its loss included."""
    model.eval()
    with live:
        see_weights(model, set(), live)
        with accelerator.autocast():
            objective.summed(model, batch)
        resident = live.now_by_kind
    return Probe(live.peak_by_kind, resident, 0, live.flops / batch.padded, dict(live.attention))


class _Undecomposed:
    """Returns unit matrices as the factors of a singular value decomposition, which takes minutes for a large model.

    They are as large as the factors, and orthonormal. `live` counts what a decomposition allocates and frees beside
    them: on CUDA torch's copies and cuSOLVER's workspace, measured by the allocator in one real decomposition of each
    shape; elsewhere torch's copy of the matrix, but not LAPACK's workspace.
    """

    def __init__(self, live: LiveBytes):
        self._live = live
        self._taken: dict[tuple[torch.Size, torch.dtype], int] = {}  # peak bytes of a decomposition

    def __call__(self, matrix: Tensor, *how: Any, **which: Any) -> tuple[Tensor, Tensor, Tensor]:
        factors = SVD(matrix.to("meta"), *how, **which)
        kind = (matrix.shape, matrix.dtype)
        if kind not in self._taken and matrix.is_cuda and not isinstance(matrix, FakeTensor):
            self._taken[kind] = _allocated_by(lambda: SVD(matrix, *how, **which))
        self._live.burst(self._taken.get(kind, matrix.nbytes + sum(factor.nbytes for factor in factors)))
        u, vh = (torch.eye(*f.shape[-2:], dtype=matrix.dtype, device=matrix.device) for f in factors[::2])
        return (
            u.expand(factors[0].shape).contiguous(),
            matrix.new_ones(factors[1].shape),
            vh.expand(factors[2].shape).contiguous(),
        )


def _allocated_by(operation: Callable[[], Any]) -> int:
    """Peak bytes that CUDA's allocator handed out in `operation`, above those before.

    0 if the phase had a higher peak before: then the operation does not raise it.
    """
    before, highest = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    operation()
    peak = torch.cuda.max_memory_allocated()
    return peak - before if peak > highest else 0


def see_weights(model: nn.Module, added: set[int], live: LiveBytes) -> None:
    """Count all parameters and buffers in `live`, those of the ids `added` as adapters."""
    for parameter in model.parameters():
        live.see(list(_tensors(parameter)), "adapters" if id(parameter) in added else "weights")
    live.see(list(model.buffers()), "weights")
    for module in model.modules():
        for state in quant_states(module):
            live.see([value for value in vars(state).values() if isinstance(value, Tensor)], "weights")
    states = [module.state for module in model.modules() if isinstance(module, Linear8bitLt)]
    live.see([state.SCB for state in states if state.SCB is not None], "weights")  # they exist from the first pass on


def _show_gathered(model: nn.Module, added: set[int], live: LiveBytes) -> list[RemovableHandle]:
    """Count in `live` the weights of each part of a sharded `model` as they are gathered."""
    kinds: dict[str, Kind] = {name: "adapters" if id(p) in added else "weights" for name, p in model.named_parameters()}

    def show(prefix: str, part: nn.Module) -> None:
        for name, p in part.named_parameters(prefix):
            live.see(p, kinds.get(name, "weights"))  # a tied parameter has another name

    parts = [(name, part) for name, part in model.named_modules() if _is_sharded(part)]
    return [part.register_forward_pre_hook(lambda part, _, name=name: show(name, part)) for name, part in parts]


def _is_sharded(part: nn.Module) -> bool:
    return isinstance(part, FSDPModule)


def _tensors(parameter: nn.Parameter) -> Iterator[Tensor]:
    """The parameter, and its scales if it is in 8 bits."""
    yield parameter
    if (scales := getattr(parameter, "SCB", None)) is not None:
        yield scales
