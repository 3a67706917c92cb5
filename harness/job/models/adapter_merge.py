"""Folds an adapter into the base weights: before scoring where that is exact, for merged models score faster.

A quantised base is scored unmerged, as it was trained: its merged weights would be rounded again, which is another
model. It can be merged all the same, into its weights expanded to the dtype they were quantised from.
"""

from __future__ import annotations

import time

import torch
from accelerate import Accelerator
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from harness.job.data.batching import Batch
from harness.job.data.encoding import IGNORED
from harness.job.measure.timing import synchronize
from harness.job.models.adapting import forget_adapters
from harness.job.training import loop
from harness.record import Merge

PROMPT = "What is learned are tokens, and no weights take them in."


def quantised(model: nn.Module) -> bool:
    """Whether `model` has an adapter on a quantised base."""
    return isinstance(model, PeftModel) and getattr(model.get_base_model(), "is_quantized", False)


def rounding(model: PeftModel) -> str:
    """Why an adapter is not merged into its quantised base."""
    bits = 8 if getattr(model.get_base_model(), "is_loaded_in_8bit", False) else 4
    return f"Merging would round the weights to {bits} bits again."


def merge(model: nn.Module, batch: Batch, accelerator: Accelerator) -> tuple[nn.Module, Merge]:
    """The merged model, and what was done; `model` is used up. A quantised base is dequantised first.

    An adapter that can't be folded in is left as it is, and why is said. The largest difference of logits where the
    batch's answers are predicted is taken, and recorded.
    """
    if not isinstance(model, PeftModel):
        return model, Merge(False, "The method has no adapter.")
    if not hasattr(model.base_model, "merge_and_unload"):
        return model, Merge(False, PROMPT)
    batch = batch.to(accelerator.device)
    before = _logits(model, batch, accelerator)
    expand = quantised(model)
    reason = rounding(model) if expand else None
    synchronize()
    start = time.perf_counter()
    try:
        merged = (_dequantised(model) if expand else model).merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError) as error:
        if "NaN" in str(error):  # an adapter that is broken, not one that can't be merged
            raise
        return model, Merge(False, f"peft can't merge it: {str(error).rstrip('.')}.")
    synchronize()
    seconds = time.perf_counter() - start
    forget_adapters(merged)
    difference = float((_logits(merged, batch, accelerator) - before).abs().max())
    return merged, Merge(not expand, reason, difference, dequantised=expand, seconds=seconds)


def _dequantised(model: PeftModel) -> PeftModel:
    """The adapter of `model` on its base's weights expanded, in place: matrix by matrix, so that no two copies meet.

    They take the dtype that they were quantised from.
    """
    adapter = get_peft_model_state_dict(model, save_embedding_layers=False)
    expanded = get_peft_model(model.unload().dequantize(), model.active_peft_config)
    set_peft_model_state_dict(expanded, adapter)
    return expanded


@torch.no_grad()
def _logits(model: nn.Module, batch: Batch, accelerator: Accelerator) -> torch.Tensor:
    model.eval()
    with accelerator.autocast():
        logits = loop.answer_logits(model, batch)
    return logits[batch.targets != IGNORED].float()
