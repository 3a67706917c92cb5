"""Texts and conversations as rows of a table have them.

A turn is ``{"role": …, "content": text}``; an assistant's may have ``"tool_calls"`` as OpenAI's files do, and what the
model thought before it spoke (``"reasoning_content"``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from harness.errors import UserError

Turn = dict[str, Any]
CHAT, SYSTEM, TOOLS = "messages", "system", "tools"  # fields of a conversation, and of its columns
ROLES = {  # by the names that files have for them
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function": "tool",
    "ipython": "tool",
}
CALLS = "tool_calls"
CARRIED = ("name", "tool_call_id", "reasoning_content")  # fields of turns that chat templates know
WITHOUT_LOSS = {"weight": 0, "train": False, "training": False}  # marks of turns that are not learned, in files
UNLEARNED = "unlearned"  # ours
READ = {"role", "from", "content", "value", CALLS, *CARRIED, *WITHOUT_LOSS}


def text_of(value: Any) -> str:
    """A value of a row as text; empty of a missing one. Raises UserError for bytes that are no text."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise UserError(f"Texts must be UTF-8, got the bytes {value[:20]!r}; save them as text.") from None
    return "" if is_missing(value) else value if isinstance(value, str) else str(value)


def is_missing(value: Any) -> bool:
    """Whether a row has no value: null, or NaN as pandas has it."""
    return value is None or value != value


def turns_of(conversation: Any, what: str) -> list[Turn]:
    """The turns of a conversation, with the roles that chat templates know.

    Raises UserError if they are malformed, of an unknown role, or if they have images or sounds.
    """
    try:
        turns = [(t.get("role") or t["from"], t["content"] if "content" in t else t["value"], t) for t in conversation]
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"The messages of {what} must be lists of turns with a role and a content.") from None
    return [_turn(role, content, turn, what) for role, content, turn in turns]


def _turn(role: str, content: Any, turn: Turn, what: str) -> Turn:
    if role not in ROLES:
        raise UserError(f"The turns of {what} must be of system, user, assistant or tool, got the role {role!r}.")
    whole: Turn = {"role": ROLES[role], "content": _words(content, what)}
    calls = turn.get(CALLS)
    if role == "function_call":
        calls, whole["content"] = _decoded(content, what), ""
    if calls:
        whole[CALLS] = [_call(call, what) for call in (calls if isinstance(calls, list) else [calls])]
    if any(turn.get(name) == value for name, value in WITHOUT_LOSS.items()):
        whole[UNLEARNED] = True
    return whole | {name: turn[name] for name in CARRIED if turn.get(name)}


def _words(content: Any, what: str) -> str:
    """The text of a turn, which OpenAI's files may have in parts."""
    if not isinstance(content, list):
        return text_of(content)
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        raise UserError(f"The turns of {what} must be text; images and sounds are not read.")
    return "".join(part["text"] for part in content)


def _decoded(text: Any, what: str) -> Any:
    """What a text holds as JSON. Raises UserError if it is none."""
    try:
        return json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        raise UserError(f"The tools and calls of {what} must be JSON, got {text[:80]!r}.") from None


def _call(call: Any, what: str) -> dict[str, Any]:
    """A call with its arguments as an object, as chat templates write it."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError(f"The calls of {what} must have a name and arguments, got {str(call)[:80]}.")
    arguments = function.get("arguments")
    if isinstance(arguments, str) and arguments.strip():
        arguments = _decoded(arguments, what)
    named = {"id": call["id"]} if call.get("id") else {}
    return named | {"type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}


def tools_of(value: Any, what: str) -> list[dict[str, Any]]:
    """The descriptions of functions in a list, or in a JSON list, in OpenAI's form. Raises UserError for others."""
    tools = _decoded(value, what) if value else []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError(f"The tools of {what} must be a list of functions, got {str(value)[:80]}.")
    # Parquet gives every tool the fields of all others, as null
    whole = [_without_null(tool) for tool in tools]
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in whole]


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_null(part) for name, part in value.items() if part is not None}
    return [_without_null(part) for part in value] if isinstance(value, list) else value


def with_beside(turns: list[Turn], row: dict[str, Any], columns: dict[str, str], what: str) -> dict[str, Any]:
    """The conversation of `turns` after the system prompt, and with the tools, that columns of their own have.

    Raises UserError for a system prompt in both places.
    """
    system = text_of(row.get(columns.get(SYSTEM, ""))).strip()
    if system:
        if any(turn["role"] == "system" for turn in turns):
            raise UserError(
                f"A record of {what} has system prompts in its column {columns[SYSTEM]!r} and in its turns."
            )
        turns = [{"role": "system", "content": system}, *turns]
    tools = tools_of(row.get(columns.get(TOOLS, "")), what)
    return {CHAT: turns} | ({TOOLS: tools} if tools else {})


def words_of(turn: Turn) -> str:
    """What a turn says: its text, or else its calls as JSON."""
    calls = [call["function"] for call in turn.get(CALLS, [])]
    return turn["content"] or (json.dumps(calls, ensure_ascii=False) if calls else "")


def answers(turn: Turn) -> bool:
    """Whether in this turn the assistant says or calls something."""
    return turn["role"] == "assistant" and bool(turn["content"] or turn.get(CALLS))


def unread(conversations: Iterable[Any]) -> list[str]:
    """The fields of turns that hold something and that `turns_of` does not read."""
    fields = {
        name: None
        for conversation in conversations
        for turn in (conversation if isinstance(conversation, list) else [])
        if isinstance(turn, dict)
        for name, value in turn.items()
        if name not in READ and value not in (None, "", [], {})
    }
    return list(fields)
