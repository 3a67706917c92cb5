"""Tokenises conversations by the model's chat template, with the loss on the assistant's turns alone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from harness.errors import UserError
from harness.job.data.turns import CALLS, UNLEARNED, Turn

Turns = list[Turn]
Tools = list[dict[str, Any]]
Span = tuple[int, int]
WORDS = "Words-of-turn"  # stands for those of a turn, to see what a template writes around them


def require(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError if `tokenizer` can't write conversations."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "Chat data requires a tokenizer with a chat template; use a chat model, or data of questions and answers."
        )
    if not tokenizer.is_fast:
        raise UserError("Chat data requires a fast tokenizer, which maps tokens to positions in the text.")


def encode(
    tokenizer: PreTrainedTokenizerBase, turns: Turns, tools: Tools | None = None
) -> tuple[list[int], list[Span]]:
    """The token ids of a conversation, and the spans of the assistant's tokens.

    A span begins after the generation prompt, and ends with the token that ends the turn. tools: that the assistant may
    call. Raises UserError if the template leaves out something of the conversation.
    """
    text, spoken = _spoken(tokenizer, turns, tools)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)  # the template writes its own
    ids, places = encoded["input_ids"], encoded["offset_mapping"]
    spans = []
    for begin, end in spoken:
        own = [at for at, (start, _) in enumerate(places) if begin <= start < end]
        spans += [(own[0], own[-1] + 1)] if own else []
    return ids, spans


def _spoken(tokenizer: PreTrainedTokenizerBase, turns: Turns, tools: Tools | None) -> tuple[str, list[Span]]:
    """The whole text, and the spans of the assistant's turns in it, in characters."""
    whole, added = _write(tokenizer, turns, tools), tokenizer.get_added_vocab()
    spans = []
    for at, turn in enumerate(turns):
        if turn["role"] == "assistant" and not turn.get(UNLEARNED):
            head = _write(tokenizer, turns[:at], tools, add_generation_prompt=True)
            if at and not whole.startswith(head):
                head = _shared(head, whole, _write(tokenizer, turns[:at], tools))
            if turn.get(CALLS):
                end = _called(whole, head, _write(tokenizer, turns[: at + 1], tools), turn)
            else:
                pattern = _write(tokenizer, [*turns[:at], turn | {"content": WORDS}], tools)
                end = _said(whole, head, pattern, turn, added)
            if not whole.startswith(head) or end is None:
                raise UserError(
                    "Chat data requires a chat template that keeps turns; the template of the model rewrites them."
                )
            spans.append((len(head), end))
    _check_written(whole, turns, tools)
    return whole, spans


def _shared(head: str, whole: str, before: str) -> str:
    """What `head`, the text up to the generation prompt of a turn, shares with `whole`; `head` if it is rewritten.

    Some generation prompts begin a thought, which earlier turns of a whole conversation don't have. before: the text up
    to the turn, without such a prompt.
    """
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(head, whole, strict=False))
    shared = "".join(one for one, _ in pairs)
    return shared if shared.startswith(before) else head


def _said(whole: str, head: str, pattern: str, turn: Turn, added: Iterable[str]) -> int | None:
    """Where the text of a turn ends in `whole`, whose beginning before it is `head`; None if it is rewritten.

    pattern: the text up to the turn with WORDS in place of its own, as the last one. added: tokens of the tokenizer.
    """
    words = turn["content"].strip()
    before, _, after = pattern.removeprefix(head).rpartition(WORDS)
    # As the last turn, where a template may write more than in earlier ones, such as a thought; else as an earlier one.
    begin = len(head + before) if whole.startswith(before + words, len(head)) else whole.find(words, len(head))
    if begin < 0:
        return None
    end = begin + len(words)
    ending = after.rstrip()
    if not whole.startswith(ending, end):  # that of an earlier turn may be another token
        ending = max((token for token in added if whole.startswith(token, end)), key=len, default="")
        return end + len(ending) if ending else None
    return end + len(ending)


def _called(whole: str, head: str, so_far: str, turn: Turn) -> int | None:
    """As `_said`, of a turn with calls, which a template writes in its own way. Raises UserError if it writes none.

    so_far: the text up to the end of the turn.
    """
    text = so_far[len(head) :].rstrip()
    if not all(call["function"]["name"] in text for call in turn[CALLS]):
        raise UserError(
            "The data have calls of tools, which the model's chat template does not write; use another model."
        )
    if not so_far.startswith(head) or not whole.startswith(text, len(head)):
        return None
    return len(head) + len(text)


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of the token that ends the assistant's turns; None without a chat template, or if no such token does."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": WORDS}]
        ending = rendered(tokenizer, turns).rpartition(WORDS)[2].lstrip()
    except TemplateError:
        return None
    ids = tokenizer(ending, add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in tokenizer.get_added_vocab().values() else None


def _check_written(whole: str, turns: Turns, tools: Tools | None) -> None:
    """Raise UserError if the template left out tools, or the text of a turn that the assistant reads."""
    for turn in turns:
        words = turn["content"].strip()
        # A tool's words may be written as JSON
        if turn["role"] != "assistant" and words not in whole and json.dumps(words)[1:-1] not in whole:
            raise UserError(f"The model's chat template leaves out turns of role {turn['role']}; use another model.")
    names = [tool["function"].get("name", "") for tool in tools or []]
    if not all(name in whole for name in names):
        raise UserError("The data have tools, which the model's chat template does not write; use another model.")


def _write(tokenizer: PreTrainedTokenizerBase, turns: Turns, tools: Tools | None, **keywords: Any) -> str:
    try:
        return rendered(tokenizer, turns, **(keywords if tools is None else keywords | {"tools": tools}))
    except TemplateError as error:
        raise UserError(f"The model's chat template refuses a conversation of the data: {error}") from error


def rendered(tokenizer: PreTrainedTokenizerBase, turns: Turns, **keywords: Any) -> str:
    """The text of `turns` by the tokenizer's chat template. keywords: of `apply_chat_template`."""
    text = tokenizer.apply_chat_template(turns, tokenize=False, **keywords)
    assert isinstance(text, str)  # of one conversation, without tokenize
    return text
