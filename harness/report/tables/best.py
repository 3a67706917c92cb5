"""The first table of a study: each method in its best setting, with intervals, and letters that show ties."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from harness import units
from harness.record import Record
from harness.report.frame import score_name
from harness.report.pairwise import Contest, contests
from harness.report.select import Choice
from harness.report.statistics import ALPHA, Interval, ratio_interval, seeds_interval, speed_ratio
from harness.report.tables.entries import ABSENT, rate, score_style
from harness.report.tables.rows import Row, Rows, group, several_seeds
from harness.report.tables.table import Table, comparison, comparison_of, title

EDGE = "†"
SURVEY = ["model", "method", "asked", "scores", "peak", "written", "price", "spent", "status"]


def tables(records: Sequence[Record], folder: Path | None, columns: Sequence[str] | None = None) -> list[Table]:
    """What `harness table` shows of a study: each method in its best setting, then every setting.

    Where nothing was tuned there are no settings to choose from, and models stand side by side instead: `survey_of`.

    folder: of the study, where the items lie. columns: of the second table, which then stands alone.
    """
    if columns is not None:
        return [comparison(records, columns)]
    rows = group(records)
    if all(record.cell.seed is None for record in records):
        return [survey_of(rows), comparison_of(rows)]
    return [best_of(rows, folder), comparison_of(rows)]


def survey_of(rows: Rows) -> Table:
    """Models as they are, before any tuning: what they score and what they take. `Table.data` is None, as `best`'s."""
    return replace(comparison_of(rows, SURVEY), title=f"{title(rows)}: models as they are", data=None)


def best(records: Sequence[Record], folder: Path | None) -> Table:
    """Each method of `records` in the setting that `select` chose for it, and how it stands by each score.

    Brackets hold 95% intervals. Methods that share a letter do not differ significantly (`pairwise.contests`). The
    caption states the limits of the study. `Table.data` is None: the numbers are those of `comparison`.
    """
    return best_of(group(records), folder)


def best_of(rows: Rows, folder: Path | None) -> Table:
    """`best` of the records of `rows`."""
    records, choices = rows.records, rows.choices
    row_of = [row for row in rows for _ in row.records]
    chosen = [row_of[choice.index[0]] if choice.index else None for choice in choices]
    held = contests(records, folder, choices)
    columns = {name: [choice.place[i] for choice in choices] for i, name in enumerate(("Study", "Model", "Data"))}
    columns = {name: column for name, column in columns.items() if len(set(column)) > 1}
    columns["Method"] = [choice.label for choice in choices]
    columns["Setting"] = [_setting(choice) for choice in choices]
    columns["Tries"] = [_tries(choice) for choice in choices]
    if several_seeds(list(filter(None, chosen))):
        columns["Seeds"] = [_seeds(row) for row in chosen]
    columns["Peak train memory"] = _with_ratios(chosen, "full", _memory, units.size, _memory_ratio)
    columns["Tokens/s"] = _with_ratios(chosen, "lora", _speed, rate, _speed_ratio)
    for name in dict.fromkeys(contest.score for contest in held):
        header, texts = _score_column([contest for contest in held if contest.score == name], records, choices)
        columns[header] = texts
    columns["Validation loss"] = [_loss(row) for row in chosen]
    return Table(
        title=f"{title(rows)}: best settings",
        columns=list(columns),
        rows=[list(texts) for texts in zip(*columns.values(), strict=True)],
        caption=list(_caption(records, choices, held)),
        data=None,
    )


# Cells


def _setting(choice: Choice) -> str:
    return (choice.setting or ABSENT) + (f" {EDGE}" if choice.edges else "")


def _tries(choice: Choice) -> str:
    lost = ", ".join(f"{n} {status}" for status, n in choice.lost.items())
    return f"{choice.tries} ({lost})" if lost else str(choice.tries)


def _seeds(row: Row | None) -> str:
    return ABSENT if row is None or row.records[0].cell.seed is None else str(len(row.records))


def _loss(row: Row | None) -> str:
    losses = row.values("validation_loss") if row else []
    if not losses:
        return ABSENT
    interval = seeds_interval(losses)
    text = units.significant(sum(losses) / len(losses))
    return text + (f" ({units.significant(interval.low)}–{units.significant(interval.high)})" if interval else "")


def _memory(row: Row) -> float | None:
    return row.mean("train_allocated_peak")


def _speed(row: Row) -> float | None:
    return row.mean("tokens_per_second_steady")


def _memory_ratio(row: Row, reference: Row) -> Interval | None:
    return ratio_interval(row.values("train_allocated_peak"), reference.values("train_allocated_peak"))


def _speed_ratio(row: Row, reference: Row) -> Interval | None:
    """Of several seeds by their rates, of one by its steps."""
    rates = (side.values("tokens_per_second_steady") for side in (row, reference))
    return ratio_interval(*rates) or speed_ratio(_token_seconds(row), _token_seconds(reference))


def _token_seconds(row: Row) -> list[list[float]]:
    """The seconds a raw token took, by seed and step after warm-up; `tokens_per_second_steady` is 1 / their median."""
    found = []
    for train in (record.train for record in row.records):
        tokens = [later - earlier for earlier, later in pairwise([0, *(point.tokens for point in train.loss)])]
        found.append([train.step_seconds[i] / tokens[i] for i in train.steady_steps() if i < len(tokens)])
    return found


