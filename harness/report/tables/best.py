"""The first table of a study: each method in its best setting, with intervals, and letters that show ties."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from harness import units
from harness.record import Record
from harness.report.answer import StudyAnswer, answer
from harness.report.answer.advice import headline, optimism
from harness.report.answer.place import by_status, place_prefix
from harness.report.cost_fronts import require_one_device
from harness.report.costs import Ratios, memory_ratio, speed_ratios
from harness.report.frame import TRAIN_MEMORY, score_name
from harness.report.lint.training import first_projections
from harness.report.memory import meaning
from harness.report.pairwise import MANY, Contest
from harness.report.select import Choice
from harness.report.statistics import Interval, Ratio, seeds_interval
from harness.report.tables.captions import groups_line, meanings_of_marks, rounded_weights
from harness.report.tables.classes import class_tables
from harness.report.tables.cost import cost_of
from harness.report.tables.entries import ABSENT, cost, rate, score_style, speed_marks
from harness.report.tables.published import published_of
from harness.report.tables.rows import Row, Rows, group, several_seeds
from harness.report.tables.table import Table, comparison_of, title

EDGE = "†"
SURVEY = ["model", "method", "asked", "scores", "peak", "written", "price", "spent", "status"]


def tables(
    records: Sequence[Record], folder: Path | None, columns: Sequence[str] | None = None, price: float | None = None
) -> list[Table]:
    """What `harness table` shows of a study: each method in its best setting, then every setting.

    Where nothing was tuned there are no settings to choose from, and models stand side by side instead: `survey_of`.
    Where others published a score and nothing to choose a setting by, all settings stand by score: `published_of`.
    Where answers are labels, `class_tables` follow.

    folder: of the study, where the items lie. columns: of the second table, which then stands alone. price: dollars for
    an hour of one device. UserError for a price of records of several kinds of devices.
    """
    if price is not None:
        require_one_device(records, "--price")
    rows = group(records, price)
    if columns is not None:
        return [comparison_of(rows, columns)]
    answer = StudyAnswer(rows, folder)
    return [*tables_of(answer), *class_tables(answer)]


def costs(records: Sequence[Record], folder: Path | None, price: float) -> list[Table]:
    """What `harness table --cost` shows of a study. folder, price: as of `tables`, which raises for the same."""
    require_one_device(records, "--price")
    return [cost_of(StudyAnswer(group(records), folder), price)]


def tables_of(answer: StudyAnswer) -> list[Table]:
    """`tables` with the answer."""
    return [first_table(answer), comparison_of(answer.rows)]


def first_table(answer: StudyAnswer) -> Table:
    """What shows first what `answer` compares: a row for each of its `choices`, or of untuned models for each setting.

    `Table.data` is None: the numbers are those of `comparison`.
    """
    if answer.untuned:
        return survey_of(answer.rows)
    return published_of(answer, answer.reruns) if answer.reruns else best_of(answer)


def survey_of(rows: Rows) -> Table:
    """Models as they are, before any tuning: what they score and what they take. `Table.data` is None, as `best`'s."""
    settings = ["setting"] if any(row.setting for row in rows) else []
    columns = [*SURVEY[:2], *settings, *SURVEY[2:]]
    return replace(comparison_of(rows, columns), title=f"{title(rows)}: models as they are", data=None)


def best(records: Sequence[Record], folder: Path | None) -> Table:
    """`first_table` of `records`. folder: of the study, where the items lie."""
    return first_table(answer(records, folder))


