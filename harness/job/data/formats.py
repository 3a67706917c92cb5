"""Reads files of other trainers as they are, by the columns that they have.

What is recognised becomes rows in the harness's own columns, so that harness/job/data/columns.py maps all files alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.errors import UserError
from harness.job.data.places import Place, by_record, read_each
from harness.job.data.preferences import CHOSEN, MARK, PROMPT, REJECTED
from harness.job.data.turns import CHAT, SYSTEM, TOOLS, Turn, text_of, turns_of, unread

Row = dict[str, Any]
CHATS = ("messages", "conversations", "conversation")  # columns of chats, as OpenAI's files and ShareGPT's have them
PAIRS = (  # columns of a question and its answer, as Alpaca's files and TRL's have them
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("input", "output"),
)
OWN = (  # columns that conf/data has for files, which a file of another trainer has not
    {"question": "question", "answer": "answer"},
    {PROMPT: PROMPT, CHOSEN: CHOSEN, REJECTED: REJECTED},
    {"question": "prompt", "answer": "completion", MARK: "label"},
)
KTO_TAG = "kto_tag"  # LLaMA-Factory's column of marks
OPENAI_PAIR = ("input", "preferred_output", "non_preferred_output")


@dataclass(frozen=True)
class FileFormat:
    """A way to read a file.

    name: of the format, for people. columns: of the fields, in the rows that `row` makes. source_columns: those of the
    file that are read. row: a row in `columns`, of the file's own (null: they are the file's). extras: what the file
    has beside questions, answers and turns, where `columns` do not say so.
    """

    name: str
    columns: dict[str, str]
    source_columns: tuple[str, ...]
    row: Callable[[Row], Row] | None = None
    extras: tuple[str, ...] = ()

    def rows(self, rows: Sequence[Row], place: Place = by_record) -> list[Row]:
        """Rows with `columns`, beside the file's own columns. place: of a row in the file, which a refusal names."""
        if self.row is None:
            return [*rows]
        return [row | own for row, own in zip(rows, read_each(self.row, rows, place), strict=True)]


def recognised(rows: Sequence[Row], columns: Mapping[str, str | None], what: str) -> FileFormat:
    """How to read `rows`: by the `columns` that the settings name, or if these are not there, by the file's own.

    what: the file's name for messages. Raises UserError for marked answers, or pairs of answers, where others are asked
    for.
    """
    there = {name: None for row in rows for name in row}
    named = {name: column for name, column in columns.items() if column is not None}
    if MARK in named:
        return _marked(named, there, rows, what)
    _refuse_marked(named, there, rows, what)
    if named not in OWN or (all(column in there for column in named.values()) and not _turned(named, rows)):
        return _named(named, there, rows)
    if CHOSEN not in named:
        _refuse_pairs(there, what)
    if len(there) == 1 and all(isinstance(row.get(column), str | None) for row in rows for column in there):
        raise UserError(f"{what} has texts alone; data=text pretrains on them, data=local requires answers.")
    other = _pair(there, rows, what) if CHOSEN in named else _single(there, rows, what)
    return other or _named(named, there, rows)


def _turned(named: Mapping[str, str], rows: Sequence[Row]) -> bool:
    """Whether one of two answers is a turn by itself, as in ShareGPT's pairs."""
    return CHOSEN in named and any(isinstance(row.get(CHOSEN), dict) for row in rows[:1])


def unused(rows: Sequence[Row], form: FileFormat, also: str | None) -> list[str]:
    """The columns that hold something and are not read, and such fields of turns. also: one more that is."""
    in_use = {*form.source_columns, *([also] if also else [])}
    columns = {name: None for row in rows for name, value in row.items() if name not in in_use and value not in EMPTY}
    turns = unread(row.get(name) for row in rows for name in form.source_columns if name in CHATS)
    return [*columns, *(f"{name} of turns" for name in turns)]


EMPTY: tuple[Any, ...] = (None, "", [], {})


