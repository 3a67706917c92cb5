"""Norms, rotary positions and gated activations of decoder layers, each by one kernel forward and one backward; and the
backward pass of DoRA's scaling (fused_dora.py) by one.

Transformers composes each of these of 2 to 14 operations, which a GPU starts one after the other, reading and writing
all activations every time. Here they are operations of their own (`torch.ops.harness`): in Triton on CUDA
(harness/job/training/triton_kernels.py), composed of torch's on a CPU, where only tests call them, and without storage
in a prediction. They keep their inputs for the backward pass and nothing between. No input is overwritten, since other
modules may have kept it: that is why these are not Liger's kernels, which overwrite queries and keys, and gates.

    rms_norm    y = w · x / sqrt(mean(x²) + eps), as LlamaRMSNorm
    rope        queries and keys turned by the angles of their positions, as in Llama's apply_rotary_pos_emb
    swiglu      silu(gate) · up, as in LlamaMLP

A module is recognised by what its class computes: its function has the same instructions as Llama's.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections import Counter
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.activations import SiLUActivation
from transformers.models.llama import modeling_llama as llama

from harness.job.models.structure import inner

COMPILED = "off: train.compile fuses these itself"
NOT_HERE = "off: these kernels are for CUDA"
# Of kernels to torch's operations, relative and absolute: a few units in the last place.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
PROGRAMS = 512  # parts of the sum for the gradient of a norm's weight, at most
SUMS = 128  # parts of the sum for the gradient of a magnitude, at most

LIBRARY = torch.library.Library("harness", "DEF")
LIBRARY.define("rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)")
LIBRARY.define(
    "rms_norm_backward(Tensor gradient, Tensor x, Tensor weight, Tensor rstd, bool by_weight) -> (Tensor, Tensor)"
)
LIBRARY.define("rope(Tensor query, Tensor key, Tensor cos, Tensor sin, ScalarType to) -> (Tensor, Tensor)")
LIBRARY.define(
    "rope_backward(Tensor by_query, Tensor by_key, Tensor cos, Tensor sin, ScalarType to) -> (Tensor, Tensor)"
)
LIBRARY.define("swiglu(Tensor gate, Tensor up) -> Tensor")
LIBRARY.define("swiglu_backward(Tensor gradient, Tensor gate, Tensor up) -> (Tensor, Tensor)")
LIBRARY.define("scaled_backward(Tensor gradient, Tensor result, Tensor factor) -> (Tensor, Tensor)")
operations = torch.ops.harness


# Results that kernels fill, and all that there is of them without storage


def _norm_results(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    out = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
    return out, torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)


def _norm_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, by_weight: bool
) -> tuple[Tensor, Tensor]:
    parts = min(rstd.numel(), PROGRAMS) if by_weight else 0
    by_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return by_x, torch.empty(parts, x.shape[-1], dtype=torch.float32, device=x.device)


def _turned(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, to: torch.dtype) -> tuple[Tensor, Tensor]:
    """Laid out as (sequences, tokens, heads, width), as projections lay them out."""
    shapes = ((len(x), x.shape[2], x.shape[1], x.shape[3]) for x in (query, key))
    by_query, by_key = (torch.empty(shape, dtype=to, device=query.device).transpose(1, 2) for shape in shapes)
    return by_query, by_key


def _opened(gate: Tensor, up: Tensor) -> Tensor:
    return torch.empty(gate.shape, dtype=torch.promote_types(gate.dtype, up.dtype), device=gate.device)


def _opened_gradients(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    by_gate, by_up = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (gate, up))
    return by_gate, by_up


def _scaled_gradients(gradient: Tensor, result: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    parts = min(gradient[..., 0].numel(), SUMS)
    by_direction = torch.empty(gradient.shape, dtype=gradient.dtype, device=gradient.device)
    return by_direction, torch.empty(parts, gradient.shape[-1], dtype=torch.float32, device=gradient.device)


# In Triton


def _norm_cuda(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    from harness.job.training import triton_kernels

    out, rstd = _norm_results(x, weight, eps)
    triton_kernels.rms_norm(x.contiguous(), weight.contiguous(), out, rstd, eps)
    return out, rstd


def _norm_backward_cuda(
    gradient: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, by_weight: bool
) -> tuple[Tensor, Tensor]:
    from harness.job.training import triton_kernels

    by_x, parts = _norm_gradients(gradient, x, weight, rstd, by_weight)
    triton_kernels.rms_norm_backward(gradient.contiguous(), x.contiguous(), weight.contiguous(), rstd, by_x, parts)
    return by_x, parts


def _rope_cuda(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, to: torch.dtype, backward: bool = False
) -> tuple[Tensor, Tensor]:
    from harness.job.training import triton_kernels

    out = _turned(query, key, cos, sin, to)
    query, key, cos, sin = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, cos, sin))
    sin = sin if sin.stride() == cos.stride() else sin.expand_as(cos).contiguous()
    triton_kernels.rope(query, key, cos, sin, *out, backward)
    return out


def _swiglu_cuda(gate: Tensor, up: Tensor) -> Tensor:
    from harness.job.training import triton_kernels

    out = _opened(gate, up)
    triton_kernels.swiglu(gate.contiguous(), up.contiguous(), out)
    return out


def _swiglu_backward_cuda(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    from harness.job.training import triton_kernels

    out = _opened_gradients(gradient, gate, up)
    triton_kernels.swiglu_backward(gradient.contiguous(), gate.contiguous(), up.contiguous(), *out)
    return out


def _scaled_backward_cuda(gradient: Tensor, result: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    from harness.job.training import triton_kernels

    by_direction, parts = _scaled_gradients(gradient, result, factor)
    arguments = gradient.contiguous(), result.contiguous(), factor.contiguous()
    triton_kernels.scaled_backward(*arguments, by_direction, parts)
    return by_direction, parts


# Of torch's operations, with the same roundings


def _norm_cpu(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.float()
    rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * (wide * rstd).to(x.dtype), rstd[..., 0]


def _norm_backward_cpu(
    gradient: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, by_weight: bool
) -> tuple[Tensor, Tensor]:
    normed, width = x.float() * rstd[..., None], x.shape[-1]
    incoming = (gradient * weight).to(x.dtype).float()
    by_x = rstd[..., None] * (incoming - normed * (incoming * normed).mean(-1, keepdim=True))
    parts = (gradient.float() * normed.to(x.dtype)).reshape(-1, width).sum(0, keepdim=True)
    return by_x.to(x.dtype), parts if by_weight else parts[:0]


def _rope_cpu(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, to: torch.dtype, backward: bool = False
) -> tuple[Tensor, Tensor]:
    cos, sin = cos[:, None], sin[:, None]

    def turned(x: Tensor) -> Tensor:
        if not backward:
            return ((x * cos) + (llama.rotate_half(x) * sin)).to(to)
        first, second = (x * sin).to(to).chunk(2, dim=-1)
        return (x * cos).to(to) + torch.cat((second, -first), dim=-1)

    out = _turned(query, key, cos, sin, to)
    return out[0].copy_(turned(query)), out[1].copy_(turned(key))


def _swiglu_cpu(gate: Tensor, up: Tensor) -> Tensor:
    return functional.silu(gate) * up


def _swiglu_backward_cpu(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    by_gate = torch.ops.aten.silu_backward((gradient * up).to(gate.dtype), gate)
    return by_gate, (gradient * functional.silu(gate)).to(up.dtype)


def _scaled_backward_cpu(gradient: Tensor, result: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    parts = (gradient.float() * result.float()).flatten(0, -2).sum(0, keepdim=True)
    return (gradient * factor).to(gradient.dtype), parts


_turned_back = functools.partial(_rope_cpu, backward=True)
for name, on_cpu, on_cuda, without_storage in (
    ("rms_norm", _norm_cpu, _norm_cuda, _norm_results),
    ("rms_norm_backward", _norm_backward_cpu, _norm_backward_cuda, _norm_gradients),
    ("rope", _rope_cpu, _rope_cuda, _turned),
    ("rope_backward", _turned_back, functools.partial(_rope_cuda, backward=True), _turned),
    ("swiglu", _swiglu_cpu, _swiglu_cuda, _opened),
    ("swiglu_backward", _swiglu_backward_cpu, _swiglu_backward_cuda, _opened_gradients),
    ("scaled_backward", _scaled_backward_cpu, _scaled_backward_cuda, _scaled_gradients),
):
    LIBRARY.impl(name, on_cpu, "CPU")
    LIBRARY.impl(name, on_cuda, "CUDA")
    LIBRARY.impl(name, without_storage, "Meta")


# With gradients


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, rstd = operations.rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, rstd = ctx.saved_tensors
        by_weight = ctx.needs_input_grad[1]
        by_x, parts = operations.rms_norm_backward(gradient, x, weight, rstd, by_weight)
        return by_x, parts.sum(0).to(weight.dtype) if by_weight else None, None


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = query.dtype
        return operations.rope(query, key, cos, sin, torch.promote_types(query.dtype, cos.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_query: Tensor, by_key: Tensor) -> tuple[Tensor, Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return *operations.rope_backward(by_query, by_key, cos, sin, ctx.dtype), None, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return operations.swiglu(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return operations.swiglu_backward(gradient, *ctx.saved_tensors)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x` (..., width), divided by its root mean square and multiplied by `weight` (width,)."""
    return _RmsNorm.apply(x, weight, eps)


