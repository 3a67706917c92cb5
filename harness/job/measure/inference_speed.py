"""Times greedy decoding: the prompt and the tokens after the first one apart.

The prompts are random tokens, the same for every cell, and no token ends an answer, so the time depends on the model's
form alone. Each part is synchronised on both sides. Memory is not counted meanwhile, as that would slow the part.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn

from harness.job.measure.timing import synchronize
from harness.record import Inference
from harness.settings import TimedInfer

SEED = 0  # of the prompts

# The likeliest tokens after prompts (sequences, tokens), one a sequence (sequences, 1) at a time, without end.
Decoder = Callable[[nn.Module, torch.Tensor], Iterator[torch.Tensor]]


def measure(
    model: nn.Module, forms: list[str], settings: TimedInfer, accelerator: Accelerator, decoder: Decoder
) -> dict[str, Inference]:
    """Time `model` in each of `forms`. The forms take turns in every repeat, so that drift meets all alike.

    A first round, of two tokens, is discarded.

    forms: names; ``base`` of a model with an adapter is that model with its adapter disabled.
    """
    size, length, new = settings.batch_size, settings.prompt_tokens, settings.new_tokens
    generator = torch.Generator().manual_seed(SEED)
    model_config: Any = model.config  # torch types a module's unknown attributes as tensors or modules
    vocabulary = model_config.get_text_config().vocab_size
    prompts = torch.randint(vocabulary, (size, length), generator=generator).to(accelerator.device)
    model.eval()
    measured = {form: Inference(size, length, new, [], []) for form in forms}
    for repeat in range(1 + settings.repeats):
        for form, inference in measured.items():
            with _as(form, model), accelerator.autocast():
                _, prefill, rest = decode(model, prompts, new if repeat > 0 else 2, decoder)
            if repeat > 0:
                inference.prefill_seconds.append(prefill)
                inference.decode_seconds.append(rest)
    return measured


@torch.inference_mode()
def decode(
    model: nn.Module, prompts: torch.Tensor, new_tokens: int, decoder: Decoder
) -> tuple[torch.Tensor, float, float]:
    """The tokens that `decoder` puts after `prompts`, seconds to the first of them, and seconds for the rest.

    prompts: (sequences, prompt tokens), without padding; the tokens are (sequences, new_tokens).
    """
    likeliest = decoder(model, prompts)
    synchronize()
    start = time.perf_counter()
    tokens = [next(likeliest)]
    synchronize()
    first = time.perf_counter()
    tokens += islice(likeliest, new_tokens - 1)
    synchronize()
    end = time.perf_counter()
    return torch.cat(tokens, dim=1), first - start, end - first


def _as(form: str, model: nn.Module) -> contextlib.AbstractContextManager:
    if form == "base" and isinstance(model, PeftModel):
        return model.disable_adapter()
    return contextlib.nullcontext()
