"""The table of imported experiments of which only summaries were published: all of them, sorted by score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from harness import units
from harness.report.answer import StudyAnswer
from harness.report.answer.published import accuracy_style
from harness.report.frame import measures
from harness.report.reruns import Reruns, best_on_validation
from harness.report.statistics import Interval
from harness.report.tables.entries import ABSENT, rate
from harness.report.tables.table import Table, title

BEST = "*"


def published_of(answer: StudyAnswer, summary: Reruns) -> Table:
    """The experiments of `answer` with intervals of their scores, and which others each differs from significantly.

    `Table.data` is None, as `best`'s.
    """
    tries = Counter(experiment.record.cell.method for experiment in summary.experiments)
    best = [each for each in best_on_validation(summary).values() if tries[each.record.cell.method] > 1]
    header, format_value = accuracy_style(summary)
    columns = ["#", "Method", "Setting", header, "Better than", "Worse than"]
    columns += ["Earlier runs"] * bool(summary.repeated) + ["Reserved in 99% of steps", "Tokens/s amortised"]
    lines = []
    for number, (experiment, choice) in enumerate(zip(summary.experiments, answer.choices, strict=True), 1):
        numbers = measures(experiment.record)
        score, low, high = (format_value(value) for value in experiment.interval)
        earlier = ", ".join(format_value(run.score.value) for run in experiment.runs[:-1])
        line = [str(number), choice.method, (choice.setting or ABSENT) + f" {BEST}" * (experiment in best)]
        line += [f"{score} ({low}–{high})", _numbers(experiment.above), _numbers(experiment.below)]
        line += [earlier or ABSENT] * bool(summary.repeated)
        line += [_text(numbers["train_reserved_p99"], units.size), _text(numbers["tokens_per_second_amortised"], rate)]
        lines.append(line)
    return Table(
        title=f"{title(answer.rows)}: all experiments by score",
        columns=columns,
        rows=lines,
        caption=list(_caption(summary, bool(best))),
        data=None,
        answer=answer.sentences,
    )


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


def _text(value: float | None, text: Callable[[float], str]) -> str:
    return ABSENT if value is None else text(value)


def _caption(summary: Reruns, any_best: bool) -> Iterator[str]:
    pairs, differ = summary.pairs
    yield (
        f"{differ:,} of {pairs:,} pairs of experiments differ significantly (p < 0.05, normal test on the latest runs, "
        f"Holm's correction). Better than, worse than: the rows (#) that an experiment differs from significantly; it "
        "can't be told apart from the others."
    )
    if summary.repeated:
        several = units.plural(summary.repeated, "experiment")
        yield (
            f"Brackets: 95% intervals over items and runs. {several} ran more than once: from run to run an accuracy "
            f"of 50% has a standard deviation of {100 * summary.sd:.1f} points, beside shifts between versions of the "
            "libraries. Earlier runs: their scores, the first one first."
        )
    else:
        yield "Brackets: 95% intervals over items. No experiment ran twice, so they exclude the variance between runs."
    for shift in summary.shifts:
        same = units.plural(shift.experiments, "experiment")
        change = _points(shift.change)
        yield f"From {shift.before} to {shift.after} the score of the same {same} changed by {change} points."
    yield (
        "Answers to single items are not known: items count as independent, and models are not paired by item. Pairing "
        "would narrow the intervals of differences; groups of alike items would widen all."
    )
    if any_best:
        yield f"{BEST} The best of its method by the source's accuracy on its validation items."


def _points(change: Interval) -> str:
    value, low, high = (f"{100 * part:+z.1f}".replace("-", "−") for part in change)
    return f"{value} ({low} to {high})"