def _with_ratios(
    rows: Sequence[Row | None],
    method: str,
    value: Callable[[Row], float | None],
    text: Callable[[float], str],
    ratio: Callable[[Row, Row], Interval | None],
) -> list[str]:
    """A measure of each row, and its ratio to that of `method` with an interval where there are repeats."""
    cells = []
    for row in rows:
        own = value(row) if row else None
        others = [other for other in rows if other and row and other.method == method and other.place == row.place]
        of = value(others[0]) if others else None
        if own is None:
            cells.append(ABSENT)
        elif of is None:
            cells.append(text(own))
        else:
            found = None if row is others[0] else ratio(row, others[0])
            ends = f", {found.low:.2f}–{found.high:.2f}" if found else ""
            cells.append(f"{text(own)} ({own / of:.2f}×{ends})")
    return cells


def _score_column(held: list[Contest], records: Sequence[Record], choices: list[Choice]) -> tuple[str, list[str]]:
    """Header and cells of one score, of which `held` are the contests in each place."""
    score = next(s for c in choices for i in c.index for s in records[i].scores if score_name(s) == held[0].score)
    standings = {(contest.place, s.choice.label): s for contest in held for s in contest.standings}
    header, shown = score_style(score, [standing.value for standing in standings.values()])
    cells = []
    for choice in choices:
        standing = standings.get((choice.place, choice.label))
        if standing is None:
            cells.append(ABSENT)
            continue
        interval = standing.interval
        ends = f" ({shown(interval.low)}–{shown(interval.high)})" if interval else ""
        cells.append(f"{shown(standing.value)}{ends}{f' {standing.letters}' if standing.letters else ''}")
    return header, cells


# Caption


def _caption(records: Sequence[Record], choices: list[Choice], held: list[Contest]) -> Iterator[str]:
    several = len({choice.place for choice in choices}) > 1
    for contest in held:
        yield ahead(contest, several)
    if held:
        yield from _score_caption(records, choices, held)
    else:
        yield "No chosen setting has a score."
    yield from _selection_caption(choices)
    yield (
        "Memory is the peak of live tensors in a training step; × is its ratio to full. Tokens/s counts raw tokens; × "
        "is its ratio to lora. Ratios have 95% intervals over seeds; for a single seed, over steps."
    )


def ahead(contest: Contest, several: bool) -> str:
    """One sentence on a score: the best method, and those that do not differ significantly from it."""
    where = f" ({'/'.join(contest.place[1:])})" if several else ""
    name = contest.score.removesuffix("/none").replace("/", " ") + where
    first, *others = contest.standings
    label = first.choice.label
    end = "highest" if contest.higher_is_better else "lowest"
    if not others:
        return f"{name}: only {label} has this score."
    if first.letters is None:
        return f"{name}: {label} scores {end}. Its items are missing, so no difference from it is tested."
    tied = [other for (one, other), p in contest.corrected.items() if one == label and p >= ALPHA]
    if not tied:
        return f"{name}: {label} scores {end}, and differs significantly from all methods with the same items."
    if len(tied) == len(others):
        return f"{name}: {label} scores {end}, but no method differs significantly from it."
    return f"{name}: {label} scores {end}. Not significantly different from it: {_listed(tied)}."


def _score_caption(records: Sequence[Record], choices: list[Choice], held: list[Contest]) -> Iterator[str]:
    trained = [choice for choice in choices if choice.index and records[choice.index[0]].cell.seed is not None]
    singles = [choice.label for choice in trained if len(choice.index) == 1]
    pairs = sum(len(contest.differences) for contest in held)
    over = "items" if len(singles) == len(trained) else "seeds and items"
    tests = "McNemar's exact test" if over == "items" else "paired by item; Student's t over seeds"
    corrected = f"p ≥ 0.05, {tests}, Holm's correction for {pairs} pairs"
    yield f"Brackets: 95% intervals over {over}." + (
        f" Methods that share a letter do not differ significantly ({corrected})." if pairs else ""
    )
    if singles:
        who = "Single seed" if len(singles) == len(trained) else f"Single seed of {_listed(singles)}"
        yield f"{who}: intervals and letters exclude seed-to-seed variance. They hold for the trained models only."
    if any(len(choice.index) == 2 for choice in trained):
        yield "Two seeds: intervals are wide, so few differences are significant."
    alone = dict.fromkeys(
        s.choice.label for c in held for s in c.standings if s.letters is None and len(c.standings) > 1
    )
    if alone:
        yield f"No letter, as items are missing or differ from those of other methods: {_listed(alone)}."


def _selection_caption(choices: list[Choice]) -> Iterator[str]:
    if any(choice.tries > 1 for choice in choices):
        yield (
            "Each setting has the least validation loss, mean over seeds, of its method's settings that finished with "
            "every seed. Test scores take no part."
        )
    elif choices:
        yield "Each method had one setting; another one may suit it better."
    edges = [f"{choice.label} {edge}" for choice in choices for edge in choice.edges]
    if edges:
        yield f"{EDGE} Best value at the edge of its grid; a wider grid may be better: {'; '.join(edges)}."
    for choice in choices:
        if choice.reason:
            yield f"{choice.label}: no setting chosen, {choice.reason}."


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
