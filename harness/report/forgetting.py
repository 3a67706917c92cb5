"""Items that tuning lost and won against the base model: item by item, by subject, with the answers.

An item is lost if the base model answers it correctly and the tuned model does not, and won in the reverse case. The
base of a method with quantised weights has such weights too: what quantising costs is not forgotten. Chance also moves
items both ways, so forgetting is measured by the change, won minus lost, with its interval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness import units
from harness.grouping import grouped
from harness.record import Record, Score
from harness.report import statistics
from harness.report.answer.advice import few
from harness.report.frame import score_name
from harness.report.headline import BASES, base_of
from harness.report.items.answered import AnsweredItems, answers
from harness.report.items.changed import Changed, ChangedItems
from harness.report.pairwise import primary, score_of
from harness.report.planned import PlanState, study_plan
from harness.report.statistics import ALPHA, Answers, Difference
from harness.report.tables.captions import groups_line
from harness.report.tables.entries import ABSENT
from harness.report.tables.rows import Rows, group
from harness.report.tables.table import Table
from harness.score_names import score_label

BASE = "base"
SHOWN = 60  # characters of an answer in a table
CSV = ["study", "model", "data", "method", "cell", "score", "subject", "item", "kind", "target", "base", "tuned"]
MARK = "*"  # of a significant change
NOT_OF_RIGHT_AND_WRONG = "it is not a score of right and wrong; `harness table` compares it."


@dataclass(frozen=True)
class Tally:
    """Counts of lost and won items.

    items: number of items. right: those the base answers correctly. lost, won: means over seeds.
    change: won minus lost as a proportion of the items, with its 95% interval over items and seeds and its p; None for
        a single item. corrected: that p by Holm, over the scores of all comparisons, or over the subjects of one.
    """

    items: int
    right: int
    lost: float
    won: float
    change: Difference | None
    corrected: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The models of one method in one setting (one per seed) against the untuned base, by one score.

    base: the base's cell. missing_base: the quantised base that this method starts from, if that one is not there.
    clusters: how many groups of items (subjects, passages, templates) are independent; None if items are.
    primary: whether this is the task's one score that is tested, as in the table; of others there are intervals alone.
    """

    place: tuple[str, str, str]
    label: str
    setting: str
    cells: list[str]
    base: str
    missing_base: str | None
    score: str
    clusters: int | None
    total: Tally
    subjects: dict[str | None, Tally]
    changed: ChangedItems
    primary: bool = True


@dataclass(frozen=True)
class Forgetting:
    """All comparisons, a sentence for each that is missing, and whether they were planned and the plan is finished."""

    comparisons: list[Comparison]
    left_out: list[str]
    plan: PlanState


@dataclass(frozen=True)
class _Group:
    place: tuple[str, str, str]
    label: str
    setting: str
    records: list[Record]


def forgetting(records: Sequence[Record], folder: Path, each_cell: bool = False) -> Forgetting:
    """The items that the models of `records`, of one study in `folder`, lost and won against their untuned base.

    Each method is compared in the setting that `select` chose, over its seeds; with `each_cell`, every cell by itself.
    """
    rows = group(records)
    groups, left_out = _groups(rows, each_cell)
    comparisons: list[Comparison] = []
    without: dict[tuple[str, str], list[str]] = {}  # labels, by the score and the reason that there is no comparison
    for of_it in groups:
        names = dict.fromkeys(score_name(score) for record in of_it.records for score in record.scores)
        bases = _bases(of_it, rows.records)
        if not bases:
            left_out.append(f"{of_it.label} is not compared: the study has no finished {BASE} of {of_it.place[1]}.")
        elif not names:
            left_out.append(f"{of_it.label} is not compared: it has no score.")
        for name in names if bases else ():
            compared = _compared(of_it, name, bases, folder)
            if isinstance(compared, Comparison):
                comparisons.append(compared)
            else:
                without.setdefault((name, compared), []).append(of_it.label)
    left_out += [f"{named(name)} of {few(labels)}: {reason}" for (name, reason), labels in without.items()]
    plan = study_plan(rows.records, folder).state(record for of_it in groups for record in of_it.records)
    return Forgetting(_corrected(comparisons), list(dict.fromkeys(left_out)), plan)


def _groups(rows: Rows, each_cell: bool) -> tuple[list[_Group], list[str]]:
    """What is held against its base, and a sentence for each method, or cell, that has nothing to compare."""
    groups, left_out = [], []
    if each_cell:
        groups = [
            _Group(row.place, record.cell.name, row.setting, [record])
            for row in rows
            for record in row.records
            if record.status == "ok"
        ]
        left_out = [f"{r.cell.name} is not compared: it ended as {r.status}." for r in rows.records if r.status != "ok"]
    else:
        for choice in rows.choices:
            if choice.index:
                seeds = [rows.records[i] for i in choice.index]
                groups.append(_Group(choice.place, choice.label, choice.setting or "", seeds))
            else:
                left_out.append(f"{choice.label} is not compared: {choice.reason}.")
    return [each for each in groups if each.records[0].cell.method != BASE], left_out


