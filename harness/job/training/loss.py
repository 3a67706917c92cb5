"""Cross-entropy of the head's logits, chunk by chunk: the logits of a batch are never all in memory.

The loss is computed inside the head's forward pass, where its weights are whole even if the model is sharded. The
gradients of a sum are computed with it, so each product is done once, and no chunk is kept for the backward pass. Token
by token, the gradients wait for what becomes of the losses, and the backward pass computes each chunk again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from transformers import PreTrainedModel

from harness.job.data.encoding import IGNORED
from harness.job.measure import live_memory
from harness.job.models.structure import inner

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # weight, hidden, targets, bias -> summed loss
CHUNK = {"cpu": 64 * 2**20, "cuda": 128 * 2**20}  # bytes of the logits of a chunk in fp32


def enable(model: nn.Module, kernels: str | None = None, by_token: bool = False, fuses: bool = False) -> str:
    """Compute the loss of `model` chunk by chunk. Returns "on: chunked", or "off: " and the reason.

    kernels: for a prediction, the device whose chunk size applies, ``cpu`` or ``cuda``; null: that of the weights.
    by_token: whether losses are wanted token by token. fuses: whether it was on for a model of this kind, so that no
        pass has to tell.
    """
    size = None if kernels is None else CHUNK[kernels]
    return attach(model, functools.partial(chunked, size=size, by_token=by_token), fuses)


def attach(model: nn.Module, kernel: Kernel, fuses: bool = False) -> str:
    """As `enable`, with `kernel`, if the logits are the unchanged products of a linear head."""
    net = inner(model)
    head = net.get_output_embeddings()
    if isinstance(head, BaseTunerLayer):
        return "off: the head has an adapter"
    if type(head) is not nn.Linear:
        return f"off: the head is a {type(head).__name__}"
    place = next(path for path, module in net.named_modules() if module is head)
    loss_head = LossHead(head, kernel)
    net.set_submodule(place, loss_head)
    if not fuses and _changes_logits(net, loss_head):
        net.set_submodule(place, head)
        return "off: the model changes its logits after the head"
    return "on: chunked"


def _changes_logits(net: PreTrainedModel, head: LossHead) -> bool:
    """Whether the logits of `net` are not just what its `head` returns.

    Adapters take no part in it, and some of them compute nothing on weights without values, as other ranks of a sharded
    cell have them.
    """
    given: list[Tensor] = []

    def products(hidden: Tensor) -> Tensor:
        given.append(linear(hidden, head.weight, head.bias).float())
        return given[0]

    ids = torch.ones(1, 2, dtype=torch.long, device=head.weight.device)
    with _without_adapters(net), head.returning(products), torch.no_grad():
        logits = net(input_ids=ids, use_cache=False).logits
    return len(given) != 1 or logits is not given[0] or logits._version > 0


@contextmanager
def _without_adapters(net: nn.Module) -> Iterator[None]:
    """A context in which tuned layers answer as their base. peft's own also sets which weights are trained."""
    layers = [layer for layer in net.modules() if isinstance(layer, BaseTunerLayer) and not layer.disable_adapters]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def at_head(model: nn.Module, targets: Tensor) -> AbstractContextManager[bool]:
    """A context in which `model` returns as logits their cross-entropy in nats, summed over `targets` (rows, k).

    Yields whether it does so: only an enabled model does; one that is enabled `by_token` returns losses (rows × k,).
    """
    head = inner(model).get_output_embeddings()
    return head.summing(targets) if isinstance(head, LossHead) else nullcontext(False)


@contextmanager
def enabled(model: nn.Module) -> Iterator[None]:
    """A context in which losses of `model` are computed token by token, as `enable` has them."""
    net = inner(model)
    before = net.get_output_embeddings()
    enable(net, by_token=True)
    try:
        yield
    finally:
        if (loss_head := net.get_output_embeddings()) is not before:
            place = next(path for path, module in net.named_modules() if module is loss_head)
            net.set_submodule(place, before)


