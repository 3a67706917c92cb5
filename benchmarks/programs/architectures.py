"""Dimensions of the models of published measurements, from their public configs."""

from __future__ import annotations

from harness.errors import UserError
from programs.decoder import Architecture

LLAMA_2_7B = Architecture(32000, 4096, 11008, 32, 32, 32, 128)
LLAMA_2_13B = Architecture(32000, 5120, 13824, 40, 40, 40, 128)
LLAMA_2_70B = Architecture(32000, 8192, 28672, 80, 64, 8, 128)
LLAMA_3_8B = Architecture(128256, 4096, 14336, 32, 32, 8, 128)
LLAMA_3_70B = Architecture(128256, 8192, 28672, 80, 64, 8, 128)
LLAMA_3_2_1B = Architecture(128256, 2048, 8192, 16, 32, 8, 64, tied=True)
LLAMA_3_2_3B = Architecture(128256, 3072, 8192, 28, 24, 8, 128, tied=True)
MISTRAL_7B = Architecture(32000, 4096, 14336, 32, 32, 8, 128)
MIXTRAL_8X7B = Architecture(32000, 4096, 14336, 32, 32, 8, 128, experts=8)
POWERLM_3B = Architecture(49152, 2304, 9216, 40, 36, 36, 64, tied=True, biases=True, scaled=True)
TINY_LLAMA = Architecture(32000, 2048, 5632, 22, 32, 4, 64)
QWEN_1_8B = Architecture(151936, 2048, 5504, 24, 16, 16, 128, attention_bias=True)
QWEN_7B = Architecture(151936, 4096, 11008, 32, 32, 32, 128, attention_bias=True)
QWEN_14B = Architecture(152064, 5120, 13696, 40, 40, 40, 128, attention_bias=True)
QWEN_2_7B = Architecture(152064, 3584, 18944, 28, 28, 4, 128, attention_bias=True)

ARCHITECTURES = {
    "meta-llama/llama-2-7b-hf": LLAMA_2_7B,
    "nousresearch/llama-2-7b-hf": LLAMA_2_7B,
    "meta-llama/llama-2-13b-hf": LLAMA_2_13B,
    "meta-llama/llama-2-70b-hf": LLAMA_2_70B,
    "nousresearch/llama-2-70b-hf": LLAMA_2_70B,
    "meta-llama/meta-llama-3-8b": LLAMA_3_8B,
    "meta-llama/llama-3-8b": LLAMA_3_8B,
    "meta-llama/llama-3.1-8b": LLAMA_3_8B,
    "meta-llama/llama-3.1-70b": LLAMA_3_70B,
    "meta-llama/llama-3.2-1b": LLAMA_3_2_1B,
    "meta-llama/llama-3.2-3b": LLAMA_3_2_3B,
    "mistralai/mistral-7b-v0.1": MISTRAL_7B,
    "thebloke/mistral-7b-v0.1": MISTRAL_7B,
    "mistralai/mistral-7b-v0.2": MISTRAL_7B,
    "mistralai/mixtral-8x7b-v0.1": MIXTRAL_8X7B,
    "mistralai/mixtral-8x7b-instruct-v0.1": MIXTRAL_8X7B,
    "thebloke/mixtral-8x7b-instruct-v0.1": MIXTRAL_8X7B,
    "ibm/powerlm-3b": POWERLM_3B,
    "techxgenus/meta-llama-3-8b": LLAMA_3_8B,
    "thebloke/llama-2-70b": LLAMA_2_70B,
    "tinyllama/tinyllama-1.1b-intermediate-step-1431k-3t": TINY_LLAMA,
    "qwen/qwen-1_8b": QWEN_1_8B,
    "qwen/qwen-7b": QWEN_7B,
    "qwen/qwen-14b": QWEN_14B,
    "qwen/qwen2-7b": QWEN_2_7B,
    "qwen/qwen2.5-7b": QWEN_2_7B,
}


def architecture(model: str) -> Architecture:
    """The dimensions of `model`, in whatever case it is written. Raises UserError."""
    name = model.lower()
    for suffix in ("-gptq", "-chat", "-instruct"):
        name = name.removesuffix(suffix)
    if name not in ARCHITECTURES:
        raise UserError(f"model must be one whose dimensions are known (programs/architectures.py), got {model}.")
    return ARCHITECTURES[name]
