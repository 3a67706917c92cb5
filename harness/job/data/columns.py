"""Turns rows of a table into items: maps columns, limits the items, replaces a share of answers by wrong ones.

An item is ``{"question": str, "answer": str}``, with all fields that its prompt uses and ``"options": [str, …]`` where
it has some, or a conversation: ``{"messages": [{"role": "user", "content": str}, {"role": "assistant", …}, …]}``, with
``"tools"`` where it has some: harness/job/data/turns.py. Of preference data it has ``"rejected"`` or ``"mark"``
besides: harness/job/data/preferences.py.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from harness.errors import UserError
from harness.job.data import options
from harness.job.data.documents import DOCUMENTS
from harness.job.data.formats import CHATS, PAIRS
from harness.job.data.places import Place, by_record, read_each
from harness.job.data.preferences import CHOSEN, MARK, REJECTED, check_marks, mark_of, paired
from harness.job.data.turns import CALLS, CHAT, Turn, answers, is_missing, text_of, turns_of, with_beside, words_of
from harness.settings import prompt_fields

Item = dict[str, Any]
OPTIONS = "options"
UNASKED = ("answer", OPTIONS, REJECTED, MARK)  # fields of an item that are no part of its question
BEGINNING = 80  # letters of an item that name it in a message
MOST_EMPTY = 1 / 3  # of the records of a file, from which on data.drop_empty=true is asked for


@dataclass(frozen=True)
class MappedRows:
    """The items of a table, each with the text that decides whether it is held out, and how many rows gave none.

    place: of the row of an item by the item's index. without_answer: rows without an answer; of pairs, without two
    different ones. without_question: rows that ask nothing.
    """

    items: list[tuple[str, Item]]
    place: Place
    without_answer: int = 0
    without_question: int = 0


def mapped(
    rows: Iterable[dict[str, Any]], there: Collection[str], columns: dict[str, str], key: str | None, what: str
) -> list[tuple[str, Item]]:
    """The items of `rows` that have an answer, as `mapped_rows` has them, whatever they ask."""
    mapped = mapped_rows(rows, there, columns, key, what)
    if mapped.without_answer:
        lack = _lack(columns).removeprefix("an ").removeprefix("two ")
        count = len(mapped.items) + mapped.without_answer
        print(
            f"{mapped.without_answer} of {count} records of {what} are left out: they have no {lack}.", file=sys.stderr
        )
    return mapped.items


def mapped_rows(
    rows: Iterable[dict[str, Any]],
    there: Collection[str],
    columns: dict[str, str],
    key: str | None,
    what: str,
    asking: bool = False,
    place: Place = by_record,
) -> MappedRows:
    """The items of `rows` that have an answer, each with the text that decides whether it is held out.

    columns: the column of each field; `there` are the columns that exist. key: the column to hold out by (null: all
    fields except answers and options; of a conversation the turns before its last answer). what: the data's name
    for messages. asking: whether items that ask nothing are left out too. place: of a row by its position, for
    messages. Raises UserError if a column is missing, if no item has an answer (two, where one is rejected), if an
    answer is no option or has no mark where each has one, or if all marks are the same.
    """
    empty = UserError(f"{what} has no records.")
    if not there:
        raise empty
    _require_columns([*columns.values(), *([key] if key else [])], there, what)
    item_of = _reader(columns, what)
    items, positions, count, silent = [], [], 0, 0
    for row, item in read_each(lambda row: (row, item_of(row)), rows, place):
        count += 1
        if item is None:
            continue
        if asking and not _asks(item):
            silent += 1
            continue
        items.append((str(row[key]) if key else _key(item), item))
        positions.append(count - 1)
    if not count:
        raise empty
    if not items:
        lack = "a question" if silent else _lack(columns)
        raise UserError(f"None of the {count} records of {what} has {lack}.")

    def place_of_item(index: int) -> str:
        return place(positions[index])

    if OPTIONS in columns:
        answers_of = [(item["answer"], item[OPTIONS]) for _, item in items]
        meant = options.meant(answers_of, what, place_of_item)
        items = [(text, item | {"answer": answer}) for (text, item), answer in zip(items, meant, strict=True)]
    if MARK in columns:
        check_marks((item[MARK] for _, item in items), what)
    return MappedRows(items, place_of_item, count - len(items) - silent, silent)


def _require_columns(columns: Iterable[str], there: Collection[str], what: str) -> None:
    """Raise UserError for the first of `columns` that is not `there`."""
    for column in columns:
        if column not in there:
            raise UserError(f"{what} has no column {column!r}; it has: {', '.join(there)}{_as_others_name(there)}.")


def check_empty(mapped: MappedRows, what: str) -> None:
    """Raise UserError if so many records are empty that a wrong column is likelier than gaps."""
    count = len(mapped.items) + mapped.without_answer + mapped.without_question
    empty = {"an answer": mapped.without_answer, "a question": mapped.without_question}
    if sum(empty.values()) >= MOST_EMPTY * count:
        lacks = " and ".join(f"{n:,} without {thing}" for thing, n in empty.items() if n)
        raise UserError(
            f"{what} has {lacks}, of {count:,} records; check the columns, or leave these records out by "
            "data.drop_empty=true."
        )


def _lack(columns: dict[str, str]) -> str:
    """What a record without an answer lacks."""
    if REJECTED in columns:
        return "two different answers"
    return "an assistant turn" if CHAT in columns else f"an answer in the column {columns.get('answer')!r}"


def _asks(item: Item) -> bool:
    """Whether an item has words before its answer; one whose prompt has no fields asks by the prompt alone."""
    if CHAT in item:
        return any(turn["role"] in ("user", "tool") and turn["content"].strip() for turn in item[CHAT])
    fields = [value for field, value in item.items() if field not in UNASKED]
    return not fields or any(value.strip() for value in fields)


def _as_others_name(there: Collection[str]) -> str:
    """The settings for columns that files of other trainers have, as the end of a sentence."""
    for name in CHATS:
        if name in there:
            return f"; write data.columns.messages={name}"
    for question, answer in PAIRS:
        if question in there and answer in there:
            return f"; write data.columns.question={question} data.columns.answer={answer}"
    return ""


def _reader(columns: dict[str, str], what: str) -> Callable[[dict[str, Any]], Item | None]:
    """The function that makes a row's item, or None of a row without an answer. Raises as `mapped`."""

    def conversation(row: dict[str, Any]) -> Item | None:
        value = row.get(columns[CHAT])
        turns = turns_of([] if is_missing(value) else value or [], what)
        talk = with_beside(turns, row, columns, what)
        return talk if any(map(answers, turns)) else None

    def answer(row: dict[str, Any]) -> Item | None:
        item = {field: text_of(row.get(column)) for field, column in columns.items() if field not in (OPTIONS, MARK)}
        if not item["answer"].strip():
            return None
        return item | ({OPTIONS: options.listed(row.get(columns[OPTIONS]), what)} if OPTIONS in columns else {})

    if (CHOSEN in columns) != (REJECTED in columns):
        present, other = (CHOSEN, REJECTED) if CHOSEN in columns else (REJECTED, CHOSEN)
        raise UserError(f"data.columns.{present} requires data.columns.{other}, the other answer's column.")
    if CHOSEN in columns:
        return lambda row: paired(row, columns, what)
    if CHAT in columns and OPTIONS in columns:
        raise UserError("data.columns.options can't be combined with data.columns.messages.")
    if CHAT not in columns and "answer" not in columns:
        raise UserError(f"data.columns.answer must be a column of {what}, got null.")
    single = conversation if CHAT in columns else answer
    return _marked(single, columns[MARK], what) if MARK in columns else single


