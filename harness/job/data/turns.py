"""Texts and conversations as rows of a table have them."""

from __future__ import annotations

from typing import Any

from harness.errors import UserError

SHAREGPT = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}  # roles by other names


def text_of(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)


def turns_of(conversation: Any, what: str) -> list[dict[str, str]]:
    """The turns of a conversation, with the roles that chat templates know. Raises UserError if they are malformed."""
    try:
        turns = [(t.get("role") or t["from"], t["content"] if "content" in t else t["value"]) for t in conversation]
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"The messages of {what} must be lists of turns with a role and a content.") from None
    return [{"role": SHAREGPT.get(role, role), "content": text_of(content)} for role, content in turns]
