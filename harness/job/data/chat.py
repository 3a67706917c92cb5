"""Conversations as the model's own chat template writes them, with the loss on the assistant's words alone."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from harness.errors import UserError

Turns = list[dict[str, str]]
Span = tuple[int, int]


def require(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError unless `tokenizer` can write conversations."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "The model's tokenizer has no chat template; take a model that was tuned to chat, or data of questions "
            "and answers."
        )
    if not tokenizer.is_fast:
        raise UserError("The model's tokenizer can't say where its tokens stand in a text, as chat data needs it to.")


def encode(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> tuple[list[int], list[Span]]:
    """The token ids of a conversation, and the spans of them that are the assistant's.

    A span begins after the words that generation would be given, and ends with the token that ends the turn.
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
    """The whole text, and where in it the assistant's turns are, in characters."""
    whole = _write(tokenizer, turns)
    spans = []
    for at, turn in enumerate(turns):
        if turn["role"] == "assistant":
            head = _write(tokenizer, turns[:at], add_generation_prompt=True)
            words, so_far = turn["content"].strip(), _write(tokenizer, turns[: at + 1])
            # A template may write the last turn otherwise than earlier ones; how a turn ends it writes alike.
            ending = so_far[so_far.rfind(words) + len(words) :].rstrip()
            begin = whole.find(words, len(head))
            if not whole.startswith(head) or begin < 0 or not whole.startswith(ending, begin + len(words)):
                raise UserError("The model's chat template rewrites turns, so the assistant's words can't be told.")
            spans.append((len(head), begin + len(words) + len(ending)))
    return whole, spans


def _write(tokenizer: PreTrainedTokenizerBase, turns: Turns, **keywords: Any) -> str:
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, **keywords)
    except TemplateError as error:
        raise UserError(f"The model's chat template refuses a conversation of the data: {error}") from error