def _marked(
    single: Callable[[dict[str, Any]], Item | None], column: str, what: str
) -> Callable[[dict[str, Any]], Item | None]:
    """The function that makes a row's item as `single` does, with the mark in `column`."""

    def marked(row: dict[str, Any]) -> Item | None:
        item = single(row)
        return None if item is None else item | {MARK: mark_of(row.get(column), column, what)}

    return marked


def _key(item: Item) -> str:
    """What an item asks, so that all answers to one question are held out together."""
    if CHAT not in item:
        return json.dumps({field: value for field, value in item.items() if field not in UNASKED})
    return json.dumps({CHAT: item[CHAT][: last_answer(item[CHAT])]})


def last_answer(turns: list[Turn]) -> int:
    """The index of the assistant's last turn with words or calls."""
    return max(at for at, turn in enumerate(turns) if answers(turn))


def check_prompt(prompt: str, items: list[Item]) -> None:
    """Raise UserError if `prompt` has a field that items lack, or more than its name in braces."""
    if not items or CHAT in items[0]:
        return
    if missing := sorted(set(prompt_fields(prompt)) - items[0].keys()):
        raise UserError(
            f"The field {{{missing[0]}}} of data.prompt must be mapped to a column; mapped are: {', '.join(items[0])}."
        )


