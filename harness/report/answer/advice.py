"""How the methods stand by each score, in sentences below the answer and the first table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scipy import special

from harness.report.headline import LEARNED
from harness.report.pairwise import MARGIN, Contest
from harness.report.select import Choice, Place

MOST_NAMED = 6  # methods that a sentence names; the caption has all


def headline(held: Sequence[Contest], place: Place) -> Contest | None:
    """The contest that decides between methods: by the score of the data's task, else the first that is tested."""
    here = [contest for contest in held if contest.place == place and contest.primary]
    return next((contest for contest in here if contest.score == LEARNED.get(place[2])), here[0] if here else None)


def ahead(contest: Contest, several: bool) -> str:
    """Sentences on a score: the best method, and which others are worse, equivalent, or not decided."""
    name = score_words(contest) + (f" ({'/'.join(contest.place[1:])})" if several else "")
    first, *others = contest.standings
    label = first.choice.label
    end = "highest" if contest.higher_is_better else "lowest"
    if not others:
        return f"{name}: only {label} has this score."
    if not contest.primary:
        return f"{name}: {label} scores {end}. Not tested: another score of this task is."
    if first.letters is None:
        return f"{name}: {label} scores {end}. Its items are missing or too few, so no difference from it is tested."
    parts = [f"{name}: {label} scores {end}."]
    if worse := contest.by_decision["different"]:
        parts.append(f"Significantly worse: {listed(worse)}.")
    if near := contest.by_decision["equivalent"]:
        parts.append(f"Equivalent to it within ± {100 * MARGIN:g} points: {listed(near)}.")
    if left := contest.by_decision["not decided"]:
        parts.append(f"Undecided: {listed(left)}.")
    if label in contest.one_seed:
        parts.append("With one seed, this compares trained models, not methods.")
    return " ".join(parts)


def score_words(contest: Contest) -> str:
    return contest.score.removesuffix("/none").replace("/", " ")


def optimism(choices: Sequence[Choice], contest: Contest | None) -> str | None:
    """By how much the best of several tries looks better than it is, at most; None if nothing was tried twice.

    Of settings that fresh seeds confirmed nothing is said.
    """
    tried = [choice for choice in choices if choice.tries > 1 and choice.index and not choice.confirmed]
    if not tried or contest is None:
        return None
    spread = contest.seed_spread
    if spread is None:
        counts = sorted({choice.tries for choice in choices if choice.lr is not None or choice.rank is not None})
        unequal = f", and more so with more tries ({', '.join(map(str, counts))} here)" if len(counts) > 1 else ""
        return (
            "The best of several tries looks better than it is if validation and test share a seed's luck; one seed "
            f"can't tell by how much{unequal}."
        )
    worst = max(tried, key=lambda choice: _luck(choice, spread))
    points = 100 * _luck(worst, spread)
    return (
        f"The best of several tries looks better than it is if validation and test share a seed's luck: by at most "
        f"{points:.1f} points in {contest.score.split('/')[0]} ({worst.label}, best of {worst.tries})."
    )


def _luck(choice: Choice, spread: float) -> float:
    """The expected largest of as many normal means over seeds as there were tries (Blom, 1958)."""
    k = choice.tries
    return float(special.ndtri((k - 0.375) / (k + 0.25))) * spread / len(choice.index) ** 0.5


def listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def few(names: Sequence[str]) -> str:
    """The first of `names`, which are best first, and how many more there are."""
    more = len(names) - MOST_NAMED + 1
    return listed(names if more < 2 else [*names[: MOST_NAMED - 1], f"{more} more"])