def _named(named: dict[str, str], there: Mapping[str, None], rows: Sequence[Row]) -> FileFormat:
    """By the columns that are named; of conversations also by those of system prompts and tools."""
    if CHAT not in named:
        name = "pairs of answers" if CHOSEN in named else "questions and answers"
        return FileFormat(name, named, tuple(named.values()))
    beside = {name: name for name in (SYSTEM, TOOLS) if name in there} | named
    fields = {name: column for name, column in beside.items() if name in (CHAT, SYSTEM, TOOLS, "options")}
    return FileFormat(_chat_name(rows, named[CHAT]), fields, tuple(fields.values()))


def _chat_name(rows: Sequence[Row], column: str) -> str:
    """ShareGPT's turns come from someone; OpenAI's have roles."""
    first: Any = next((row[column] for row in rows if row.get(column)), None)
    turned = isinstance(first, list) and isinstance(first[0], dict) and "from" in first[0]
    return "ShareGPT" if turned else "OpenAI messages"


def _refuse_marked(named: Mapping[str, str], there: Mapping[str, None], rows: Sequence[Row], what: str) -> None:
    """Raise UserError for KTO's files, whose bad answers are none to learn, unless `named` has the column of marks."""
    marked = any(name in there for name in ("completion", *CHATS)) and _all_bool(rows, "label")
    mark = KTO_TAG if KTO_TAG in there else "label" if marked else None
    if mark is not None and mark not in named.values():
        raise UserError(
            f"{what} is read as KTO: its column {mark} says whether a single answer is good; write data=local_marked "
            "and train.objective=kto."
        )


def _all_bool(rows: Sequence[Row], column: str) -> bool:
    return all(isinstance(row.get(column), bool) for row in rows)


def _refuse_pairs(there: Mapping[str, None], what: str) -> None:
    """Raise UserError for pairs of answers."""
    if {CHOSEN, REJECTED} <= there.keys() or set(OPENAI_PAIR) <= there.keys():
        raise UserError(f"{what} has pairs of answers; write data=local_preference, and train.objective=dpo or orpo.")


# Single answers, each marked as good or bad


def _marked(named: dict[str, str], there: Mapping[str, None], rows: Sequence[Row], what: str) -> FileFormat:
    """As single answers, with their marks: those of LLaMA-Factory's column, unless the settings name another one.

    Raises UserError for pairs of answers, and if there are no marks.
    """
    single = {name: column for name, column in named.items() if name != MARK}
    mark = KTO_TAG if KTO_TAG in there and named[MARK] == OWN[2][MARK] else named[MARK]
    if mark not in there:
        _refuse_pairs(there, what)
        raise UserError(
            f"{what} has no column {mark!r}, which says whether an answer is good; write data.columns.mark=COLUMN, or "
            "data=local for answers without marks."
        )
    by_file = _single(there, rows, what) if single.items() <= OWN[2].items() else None
    form = by_file or _named(single, there, rows)
    return replace(form, name="KTO", columns=form.columns | {MARK: mark}, source_columns=(*form.source_columns, mark))


# Single answers


def _single(there: Mapping[str, None], rows: Sequence[Row], what: str) -> FileFormat | None:
    for name in CHATS:
        if name in there:
            return _named({CHAT: name}, there, rows)
    if {"instruction", "output"} <= there.keys():
        return _alpaca(there, rows, what)
    for question, answer in PAIRS:
        if question in there and answer in there:
            return _question_and_answer(question, answer, rows)
    return None


def _question_and_answer(question: str, answer: str, rows: Sequence[Row]) -> FileFormat:
    name = f"{question} and {answer}"
    if not isinstance(rows[0].get(question), list):
        return FileFormat(name, {"question": question, "answer": answer}, (question, answer))
    return FileFormat(  # TRL's conversations of two columns
        name,
        {CHAT: CHAT},
        (question, answer),
        lambda row: {CHAT: [*(row.get(question) or []), *(row.get(answer) or [])]},
    )


