"""Loads a cell's base weights and tokenizer, and changes the model as its method says (slots `load` and `adapt`)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from hydra.utils import instantiate
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from harness.errors import UserError
from harness.job.methods import optimizers
from harness.job.models import embedded, hub
from harness.job.models.quantisation import never_repack
from harness.job.models.structure import stacks
from harness.record import Cell


def source(model: dict[str, Any]) -> str:
    """What ``from_pretrained`` is given for the settings `model`: a folder, or a hub id."""
    kind, _, name = model["path"].partition(":")
    if kind == "embedded":
        return str(embedded.folder(name))
    if not Path(model["path"]).is_dir():
        hub.settle()
    return model["path"]


def tokenizer(model: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of the settings `model`, which pads and ends texts; UserError if it can't, or is out of reach."""
    path = source(model)
    try:
        found = AutoTokenizer.from_pretrained(path, **which(model))
    except (OSError, ValueError) as error:
        raise _unreachable(path, error) from error
    if found.eos_token_id is None:
        raise UserError(
            f"The tokenizer of {model['path']} has no end-of-text token, which ends answers and pads where no other "
            "token does; name one as eos_token in its tokenizer_config.json."
        )
    if found.pad_token_id is None:
        found.pad_token = found.eos_token  # masked wherever it pads, so it can't be learned
    return found


def load(cell: Cell, on: torch.device) -> PreTrainedModel:
    """The base model on the device `on`, loaded by the method's `load` slot.

    Raises UserError if the model is missing, gated or out of reach.
    """
    model = cell.settings["model"]
    path = source(model)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            path,
            device_map={"": on},
            use_safetensors=model.get("use_safetensors", True),
            **load_slot(cell),
            **which(model),
        )
    except OSError as error:
        raise _unreachable(path, error) from error
    never_repack(loaded)
    cap_logits(loaded)
    if model.get("upcast"):
        upcast(loaded)
    return loaded


def cap_logits(net: PreTrainedModel) -> None:
    """Have `net` cap its attention's logits, if that is its way (Gemma 2): by sdpa transformers 5.17 does not."""
    if getattr(net.config, "attn_logit_softcapping", None) is not None:
        net.set_attn_implementation("eager")


def upcast(net: nn.Module) -> None:
    """Put what `net` has in 16 bits into fp32, but for the matrices that QLoRA packs (and experts in stacks).

    It is what ``peft.prepare_model_for_kbit_training`` does to a quantised model (norms, embeddings, head, biases),
    for any: the residual stream is in fp32 then.
    """
    matrices = {id(weight) for weight in (*optimizers.matrices_of(net).values(), *stacks(net).values())}
    for p in net.parameters():
        if p.dtype in (torch.float16, torch.bfloat16) and id(p) not in matrices:
            p.data = p.data.float()


def load_slot(cell: Cell) -> dict[str, Any]:
    """Keywords of ``from_pretrained``, by the method's `load` slot.

    Weights that are packed and to be sharded are stored in the number format of the others: FSDP2 takes no integers.
    """
    slot = instantiate(cell.settings["method"]["load"], _convert_="all")
    if cell.settings["train"].get("parallel") == "fsdp" and "quantization_config" in slot:
        slot["quantization_config"].bnb_4bit_quant_storage = getattr(torch, slot["dtype"])
    return slot


def which(model: dict[str, Any]) -> dict[str, Any]:
    """Keywords of ``from_pretrained``: the revision, and whether code that comes with the model may run."""
    return {"revision": model["revision"] or "main", "trust_remote_code": trusted(model)}


def trusted(model: dict[str, Any]) -> bool:
    """Whether the code that comes with the model of these settings may run."""
    return model.get("trust_remote_code", False)


def _weights(model: dict[str, Any]) -> str:
    """What the files of the weights that are loaded are called; a record tells only of pickled ones."""
    return "*.safetensors" if model.get("use_safetensors", True) else "*.bin"


def config_of(model: dict[str, Any]) -> PretrainedConfig:
    """The architecture of the settings `model`, weights left where they are; UserError if it can't be had."""
    path = source(model)
    try:
        return AutoConfig.from_pretrained(path, **which(model))
    except (OSError, ValueError) as error:
        raise _unreachable(path, error) from error


def fingerprint(model: dict[str, Any]) -> str:
    """What the weights are: the sha256 of a folder's files of them, or a hub id with its resolved commit."""
    path = source(model)
    if Path(path).is_dir():
        digest = hashlib.sha256()
        for file in sorted(Path(path).glob(_weights(model))):
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return f"sha256:{digest.hexdigest()}"
    try:
        file = hf_hub_download(path, "config.json", revision=model["revision"])
    except (OSError, ValueError) as error:
        raise _unreachable(path, error) from error
    return f"{path}@{Path(file).parent.name}"  # the hub's cache has a folder for each commit


def state(model: dict[str, Any]) -> str:
    """Whether the files behind the settings `model` are still the same: where they are, their sizes and times."""
    path = source(model)
    files = sorted(Path(path).glob(_weights(model)))
    return "\0".join([path, *(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)])


def _unreachable(path: str, error: Exception) -> UserError:
    """The remedy for a model that did not load, in one sentence."""
    if "trust_remote_code" in str(error):
        return UserError(f"{path} comes with code of its own; if you trust it, model.trust_remote_code=true runs it.")
    if "model.safetensors" in str(error) and (not Path(path).is_dir() or any(Path(path).glob("*.bin"))):
        return UserError(
            f"{path} holds no safetensors; pickled weights can run code: if you trust them, "
            "model.use_safetensors=false loads them."
        )
    if Path(path).is_dir():
        folder = os.path.abspath(path)
        return UserError(f"The folder {folder} holds no model that transformers can load ({_first_line(error)}).")
    remedy = "no local folder is called so; check model.path and the connection, or use the embedded model=smollm2_135m"
    return hub.refused(f"The model {path}", error, remedy)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
