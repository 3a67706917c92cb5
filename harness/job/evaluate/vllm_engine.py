"""Scoring by vLLM on a CUDA device, through lm-eval's model class for it (`eval.engine=vllm`).

vLLM has its own kernels, so its scores differ from those of `auto`, and a study should use one engine for all cells.
vLLM loads models from disk, so the tuned model is merged and saved for it.
"""

from __future__ import annotations

import contextlib
import gc
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec

import torch
from lm_eval.api.model import LM
from torch import nn
from transformers import PreTrainedTokenizerBase

from harness.errors import UserError
from harness.settings import Settings

SHARE = 0.8  # of the device's memory; the job holds part of the rest


def check(settings: Settings) -> None:
    """Raise UserError if `settings` ask for vLLM, and it does not work here."""
    if settings.eval.engine != "vllm":
        return
    if not torch.cuda.is_available():
        raise UserError("eval.engine=vllm requires a CUDA device; eval.engine=auto does not.")
    if find_spec("vllm") is None:
        raise UserError("eval.engine=vllm requires the package vllm: pip install 'lm-eval[vllm]'.")
    if "quantization_config" in settings.method.load:
        raise UserError(
            "eval.engine=vllm requires a model that is not quantised: merging would change it; use eval.engine=auto."
        )


@contextlib.contextmanager
def engine(model: nn.Module, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> Iterator[LM]:
    """lm-eval's vLLM model for `model`, which has no adapter and moves to the host's memory."""
    with tempfile.TemporaryDirectory() as folder:
        save(model, tokenizer, folder, dtype)
        model.to("cpu")
        gc.collect()
        torch.cuda.empty_cache()
        from lm_eval.models.vllm_causallms import VLLM

        named = str(dtype).removeprefix("torch.")
        yield VLLM(pretrained=folder, dtype=named, batch_size="auto", gpu_memory_utilization=SHARE)


def save(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: str, dtype: torch.dtype) -> None:
    """Save `model` to `folder` in `dtype`, as transformers and vLLM read it."""
    weights = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
