"""Compiles the kernels for cards that are not here. Output: of each its bytes, and whether it spills registers."""

from __future__ import annotations

import json

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from harness.job.training import triton_kernels as own
from harness.job.training.triton_kernels import TYPES

NAMES = {"bf16": "bfloat16", "fp32": "float32"}


def compiled(function, types: dict[str, str], constants: dict, capability: int) -> tuple[int, bool]:
    names = function.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    source = ASTSource(function, signature, {(names.index(name),): value for name, value in constants.items()})
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
    return len(made.asm["cubin"]), ".local" in made.asm["ptx"]


def kernels(kind: str):
    p, wide = f"*{kind}", "*fp32"
    turned = dict.fromkeys(("query", "key", "query_out", "key_out", "cos", "sin"), p)
    rounding = next(there for here, there in TYPES.items() if str(here).endswith(NAMES[kind]))
    yield own._rms_norm, {"x": p, "weight": p, "out": p, "rstd": wide, "eps": "fp32"}, {"BLOCK": 4096}
    back = {"gradient": p, "x": p, "weight": p, "rstd": wide, "by_x": p, "by_weight": wide}
    for weight in (False, True):
        yield own._rms_norm_backward, back, {"WEIGHT": weight, "BLOCK": 4096}
        yield own._rope, turned, {"BACKWARD": weight, "ROUND": rounding, "BLOCK": 64}
    yield own._swiglu, {"gate": p, "up": p, "out": p}, {"BLOCK": own.BLOCK}
    gradients = dict.fromkeys(("gradient", "gate", "up", "by_gate", "by_up"), p)
    yield own._swiglu_backward, gradients | {"size": "i64"}, {"BLOCK": own.BLOCK}
    yield (
        own._scaled_backward,
        back | {"result": p, "factor": wide, "by_direction": p, "parts": wide},
        {"BLOCK": own.BLOCK},
    )


print(json.dumps([compiled(*of, card) for card in (80, 90, 100) for kind in ("bf16", "fp32") for of in kernels(kind)]))
