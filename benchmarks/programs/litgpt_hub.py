"""Models and files of litgpt's config_hub/finetune: dimensions, micro-batches and adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.errors import UserError
from programs.architectures import architecture
from programs.litgpt_model import Adapters, Config

FALCON_7B = Config(
    65024, 4544, 18176, 32, 71, 1, 64, mlp="GptNeoxMLP", layer_norm=True, parallel=True, shared_norm=True
)
GEMMA_2B = Config(256000, 2048, 16384, 18, 8, 1, 256, mlp="GemmaMLP")
GEMMA_7B = Config(256000, 3072, 24576, 28, 16, 16, 256, mlp="GemmaMLP")
GEMMA_2_2B = Config(256000, 2304, 9216, 26, 8, 4, 256, mlp="GemmaMLP", post_norms=True, capped=True)
GEMMA_2_9B = Config(256000, 3584, 14336, 42, 16, 8, 256, mlp="GemmaMLP", post_norms=True, capped=True)
_GPT: dict[str, Any] = {"mlp": "GptNeoxMLP", "bias": True, "layer_norm": True, "parallel": True}
PHI_2 = Config(51200, 2560, 10240, 32, 32, 32, 80, head_bias=True, shared_norm=True, rotated=32, **_GPT)
PHI_3_MINI = Config(32064, 3072, 8192, 32, 32, 32, 96)
STABLELM_ALPHA_3B = Config(50688, 4096, 16384, 16, 32, 32, 128, rotated=32, **_GPT)


@dataclass(frozen=True)
class HubFile:
    """What METHOD.yaml of a model sets."""

    micro_batch: int
    adapters: Adapters | None = None


_QV = Adapters(32, 0.05)
_LLAMA_3 = {"full": HubFile(4), "lora": HubFile(1, _QV), "qlora": HubFile(2, _QV)}
_LLAMA_2 = {"full": HubFile(4), "lora": HubFile(2, _QV), "qlora": HubFile(2, _QV)}
_ONE = {"full": HubFile(1), "lora": HubFile(1, _QV), "qlora": HubFile(1, _QV)}
_PHI = {name: HubFile(4, Adapters(8, 0.05, everywhere=True)) for name in ("lora", "qlora")} | {"full": HubFile(4)}


def _gemma(micro_batch: int, rank: int) -> dict[str, HubFile]:
    ranks = {"lora": rank, "qlora": 16}
    return {name: HubFile(micro_batch, Adapters(r, 0.1, everywhere=True)) for name, r in ranks.items()}


# By the beginning of the model's name without its owner: a folder of config_hub/finetune, and the dimensions of models
# that programs.architectures lacks.
HUB: dict[str, tuple[dict[str, HubFile], Config | None]] = {
    "falcon-7b": (_ONE, FALCON_7B),
    "gemma-2-2b": (_gemma(2, 8), GEMMA_2_2B),
    "gemma-2-9b": (_gemma(1, 16), GEMMA_2_9B),
    "gemma-2b": (_gemma(2, 8) | {"full": HubFile(1)}, GEMMA_2B),
    "gemma-7b": (_gemma(1, 16), GEMMA_7B),
    "llama-2-7b": (_LLAMA_2, None),
    "llama-3": (_LLAMA_3, None),
    "mistral-7b": (_LLAMA_2, None),
    "phi-2": (_PHI, PHI_2),
    "phi-3-mini": (_PHI, PHI_3_MINI),
    "stablelm-base-alpha-3b": (_ONE, STABLELM_ALPHA_3B),
    "tinyllama-1.1b": (
        {name: HubFile(8, Adapters(32, 0.05, everywhere=True)) for name in ("lora", "qlora")} | {"full": HubFile(4)},
        None,
    ),
}


def hub_file(model: str, method: str) -> HubFile | None:
    """The file of `model`, written OWNER/NAME, and `method`; null if there is none."""
    files, _ = _entry(model)
    return files.get(method)


def config(model: str) -> Config:
    """The dimensions of `model`. Raises UserError if they are not known."""
    _, known = _entry(model)
    if known is not None:
        return known
    of = architecture(model)
    dimensions = (of.vocabulary, of.width, of.inner, of.depth, of.heads, of.kv_heads, of.head)
    if of.attention_bias:
        raise UserError(f"model must be without biases in attention, as litgpt computes it, got {model}.")
    return Config(*dimensions)


def _entry(model: str) -> tuple[dict[str, HubFile], Config | None]:
    name = model.lower().rpartition("/")[2].removeprefix("meta-")
    for beginning, entry in HUB.items():
        if name.startswith(beginning):
            return entry
    return {}, None
