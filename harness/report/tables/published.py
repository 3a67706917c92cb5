"""The table of imported experiments of which only summaries were published: all of them, sorted by score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from harness import units
from harness.report.frame import measures
from harness.report.reruns import Experiment, Reruns, best_on_validation, reruns
from harness.report.statistics import Interval
from harness.report.tables.entries import ABSENT, rate, score_style
from harness.report.tables.rows import Row, Rows
from harness.report.tables.table import Table, title

BEST = "*"


def published_of(rows: Rows) -> Table | None:
    """The experiments of `rows` with intervals of their scores, and which others each differs from significantly.

    None if no finished experiment has a score. `Table.data` is None, as `best`'s.
    """
    found = reruns(rows.records)
    if found is None:
        return None
    row_of = {id(record): row for row in rows for record in row.records}
    tries = Counter(experiment.record.cell.method for experiment in found.experiments)
    best = [each for each in best_on_validation(found).values() if tries[each.record.cell.method] > 1]
    header, shown = score_style(
        found.experiments[0].runs[-1].score, [experiment.interval.value for experiment in found.experiments]
    )
    columns = ["#", "Method", "Setting", header, "Better than", "Worse than"]
    columns += ["Earlier runs"] * bool(found.repeated) + ["Reserved in the whole job", "Tokens/s amortised"]
    lines = []
    for number, experiment in enumerate(found.experiments, 1):
        numbers = measures(experiment.record)
        score, low, high = (shown(value) for value in experiment.interval)
        earlier = ", ".join(shown(run.score.value) for run in experiment.runs[:-1])
        line = [str(number), experiment.record.cell.method, _setting(row_of[id(experiment.record)], experiment, best)]
        line += [f"{score} ({low}–{high})", _numbers(experiment.above), _numbers(experiment.below)]
        line += [earlier or ABSENT] * bool(found.repeated)
        line += [_text(numbers["job_reserved_peak"], units.size), _text(numbers["tokens_per_second_amortised"], rate)]
        lines.append(line)
    return Table(
        title=f"{title(rows)}: all experiments by score",
        columns=columns,
        rows=lines,
        caption=list(_caption(found, bool(best))),
        data=None,
        answer=[" ".join(_answer(found, {key: row.setting for key, row in row_of.items()}, shown))],
    )


def _answer(found: Reruns, settings: Mapping[int, str], shown: Callable[[float], str]) -> Iterator[str]:
    """The experiment with the highest score, and the cheapest one that none is significantly better than.

    settings: by the id of the record. shown: formats a score.
    """
    first, *others = found.experiments
    peaks = ((id(each), measures(each.record)["job_reserved_peak"]) for each in found.experiments)
    memory = {experiment: peak for experiment, peak in peaks if peak}

    def described(each: Experiment) -> str:
        score, low, high = (shown(value) for value in each.interval)
        at = f" at {units.size(memory[id(each)])}" if id(each) in memory else ""
        name = f"{each.record.cell.method} {settings[id(each.record)]}".strip()
        return f"{name}: {score} ({low}–{high}){at}"

    yield f"Best score: {described(first)}."
    if others:
        yield f"Significantly worse: {len(first.above)} of the other {len(others)} experiments."
    even = [each for each in others if not each.below and id(each) in memory]
    least = min(even, key=lambda each: memory[id(each)], default=first)
    if id(first) in memory and memory[id(least)] < memory[id(first)]:
        yield f"Least memory of those that none is significantly better than: {described(least)}."


def _numbers(positions: Sequence[int]) -> str:
    """Numbers of rows, from 1, where three or more in a row are a range: 1, 4–66."""
    stretches: list[list[int]] = []
    for position in positions:
        if stretches and position == stretches[-1][-1] + 1:
            stretches[-1].append(position)
        else:
            stretches.append([position])
    parts = [
        f"{stretch[0] + 1}–{stretch[-1] + 1}" if len(stretch) > 2 else ", ".join(str(i + 1) for i in stretch)
        for stretch in stretches
    ]
    return ", ".join(parts) or ABSENT


def _setting(row: Row, experiment: Experiment, best: list[Experiment]) -> str:
    return (row.setting or ABSENT) + f" {BEST}" * (experiment in best)


def _text(value: float | None, text: Callable[[float], str]) -> str:
    return ABSENT if value is None else text(value)


def _caption(found: Reruns, chosen: bool) -> Iterator[str]:
    pairs, differ = found.pairs
    yield (
        f"{differ:,} of {pairs:,} pairs of experiments differ significantly (p < 0.05, normal test on the latest runs, "
        f"Holm's correction). Better than, worse than: the rows (#) that an experiment differs from significantly; it "
        "can't be told apart from the others."
    )
    if found.repeated:
        several = units.plural(found.repeated, "experiment")
        yield (
            f"Brackets: 95% intervals over items and runs. {several} ran more than once: from run "
            f"to run an accuracy of 50% has a standard deviation of {100 * found.sd:.1f} points, beside shifts between "
            "versions of the libraries. Earlier runs: their scores, the first one first."
        )
    else:
        yield "Brackets: 95% intervals over items. No experiment ran twice, so they exclude the variance between runs."
    for shift in found.shifts:
        same = units.plural(shift.experiments, "experiment")
        change = _points(shift.change)
        yield f"From {shift.before} to {shift.after} the score of the same {same} changed by {change} points."
    yield "Answers to single items were not published: items are taken as independent, which widens the intervals."
    if chosen:
        yield f"{BEST} The best of its method by the source's accuracy on its validation items."


def _points(change: Interval) -> str:
    value, low, high = (f"{100 * part:+.1f}".replace("-", "−") for part in change)
    return f"{value} ({low} to {high})"
