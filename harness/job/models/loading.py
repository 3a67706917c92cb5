"""Loads a cell's tokenizer and base weights, by the method's `load` slot."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from harness.errors import UserError, first_line
from harness.job.methods import optimizers
from harness.job.models import dequantised, embedded, hub, weight_only
from harness.job.models.quantisation import leave_for_kernels, never_repack, pack_experts
from harness.job.models.structure import stacks
from harness.record import Cell
from harness.settings import ModelSettings


def source(model: ModelSettings) -> str:
    """The folder or hub id that ``from_pretrained`` loads for the settings `model`.

    Raises UserError if they name neither, as those of a model behind an API.
    """
    if model.path is None:
        raise UserError("model.path is required of a model that is loaded here.")
    kind, _, name = model.path.partition(":")
    if kind == "embedded":
        return str(embedded.folder(name))
    if model.is_gguf:
        return str(dequantised.folder(model))
    if not Path(model.path).is_dir():
        hub.settle()
    return model.path


def tokenizer(model: ModelSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of the settings `model`. Raises UserError if it is out of reach, or has no end-of-text token."""
    path = source(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **which(model))
    except (OSError, ValueError, TypeError, ImportError) as error:  # TypeError: without its files; a package lacks
        raise _unreachable(path, error) from error
    if not reads_text(tokenizer):
        raise UserError(
            f"{model.path} must have the files of its tokenizer, such as tokenizer.json, beside its config."
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"The tokenizer of {model.path} must have an end-of-text token, which ends answers; set eos_token in "
            "its tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked wherever it pads, so padding is not learned
    return tokenizer


def reads_text(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `tokenizer` tells characters apart.

    From a config alone transformers makes tokenizers of many families, which know special tokens and nothing else.
    """
    return len({tuple(tokenizer.encode(character, add_special_tokens=False)) for character in "abAB12"}) > 1


def load(cell: Cell, on: torch.device, over: dict[int, int] | None = None) -> PreTrainedModel:
    """The base model on the device `on`, or divided `over` devices, loaded by the method's `load` slot.

    over: bytes of weights that each CUDA device may get. Layers lie on one after another, and so they compute.

    Raises UserError if the model is missing, gated or out of reach.
    """
    model = cell.settings.model
    path = source(model)
    config, slot = config_of(model), load_slot(cell)
    kind = auto_class(config)
    if "quantization_config" in slot:
        with torch.device("meta"):
            outline = kind.from_config(config, trust_remote_code=model.trust_remote_code)
        leave_for_kernels(slot["quantization_config"], outline)
    try:
        loaded = kind.from_pretrained(
            path,
            **({"device_map": {"": on}} if over is None else {"device_map": "balanced", "max_memory": over}),
            use_safetensors=model.use_safetensors,
            **(hub.NO_KERNELS | slot),
            **which(model),
        )
    except OSError as error:
        raise _unreachable(path, error) from error
    if "quantization_config" in slot:
        pack_experts(loaded, slot["quantization_config"])
    never_repack(loaded)
    weight_only.enable(loaded)
    cap_logits(loaded)
    if model.upcast:
        upcast(loaded)
    return loaded


def auto_class(config: PretrainedConfig) -> type[Any]:
    """The class of transformers that loads a model of `config` to write text.

    Raises UserError if there is none, or if the model is an encoder-decoder.
    """
    path = config.name_or_path or "The model"
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{path} is an encoder-decoder ({config.model_type}), and only decoders are trained here; choose a model "
            "such as model=qwen3_0_6b."
        )
    own_code = getattr(config, "auto_map", None) or {}
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in own_code:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise UserError(
        f"{path} is a model of the type {config.model_type}, which transformers has no text generation for; choose a "
        "model such as model=qwen3_0_6b."
    )


def cap_logits(net: PreTrainedModel) -> None:
    """Cap the attention logits of `net` if its config says so (Gemma 2); transformers 5.17 ignores that under sdpa."""
    if getattr(net.config, "attn_logit_softcapping", None) is not None:
        net.set_attn_implementation("eager")


def upcast(net: nn.Module) -> None:
    """Cast the 16-bit weights of `net` to fp32, except the matrices that QLoRA quantises (and stacks of experts).

    ``peft.prepare_model_for_kbit_training`` does the same to a quantised model (norms, embeddings, head, biases). The
    residual stream is in fp32 then.
    """
    matrices = {id(weight) for weight in (*optimizers.matrices_of(net).values(), *stacks(net).values())}
    for p in net.parameters():
        if p.dtype in (torch.float16, torch.bfloat16) and id(p) not in matrices:
            p.data = p.data.float()


def load_slot(cell: Cell) -> dict[str, Any]:
    """Keywords of ``from_pretrained``, by the method's `load` slot.

    Packed weights that are to be sharded are stored in the dtype of the others, as FSDP2 does not shard integers.
    Raises UserError if it requires an extra that is not installed.
    """
    try:
        slot = instantiate(cell.settings.method.load, _convert_="all")
    except InstantiationException as error:  # hydra wraps all that the target raises, also UserError
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
    if cell.settings.train.sharded and "quantization_config" in slot:
        slot["quantization_config"].bnb_4bit_quant_storage = getattr(torch, slot["dtype"])
    return slot


def which(model: ModelSettings) -> dict[str, Any]:
    """Keywords of ``from_pretrained``: the revision, and whether the model's own code may run."""
    return {"revision": model.revision or "main", "trust_remote_code": model.trust_remote_code}


def _weights(model: ModelSettings) -> str:
    """Pattern of the files that weights are loaded from; only pickled ones have a setting."""
    return "*.safetensors" if model.use_safetensors else "*.bin"


def config_of(model: ModelSettings) -> PretrainedConfig:
    """The config of the settings `model`, without its weights. Raises UserError if it is out of reach."""
    path = source(model)
    try:
        return AutoConfig.from_pretrained(path, **which(model))
    except (OSError, ValueError) as error:
        raise _unreachable(path, error) from error


def fingerprint(model: ModelSettings) -> str:
    """Identifies the weights: the sha256 of a folder's files, or a hub id with its resolved commit."""
    path = source(model)
    if Path(path).is_dir():
        digest = hashlib.sha256()
        for file in sorted(Path(path).glob(_weights(model))):
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return f"sha256:{digest.hexdigest()}"
    return f"{path}@{Path(hub.config_file(model)).parent.name}"  # the hub's cache has a folder for each commit


def state(model: ModelSettings) -> str:
    """Changes when the files of the settings `model` change: their folder, names, sizes and times."""
    path = source(model)
    files = sorted(Path(path).glob(_weights(model)))
    return "\0".join(
        [os.path.abspath(path), *(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)]
    )


def _unreachable(path: str, error: Exception) -> UserError:
    """Why a model did not load, and the remedy, in one sentence."""
    if "trust_remote_code" in str(error):
        return UserError(f"{path} has code of its own; if you trust it, set model.trust_remote_code=true.")
    if "model.safetensors" in str(error) and (not Path(path).is_dir() or any(Path(path).glob("*.bin"))):
        return UserError(
            f"{path} has no safetensors, and pickled weights can run code; if you trust them, set "
            "model.use_safetensors=false."
        )
    if Path(path).is_dir():
        folder = os.path.abspath(path)
        return UserError(f"The folder {folder} has no model that transformers can load ({first_line(error)}).")
    return hub.no_model(path, error)
