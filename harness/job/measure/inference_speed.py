"""How fast a model answers: greedy decoding with a cache of keys and values, by hand, so that its parts can be timed.

The prompts are random tokens, the same for every cell, and no token ends an answer: what is timed depends on the
model's form alone. Each part is synchronised on both sides; nothing watches memory meanwhile, it would slow the part.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from transformers import DynamicCache, StoppingCriteria

from harness.job.evaluate import linear_weights
from harness.job.measure.meter import synchronize
from harness.job.models.loading import inner, prompted
from harness.record import Inference

SEED = 0  # of the prompts


def measure(
    model: nn.Module,
    forms: list[str],
    settings: dict[str, Any],
    accelerator: Accelerator,
    dtype: torch.dtype | None = None,
) -> dict[str, Inference]:
    """Time `model` in each of `forms`, in turn in every repeat so that drift meets all; a first round, of two tokens,
    is discarded.

    forms: names; ``base`` of a model with an adapter is that model with its adapter disabled.
    settings: batch_size, prompt_tokens, new_tokens, repeats (harness.config.Infer).
    dtype: of the linear layers' weights meanwhile, as a model is served that computes in it; null for their own.
    """
    size, length, new = settings["batch_size"], settings["prompt_tokens"], settings["new_tokens"]
    generator = torch.Generator().manual_seed(SEED)
    prompts = torch.randint(model.config.vocab_size, (size, length), generator=generator).to(accelerator.device)
    model.eval()
    measured = {form: Inference(size, length, new, [], []) for form in forms}
    undo = linear_weights.cast(model, dtype) if dtype is not None else lambda: None
    for repeat in range(1 + settings["repeats"]):
        for form, inference in measured.items():
            with _as(form, model), accelerator.autocast():
                _, prefill, rest = decode(model, prompts, new if repeat > 0 else 2)
            if repeat > 0:
                inference.prefill_seconds.append(prefill)
                inference.decode_seconds.append(rest)
    undo()
    return measured


@torch.inference_mode()
def decode(model: nn.Module, prompts: torch.Tensor, new_tokens: int) -> tuple[torch.Tensor, float, float]:
    """The likeliest tokens after `prompts`, seconds to the first of them, and seconds for the rest.

    prompts: (sequences, prompt tokens), none padded; the answer is (sequences, new_tokens).
    """
    likeliest = greedy(model, prompts)
    synchronize()
    start = time.perf_counter()
    tokens = [next(likeliest)]
    synchronize()
    first = time.perf_counter()
    tokens += islice(likeliest, new_tokens - 1)
    synchronize()
    end = time.perf_counter()
    return torch.cat(tokens, dim=1), first - start, end - first


def greedy(model: nn.Module, ids: torch.Tensor) -> Iterator[torch.Tensor]:
    """The likeliest tokens after `ids` (sequences, tokens), none padded, one a sequence (sequences, 1), without end."""
    name = cache_keyword(model)
    # Where the method puts tokens before a sequence, they are in a cache that the first pass makes.
    cache = {} if prompted(model) else {name: DynamicCache(config=model.config)}
    while True:
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1, **cache)
        ids = out.logits.argmax(-1)
        yield ids
        if not cache:
            model, cache = inner(model), {name: out[name]}


def written(model: nn.Module, ids: torch.Tensor, limit: int, ends: list[StoppingCriteria]) -> torch.Tensor:
    """`ids` (1, tokens) and the likeliest tokens after them, until one of `ends` is met, at most `limit`.

    For a model that puts tokens of its own before a sequence: peft 0.21's `generate` loses or doubles them under
    transformers 5.24.
    """
    for token in islice(greedy(model, ids), limit):
        ids = torch.cat([ids, token], dim=1)
        if any(bool(end(ids, None)) for end in ends):
            break
    return ids


def cache_keyword(model: nn.Module) -> str:
    """What the model calls its cache: transformers renames it within version 5, and drops the old name in 5.40."""
    return "cache" if "cache" in inspect.signature(inner(model).forward).parameters else "past_key_values"


def _as(form: str, model: nn.Module) -> contextlib.AbstractContextManager:
    if form == "base" and isinstance(model, PeftModel):
        return model.disable_adapter()
    return contextlib.nullcontext()
