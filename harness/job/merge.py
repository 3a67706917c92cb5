"""Folds an adapter into the base weights before scoring, where that is exact: merged models score faster."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn

from harness.job.data import Batch
from harness.record import Merge


def merge(model: nn.Module, batch: Batch, accelerator: Accelerator) -> tuple[nn.Module, Merge]:
    """The model to score, and what was done.

    A quantised base is left unmerged: its merged weights would be rounded to 4 bits again, which is another model.
    The largest difference of logits at the batch's non-padding tokens is taken, and recorded.
    """
    if not isinstance(model, PeftModel):
        return model, Merge(False, "The method has no adapter.")
    if getattr(model.get_base_model(), "is_quantized", False):
        return model, Merge(False, "Merging would round the weights to 4 bits again.")
    batch = batch.to(accelerator.device)
    before = _logits(model, batch, accelerator)
    merged = model.merge_and_unload(safe_merge=True)
    after = _logits(merged, batch, accelerator)
    return merged, Merge(True, max_logit_difference=float((after - before).abs().max()))


@torch.no_grad()
def _logits(model: nn.Module, batch: Batch, accelerator: Accelerator) -> torch.Tensor:
    model.eval()
    with accelerator.autocast():
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return logits[batch.attention_mask.bool()].float()
