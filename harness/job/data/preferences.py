"""Preference data: two answers to one prompt, of which one was preferred, or single answers, each marked good or bad.

An item of two is one of the preferred answer (harness/job/data/columns.py) with the other under ``"rejected"``: text in
place of the answer, or of the last turn of a conversation. So everything that reads items reads the preferred answers.

A single answer is an item with ``"mark"``: good or bad. What shows or scores right answers leaves the bad ones out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from harness.errors import UserError
from harness.job.data.turns import CALLS, SYSTEM, TOOLS, Turn, is_missing, text_of, turns_of, with_beside

CHOSEN, REJECTED = "chosen", "rejected"  # columns of the answers; the second is also an item's field
PROMPT = "prompt"  # the column of what a conversation begins with, where answers do not repeat it
MARK, GOOD, BAD = "mark", "good", "bad"  # an item's field, and what it holds
MARKS = {True: GOOD, False: BAD, "true": GOOD, "false": BAD}  # by what a file's column holds


def paired(row: dict[str, Any], columns: dict[str, str], what: str) -> dict[str, Any] | None:
    """The item of a row with the `columns` chosen, rejected and the prompt's fields; None if the answers do not differ.

    Answers are texts, or conversations: whole ones, or what follows the column `prompt`. what: the data's name for
    messages. Raises UserError if only one is a conversation, or if two differ before their last turn.
    """
    answers = (row.get(columns[name]) for name in (CHOSEN, REJECTED))
    chosen, rejected = (text_of(answer) if isinstance(answer, bytes) else answer for answer in answers)
    if not chosen or not rejected or is_missing(chosen) or is_missing(rejected):
        return None
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise UserError(f"Both answers of {what} must be texts, or both conversations.")
    apart = (CHOSEN, REJECTED, SYSTEM, TOOLS)
    fields = {field: row.get(column) for field, column in columns.items() if field not in apart}
    if isinstance(chosen, str):
        item = {field: text_of(value) for field, value in fields.items()}
        item |= {"answer": chosen, REJECTED: rejected}
        return item if _differ(chosen, rejected) else None
    turns, others = (_whole(fields.get(PROMPT), turns_of(answer, what)) for answer in (chosen, rejected))
    if turns[:-1] != others[:-1] or not turns[-1]["role"] == others[-1]["role"] == "assistant":
        raise UserError(f"Chosen and rejected conversations of {what} must differ in their last turn alone, an answer.")
    if any(CALLS in answer for answer in (turns[-1], others[-1])):
        raise UserError(f"The last turns of {what} must be text; preferred calls of tools are not compared.")
    talk = with_beside(turns, row, columns, what) | {REJECTED: others[-1]["content"]}
    return talk if _differ(turns[-1]["content"], talk[REJECTED]) else None


def mark_of(value: Any, column: str, what: str) -> str:
    """Whether an answer is good or bad, by the `value` in its `column`. Raises UserError for neither."""
    value = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(value, bool | str) or value not in MARKS:
        raise UserError(f"Each answer of {what} must be marked true or false in its column {column!r}, got {value!r}.")
    return MARKS[value]


def check_marks(marks: Iterable[str], what: str) -> None:
    """Raise UserError if all `marks` are the same."""
    if len(kinds := {*marks}) == 1:
        raise UserError(
            f"All answers of {what} are marked as {kinds.pop()}; train.objective=kto requires good and bad ones."
        )


def _whole(prompt: Any, turns: list[Turn]) -> list[Turn]:
    """`turns` after `prompt`, a text or turns, unless they begin with the user's words themselves."""
    if turns[0]["role"] != "assistant" or not prompt:
        return turns
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else turns_of(prompt, PROMPT)
    return before + turns


def _differ(chosen: str, rejected: str) -> bool:
    return bool(chosen.strip() and rejected.strip()) and chosen.strip() != rejected.strip()
