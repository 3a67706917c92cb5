"""Scoring by vLLM on a CUDA device, through lm-eval's own model class for it (`eval.engine=vllm`).

vLLM computes with kernels of its own: its scores are another measurement than those of `auto`, and a study should take
one of the two for all its cells. It needs a model that stands on disk, so the tuned one is saved for it, merged.
"""

from __future__ import annotations

import contextlib
import gc
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from lm_eval.api.model import LM
from torch import nn
from transformers import PreTrainedTokenizerBase

from harness.errors import UserError

SHARE = 0.8  # of the device's memory: the rest is for what the job still holds there


def check(settings: dict[str, Any]) -> None:
    """Raise UserError if a cell's `settings` ask for vLLM and it can't be had here."""
    if settings["eval"].get("engine", "auto") != "vllm":
        return
    if not torch.cuda.is_available():
        raise UserError("eval.engine=vllm needs a CUDA device, and there is none here; eval.engine=auto does without.")
    if find_spec("vllm") is None:
        raise UserError("eval.engine=vllm needs the package vllm: pip install 'lm-eval[vllm]', or eval.engine=auto.")
    if "quantization_config" in settings["method"]["load"]:
        raise UserError(
            "eval.engine=vllm can't score a quantised model: merged, it would be another one; use eval.engine=auto."
        )


@contextlib.contextmanager
def engine(model: nn.Module, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> Iterator[LM]:
    """lm-eval's vLLM over `model`, which has no adapter any more and leaves the device for the host's memory."""
    with tempfile.TemporaryDirectory() as folder:
        save(model, tokenizer, folder, dtype)
        model.to("cpu")
        gc.collect()
        torch.cuda.empty_cache()
        from lm_eval.models.vllm_causallms import VLLM

        named = str(dtype).removeprefix("torch.")
        yield VLLM(pretrained=folder, dtype=named, batch_size="auto", gpu_memory_utilization=SHARE)


def save(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: str, dtype: torch.dtype) -> None:
    """Write `model` to `folder` in `dtype`, as transformers and vLLM read it."""
    weights = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