class LossHead(nn.Linear):
    """A head with the weights of the linear layer `head`, which inside `summing` returns the loss of its logits."""

    def __init__(self, head: nn.Linear, kernel: Kernel):
        nn.Module.__init__(self)  # no weights of its own
        self.in_features, self.out_features = head.in_features, head.out_features
        self.weight, self.bias = head.weight, head.bias
        self._kernel = kernel
        self._instead: Callable[[Tensor], Tensor] | None = None  # of the products

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) if self._instead is None else self._instead(hidden)

    @property
    def is_replaced(self) -> bool:
        """Whether it returns something else than logits now."""
        return self._instead is not None

    @contextmanager
    def returning(self, instead: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """A context in which the head returns what `instead` makes of its input."""
        self._instead = instead
        try:
            yield
        finally:
            self._instead = None

    @contextmanager
    def summing(self, targets: Tensor) -> Iterator[bool]:
        """A context in which the head returns its loss in nats, summed over `targets` (rows, k). Yields True."""

        def summed(hidden: Tensor) -> Tensor:
            return self._kernel(self.weight, hidden.flatten(0, -2), targets.flatten(), self.bias)

        with self.returning(summed):
            yield True


def chunked(
    weight: Tensor,
    hidden: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    size: int | None = None,
    by_token: bool = False,
) -> Tensor:
    """Cross-entropy in nats, summed over `targets` (rows,), of the logits ``hidden @ weight.T + bias``.

    weight: (vocabulary, width); hidden: (rows, width); bias: (vocabulary,). Logits are computed in the dtype of
    autocast, if it is on, and their softmax in fp32. size: bytes of a chunk's logits in fp32 (null: the device's).
    by_token: returns the losses (rows,) instead of their sum, 0 for targets that are IGNORED.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    size = size or CHUNK["cpu" if device == "cpu" else "cuda"]
    rows = max(1, size // (4 * len(weight)))
    with torch.autocast(device, enabled=False):
        if by_token:
            return _ByToken.apply(weight, hidden, targets, bias, dtype, rows)
        if torch.is_grad_enabled():
            return _Chunked.apply(weight, hidden, targets, bias, dtype, rows)
        return _walk(weight, hidden, targets, bias, dtype, rows, (False,) * 4)[0]


class _ByToken(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, hidden: Tensor, targets: Tensor, bias: Tensor | None, dtype: torch.dtype, rows: int
    ) -> Tensor:
        ctx.save_for_backward(weight, hidden, targets, bias)
        ctx.dtype, ctx.rows = dtype, rows
        losses = torch.empty(len(hidden), device=hidden.device)
        _walk(weight, hidden, targets, bias, dtype, rows, (False,) * 4, losses=losses)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scales: Tensor) -> tuple[Tensor | None, ...]:
        weight, hidden, targets, bias = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        _, *gradients = _walk(weight, hidden, targets, bias, ctx.dtype, ctx.rows, wanted, scales=scales)
        weight, hidden, bias = gradients
        return weight, hidden, None, bias, None, None


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, hidden: Tensor, targets: Tensor, bias: Tensor | None, dtype: torch.dtype, rows: int
    ) -> Tensor:
        loss, *ctx.gradients = _walk(weight, hidden, targets, bias, dtype, rows, ctx.needs_input_grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        weight, hidden, bias = (gradient if gradient is None else gradient.mul_(scale) for gradient in ctx.gradients)
        del ctx.gradients  # the loss may outlive them
        return weight, hidden, None, bias, None, None


def _walk(
    weight: Tensor,
    hidden: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    rows: int,
    wanted: tuple[bool, ...],
    losses: Tensor | None = None,
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The summed loss, and its gradients by weight, hidden and bias; None for arguments that are not `wanted`.

    losses: (rows,) to be filled with the loss of each row. scales: (rows,) of the gradients, in a backward pass.
    """
    repeated = nullcontext if scales is None else live_memory.recomputation
    by_weight, by_hidden, _, by_bias, *_ = wanted
    cast, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
    of_bias = None
    of_weight = _ByWeight(hidden, rows, len(weight), dtype) if by_weight else None
    of_hidden = torch.empty_like(hidden, dtype=dtype) if by_hidden else None
    # What needs no chunks is computed for all rows at once: a GPU starts each operation for itself.
    counted = targets != IGNORED
    answers, is_answer = targets.where(counted, 0)[:, None], counted[:, None].to(dtype)
    logs_of_answers = torch.empty(len(hidden), 1, device=hidden.device)
    # The gradient by the logits: each token's probability, less 1 for the answer.
    less = torch.full_like(answers, -1, dtype=torch.float32) if any(wanted) else None
    # So is each tensor cut: to the host a cut is an operation, too.
    chunks, answers_by_chunk, is_answer_by_chunk = hidden.split(rows), answers.split(rows), is_answer.split(rows)
    logs_by_chunk, less_by_chunk = logs_of_answers.split(rows), less.split(rows) if less is not None else None
    scales_by_chunk = scales[:, None].split(rows) if scales is not None else None
    of_hidden_by_chunk = of_hidden.split(rows) if of_hidden is not None else None
    for number, chunk in enumerate(chunks):
        inputs = chunk.to(dtype)
        with repeated():
            logs = linear(inputs, cast, offset).float().log_softmax(-1)
        torch.gather(logs, 1, answers_by_chunk[number], out=logs_by_chunk[number])
        if less_by_chunk is None:
            continue
        gradient = logs.exp_().scatter_add_(1, answers_by_chunk[number], less_by_chunk[number])
        if scales_by_chunk is not None:
            gradient *= scales_by_chunk[number]
        del logs
        gradient = gradient.to(dtype) if of_weight is None else of_weight.add(number * rows, gradient, is_answer)
        if of_hidden_by_chunk is not None:
            torch.mm(gradient, cast, out=of_hidden_by_chunk[number])
        if by_bias:
            of_bias = _added(of_bias, gradient.T, is_answer_by_chunk[number])
    each = (-logs_of_answers[:, 0]).where(counted, 0.0)
    if losses is not None:
        losses.copy_(each)
    if of_hidden is not None:
        of_hidden = of_hidden.mul_(is_answer).to(hidden.dtype)
    loss = each.sum()
    return (
        loss,
        None if of_weight is None else of_weight.total(weight.dtype),
        of_hidden,
        None if of_bias is None or bias is None else of_bias[:, 0].to(bias.dtype),
    )


class _ByWeight:
    """The gradient by the weights (vocabulary, width) of a head that reads `hidden` (all rows, width): a sum over rows.

    In 16 bits a product is added to a sum in fp32, which takes a GPU longer than the product of one chunk: for an 8B
    model 49 of 587 ms a step. So the gradients by logits are kept of more rows, half as many as the width has columns,
    and take one product. They take half the memory of that product. In fp32 sums are in place.

    rows: of a chunk.
    """

    def __init__(self, hidden: Tensor, rows: int, vocabulary: int, dtype: torch.dtype):
        self._hidden, self._dtype, self._many = hidden, dtype, rows
        self._kept: Tensor | None = None
        self._sum: Tensor | None = None
        if dtype is not torch.float32:
            self._many *= max(1, hidden.shape[1] // 2 // rows)
            self._kept = hidden.new_empty(min(self._many, len(hidden)), vocabulary, dtype=dtype)

    def add(self, begin: int, gradient: Tensor, is_answer: Tensor) -> Tensor:
        """Add the chunk that begins at row `begin`, now or with those after it.

        gradient: by its logits (rows, vocabulary), in fp32. is_answer: (all rows, 1), 0 of rows that don't count.
        Returns the gradient in the dtype of products.
        """
        end, first = begin + len(gradient), begin % self._many
        if self._kept is None:
            many = gradient
        else:
            gradient = self._kept[first : first + len(gradient)].copy_(gradient)
            many = self._kept[: end - begin + first]
        if end == len(self._hidden) or end % self._many == 0:
            at = slice(begin - first, end)
            self._sum = _added(self._sum, many.T, self._hidden[at].to(self._dtype) * is_answer[at])
        return gradient

    def total(self, dtype: torch.dtype) -> Tensor | None:
        return None if self._sum is None else self._sum.to(dtype)


def _added(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """`total`, if there is one, plus the product of `a` and `b`; sums are in fp32."""
    if total is None:
        return a @ b
    if a.dtype is torch.float32:
        return torch.addmm(total, a, b, out=total)  # in place, and its FLOPs are counted
    return total.float().add_(a @ b)
