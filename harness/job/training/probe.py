"""Two optimizer steps (of an untuned model: one forward pass) for their memory and FLOPs alone, apart from timed ones.

A run takes them on its real model before it trains; a plan takes the same step on tensors without storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear8bitLt
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from harness.job.data.batching import Batch
from harness.job.measure.live_memory import LiveBytes
from harness.job.methods import optimizers
from harness.job.training import loop
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
) -> Probe:
    """What `count` steps on the micro-batches `micro` take.

    added: ids of the parameters that are adapters. The first step makes the optimizer's state (GaLore decomposes its
    gradients in it), the second has it from the start; the peak is over both.

    The steps are taken at learning rate 0 with an optimizer of their own: the weights stay as they are to the bit. What
    is decomposed by singular values is so in form alone, but for the first matrix of each shape on CUDA.

    Of several processes each tells of itself. With the whole model in each, gradients stay in the buckets that they are
    added up in; of a sharded model, weights that are whole for a layer's time count as weights, and whole gradients on
    their way to be shared out as activations.
    """
    plain = accelerator.unwrap_model(model)
    # Before the optimizer is there, for it may use up each gradient as soon as it is there.
    trainable = [p for p in plain.parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(lambda p: live.see(p.grad, "gradients")) for p in trainable]
    hooks += _show_gathered(plain, added, live)
    optimizer = build(plain)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    gradients = 0

    def after(part: str) -> None:
        nonlocal gradients
        if part == "backward":
            live.see([p.grad for p in trainable], "gradients")  # where they lie now, if they were brought together
            gradients = live.now_by_kind.gradients
            live.mark("optimizer")

    model.train()
    with live, live.replacing(SVD, _Undecomposed(live)):
        see_weights(plain, added, live)
        for _ in range(count):
            live.reset_operations()
            live.mark("begin")
            loop.take_step(model, optimizer, micro, max_grad_norm, accelerator, after)
            live.see(optimizers.state(optimizer), "optimizer")
        resident = live.now_by_kind
    for hook in hooks:
        hook.remove()
    padded = sum(batch.padded for batch in loop.own(micro, accelerator))
    return Probe(
        live.peak_by_kind,
        resident,
        gradients,
        live.flops / padded,
        dict(live.attention),
        live.recomputed / padded,
    )


@torch.no_grad()
def forward(model: nn.Module, batch: Batch, accelerator: Accelerator, live: LiveBytes) -> Probe:
    """What one pass without gradients over `batch` takes, its loss included."""
    model.eval()
    with live:
        see_weights(model, set(), live)
        with accelerator.autocast():
            loop.summed_loss(model, batch)
        resident = live.now_by_kind
    return Probe(live.peak_by_kind, resident, 0, live.flops / batch.padded, dict(live.attention))


class _Undecomposed:
    """Gives unit matrices for the factors of a singular value decomposition, which for a large model takes minutes.

    They take what the factors take, and are orthonormal as those are. What a decomposition takes beside them and frees
    again is counted by `live`: on CUDA torch's copies and cuSOLVER's workspace, as the allocator's peak tells in one
    real decomposition of each shape; elsewhere torch's copy of the matrix, but not LAPACK's workspace.
    """

    def __init__(self, live: LiveBytes):
        self._live = live
        self._taken: dict[tuple[torch.Size, torch.dtype], int] = {}  # bytes at most in a decomposition

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
    """The most bytes that CUDA's allocator had handed out in `operation` beyond those before.

    0 where it had more at some time before, in this phase: then they are below the phase's peak.
    """
    before, highest = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    operation()
    peak = torch.cuda.max_memory_allocated()
    return peak - before if peak > highest else 0


def see_weights(model: nn.Module, added: set[int], live: LiveBytes) -> None:
    """Show `live` all parameters and buffers, those of the ids `added` as adapters."""
    for parameter in model.parameters():
        live.see(list(_tensors(parameter)), "adapters" if id(parameter) in added else "weights")
    live.see(list(model.buffers()), "weights")
    for module in model.modules():
        for state in quant_states(module):
            live.see([value for value in vars(state).values() if isinstance(value, Tensor)], "weights")
    states = [module.state for module in model.modules() if isinstance(module, Linear8bitLt)]
    live.see([state.SCB for state in states if state.SCB is not None], "weights")  # there from the first pass on


def _show_gathered(model: nn.Module, added: set[int], live: LiveBytes) -> list[RemovableHandle]:
    """Have `live` shown the weights of each part of a sharded `model` as they are gathered for it."""
    kinds = {name: "adapters" if id(p) in added else "weights" for name, p in model.named_parameters()}

    def show(prefix: str, part: nn.Module) -> None:
        for name, p in part.named_parameters(prefix):
            live.see(p, kinds.get(name, "weights"))  # a tied one has another name

    parts = [(name, part) for name, part in model.named_modules() if isinstance(part, FSDPModule)]
    return [part.register_forward_pre_hook(lambda part, _, name=name: show(name, part)) for name, part in parts]


def _tensors(parameter: nn.Parameter) -> Iterator[Tensor]:
    """The parameter, and the scales of an 8-bit one."""
    yield parameter
    if (scales := getattr(parameter, "SCB", None)) is not None:
        yield scales


def quant_states(of: Tensor | nn.Module) -> Iterator[QuantState]:
    """What bitsandbytes keeps beside a 4-bit parameter, and with double quantisation what it keeps beside that.

    Its layer keeps the same: of a sharded parameter it alone.
    """
    state = getattr(of, "quant_state", None)
    while state is not None:
        yield state
        state = getattr(state, "state2", None)
