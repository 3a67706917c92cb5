"""Greedy decoding, token by token, with a cache of keys and values."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol

import torch
from torch import nn
from transformers import DynamicCache, GenerationConfig, StoppingCriteria

from harness.job.models.structure import inner, prompted

# Generation settings that keep the likeliest token: of a task, and in a model's config.
PLAIN = [("do_sample", False), ("temperature", 0.0)]
HARMLESS = {"do_sample", "temperature", "top_k", "top_p", "max_length", "pad_token_id", "bos_token_id", "eos_token_id"}
HARMLESS |= {"use_cache", "output_attentions", "output_hidden_states", "transformers_version", "_from_model_config"}


@contextmanager
def plain_generation(model: nn.Module, end: int | None) -> Iterator[None]:
    """A context in which `model` writes the likeliest tokens up to its own ends of text, and to the token `end`.

    What else its generation_config asks for is left out, as vLLM does: penalties, and a number of tokens, which
    transformers prefers to that of a task.
    """
    net = inner(model)
    own = net.generation_config
    net.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, pad_token_id=own.pad_token_id, eos_token_id=_ends(own, end)
    )
    try:
        yield
    finally:
        net.generation_config = own


def end_at(model: nn.Module, end: int | None) -> None:
    """Have answers of `model`, also as it is saved, end at the token `end` too, if there is one."""
    if end is not None:
        config = inner(model).generation_config
        config.eos_token_id = _ends(config, end)


def _ends(config: GenerationConfig, end: int | None) -> list[int] | None:
    """The tokens that end an answer by `config`, and `end`; None if there are none."""
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return list(dict.fromkeys(token for token in [*ends, end] if token is not None)) or None


def greedy(model: nn.Module, ids: torch.Tensor) -> Iterator[torch.Tensor]:
    """The likeliest tokens after unpadded `ids` (sequences, tokens), one at a time (sequences, 1), without end."""
    name = cache_keyword(model)
    # Virtual tokens of a method are in the cache that the first pass returns.
    cache: dict[str, Any] = {} if prompted(model) else {name: DynamicCache(config=inner(model).config)}
    while True:
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1, **cache)
        ids = out.logits.argmax(-1)
        yield ids
        if not cache:
            model, cache = inner(model), {name: out[name]}


def written(model: nn.Module, ids: torch.Tensor, limit: int, ends: Sequence[StoppingCriteria]) -> torch.Tensor:
    """`ids` (1, tokens) and the likeliest tokens after them, until one of `ends` applies, at most `limit`.

    For methods with virtual tokens: peft 0.21's `generate` loses or doubles them under transformers 5.24.
    """
    for token in islice(greedy(model, ids), limit):
        ids = torch.cat([ids, token], dim=1)
        if any(bool(end(ids, None)) for end in ends):
            break
    return ids


def cache_keyword(model: nn.Module) -> str:
    """The model's keyword for its cache: transformers renames it within version 5, and drops the old name in 5.40."""
    return "cache" if "cache" in inspect.signature(inner(model).forward).parameters else "past_key_values"


class WritingModel(Protocol):
    """What of lm-eval's HFLM says how it writes answers."""

    model: Any
    think_end_token: Any


def not_plain(lm: WritingModel, kwargs: dict[str, Any]) -> str | None:
    """Why the generation settings `kwargs` of `lm`'s model do not mean the likeliest token; None if they do."""
    unusual = {name for name, value in kwargs.items() if (name, value) not in PLAIN}
    unusual |= lm.model.generation_config.to_diff_dict().keys() - HARMLESS
    if unusual:
        return f"generation is set to {', '.join(sorted(unusual))}"
    return None if lm.think_end_token is None else "thinking is cut from the answers"
