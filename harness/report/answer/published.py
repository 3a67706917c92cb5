"""The answer of imported experiments of which only summaries were published: which tie, and which of them to take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from harness import units
from harness.record import Record
from harness.report.answer.advice import few, score_words
from harness.report.answer.place import Decision, PlaceAnswer, by_cost
from harness.report.frame import measures
from harness.report.pairwise import Contest, Standing, contests
from harness.report.reruns import Reruns
from harness.report.select import Choice, experiments
from harness.report.statistics import MemoryPeak, of_memory
from harness.report.tables.entries import score_style
from harness.report.tables.rows import Rows
from harness.score_names import task_label


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


def published_answer(choices: Sequence[Choice], contests_by_score: Sequence[Contest], reruns: Reruns) -> PlaceAnswer:
    """contests_by_score: the contests of `choices`."""
    (contest,) = (contest for contest in contests_by_score if contest.score == reruns.score)
    behind = {choices[i].label for i in reruns.experiments[0].above}
    tied = {s.choice.label: s for s in contest.standings if s.choice.label not in behind}
    memory = {
        choice.label: measures(each.record)["train_reserved_p99"]
        for choice, each in zip(choices, reruns.experiments, strict=True)
    }
    best = tuple(tied[label] for label in by_cost({label: memory[label] for label in tied}))
    take = best[0].choice.label if len(best) == 1 and len(choices) > 1 else None
    decision = Decision(take, () if take else tuple(sorted(tied)))
    return PlaceAnswer(best, tuple(_sentences(best, memory, reruns, contest)), None, decision)


def published_ahead(contest: Contest, reruns: Reruns) -> str:
    """`advice.ahead` of the score of `reruns`."""
    first, *others = reruns.experiments
    best, name = contest.standings[0].choice.label, score_words(contest)
    if not others:
        return f"{name}: only {best} has this score."
    if len(first.above) == len(others):
        return f"{name}: {best} is significantly better than the other {len(others)} experiments."
    worse = f" Significantly worse: {len(first.above)} of the other {len(others)} experiments." if first.above else ""
    tied = len(others) + 1 - len(first.above)
    return f"{name}: {tied} of {len(others) + 1} experiments tie.{worse}"


def accuracy_style(reruns: Reruns) -> tuple[str, Callable[[float], str]]:
    """`score_style` of the score of `reruns`."""
    experiments = reruns.experiments
    return score_style(experiments[0].runs[-1].score, [each.interval.value for each in experiments])


def _sentences(
    best: Sequence[Standing], memory: Mapping[str, float | None], reruns: Reruns, contest: Contest
) -> Iterator[str]:
    """best: the experiments that none is significantly better than, the cheapest first. memory: of all, by label."""
    header, text = accuracy_style(reruns)
    unit = "%" if header.endswith("(%)") else ""
    task, count = task_label(*contest.score.split("/")[:2]), len(reruns.experiments)
    only = best[0]
    if len(best) == 1:
        score, *bounds = (text(value) for value in only.interval or (only.value,))
        interval = f" ({'–'.join(bounds)})" if bounds else ""
        if count > 1:
            yield f"Take {only.choice.label}: significantly better than the other {count - 1} on {task}."
        yield f"{only.choice.label} scores {score}{interval}{unit}."
        return
    values = [standing.value for standing in best]
    ends = f"{text(min(values))} to {text(max(values))}{unit}"
    worse = f"; {count - len(best)} are significantly worse" if count > len(best) else ""
    yield f"{len(best)} of {count} experiments tie on {task} ({ends}){worse}."
    peaks = {s.choice.label: peak for s in best if (peak := memory[s.choice.label])}
    if len(peaks) == len(best):
        least = min(peaks.values())
        cheap = sorted(label for label, peak in peaks.items() if not _more(peak, least))
        if len(cheap) < len(peaks):
            sizes = dict.fromkeys(units.size(end) for end in (least, max(peaks[label] for label in cheap)))
            need = "needs" if len(cheap) == 1 else "need"
            others = units.size(min(peak for label, peak in peaks.items() if label not in cheap))
            yield f"{few(cheap)} {need} the least memory ({' to '.join(sizes)}; the others at least {others})."


def _more(peak: float, least: float) -> bool:
    """Whether one peak of memory is told to be more than another, of a single run each."""
    ratio = of_memory([MemoryPeak(peak, 0, None)], [MemoryPeak(least, 0, None)])
    return ratio.low > 1
