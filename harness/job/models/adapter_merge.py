"""Merges an adapter into the base weights. Scoring a merged model is faster.

A quantised base is scored unmerged, as it was trained: quantising merged weights again would give another model. For
its cost it is merged too, into its weights dequantised to the dtype that they were quantised from.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from harness.job.data.batching import Batch
from harness.job.data.encoding import IGNORED
from harness.job.measure.timing import synchronize
from harness.job.models import weight_only
from harness.job.models.adapting import forget_adapters, plain
from harness.job.models.quantisation import unpack_experts
from harness.job.training import loop
from harness.record import Merge

PROMPT = "The method learns virtual tokens, which can't be merged into weights."


def quantised(model: nn.Module) -> bool:
    """Whether `model` has an adapter on a quantised base."""
    return isinstance(model, PeftModel) and getattr(model.get_base_model(), "is_quantized", False)


def rounding(model: PeftModel) -> str:
    """Why an adapter is not merged into its quantised base, as a sentence."""
    bits = 4 if getattr(model.get_base_model(), "is_loaded_in_4bit", False) else 8
    return f"Merging would round the weights to {bits} bits again."


def merge(model: nn.Module, batch: Batch, accelerator: Accelerator) -> tuple[nn.Module, Merge]:
    """The merged model, and a report; `model` is used up. A quantised base is dequantised first.

    An adapter that can't be merged stays as it is, and the report has the reason. The report also has the largest
    difference of logits where the answers of `batch` are predicted.
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
        merged = fold(model)
    except (NotImplementedError, ValueError) as error:
        if "NaN" in str(error):  # a broken adapter, not one that can't be merged
            raise
        return model, Merge(False, f"peft can't merge it: {str(error).rstrip('.')}.")
    synchronize()
    seconds = time.perf_counter() - start
    difference = float((_logits(merged, batch, accelerator) - before).abs().max())
    return merged, Merge(not expand, reason, difference, dequantised=expand, seconds=seconds)


def fold(model: nn.Module) -> nn.Module:
    """`model`, which is used up, with its adapter in its weights; a quantised base is dequantised first.

    Raises NotImplementedError or ValueError if peft can't merge the adapter.
    """
    if not isinstance(model, PeftModel) or not hasattr(model.base_model, "merge_and_unload"):
        raise NotImplementedError(PROMPT)
    whole = _dequantised(model) if quantised(model) else model
    _untie(whole)
    merged = whole.merge_and_unload(safe_merge=True)
    forget_adapters(merged)
    return merged


def _untie(model: PeftModel) -> None:
    """Give the head weights of its own if it shares them with the embedding and one of them has an adapter.

    Merged into shared weights, the adapter of one would change the other too.
    """
    net: Any = model.get_base_model()
    ends = [net.get_input_embeddings(), net.get_output_embeddings()]
    tuned = [isinstance(end, BaseTunerLayer) for end in ends]
    plain_ends: list[Any] = [end.get_base_layer() if isinstance(end, BaseTunerLayer) else end for end in ends]
    embedding, head = plain_ends
    if head is not None and any(tuned) and getattr(head, "weight", None) is embedding.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        net.config.get_text_config().tie_word_embeddings = net.config.tie_word_embeddings = False


def _dequantised(model: PeftModel) -> PeftModel:
    """The adapter of `model` on its dequantised base, in the dtype that it was quantised from.

    It is done in place, matrix by matrix, so that there are never two copies of the model.
    """
    adapter = get_peft_model_state_dict(model, save_embedding_layers=False)
    base = model.unload()
    if any(weight_only.is_torchao(weight) for weight in base.parameters()):
        weight_only.dequantise(base)
    else:
        base = base.dequantize()
    unpack_experts(base)
    expanded = get_peft_model(base, plain(copy.copy(model.active_peft_config)))  # others would change the base again
    set_peft_model_state_dict(expanded, adapter)
    return expanded


@torch.no_grad()
def _logits(model: nn.Module, batch: Batch, accelerator: Accelerator) -> torch.Tensor:
    model.eval()
    with accelerator.autocast():
        logits = loop.answer_logits(model, batch)
    return logits[batch.targets != IGNORED].float()
