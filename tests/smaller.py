"""Settings that make methods small enough for the `tiny` model."""

from __future__ import annotations

SMALLER = {
    "adamss": ["method.knobs.subspaces=4"],  # to find 32 takes seconds
    "eva": ["method.init.batches=4"],
    "corda": ["method.init.sequences=8"],
    "lora_ga": ["method.init.batches=2"],
    "adamw_layer": ["train.max_grad_norm=null"],
    "galore_layer": ["train.max_grad_norm=null"],
    **{method: ["model.dtype=bfloat16"] for method in ("full_bf16", "full_kahan", "galore_bf16")},
}
