"""The title of each panel: one sentence of what it shows, said no more strongly than its tests allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from harness.report.answer.advice import listed
from harness.report.pairwise import DECISIONS, Contest
from harness.report.statistics import Interval

MANY = 3  # of more methods the number is said instead of their names


def score_and_memory(contest: Contest | None, memory: Mapping[str, float]) -> str:
    """Which method scores best, what its score is not told apart from, and which one takes the least memory.

    memory: of each tuned method that is shown. Empty if no shown method was compared by the score.
    """
    if contest is None:
        return ""
    standings = contest.standings
    first = next((standing for standing in standings if standing.choice.label in memory), None)
    if first is None:
        return ""
    best, end = first.choice.label, "highest" if contest.higher_is_better else "lowest"
    compared, tied = contest.alike(best), contest.tied(best)
    if len(standings) == 1:
        said = f"{best} alone has this score"
    elif first.letters is None:
        said = f"{best} scores {end}; no difference is tested"
    elif len(tied) == len(compared):
        said = f"{best} scores {end}, but nothing is told apart from it"
    elif tied:
        said = f"{best} scores {end}; {_named(tied)} can't be told apart from it"
    else:
        who = "all others" if len(compared) == len(standings) - 1 else _named(compared)
        said = f"{best} scores {end}, {who} significantly worse"
    least = min(memory, key=memory.__getitem__)
    return said if len(memory) < 2 else f"{said}. {least} takes the least memory"


def against_best(contest: Contest) -> str:
    """Which methods the tests find worse than the best one, equivalent to it, or leave open."""
    by = contest.by_decision
    best = contest.standings[0].choice.label
    worse, *others = (_named(methods) if methods else "" for methods in by.values())
    said = f"{worse} {_is(by['different'])} worse than {best}" if worse else f"Nothing is shown to be worse than {best}"
    told = [f"{who} {_is(by[decision])} {decision}" for who, decision in zip(others, DECISIONS[1:], strict=True) if who]
    return "; ".join([said, *told])


def change_with_rank(changes: Mapping[str, Interval], ranks: Mapping[str, tuple[int, int]], unit: str) -> str:
    """By how much the score of each method changes from its lowest rank to its highest.

    changes: by method, in `unit`; ends are nan where the change is not tested. ranks: the lowest and highest of each.
    """
    over = "From its lowest rank to its highest"
    if len(set(ranks.values())) == 1:
        over = "From rank {} to {}".format(*next(iter(ranks.values())))
    if len(changes) > MANY:
        shown = [method for method, change in changes.items() if change.low > 0 or change.high < 0]
        return f"{over}, {_named(shown) if shown else 'no method'} {_is(shown or [''])} shown to change"
    told = [f"{method} changes by {_change(change, unit)}" for method, change in changes.items()]
    return f"{over}, {listed(told)}"


def _change(change: Interval, unit: str) -> str:
    shown = "{:+.1f}" if unit == "points" else "{:+.2g}"
    value, low, high = (shown.format(part).replace("-", "−") for part in (change.value, change.low, change.high))
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
    return f"{len(methods)} methods" if len(methods) > MANY else listed(methods)