def _corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """`comparisons` with corrected p-values, where their score is the one by which its task is tested."""
    scores = grouped(((c.place, _task(c)), c.score) for c in comparisons)
    main = {(place, primary(task, names, place[2])) for (place, task), names in scores.items()}
    tested = [c.total.change.p for c in comparisons if c.total.change and (c.place, c.score) in main]
    by_comparison = iter(statistics.holm(tested).tolist())
    result = []
    for c in comparisons:
        if (c.place, c.score) not in main:
            subjects = {name: replace(tally, corrected=None) for name, tally in c.subjects.items()}
            result.append(replace(c, subjects=subjects, primary=False))
        elif c.total.change:
            result.append(replace(c, total=replace(c.total, corrected=next(by_comparison))))
        else:
            result.append(c)
    return result


def _bases(of_it: _Group, records: Sequence[Record]) -> list[Record]:
    """Finished untuned models with the same weights: those that are quantised alike first, then those of the same data
    set. An untuned model that is quantised is held against the one that is not."""
    own = _own(of_it)
    bases = [
        record
        for record in records
        if record.cell.method in (own, BASE) and record.status == "ok" and record.cell.model == of_it.place[1]
    ]
    return sorted(bases, key=lambda record: (record.cell.method != own, record.cell.data != of_it.place[2]))


def _own(of_it: _Group) -> str:
    """The method of the untuned model that a group is held against."""
    return BASE if of_it.records[0].cell.method in BASES.values() else base_of(of_it.records[0])


def _compared(of_it: _Group, name: str, bases: Sequence[Record], folder: Path) -> Comparison | str:
    """The comparison by the score `name` with the first base that answered the same items, or the reason for none."""
    scored = [(record, score) for record in of_it.records if (score := score_of(record, name))]
    if len(scored) < len(of_it.records):
        return "not every seed has this score."
    if not scored[0][1].higher_is_better:
        return NOT_OF_RIGHT_AND_WRONG
    tuned = [(table, score) for record, score in scored if (table := answers(folder, record, score, texts=True))]
    if len(tuned) < len(scored):
        return "the items of a cell are missing."
    tables = [table for table, _ in tuned]
    reason = f"{BASE} has no such score."
    for base in bases:
        base_score = score_of(base, name)
        if base_score is None:
            continue
        own = answers(folder, base, base_score, texts=True)
        if not own:
            reason = f"the items of {base.cell.name} are missing."
        elif any(_asked(table, score) != _asked(own, base_score) for table, score in tuned):
            reason = f"{base.cell.name} has other items, another number of shots, or another version of the task."
        elif not all(table.binary for table in (own, *tables)):
            return NOT_OF_RIGHT_AND_WRONG
        else:
            return _comparison(of_it, name, base, own, tables)
    return reason


def _asked(items: AnsweredItems, score: Score) -> tuple[Any, ...]:
    """What must be equal to compare the answers of two models item by item."""
    return score.num_fewshot, score.version, *items.identity


def _comparison(of_it: _Group, name: str, base: Record, own: AnsweredItems, tuned: list[AnsweredItems]) -> Comparison:
    before = own.values
    after = np.stack([table.values for table in tuned])
    subjects = {subject: _tally(before[at], after[:, at], own.clusters(at)) for subject, at in own.places.items()}
    p_values = [tally.change.p for tally in subjects.values() if tally.change]
    by_subject = iter(statistics.holm(p_values).tolist())
    groups = own.clusters()
    return Comparison(
        place=of_it.place,
        label=of_it.label,
        setting=of_it.setting,
        cells=[record.cell.name for record in of_it.records],
        base=base.cell.name,
        missing_base=own_base if (own_base := _own(of_it)) != base.cell.method else None,
        score=name,
        clusters=Answers(before[None], groups).groups,
        total=_tally(before, after, groups),
        subjects={
            subject: replace(tally, corrected=next(by_subject)) if tally.change else tally
            for subject, tally in subjects.items()
        },
        changed=ChangedItems(name.split("/")[-2], own, tuned),
    )


def _tally(before: np.ndarray, after: np.ndarray, groups: np.ndarray) -> Tally:
    """before: (items,), if the base is right. after: (seeds, items): the tuned models. groups: clusters of items."""
    seeds, items = after.shape
    sides = [Answers(values.astype(float), groups) for values in (after, before[None])]
    return Tally(
        items=items,
        right=int(before.sum()),
        lost=float((after < before).sum()) / seeds,
        won=float((after > before).sum()) / seeds,
        change=statistics.differences(sides)[0, 1] if items > 1 else None,
    )