def best_of(answer: StudyAnswer) -> Table:
    """Each method of a study in the setting that `select` chose for it, and how it stands by each score.

    Brackets hold 95% intervals. Methods that share a letter do not differ significantly (`pairwise.contests`). The
    caption states the limits of the study.
    """
    rows, contests, choices, settled = answer.rows, answer.contests, answer.choices, answer.settled
    records = rows.records
    columns = {name: [choice.place[i] for choice in choices] for i, name in enumerate(("Study", "Model", "Data"))}
    columns = {name: column for name, column in columns.items() if len(set(column)) > 1}
    columns["Method"] = [choice.method for choice in choices]
    columns["Setting"] = [_setting(choice) for choice in choices]
    columns["Tries"] = [_tries(choice) for choice in choices]
    if several_seeds(row for row in settled if row):
        columns["Seeds"] = [_seeds(row, choice) for row, choice in zip(settled, choices, strict=True)]
    columns["Peak train memory"] = _with_ratios(memory_to_full(settled), units.size)
    speeds = _with_ratios(speed_to_lora(settled, records), rate)
    marks = [speed_marks(row) if row else "" for row in settled]
    columns["Tokens/s"] = [text + mark for text, mark in zip(speeds, marks, strict=True)]
    if rows.price is not None:
        columns["Cost"] = [cost(row, rows) if row else ABSENT for row in settled]
    for name in dict.fromkeys(contest.score for contest in contests):
        header, texts = _score_column([contest for contest in contests if contest.score == name], records, choices)
        columns[header] = texts
    if any(contest.primary and contest.differences for contest in contests):
        columns["Best (expected rank)"] = [_rank(choice, headline(contests, choice.place)) for choice in choices]
    columns["Validation loss"] = [_loss(row) for row in settled]
    return Table(
        title=f"{title(rows)}: best settings",
        columns=list(columns),
        rows=[list(texts) for texts in zip(*columns.values(), strict=True)],
        caption=list(_caption(answer)),
        data=None,
        answer=answer.sentences,
    )


# Cells


def _setting(choice: Choice) -> str:
    return (choice.setting or ABSENT) + (f" {EDGE}" if choice.edges else "")


def _tries(choice: Choice) -> str:
    return f"{choice.tries} ({by_status(choice.lost)})" if choice.lost else str(choice.tries)


def _seeds(row: Row | None, choice: Choice) -> str:
    if row is None or row.records[0].cell.seed is None:
        return ABSENT
    if not choice.confirmed or not choice.unfinished:
        return str(len(row.records))
    return f"{len(choice.index)} ({by_status(choice.unfinished)})"


def _loss(row: Row | None) -> str:
    losses = row.values("validation_loss") if row else []
    if not losses:
        return ABSENT
    interval = seeds_interval(losses)
    text = units.significant(sum(losses) / len(losses))
    return text + (f" ({units.significant(interval.low)}–{units.significant(interval.high)})" if interval else "")


def memory_to_full(rows: Sequence[Row | None]) -> list[Relative]:
    """The peak of training memory of each row, relative to that of full fine-tuning."""
    return relative(rows, "full", TRAIN_MEMORY, _of_several_seeds)


def _of_several_seeds(row: Row, reference: Row, others: Sequence[Row]) -> Ratio | None:
    """`memory_ratio`, where its spread was measured."""
    over = memory_ratio(row, reference, others)
    return over if over and over.units > 1 else None


def speed_to_lora(rows: Sequence[Row | None], records: Sequence[Record]) -> list[Relative]:
    """The steady tokens/s of each row, relative to those of LoRA. records: all of the study."""
    return relative(rows, "lora", "tokens_per_second_steady", speed_ratios(records))


class Relative(NamedTuple):
    """A measure of a row, and its ratio to that of another method; None if it is unknown.

    interval: of the ratio, where there are repeats.
    """

    value: float | None
    ratio: float | None = None
    interval: Interval | None = None


def relative(rows: Sequence[Row | None], method: str, measure: str, ratio: Ratios) -> list[Relative]:
    """A measure of each row, and its ratio to that of `method`."""
    relatives = []
    for row in rows:
        own = row.mean(measure) if row else None
        if row is None or own is None:
            relatives.append(Relative(None))
            continue
        here = [other for other in rows if other and other.place == row.place]
        references = [other for other in here if other.method == method]
        reference = references[0] if len(references) == 1 else None  # of several settings none stands for the method
        over = None if reference is None else row.over(reference, measure)
        if reference is None or over is None:
            relatives.append(Relative(own))
        else:
            measured = None if row is reference else ratio(row, reference, here)
            relatives.append(Relative(own, over, measured.interval if measured else None))
    return relatives


