"""The answer of imported experiments of which only summaries were published: the best one, and the cheapest as good."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from harness import units
from harness.record import Record
from harness.report.answer.advice import score_words
from harness.report.answer.place import PlaceAnswer
from harness.report.frame import measures
from harness.report.pairwise import Contest, contests
from harness.report.reruns import Experiment, Reruns
from harness.report.select import Choice, experiments
from harness.report.tables.entries import score_style
from harness.report.tables.rows import Rows


def experiment_choices(rows: Rows, reruns: Reruns) -> list[Choice]:
    """The experiments as choices, in their order; their `index` refers to the records of `rows`."""
    at = {id(record): i for i, record in enumerate(rows.records)}
    return experiments([at[id(each.record)] for each in reruns.experiments], rows.records, rows.settings)


def experiment_contests(records: Sequence[Record], choices: Sequence[Choice], reruns: Reruns) -> list[Contest]:
    """A contest for each score; that of `reruns` has its intervals, over items and runs. Nothing is paired."""
    intervals = {c.label: each.interval for c, each in zip(choices, reruns.experiments, strict=True)}
    return [
        replace(contest, standings=[replace(s, interval=intervals[s.choice.label]) for s in contest.standings])
        if contest.score == reruns.score
        else contest
        for contest in contests(records, None, choices)
    ]


def published_answer(choices: Sequence[Choice], held: Sequence[Contest], reruns: Reruns) -> PlaceAnswer:
    """held: the contests of `choices`."""
    (contest,) = (contest for contest in held if contest.score == reruns.score)
    behind = {choices[i].label for i in reruns.experiments[0].above}
    best = tuple(standing for standing in contest.standings if standing.choice.label not in behind)
    return PlaceAnswer(best, tuple(_sentences(choices, reruns)))


def published_ahead(contest: Contest, reruns: Reruns) -> str:
    """`advice.ahead` of the score of `reruns`."""
    first, *others = reruns.experiments
    best = contest.standings[0].choice.label
    end = "highest" if contest.higher_is_better else "lowest"
    worse = f" Significantly worse: {len(first.above)} of the other {len(others)} experiments." if others else ""
    return f"{score_words(contest)}: {best} scores {end}.{worse}"


def accuracy_style(reruns: Reruns) -> tuple[str, Callable[[float], str]]:
    """`score_style` of the score of `reruns`."""
    experiments = reruns.experiments
    return score_style(experiments[0].runs[-1].score, [each.interval.value for each in experiments])


def _sentences(choices: Sequence[Choice], reruns: Reruns) -> Iterator[str]:
    """The experiment with the highest score, and the cheapest one that none is significantly better than."""
    _, shown = accuracy_style(reruns)
    label = {id(each): choice.label for each, choice in zip(reruns.experiments, choices, strict=True)}
    peaks = ((id(each), measures(each.record)["job_reserved_peak"]) for each in reruns.experiments)
    memory = {experiment: peak for experiment, peak in peaks if peak}

    def described(each: Experiment) -> str:
        score, low, high = (shown(value) for value in each.interval)
        at = f" at {units.size(memory[id(each)])}" if id(each) in memory else ""
        return f"{label[id(each)]}: {score} ({low}–{high}){at}"

    first, *others = reruns.experiments
    yield f"Best score: {described(first)}."
    if others:
        yield f"Significantly worse: {len(first.above)} of the other {len(others)} experiments."
    even = [each for each in others if not each.below and id(each) in memory]
    least = min(even, key=lambda each: memory[id(each)], default=first)
    if id(first) in memory and memory[id(least)] < memory[id(first)]:
        yield f"Least memory of those that none is significantly better than: {described(least)}."
