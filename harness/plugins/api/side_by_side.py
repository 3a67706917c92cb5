"""Answers of several models side by side, as text for a terminal and as an HTML page; differences are marked.

`job/prompting.py` returns the answers. They are untrusted text of models: control characters are removed,
and the page escapes everything, loads nothing and runs nothing.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.text import Text

from harness import units
from harness.report import pages
from harness.report.statistics import Interval, preference

HERE = Path(__file__).parent
STYLE = Path(pages.__file__).with_name("page.css")
NARROWEST = 24  # characters; answers are stacked if columns would be narrower
ABSENT = "(no answer)"
DIFFERENT = "bold yellow"  # the style of words that differ, on a terminal


class Word(NamedTuple):
    """A word or space of an answer, and whether it differs from the first model's answer."""

    text: str
    differs: bool


class Rate(NamedTuple):
    """The judge's comparison of a model with the first one: prompts won, lost and tied.

    interval: the proportion won (a tie counts half) with its 95% interval over prompts; None without prompts.
    unread: prompts without a readable verdict, which do not count.
    """

    model: str
    wins: int
    losses: int
    ties: int
    unread: int
    interval: Interval | None


def words(answer: str, first: str) -> list[Word]:
    """`answer` as words and spaces, each with whether it differs from `first`."""
    own, others = _split(answer), _split(first)
    found = []
    for tag, start, end, *_ in difflib.SequenceMatcher(None, own, others, autojunk=False).get_opcodes():
        found += [Word(text, tag != "equal") for text in own[start:end]]
    return found


def _answers(comparison: dict[str, Any], prompt: int) -> list[list[Word]]:
    """The words of each model's answer to a prompt. Where the first model gave none, nothing differs from it."""
    first, *_ = texts = [by_prompt[prompt] for by_prompt in comparison["answers"]]
    return [[Word(ABSENT, False)] if text is None else words(text, text if first is None else first) for text in texts]


def _split(text: str) -> list[str]:
    text = "".join(c for c in text if c.isprintable() or c == "\n")
    return re.findall(r"\n|[^\S\n]+|\S+", text)


def rates(found: dict[str, Any]) -> list[Rate]:
    """The rates of all models but the first; empty without a judge."""
    if found["judge"] is None:
        return []
    made = []
    for j, model in enumerate(found["models"][1:], start=1):
        values = [v["value"] for v in found["judge"]["verdicts"] if v["model"] == j]
        read = [value for value in values if value is not None]
        wins, ties, losses = (read.count(value) for value in (1.0, 0.5, 0.0))
        interval = preference(wins, ties, losses) if read else None
        made.append(Rate(model, wins, losses, ties, len(values) - len(read), interval))
    return made


def caption(found: dict[str, Any]) -> Iterator[str]:
    """Notes that explain the comparison."""
    first = found["models"][0]
    if len(found["models"]) > 1:
        yield f"Marked: words that differ from {first}."
    for rate in rates(found):
        counts = f"{rate.wins} won, {rate.losses} lost, {rate.ties} tied"
        unread = f", {rate.unread} without a readable verdict" if rate.unread else ""
        share = "" if rate.interval is None else ": {:.0%} ({:.0%}–{:.0%})".format(*rate.interval)
        yield f"{rate.model} against {first}{share}; {counts}{unread}."
    if judge := found["judge"]:
        spent = judge["tokens"]
        replies = units.plural(spent["answers"], "response")
        if spent["read"] is not None:
            replies += f", {units.plural(spent['read'], 'token')} read and {spent['written']:,} written"
        yield (
            f"Judged blindly by {judge['model']} at {judge['host']}, each pair in both orders ({replies}). A "
            "preference that changes with the order is a tie, and counts half. Brackets: 95% interval over prompts. "
            "A judge can be wrong."
        )


def verdict(found: dict[str, Any], prompt: int, model: int) -> str | None:
    """The judge's verdict on an answer, in words; None without one."""
    for said in (found["judge"] or {"verdicts": []})["verdicts"]:
        if (said["prompt"], said["model"]) == (prompt, model):
            return {1.0: "better", 0.0: "worse", 0.5: "tie", None: "no verdict"}[said["value"]]
    return None


# For a terminal


def text(found: dict[str, Any], width: int) -> Text:
    """Answers in columns, or stacked if columns would be too narrow; differences in colour."""
    lines: list[str | Text] = []
    for i, prompt in enumerate(found["prompts"]):
        asked = f"{i + 1}. {' '.join(_plain(prompt).split())}"
        lines += [*textwrap.wrap(asked, width, subsequent_indent="   "), ""]
        answers = _answers(found, i)
        verdicts = [verdict(found, i, j) for j in range(len(answers))]
        heads = [(model, verdicts[j] or "") if any(verdicts) else (model,) for j, model in enumerate(found["models"])]
        column = (width + 3) // len(heads) - 3
        if column >= NARROWEST:
            lines += _beside([_block(h, a, column) for h, a in zip(heads, answers, strict=True)], column)
        else:
            for head, answer in zip(heads, answers, strict=True):
                lines += [*_block(head, answer, width), ""]
        lines.append("")
    for sentence in caption(found):
        lines += textwrap.wrap(sentence, width, initial_indent="- ", subsequent_indent="  ")
    texts = [Text(line) if isinstance(line, str) else line for line in lines]
    for line in texts:
        line.rstrip()
    return Text("\n", no_wrap=True, overflow="ignore").join(texts)


def _plain(value: str) -> str:
    return "".join(_split(value))


def _block(head: tuple[str, ...], answer: list[Word], width: int) -> list[Text]:
    return [*map(Text, _heading(head, width)), *_wrapped(answer, width)]


def _heading(head: tuple[str, ...], width: int) -> list[str]:
    """A model's name and, if there is a judge, its verdict."""
    name = _plain(head[0])
    return [name if len(name) <= width else name[: width - 1] + "…", *head[1:], "-" * min(width, len(name))]


def _wrapped(answer: list[Word], width: int) -> list[Text]:
    """Lines of at most `width` characters."""
    lines, used = [Text()], 0
    for word, differs in answer:
        if word == "\n":
            lines, used = [*lines, Text()], 0
            continue
        if word.isspace():
            word = " " if used else ""
        for start in range(0, len(word), width):
            part = word[start : start + width]
            if used + len(part) > width:
                lines, used = [*lines, Text()], 0
                part = part.lstrip()
            lines[-1].append(part, DIFFERENT if differs and part.strip() else None)
            used += len(part)
    return lines


def _beside(blocks: Sequence[list[Text]], width: int) -> Iterator[Text]:
    for i in range(max(map(len, blocks))):
        row = [block[i] if i < len(block) else Text() for block in blocks]
        for line in row:
            line.pad_right(width - len(line))
        yield Text(" | ").join(row)


# As a page


def page(found: dict[str, Any]) -> str:
    """One HTML document without scripts that loads nothing."""
    rows = [
        {
            "prompt": _plain(prompt),
            "answers": [
                {"words": answer, "verdict": verdict(found, i, j)} for j, answer in enumerate(_answers(found, i))
            ],
        }
        for i, prompt in enumerate(found["prompts"])
    ]
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = Markup(STYLE.read_text(encoding="utf-8"))
    models = [_plain(model) for model in found["models"]]
    return environment.get_template("page_side.html").render(
        models=models, rows=rows, caption=list(caption(found)), style=style
    )
