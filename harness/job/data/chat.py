"""Tokenises conversations by the model's chat template, with the loss on the assistant's turns alone."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from harness.errors import UserError

Turns = list[dict[str, str]]
Span = tuple[int, int]


def require(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError if `tokenizer` can't write conversations."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "Chat data requires a tokenizer with a chat template; use a chat model, or data of questions and answers."
        )
    if not tokenizer.is_fast:
        raise UserError("Chat data requires a fast tokenizer, which maps tokens to positions in the text.")


def encode(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> tuple[list[int], list[Span]]:
    """The token ids of a conversation, and the spans of the assistant's tokens.

    A span begins after the generation prompt, and ends with the token that ends the turn.
    """
    text, spoken = _spoken(tokenizer, turns)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)  # the template writes its own
    ids, places = encoded["input_ids"], encoded["offset_mapping"]
    spans = []
    for begin, end in spoken:
        own = [at for at, (start, _) in enumerate(places) if begin <= start < end]
        spans += [(own[0], own[-1] + 1)] if own else []
    return ids, spans


def _spoken(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> tuple[str, list[Span]]:
    """The whole text, and the spans of the assistant's turns in it, in characters."""
    whole = _write(tokenizer, turns)
    spans = []
    for at, turn in enumerate(turns):
        if turn["role"] == "assistant":
            head = _write(tokenizer, turns[:at], add_generation_prompt=True)
            words, so_far = turn["content"].strip(), _write(tokenizer, turns[: at + 1])
            # A template may write the last turn differently from earlier ones, but ends all turns alike.
            ending = so_far[so_far.rfind(words) + len(words) :].rstrip()
            begin = whole.find(words, len(head))
            if not whole.startswith(head) or begin < 0 or not whole.startswith(ending, begin + len(words)):
                raise UserError(
                    "Chat data requires a chat template that keeps turns; the template of the model rewrites them."
                )
            spans.append((len(head), begin + len(words) + len(ending)))
    return whole, spans


def _write(tokenizer: PreTrainedTokenizerBase, turns: Turns, **keywords: Any) -> str:
    try:
        return rendered(tokenizer, turns, **keywords)
    except TemplateError as error:
        raise UserError(f"The model's chat template refuses a conversation of the data: {error}") from error


def rendered(tokenizer: PreTrainedTokenizerBase, turns: Turns, **keywords: Any) -> str:
    """The text of `turns` by the tokenizer's chat template. keywords: of `apply_chat_template`."""
    text = tokenizer.apply_chat_template(turns, tokenize=False, **keywords)
    assert isinstance(text, str)  # of one conversation, without tokenize
    return text