def _alpaca(there: Mapping[str, None], rows: Sequence[Row], what: str) -> FileFormat:
    """Questions and answers, or conversations where a record has a system prompt or what was said before."""
    extra = [name for name in (SYSTEM, "history") if any(row.get(name) for row in rows)]
    source = ("instruction", "input", "output", SYSTEM, "history")
    if not extra:
        columns = {"question": "question", "answer": "output"}
        return FileFormat("Alpaca", columns, source, lambda row: {"question": _asked(row)})

    def turns(row: Row) -> Row:
        answer: Turn = {"role": "assistant", "content": text_of(row.get("output"))}
        return {CHAT: [*_before(row, what), {"role": "user", "content": _asked(row)}, answer]}

    extras = tuple({SYSTEM: "system prompts", "history": "earlier turns"}[name] for name in extra)
    return FileFormat("Alpaca", {CHAT: CHAT}, source, turns, extras)


def _asked(row: Row) -> str:
    """The instruction, and its input on a line of its own."""
    return "\n".join(text for name in ("instruction", "input") if (text := text_of(row.get(name)).strip()))


def _before(row: Row, what: str) -> list[Turn]:
    """The system prompt of Alpaca's row, and its history of questions and answers."""
    system = text_of(row.get(SYSTEM)).strip()
    turns: list[Turn] = [{"role": "system", "content": system}] if system else []
    for pair in row.get("history") or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise UserError(f"The history of {what} must be pairs of a question and an answer, got {str(pair)[:80]}.")
        turns += [{"role": role, "content": text_of(text)} for role, text in zip(SPEAKERS, pair, strict=True)]
    return turns


SPEAKERS = ("user", "assistant")


# Pairs of answers


def _pair(there: Mapping[str, None], rows: Sequence[Row], what: str) -> FileFormat | None:
    columns = {PROMPT: PROMPT, CHOSEN: CHOSEN, REJECTED: REJECTED}
    chat = next((name for name in CHATS if name in there), None)
    if set(OPENAI_PAIR) <= there.keys():
        return FileFormat("OpenAI's pairs", columns | {TOOLS: TOOLS}, OPENAI_PAIR, _openai_pair)
    if not {CHOSEN, REJECTED} <= there.keys():
        return None
    if chat is not None:
        beside = {name: name for name in (SYSTEM, TOOLS) if name in there}
        source = (chat, CHOSEN, REJECTED, *beside)

        def pair(row: Row) -> Row:
            both = {name: row.get(name) for name in (CHOSEN, REJECTED)}
            turns = {name: both[name] if isinstance(both[name], list | None) else [both[name]] for name in both}
            return {PROMPT: turns_of(row.get(chat), what)} | turns

        return FileFormat("ShareGPT's pairs", columns | beside, source, pair)
    if "instruction" in there:
        extra = any(row.get(name) for row in rows for name in (SYSTEM, "history"))
        source = ("instruction", "input", CHOSEN, REJECTED, SYSTEM, "history")
        extras = ("system prompts and earlier turns",) if extra else ()
        return FileFormat("Alpaca's pairs", columns, source, lambda row: _alpaca_pair(row, extra, what), extras)
    return None


def _openai_pair(row: Row) -> Row:
    before = row.get("input")
    prompt = before if isinstance(before, dict) else {"messages": before}
    answers = {CHOSEN: row.get("preferred_output"), REJECTED: row.get("non_preferred_output")}
    return {PROMPT: prompt.get("messages"), TOOLS: prompt.get("tools")} | answers


def _alpaca_pair(row: Row, talks: bool, what: str) -> Row:
    if not talks:
        return {PROMPT: _asked(row)}
    turns = [*_before(row, what), {"role": "user", "content": _asked(row)}]
    answers = {name: [{"role": "assistant", "content": text_of(row.get(name))}] for name in (CHOSEN, REJECTED)}
    return {PROMPT: turns} | answers
