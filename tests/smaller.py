"""What methods need to be tested: settings that make them small enough for the `tiny` model, and extras."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

SMALLER = {
    "adamss": ["method.knobs.subspaces=4"],  # to find 32 takes seconds
    "eva": ["method.init.batches=4"],
    "corda": ["method.init.sequences=8"],
    "lora_ga": ["method.init.batches=2"],
    "adamw_layer": ["train.max_grad_norm=null"],
    "galore_layer": ["train.max_grad_norm=null"],
    "galore_8bit_layer": ["train.max_grad_norm=null", "model.dtype=bfloat16"],
    **{method: ["model.dtype=bfloat16"] for method in ("full_bf16", "full_kahan", "galore_bf16")},
}
EXTRAS = {  # of methods that need one
    **dict.fromkeys(("apollo", "apollo_mini"), "apollo"),
    **dict.fromkeys(("base_fp8wo", "base_int8wo", "lora_fp8wo", "lora_int8wo"), "torchao"),
}
PACKAGES = {"apollo": "apollo_torch", "torchao": "torchao"}


def lacks_extra(method: str) -> bool:
    return method in EXTRAS and find_spec(PACKAGES[EXTRAS[method]]) is None


def need_extra(method: str) -> None:
    """Skip the test if `method` needs an extra that is not installed."""
    if lacks_extra(method):
        pytest.skip(f"the extra `{EXTRAS[method]}` is not installed")
