"""Detects differences between cells that are compared, and words them as sentences."""

from __future__ import annotations

import json
import operator
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from harness import units
from harness.grouping import grouped
from harness.record import Record

VALUES, PARTS, EXAMPLES = 4, 4, 3  # a sentence names at most this many; the rest is counted
Sentence = tuple[str, tuple[str, ...]]  # with the names of the cells that stand out
Sentences = Iterable[Sentence]
Value = Callable[[Record], str | None]


# Many rules ask these of each of thousands of records.
method_of = operator.attrgetter("cell.method")
place_of = operator.attrgetter("cell.model", "cell.data")


def point(record: Record) -> tuple[Hashable, ...]:
    """The hyperparameters that a method is tuned by."""
    cell = record.cell
    return cell.lr, cell.rank, cell.alpha, hashable(cell.knobs)


def unit(record: Record) -> tuple[Hashable, ...]:
    return record.cell.method, point(record)


def differ(subject: str, records: Sequence[Record], value: Value, tail: str = "") -> Sentences:
    """A sentence if `records` have more than one value; None is ignored.

    All cells without the most common value stand out.
    """
    by_value = group_by(records, value)
    by_value.pop(None, None)
    if len(by_value) < 2:
        return
    ordered = sorted(by_value.items(), key=lambda item: -len(item[1]))
    parts = [f"{text} in {named(cells, records)}" for text, cells in ordered[:VALUES]]
    if rest := sum(len(cells) for _, cells in ordered[VALUES:]):
        parts.append(f"others in {units.plural(rest, 'cell')}")
    apart = {id(record) for _, cells in ordered[1:] for record in cells}
    yield f"{subject}: {'; '.join(parts)}.{tail}", tuple(r.cell.name for r in records if id(r) in apart)


def confounded(
    subject: str, records: Sequence[Record], value: Value, unit: Callable[[Record], Hashable] = unit
) -> Sentences:
    """Like `differ`, but silent if every unit has every value: then the value is an axis of the study.

    unit: by default a method in one setting. Facts that failed cells may lack are compared between whole methods.
    """
    by_value = group_by(records, value)
    by_value.pop(None, None)
    if len(by_value) < 2:
        return
    if len({frozenset(map(unit, members)) for members in by_value.values()}) > 1:
        yield from differ(subject, records, value)


def named(cells: Sequence[Record], among: Sequence[Record]) -> str:
    """`cells` in words: the method's name if all of its cells are meant, else the names of some cells."""
    everyone, parts, single = group_by(among, method_of), [], []
    for method, members in group_by(cells, method_of).items():
        if len(members) < len(everyone[method]):
            single += members
        else:
            many = f" ({units.plural(len(members), 'cell')})" if len(members) > 1 else ""
            parts.append((f"{method}{many}", len(members)))
    names = _short_names(among)
    named_parts = parts[:PARTS] + [(names[id(record)], 1) for record in single[:EXAMPLES]]
    texts, rest = [text for text, _ in named_parts], len(cells) - sum(n for _, n in named_parts)
    return units.listed([*texts, *([f"{units.plural(rest, 'cell')} more"] if rest else [])])


def _short_names(records: Sequence[Record]) -> dict[int, str]:
    """By the id of the record, the cell's name without its hash if that is unique among `records`."""
    short = {id(record): record.cell.name.removesuffix(f"-{record.cell.id[:6]}") for record in records}
    count = Counter(short.values())
    return {id(r): short[id(r)] if count[short[id(r)]] == 1 else r.cell.name for r in records}


def group_by(records: Sequence[Record], key: Callable[[Record], Hashable]) -> dict[Any, list[Record]]:
    return grouped([(key(record), record) for record in records])


def alike(records: Sequence[Record], part: Callable[[Record], Any]) -> bool:
    """Whether `part` of all records is equal, as it nearly always is."""
    first = part(records[0]) if records else None
    return all(part(record) == first for record in records)


def places(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """The records by model and data set, within which cells are compared; a text names both if there are several."""
    groups = group_by(records, place_of)
    return [(f" ({'/'.join(place)})" if len(groups) > 1 else "", members) for place, members in groups.items()]


def finished(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.status == "ok"]


def tuned(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.cell.seed is not None]


def environment_part(record: Record, name: str) -> dict[str, Any]:
    part = record.environment.get(name)
    return part if isinstance(part, dict) else {}


def setting_text(value: Any) -> str | None:
    """A setting as text; lists are sorted, since their order has no meaning."""
    if isinstance(value, list):
        return ", ".join(sorted(map(str, value)))
    return None if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def hashable(value: Any) -> str:
    return json.dumps(value, sort_keys=True) if value else repr(value)


def first_of(groups: Sequence[list[Record]], look: Callable[[list[Record]], Sentences]) -> Sentences:
    """The sentence on the first group that has one, and how many other groups have one too."""
    sentences = [sentence for group in groups for sentence in look(group)]
    if sentences:
        first, _ = sentences[0]
        others = len(sentences) - 1
        more = f" The same holds for {units.plural(others, 'more group')} of matching cells." if others else ""
        yield first + more, tuple(name for _, cells in sentences for name in cells)