def _with_ratios(relatives: Sequence[Relative], text: Callable[[float], str]) -> list[str]:
    cells = []
    for value, ratio, interval in relatives:
        ends = f", {interval.low:.2f}–{interval.high:.2f}" if interval else ""
        cells.append(ABSENT if value is None else text(value) + (f" ({ratio:.2f}×{ends})" if ratio is not None else ""))
    return cells


def _score_column(contests: list[Contest], records: Sequence[Record], choices: list[Choice]) -> tuple[str, list[str]]:
    """Header and cells of one score, of which `contests` are the contests in each place."""
    score = next(s for c in choices for i in c.index for s in records[i].scores if score_name(s) == contests[0].score)
    standings = {(contest.place, s.choice.label): s for contest in contests for s in contest.standings}
    header, format_value = score_style(score, [standing.value for standing in standings.values()])
    cells = []
    for choice in choices:
        standing = standings.get((choice.place, choice.label))
        if standing is None:
            cells.append(ABSENT)
            continue
        interval = standing.interval
        between = " to " if interval and interval.low < 0 else "–"
        ends = f" ({format_value(interval.low)}{between}{format_value(interval.high)})" if interval else ""
        cells.append(f"{format_value(standing.value)}{ends}{f' {standing.letters}' if standing.letters else ''}")
    return header, cells


def _rank(choice: Choice, contest: Contest | None) -> str:
    """The probability that a method is the best one, and its expected rank, by the score of the data's task."""
    standing = next((s for s in contest.standings if s.choice == choice), None) if contest else None
    if standing is None or standing.rank is None:
        return ABSENT
    share = standing.rank.best
    text = "< 1%" if share < 0.01 else "> 99%" if share > 0.99 else f"{share:.0%}"
    return f"{text} ({standing.rank.expected:.1f})"


# Caption


def _caption(answer: StudyAnswer) -> Iterator[str]:
    records, choices, contests = answer.rows.records, answer.choices, answer.contests
    yield from answer.standings
    if contests:
        yield from _score_caption(records, choices, contests)
    else:
        yield "No chosen setting has a score."
    yield from _tries_caption(choices, contests)
    yield from _places_caption(choices)
    if any(contest.differences for contest in contests) and not answer.plan.interim:  # which the answer begins with
        yield answer.plan.sentence
    yield (
        f"Memory is {meaning(records)}; × is its ratio to full. Tokens/s counts raw tokens; × "
        "is its ratio to lora. Ratios have 95% intervals over seeds and runs, unless there was a single run or it "
        "shared the machine."
    )
    yield from rounded_weights(records)
    compared = [records[i] for choice in choices for i in choice.index]
    yield from (sentence for sentence, _ in first_projections(compared))
    yield from meanings_of_marks(row for row in answer.settled if row)


