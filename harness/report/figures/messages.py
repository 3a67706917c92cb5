"""The title of each panel: one sentence of what it shows, said no more strongly than its tests allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from harness import units
from harness.report.answer.limits import MEMORY
from harness.report.answer.place import Decision
from harness.report.pairwise import Contest
from harness.report.statistics import Interval

MANY = 3  # of more methods the number is said instead of their names


def score_and_memory(decision: Decision) -> str:
    """Which method to take, or which tie, and which one needs the least memory where that is told."""
    if decision.take:
        decided = f"{decision.take} is better than the rest"
    elif len(decision.tied) > 1:
        decided = f"{_named(decision.tied)} tie"
    elif decision.tied:
        decided = f"{decision.tied[0]} alone is compared"
    else:
        decided = "Undecided"
    least, of_these = decision.under.get(MEMORY), "Of these, " if decision.tied else ""
    return f"{decided}. {of_these}{least} needs the least memory" if least else decided


def against_best(contest: Contest) -> str:
    """Which methods the tests do not tell from the best one, or find equivalent to it, and which they find worse."""
    by = contest.by_decision
    best = contest.standings[0].choice.label
    worse, near = by["different"], by["equivalent"]
    tied = [best, *(other for other in contest.against_best if other not in worse)]
    if len(tied) == 1:
        return f"{best} is better than {_named(worse)}" if worse else f"Nothing is compared with {best}"
    said = [f"{_named(tied)} tie"]
    said += [f"{_named(near)} {_is(near)} equivalent to {best}"] if near else []
    said += [f"{_named(worse)} {_is(worse)} worse"] if worse else []
    return "; ".join(said)


def change_with_rank(changes: Mapping[str, Interval], ranks: Mapping[str, tuple[int, int]], unit: str) -> str:
    """By how much the score of each method changes from its lowest rank to its highest.

    changes: by method, in `unit`; ends are nan where the change is not tested. ranks: the lowest and highest of each.
    """
    over = "From its lowest rank to its highest"
    if len(set(ranks.values())) == 1:
        over = "From rank {} to {}".format(*next(iter(ranks.values())))
    if len(changes) > MANY:
        significant = [method for method, change in changes.items() if change.low > 0 or change.high < 0]
        return (
            f"{over}, {_named(significant) if significant else 'no method'} {_is(significant or [''])} shown to change"
        )
    clauses = [f"{method} changes by {_change(change, unit)}" for method, change in changes.items()]
    return f"{over}, {units.listed(clauses)}"


def _change(change: Interval, unit: str) -> str:
    number_format = "{:+z.1f}" if unit == "points" else "{:+z.2g}"
    value, low, high = (
        number_format.format(part).replace("-", "−") for part in (change.value, change.low, change.high)
    )
    return f"{value} {unit} ({'not tested' if math.isnan(change.low) else f'{low} to {high}'})"


def lost_elsewhere(changes: Mapping[str, Interval], score: str, higher_is_better: bool) -> str:
    """Which methods are shown to lose on a task that they were not trained for: intervals that exclude no change."""
    if all(math.isnan(change.low) for change in changes.values()):
        return f"Changes of {score} are not tested"
    lost = [m for m, change in changes.items() if (change.high < 0 if higher_is_better else change.low > 0)]
    if not lost:
        return f"No method is shown to lose on {score}"
    return f"{_named(lost)} lose{'s' if len(lost) == 1 else ''} on {score}"


def _is(methods: Sequence[str]) -> str:
    return "is" if len(methods) == 1 else "are"


def _named(methods: Sequence[str]) -> str:
    return f"{len(methods)} methods" if len(methods) > MANY else units.listed(methods)