# As tables and as JSON


def to_json(balance: Forgetting) -> dict[str, Any]:
    """All results as JSON types, with full answers."""
    comparisons = [_plain(c) for c in balance.comparisons]
    return {"plan": balance.plan.word, "comparisons": comparisons, "left_out": balance.left_out}


def _plain(value: Any) -> Any:
    """`value` as JSON types, with intervals as objects instead of tuples."""
    if isinstance(value, Difference):
        return value._asdict()
    if isinstance(value, Comparison | Tally | Changed):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | ChangedItems) else value


def tables(balance: Forgetting, study: str, examples: int, every: bool = True) -> list[Table]:
    """Tables of lost and won items: totals, by subject (if there are several), and up to `examples` items of each kind.

    every: whether `Table.data` of the last table has every changed item with full answers; else there is none.
    """
    scores = dict.fromkeys((c.place, c.score) for c in balance.comparisons)
    several = len({place for place, _ in scores}) > 1
    leading = [_totals(balance, study, several)]
    for place, score in scores:
        of_it = [c for c in balance.comparisons if (c.place, c.score) == (place, score)]
        if any(len(c.subjects) > 1 for c in of_it):
            leading.append(_subjects(of_it, several))
    listed = _items(balance, study, several, examples)
    if every:
        return [*leading, replace(listed, data=_every(balance))]
    return [*leading, listed] if listed.rows else leading


def _where(place: tuple[str, str, str], several: bool) -> dict[str, str]:
    return {"Model": place[1], "Data": place[2]} if several else {}


def _totals(balance: Forgetting, study: str, several: bool) -> Table:
    rows = [
        _where(c.place, several)
        | {"Method": c.label, "Setting": c.setting or ABSENT, "Seeds": str(len(c.cells)), "Score": named(c.score)}
        | {"Items": f"{c.total.items:,}", "Base right": f"{c.total.right:,}"}
        | {"Lost": _count(c.total.lost), "Won": _count(c.total.won), "Change (points)": _change(c.total)}
        for c in balance.comparisons
    ]
    caption = []
    tested = sum(c.primary for c in balance.comparisons)
    if rows:
        caption = [
            "Lost: items that the base answers correctly and the tuned model does not. Won: the reverse. Means over "
            "seeds. Chance moves items both ways, so forgetting is the change, won minus lost.",
            "Change: in points, with its 95% interval, paired by item"
            + (", over items and seeds." if any(len(c.cells) > 1 for c in balance.comparisons) else ", over items."),
            f"{MARK}: a significant change (p < 0.05, by Holm for {tested} comparisons, or the subjects of one).",
        ]
        if untested := dict.fromkeys(named(c.score) for c in balance.comparisons if not c.primary):
            caption.append(f"Not tested, as another score of the same task is: {units.listed([*untested])}.")
        for base in dict.fromkeys(c.base for c in balance.comparisons if not c.base.startswith(f"{BASE}-")):
            alike = dict.fromkeys(c.label for c in balance.comparisons if c.base == base)
            caption.append(f"Held against {base}, the untuned model with weights of the same format: {few([*alike])}.")
        if without_own_base := dict.fromkeys((c.label, c.missing_base) for c in balance.comparisons if c.missing_base):
            methods = ", ".join(f"{label} ({base})" for label, base in without_own_base)
            caption.append(
                f"Held against {BASE}, as the quantised base is missing: {methods}. Quantising counts as loss."
            )
        if counts := sorted({c.clusters for c in balance.comparisons if c.clusters}):
            caption.append(groups_line(counts))
        if any(len(c.cells) == 1 for c in balance.comparisons):
            caption.append("Single seed: results hold for the trained models, not for the method.")
    table = _table("Method", f"{study}: lost and won against base", rows, [*caption, *balance.left_out])
    return replace(table, answer=list(_answer(balance, several)))


def _answer(results: Forgetting, several: bool) -> Iterator[str]:
    """A sentence for each task, by its tested score: which methods forget, which gain, of which that is open.

    That the plan is not finished is said before all of them.
    """
    sentences = []
    for place, score in dict.fromkeys((c.place, c.score) for c in results.comparisons if c.primary):
        here = [c for c in results.comparisons if (c.place, c.score) == (place, score) and c.total.change]
        ranked = sorted(here, key=lambda c: c.total.change.value if c.total.change else 0.0)
        significant = [c for c in ranked if c.total.corrected is not None and c.total.corrected < ALPHA]
        losing = [c for c in significant if c.total.change and c.total.change.value < 0]
        gaining = [c for c in significant if c not in losing]
        undecided = [c for c in ranked if c not in significant]
        clauses = [
            f"{few([c.label for c in of])} {verb if len(of) > 1 else f'{verb}s'} ({_span(of)})"
            for verb, of in (("forget", losing), ("gain", gaining))
            if of
        ]
        if undecided:
            clauses.append(f"no significant change of {few([c.label for c in undecided])} ({_span(undecided)})")
        where = f" ({'/'.join(place[1:])})" if several else ""
        if clauses:
            sentences.append((not losing, f"{named(score)}{where}: {'; '.join(clauses)}."))
    if sentences:
        yield from results.plan.interim
    yield from (sentence for _, sentence in sorted(sentences, key=lambda each: each[0]))