def _score_caption(records: Sequence[Record], choices: list[Choice], contests: Sequence[Contest]) -> Iterator[str]:
    trained = [choice for choice in choices if choice.index and records[choice.index[0]].cell.seed is not None]
    singles = [choice.label for choice in trained if len(choice.index) == 1]
    tested = [contest.differences[pair] for contest in contests for pair in contest.corrected]
    pairs = len(tested)
    over = "items" if len(singles) == len(trained) else "seeds and items"
    counts = {c.clusters for c in contests if c.clusters}
    tests = {"McNemar's exact test" if gap.exact else "Student's t" for gap in tested}
    seeds = " and seed" * any(gap.by_seed for gap in tested)
    paired = f"paired by item{seeds}; {' or '.join(sorted(tests))}"
    corrected = f"p ≥ 0.05, {paired}, studentized range, correction for {_families(contests)}"
    letters = f" Methods that share a letter are undecided, not equal: no test tells them apart ({corrected})."
    picked = " That of the best method includes that it was picked by its score."
    yield f"Brackets: 95% intervals over {over}.{f'{picked}{letters}' if pairs else ''}"
    if any(contest.corrected and contest.many for contest in contests):
        yield (
            f"Of more than {MANY} methods each is tested against the best one alone; those that are not significantly "
            "worse share the letter a with it. As the best one is itself observed, all pairs of the methods that are "
            "not found worse yet count as tests."
        )
    if counts:
        yield groups_line(sorted(counts))
    if pairs:
        yield (
            "Best: how likely a method is the best one (bootstrap over seeds and groups of items), and its expected "
            f"rank, by the score of the data's task{'; of one seed, for the trained models alone' * bool(singles)}."
        )
    if singles:
        who = "Single seed" if len(singles) == len(trained) else f"Single seed of {units.listed(singles)}"
        yield f"{who}: intervals and letters exclude seed-to-seed variance. They hold for the trained models only."
    if any(len(choice.index) == 2 for choice in trained):
        yield "Two seeds: intervals are wide, so few differences are significant."
    alone = dict.fromkeys(
        s.choice.label for c in contests if c.primary for s in c.standings if s.letters is None and len(c.standings) > 1
    )
    if alone:
        yield f"No letter, as items are missing or differ from those of other methods: {units.listed(alone)}."
    others = dict.fromkeys(label for c in contests if c.corrected for labels in c.paired[1:] for label in labels)
    if apart := [label for label in others if label not in alone]:
        yield f"Letters with /2: {units.listed(apart)} answered other items, and are compared among themselves."


def _families(contests: Sequence[Contest]) -> str:
    """For how many pairs p-values are corrected: those of methods, and apart from them those with an untuned model."""
    with_untuned = [not contest.untuned.isdisjoint(pair) for contest in contests for pair in contest.corrected]
    of_methods, untuned = with_untuned.count(False), with_untuned.count(True)
    parts = [f"{units.plural(of_methods, 'pair')}"] if of_methods else []
    parts += [f"{untuned} with untuned models"] if untuned else []
    return ", and apart for ".join(parts)


def _tries_caption(choices: list[Choice], contests: Sequence[Contest]) -> Iterator[str]:
    if any(choice.tries > 1 for choice in choices):
        yield (
            "Each setting has the least validation loss, mean over seeds, of its method's settings that finished with "
            "every seed. Test scores take no part."
        )
        for place in dict.fromkeys(choice.place for choice in choices):
            if sentence := optimism([choice for choice in choices if choice.place == place], headline(contests, place)):
                yield sentence
        if confirmed := [choice.label for choice in choices if choice.confirmed]:
            yield (
                f"Fresh seeds, which took no part in the choice, stand for {units.listed(confirmed)}: the best of "
                "several tries looks no better there than it is."
            )
        if single := dict.fromkeys(choice.label for choice in choices if choice.rates == 1):
            each = "it" if len(single) == 1 else "each"
            yield f"One learning rate was tried of {units.listed(single)}; another one may suit {each} better."
    elif any(choice.experiment is None for choice in choices):
        yield "Each method had one setting; another one may suit it better."


def _places_caption(choices: list[Choice]) -> Iterator[str]:
    places = list(dict.fromkeys(choice.place for choice in choices))
    for place in places:
        here = [choice for choice in choices if choice.place == place]
        where = "".join(f" in {name.rstrip(':')}" for name in place_prefix(place, places))
        if edges := "; ".join(f"{choice.label} {edge}" for choice in here for edge in choice.edges):
            yield f"{EDGE} Best value at the edge of its grid{where}; a wider grid may be better: {edges}."
        for method, reason in dict.fromkeys((choice.method, choice.reason) for choice in here if choice.reason):
            yield f"{method}{where}: no setting chosen, {reason}."
        if alone := dict.fromkeys(choice.method for choice in here if choice.experiment):
            yield (
                f"Each setting of {units.listed(alone)}{where} stands by itself. The best of several looks better "
                "than it is."
            )
