"""Kernels by Triton's interpreter on a CPU. Output: pairs of a case, and how its results differ from torch's, relative.

The interpreter cuts bf16 numbers off where a card rounds them.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch
from torch import Tensor

from harness.job.training import layer_kernels as own

GENERATOR = torch.Generator().manual_seed(0)
DTYPES = [(x, x) for x in (torch.float32, torch.float16, torch.bfloat16)] + [(torch.bfloat16, torch.float32)]


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=GENERATOR).to(dtype)


def differences(ours, theirs) -> list[float]:
    pairs = zip(*([each] if isinstance(each, Tensor) else each for each in (ours, theirs)), strict=True)
    out = []
    for a, b in pairs:
        assert a.dtype == b.dtype
        out.append(float((a.float() - b.float()).norm() / b.float().norm()))
    return out


def summed(gradients: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return gradients[0], gradients[1].sum(0)


def cases(dtype: torch.dtype, other: torch.dtype):
    x, weight = drawn(2, 700, 96, dtype=dtype), drawn(96, dtype=other)
    out = own._norm_cpu(x, weight, 1e-6)
    yield "rms_norm", differences(own._norm_cuda(x, weight, 1e-6), out)
    back = drawn(2, 700, 96, dtype=out[0].dtype), x, weight, out[1]
    yield "by x", differences(own._norm_backward_cuda(*back, False)[0], own._norm_backward_cpu(*back, False)[0])
    yield (
        "by both",
        differences(summed(own._norm_backward_cuda(*back, True)), summed(own._norm_backward_cpu(*back, True))),
    )
    for batch in (1, 2):
        query, key = (drawn(2, 7, heads, 48, dtype=dtype).transpose(1, 2) for heads in (4, 2))
        cos, sin = (drawn(batch, 7, 48, dtype=other) for _ in range(2))
        to = torch.promote_types(dtype, other)
        turned = own._rope_cpu(query, key, cos, sin, to)
        yield f"rope {batch}", differences(own._rope_cuda(query, key, cos, sin, to), turned)
        given = (turned[0], turned[1].contiguous(), cos, sin, dtype)  # of other strides
        yield f"rope back {batch}", differences(own._rope_cuda(*given, True), own._rope_cpu(*given, True))
    gradient, gate, up = (drawn(3, 700, dtype=dtype) for _ in range(3))
    yield "swiglu", differences(own._swiglu_cuda(gate, up), own._swiglu_cpu(gate, up))
    back = gradient, gate, up
    yield "swiglu back", differences(own._swiglu_backward_cuda(*back), own._swiglu_backward_cpu(*back))
    scaled = drawn(3, 150, 700, dtype=dtype), drawn(3, 150, 700, dtype=dtype), drawn(700, dtype=torch.float32)
    ours, theirs = (summed(of(*scaled)) for of in (own._scaled_backward_cuda, own._scaled_backward_cpu))
    yield "scaled back", differences(ours, theirs)


print(json.dumps([(f"{name} {d} {o}", found) for d, o in DTYPES for name, found in cases(d, o)]))
