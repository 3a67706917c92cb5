"""How the methods stand by each score, in sentences below the answer and the first table."""

from __future__ import annotations

from collections.abc import Sequence

from scipy import special

from harness import units
from harness.report.answer.words import ScoreWords
from harness.report.headline import LEARNED
from harness.report.pairwise import MARGIN, Contest
from harness.report.select import Choice, Place
from harness.score_names import score_label

MOST_NAMED = 6  # methods that a sentence names; the caption has all


def headline(contests: Sequence[Contest], place: Place) -> Contest | None:
    """The contest that decides between methods: by the score of the data's task, else the first that is tested."""
    here = [contest for contest in contests if contest.place == place and contest.primary]
    return next((contest for contest in here if contest.score == LEARNED.get(place[2])), here[0] if here else None)


def ahead(contest: Contest, several: bool) -> str:
    """Sentences on a score: which method is better than the others, or which tie, and which are worse or equivalent."""
    name = score_words(contest) + (f" ({'/'.join(contest.place[1:])})" if several else "")
    first, *others = contest.standings
    label = first.choice.label
    if not others:
        return f"{name}: only {label} has this score."
    if not contest.primary:
        return f"{name}: not tested, as another score of this task is."
    if first.letters is None:
        if any(other.letters is not None for other in others):
            return f"{name}: {label} has the best score, but was not compared, as its items are missing or differ."
        return f"{name}: items are missing or too few, so no difference is tested."
    near, worse = contest.by_decision["equivalent"], contest.by_decision["different"]
    tied = [label, *(other for other in contest.against_best if other not in worse)]
    if len(tied) > 1:
        parts = [f"{name}: {units.listed(tied)} tie."]
        parts += [f"Significantly worse than {label}: {units.listed(worse)}."] if worse else []
    else:
        parts = (
            [f"{name}: {label} is significantly better than {units.listed(worse)}."] if worse else [f"{name}: {label}."]
        )
    if near:
        parts.append(f"Equivalent to {label} within ± {ScoreWords(contest).points(MARGIN)}: {units.listed(near)}.")
    if label in contest.one_seed:
        parts.append("With one seed, this compares trained models, not methods.")
    return " ".join(parts)


def score_words(contest: Contest) -> str:
    return score_label(*contest.score.split("/", 2))


def optimism(choices: Sequence[Choice], contest: Contest | None) -> str | None:
    """By how much the best of several tries looks better than it is, at most; None if nothing was tried twice.

    Of settings that fresh seeds confirmed nothing is said.
    """
    selected = [choice for choice in choices if choice.tries > 1 and choice.index and not choice.confirmed]
    if not selected or contest is None:
        return None
    spread = contest.seed_spread
    if spread is None:
        counts = sorted({choice.tries for choice in choices if choice.lr is not None or choice.rank is not None})
        unequal = f", and more so with more tries ({', '.join(map(str, counts))} here)" if len(counts) > 1 else ""
        return (
            "The best of several tries looks better than it is if validation and test share a seed's luck; one seed "
            f"can't tell by how much{unequal}."
        )
    worst = max(selected, key=lambda choice: _luck(choice, spread))
    words, luck = ScoreWords(contest), _luck(worst, spread)
    most = f"{100 * luck:.1f} points" if words.shares else words.points(luck)
    return (
        f"The best of several tries looks better than it is if validation and test share a seed's luck: by at most "
        f"{most} in {words.task} ({worst.label}, best of {worst.tries}). Intervals include that settings were chosen."
    )


def _luck(choice: Choice, spread: float) -> float:
    """The expected largest of as many normal means over seeds as there were tries (Blom, 1958)."""
    k = choice.tries
    return float(special.ndtri((k - 0.375) / (k + 0.25))) * spread / len(choice.index) ** 0.5


def few(names: Sequence[str]) -> str:
    """The first of `names`, which are best first, and how many more there are."""
    more = len(names) - MOST_NAMED + 1
    return units.listed(names if more < 2 else [*names[: MOST_NAMED - 1], f"{more} more"])