def rope(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """`query` and `key` (sequences, heads, tokens, width) at positions of the angles `cos` and `sin` (1 or sequences,
    tokens, width); other shapes, which some models have, take transformers' operations."""
    plain = query.dtype == key.dtype and query.ndim == 4 and cos.ndim == 3 and unsqueeze_dim == 1
    if plain and query.shape[-1] == key.shape[-1] == cos.shape[-1]:
        return _Rope.apply(query, key, cos, sin)
    return llama.apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim=unsqueeze_dim)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(`gate`) · `up`, of equal shapes."""
    return _SwiGlu.apply(gate, up)


# In a model


def enable(model: nn.Module, device: torch.device) -> str:
    """Have layers of `model` use these kernels. Returns for the record "on: " and which, or "off: " and the reason.

    device: which the layers will compute on, where the kernels must agree with torch's operations. A model that is to
        be sharded is not there yet; while a layer computes, its weights are whole.
    """
    if device.type != "cuda":
        return NOT_HERE
    if (obstacle := _obstacle(device)) is not None:
        return f"off: {obstacle}"
    return attach(inner(model))


def attach(net: nn.Module) -> str:
    """As `enable`, on any device: in a prediction for CUDA there is none that could be asked."""
    replaced: Counter[str] = Counter()
    for module in net.modules():
        if _computes(module, llama.LlamaRMSNorm.forward):
            module.forward = MethodType(_normed, module)
            replaced["rms_norm"] += 1
        elif _computes(module, llama.LlamaMLP.forward) and isinstance(module.act_fn, nn.SiLU | SiLUActivation):
            module.forward = MethodType(_gated, module)
            replaced["swiglu"] += 1
        elif (forward := _with_our_rope(module)) is not None:
            module.forward = MethodType(forward, module)
            replaced["rope"] += 1
    return f"on: {', '.join(sorted(replaced))}" if replaced else "off: no layer of the model has a kernel"


def detach(net: nn.Module) -> None:
    """Undo `attach`."""
    for module in net.modules():
        own = vars(module).get("forward")
        if isinstance(own, MethodType) and (own.__func__ in (_normed, _gated) or _is_ours(own.__func__)):
            del module.forward


def _normed(module: Any, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, module.weight, module.variance_epsilon)


def _gated(module: Any, x: Tensor) -> Tensor:
    return module.down_proj(swiglu(module.gate_proj(x), module.up_proj(x)))


def _is_ours(function: Any) -> bool:
    return getattr(function, "__globals__", {}).get(ROPE) is rope


ROPE = llama.apply_rotary_pos_emb.__name__


def _with_our_rope(module: nn.Module) -> FunctionType | None:
    """The forward of `module` with `rope` in place of the function that it calls by Llama's name, if that is Llama's
    to the instruction."""
    function: Any = inspect.unwrap(type(module).forward)
    if not isinstance(function, FunctionType) or ROPE not in function.__code__.co_names:
        return None
    source = vars(sys.modules[function.__module__])
    if not all(_same(source.get(n), getattr(llama, n)) for n in (ROPE, llama.rotate_half.__name__)):
        return None
    ours = FunctionType(
        function.__code__,
        function.__globals__ | {ROPE: rope},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    ours.__kwdefaults__ = function.__kwdefaults__
    return ours


def _computes(module: nn.Module, forward: Callable[..., Any]) -> bool:
    """Whether the class of `module` has the same `forward`, to the instruction, and the instance no other."""
    return "forward" not in vars(module) and _same(type(module).forward, forward)


def _same(function: Any, other: Any) -> bool:
    return function is not None and _instructions(function) == _instructions(other)


def _instructions(function: Any) -> tuple[Any, ...]:
    """What decides what `function` computes: instructions, names and constants, but no texts, which are its docs."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return (function,)
    return code.co_code, code.co_names, tuple(c for c in code.co_consts if not isinstance(c, str))