def question_field(template: str) -> str | None:
    """The field of a prompt template that takes a question which is no record: `question`, or else the first one.

    Raises UserError if a field is more than a name.
    """
    fields = prompt_fields(template)
    return "question" if "question" in fields else next(iter(fields), None)


def asked(item: Item, prompt: str, prompt_if_empty: str | None = None) -> str:
    """The text before the answer; options are lines with letters. A field that is empty takes `prompt_if_empty`."""
    if prompt_if_empty is not None and not all(item.values()):
        prompt = prompt_if_empty
    return prompt.format(**(item | {OPTIONS: options.lettered(item.get(OPTIONS, []))}))


# Fewer items, and wrong answers


def limited(items: list[Item], limit: int | None) -> list[Item]:
    """`limit` of the items (null: all), the same for every cell. A smaller limit keeps a subset of a larger one's."""
    if limit is None:
        return items
    if limit > len(items):
        raise UserError(f"data.limit must be at most {len(items)}, the items to train on, got {limit}.")
    indices = sorted(random.Random("limit").sample(range(len(items)), len(items))[:limit])
    return [items[i] for i in indices]


def noisy(items: list[Item], share: float) -> list[Item]:
    """Replace a `share` of the answers by another item's answer with another last word.

    The same answers are replaced for every cell, and a larger share includes a smaller one's. Raises UserError if all
    answers have the same last word.
    """
    order = random.Random("noise").sample(range(len(items)), len(items))
    out = list(items)
    for place, index in enumerate(order[: round(share * len(items))]):
        following = (items[other] for other in order[place + 1 :] + order[:place])
        wrong = next((answer_of(other) for other in following if _end(other) != _end(items[index])), None)
        if wrong is None:
            raise UserError("data.noise requires answers with different last words; otherwise none is wrong.")
        out[index] = answering(items[index], wrong)
    return out


def answer_of(item: Item) -> str:
    """The answer of an item; of a conversation the last one."""
    if CHAT not in item:
        return item["answer"]
    return next(words_of(turn) for turn in reversed(item[CHAT]) if turn["role"] == "assistant")


def question_of(item: Item) -> str:
    """All text of an item except the answer."""
    if CHAT not in item:
        return text_before(item)
    return "\n".join(turn["content"] for turn in item[CHAT] if turn["role"] != "assistant")


def by_words(item: Item) -> str:
    """The place of an item of which no row is known: what it begins with."""
    words = item[DOCUMENTS][0] if DOCUMENTS in item else question_of(item)
    return f"the item that begins {words[:BEGINNING]!r}"


def text_before(item: Item) -> str:
    """All text of an item before its answer; of a conversation before the last one."""
    if CHAT not in item:
        return "\n".join(value for field, value in item.items() if field not in UNASKED)
    return "\n".join(turn["content"] for turn in item[CHAT][: last_answer(item[CHAT])])


def _end(item: Item) -> list[str]:
    """The last word of an answer, where results stand."""
    return answer_of(item).split()[-1:]


def answering(item: Item, answer: str) -> Item:
    """`item` with another answer; of a conversation with another last one."""
    if CHAT not in item:
        return item | {"answer": answer}
    last = max(i for i, turn in enumerate(item[CHAT]) if turn["role"] == "assistant")
    turns = [*item[CHAT]]
    turns[last] = {name: value for name, value in turns[last].items() if name != CALLS} | {"content": answer}
    return item | {CHAT: turns}