def _span(comparisons: Sequence[Comparison]) -> str:
    """The least and the greatest change of `comparisons`, in points."""
    points = [100 * c.total.change.value for c in comparisons if c.total.change]
    ends = dict.fromkeys(f"{value:+z.1f}".replace("-", "−") for value in (min(points), max(points)))
    return f"{' to '.join(ends)} points"


def _subjects(of_it: list[Comparison], several: bool) -> Table:
    """A row per subject and a column per method; subjects with the largest total loss first."""
    tallies = [(name, tally) for c in of_it for name, tally in c.subjects.items()]
    names = list(dict.fromkeys(name for name, tally in tallies if tally.lost or tally.won))
    still = len({name for name, _ in tallies}) - len(names)
    names.sort(key=lambda name: sum(t.won - t.lost for c in of_it if (t := c.subjects.get(name))))
    rows = []
    for name in names:
        by_label = {c.label: c.subjects.get(name) for c in of_it}
        some = next(tally for tally in by_label.values() if tally)
        row = {"Subject": _subject(name), "Items": f"{some.items:,}", "Base right": f"{some.right:,}"}
        rows.append(row | {label: _moved(tally) if tally else ABSENT for label, tally in by_label.items()})
    where = f" ({'/'.join(of_it[0].place[1:])})" if several else ""
    return _table(
        "Subject",
        f"{named(of_it[0].score)}{where}: lost and won by subject",
        rows,
        ["Lost, won, and the change in points with its 95% interval; subjects with the largest loss first."]
        + ([f"No item was lost or won in {units.plural(still, 'other subject')}."] if still else []),
    )


def _items(balance: Forgetting, study: str, several: bool, examples: int) -> Table:
    rows = []
    pairs = [
        (c, item)
        for c in balance.comparisons
        for item in (*c.changed.first("lost", examples), *c.changed.first("won", examples))
    ]
    subjects = any(item.subject not in (None, _task(c)) for c, item in pairs)
    for c, item in pairs:
        row = {"Method": c.label, "Score": named(c.score)}
        row |= {"Subject": _subject(item.subject)} if subjects else {}
        row |= {"Item": str(item.item)}
        row |= {"What": item.kind, "Seeds": f"{item.seeds}/{len(c.cells)}"}
        row |= {"Target": _short(item.target), "Base": _short(item.base)}
        rows.append(_where(c.place, several) | row | {"Tuned": _short(" · ".join(dict.fromkeys(item.tuned)))})
    caption = []
    if len(rows) < sum(len(c.changed) for c in balance.comparisons):
        caption = [f"Up to {examples} lost and {examples} won of each method and score; --items shows more."]
    return _table("Method", f"{study}: items lost and won", rows, caption)


def _every(balance: Forgetting) -> pd.DataFrame:
    rows = []
    for c in balance.comparisons:
        for item in c.changed:
            for cell, text in zip(c.cells, item.tuned, strict=True):
                where = (*c.place, c.label, cell, c.score, item.subject, item.item, item.kind)
                rows.append((*where, item.target, item.base, text))
    return pd.DataFrame(rows, columns=CSV)


def _table(head: str, title: str, rows: list[dict[str, str]], caption: list[str]) -> Table:
    columns = list(rows[0]) if rows else [head]
    return Table(title, columns, [[row[column] for column in columns] for row in rows], caption, None)


def named(score: str) -> str:
    """A score's name for readers."""
    return score_label(*score.split("/", 2))


def _task(comparison: Comparison) -> str:
    return comparison.score.partition("/")[0]


def _subject(name: str | None) -> str:
    return ABSENT if name is None else name


def _count(mean: float) -> str:
    return f"{mean:,.0f}" if mean == int(mean) else f"{mean:,.1f}"


def _change(tally: Tally) -> str:
    if tally.change is None:
        return ABSENT
    value, low, high = (f"{100 * end:+z.1f}" for end in tally.change[:3])
    mark = MARK if tally.corrected is not None and tally.corrected < ALPHA else ""
    return f"{value} ({low} to {high}){mark}".replace("-", "−")


def _moved(tally: Tally) -> str:
    return f"−{_count(tally.lost)} +{_count(tally.won)}: {_change(tally)}"


def _short(text: str) -> str:
    """The end of a text, where a worked answer has its result."""
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else "…" + text[1 - SHOWN :]