# Whether the kernels work here


def work(device: torch.device) -> bool:
    """Whether the kernels work on `device`, a CUDA device."""
    return _obstacle(device) is None


@functools.cache
def _obstacle(device: torch.device) -> str | None:
    """Why the kernels don't work on `device`; None if they do."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    try:
        half = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        with unset_fake_temporarily():  # where this process has a model without weights
            for dtype in (torch.float32, half):
                if (disagreeing := disagreement(device, dtype)) is not None:
                    return f"the kernel {disagreeing} differs from torch's operations"
    except Exception as error:  # compilers and drivers fail in many ways, and training works without
        return f"the kernels raise {type(error).__name__}"
    return None


def disagreement(device: torch.device, dtype: torch.dtype) -> str | None:
    """The first operation whose results on `device` are not those of torch's operations on a CPU; None if all agree."""
    draw = torch.Generator().manual_seed(0)

    def drawn(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    x, weight, rstd = drawn(2, 700, 96), drawn(96), torch.rand(2, 700, generator=draw)
    heads = (drawn(2, 7, 4, 48).transpose(1, 2), drawn(2, 7, 2, 48).transpose(1, 2))
    angles, gate, up = (drawn(1, 7, 48), drawn(1, 7, 48)), drawn(3, 700), drawn(3, 700)
    cases: dict[str, tuple[Any, ...]] = {
        "rms_norm": (x, weight, 1e-6),
        "rms_norm_backward": (drawn(2, 700, 96), x, weight, rstd, True),
        "rope": (*heads, *angles, dtype),
        "rope_backward": (*heads, *angles, dtype),
        "swiglu": (gate, up),
        "swiglu_backward": (drawn(3, 700), gate, up),
        "scaled_backward": (drawn(3, 150, 700), drawn(3, 150, 700), torch.rand(700, generator=draw)),
    }
    for operation, arguments in cases.items():
        there = [each.to(device) if isinstance(each, Tensor) else each for each in arguments]
        results = (_whole(operation, getattr(operations, operation)(*of)) for of in (there, arguments))
        for ours, theirs in zip(*results, strict=True):
            if not torch.allclose(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]):
                return operation
    return None


def _whole(operation: str, results: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """Results in fp32 on the CPU, with sums whole: parts of them differ by device."""
    whole = [results] if isinstance(results, Tensor) else [*results]
    if operation in ("rms_norm_backward", "scaled_backward"):
        whole[1] = whole[1].sum(0) / len(whole[0].flatten(0, -2))
    return [each.float().cpu() for each in whole]
