"""Published training speeds, which the estimate of time is developed with and checked against.

The rows are split by source, and the split was committed before a constant was chosen: constants come from DEVELOP
alone, CHECK is looked at afterwards. A row that can't be compared is left out, with a reason that the page shows.
"""

from __future__ import annotations

DEVELOP = (
    "Surogate benchmarks",  # H100, H200, B200, RTX 5090: its own engine, and unsloth by the same authors
    "foundation-model-stack/fms-acceleration",  # A100: transformers' Trainer, with and without fused kernels
)
CHECK = (
    "torchtune README",  # RTX 4090, RTX A6000: its own engine, compiled
    "NeMo AutoModel performance summary",  # H100: its own engine with TransformerEngine
    "huggingface/peft",  # L40S: a plain loop over peft's models
    "Megatron-Bridge performance archive",  # several GPUs
)
