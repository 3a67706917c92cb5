"""Rows of any table as items: which column holds what, how many are kept, how many answers are made wrong.

An item is ``{"question": str, "answer": str}``, with as many fields as its prompt asks for, or a conversation:
``{"messages": [{"role": "user", "content": str}, {"role": "assistant", …}, …]}``.
"""

from __future__ import annotations

import csv
import json
import random
import string
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from harness.errors import UserError

Item = dict[str, Any]
CHAT = "messages"
SHAREGPT = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}  # roles by other names
READERS = {
    ".jsonl": lambda file: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()],
    ".json": lambda file: json.loads(file.read_text(encoding="utf-8")),
    ".csv": lambda file: _table(file, ","),
    ".tsv": lambda file: _table(file, "\t"),
    ".parquet": lambda file: pq.read_table(file).to_pylist(),
}


def _table(file: Path, delimiter: str) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter=delimiter))


def read(path: str | None) -> list[dict[str, Any]]:
    """The rows of a file, by how its name ends; UserError if it is none, or not what its name says."""
    if path is None:
        raise UserError(f"data=local needs data.path=FILE, one of records, that ends in one of: {', '.join(READERS)}.")
    file = Path(path)
    if not file.is_file():
        raise UserError(f"data.path={path} is no file here; name one below data_root, or the folder you work in.")
    if file.suffix not in READERS:
        raise UserError(f"data.path={path} ends in none of: {', '.join(READERS)}.")
    try:
        rows = READERS[file.suffix](file)
    except (ValueError, OSError, csv.Error) as error:  # pyarrow's and json's are ValueErrors
        raise UserError(f"data.path={path} can't be read as {file.suffix[1:]}: {str(error).splitlines()[0]}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"data.path={path} holds no records: each is to be an object of columns.")
    return rows


def mapped(
    rows: Iterable[dict[str, Any]], there: Collection[str], columns: dict[str, str], key: str | None, what: str
) -> list[tuple[str, Item]]:
    """The items of `rows` that have an answer, each with the text by which it is held out.

    columns: of each field the column, among those that are `there`; key: the column to hold out by (null: all that is
    not the answer). Raises UserError, naming `what`, where a column is not there or nothing is left to learn.
    """
    empty = UserError(f"{what} holds no records; there is nothing to train on.")
    if not there:
        raise empty
    for column in [*columns.values(), *([key] if key else [])]:
        if column not in there:
            raise UserError(f"{what} has no column {column!r}; it has: {', '.join(there)}.")
    chat = CHAT in columns
    found, count = [], 0
    for row in rows:
        count += 1
        if chat:
            turns = _turns(row.get(columns[CHAT]), what)
            item, answered = {CHAT: turns}, any(turn["role"] == "assistant" and turn["content"] for turn in turns)
        else:
            item = {field: _text(row.get(column)) for field, column in columns.items()}
            answered = bool(item["answer"].strip())
        if answered:
            asked = row[key] if key else json.dumps({k: v for k, v in item.items() if k != "answer"})
            found.append((str(asked), item))
    lack = "assistant turn" if chat else f"answer in the column {columns['answer']!r}"
    if not count:
        raise empty
    if not found:
        raise UserError(f"None of the {count} records of {what} has an {lack}; there is nothing to learn from them.")
    if len(found) < count:
        print(f"{count - len(found)} of {count} records of {what} have no {lack}; they are left out.", file=sys.stderr)
    return found


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)


def _turns(conversation: Any, what: str) -> list[dict[str, str]]:
    """A conversation's turns, with the names that chat templates know; UserError if it is none."""
    try:
        turns = [(t.get("role") or t["from"], t["content"] if "content" in t else t["value"]) for t in conversation]
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{what} has a record whose messages are no list of turns with a role and a content.") from None
    return [{"role": SHAREGPT.get(role, role), "content": _text(content)} for role, content in turns]


def check_prompt(prompt: str, items: list[Item]) -> None:
    """Raise UserError if `prompt` asks for a field that items do not have."""
    fields = {name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None}
    if items and CHAT not in items[0] and (missing := sorted(fields - items[0].keys())):
        raise UserError(
            f"data.prompt asks for {{{missing[0]}}}, which no column is mapped to; there is: {', '.join(items[0])}."
        )


# How much there is to learn from, and how good it is


def limited(items: list[Item], limit: int | None) -> list[Item]:
    """`limit` of the items (null: all), the same for every cell; a smaller limit takes some of a larger one's."""
    if limit is None:
        return items
    if limit > len(items):
        raise UserError(f"data.limit={limit} is more than there is: {len(items)} items to train on.")
    kept = sorted(random.Random("limit").sample(range(len(items)), len(items))[:limit])
    return [items[i] for i in kept]


def noisy(items: list[Item], share: float) -> list[Item]:
    """The items with a `share` of the answers replaced by another item's that ends otherwise.

    Which they are, and by what they are replaced, is the same for every cell; a larger share has a smaller one's too.
    Raises UserError where all answers end alike.
    """
    order = random.Random("noise").sample(range(len(items)), len(items))
    out = list(items)
    for place, index in enumerate(order[: round(share * len(items))]):
        following = (items[other] for other in order[place + 1 :] + order[:place])
        wrong = next((answer_of(other) for other in following if _end(other) != _end(items[index])), None)
        if wrong is None:
            raise UserError("data.noise can't be: all answers of the data end alike, so none is wrong for another.")
        out[index] = _answering(items[index], wrong)
    return out


def answer_of(item: Item) -> str:
    """What is to be learned of an item: of a conversation its last answer."""
    if CHAT not in item:
        return item["answer"]
    return next(turn["content"] for turn in reversed(item[CHAT]) if turn["role"] == "assistant")


def question_of(item: Item) -> str:
    """All of an item but the answer."""
    if CHAT not in item:
        return "\n".join(value for field, value in item.items() if field != "answer")
    return "\n".join(turn["content"] for turn in item[CHAT] if turn["role"] != "assistant")


def _end(item: Item) -> list[str]:
    """An answer's last word, which is where a result stands."""
    return answer_of(item).split()[-1:]


def _answering(item: Item, answer: str) -> Item:
    if CHAT not in item:
        return item | {"answer": answer}
    last = max(i for i, turn in enumerate(item[CHAT]) if turn["role"] == "assistant")
    return {CHAT: [turn | {"content": answer} if i == last else turn for i, turn in enumerate(item[CHAT])]}
