"""What a practitioner can act on: the sentences below the first table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from scipy import special

from harness.report.frame import TRAIN_MEMORY
from harness.report.headline import LEARNED
from harness.report.pairwise import MARGIN, Contest
from harness.report.select import Choice
from harness.report.statistics import ALPHA, Difference
from harness.report.tables.rows import Row

POWERED = float(special.ndtri(1 - ALPHA / 2) + special.ndtri(0.8))  # standard errors that 80% of studies find
MOST_SEEDS = 100


def headline(held: Sequence[Contest], place: tuple[str, str, str]) -> Contest | None:
    """The contest that decides between methods: by the score of the data's task, else the first that is tested."""
    here = [contest for contest in held if contest.place == place and contest.primary]
    return next((contest for contest in here if contest.score == LEARNED.get(place[2])), here[0] if here else None)


def ahead(contest: Contest, several: bool) -> str:
    """Sentences on a score: the best method, and which others are worse, equivalent, or not decided."""
    where = f" ({'/'.join(contest.place[1:])})" if several else ""
    name = contest.score.removesuffix("/none").replace("/", " ") + where
    first, *others = contest.standings
    label = first.choice.label
    end = "highest" if contest.higher_is_better else "lowest"
    if not others:
        return f"{name}: only {label} has this score."
    if not contest.primary:
        return f"{name}: {label} scores {end}. Not tested: another score of this task is."
    if first.letters is None:
        return f"{name}: {label} scores {end}. Its items are missing or too few, so no difference from it is tested."
    worse = [other for (one, other), p in contest.corrected.items() if one == label and p < ALPHA]
    near = [other for other in contest.equivalent if other not in worse]
    paired = [other for one, other in contest.differences if one == label]
    open_ = [other for other in paired if other not in worse and other not in near]
    parts = [f"{name}: {label} scores {end}."]
    if worse:
        parts.append(f"Significantly worse: {listed(worse)}.")
    if near:
        parts.append(f"Equivalent to it within ± {100 * MARGIN:g} points: {listed(near)}.")
    if open_:
        parts.append(f"Not decided against it: {listed(open_)}.")
    if label in contest.one_seed:
        parts.append("This is of single trained models (one seed), and no win of a method.")
    return " ".join(parts)


def advice(held: Sequence[Contest], rows: Mapping[str, Row], place: tuple[str, str, str]) -> Iterator[str]:
    """What follows for a choice between methods in one place.

    rows: the chosen row of each method, by its label.
    """
    contest = headline(held, place)
    if contest is None or len(contest.standings) < 2 or contest.standings[0].letters is None:
        return
    seeds = {s.choice.label: len(s.choice.index) for s in contest.standings}
    trained = [s for s in contest.standings if s.letters and rows[s.choice.label].records[0].cell.seed is not None]
    if len(trained) < 2:
        return
    first = trained[0].choice
    if first.label in contest.one_seed:
        yield "What to do: repeat with seed=0,1,2. One seed can't choose between methods."
        return
    parts = [f"What to do: {first.label} ({first.setting or 'its only setting'})"]
    for standing in trained[1:]:
        label = standing.choice.label
        gap = contest.differences.get((first.label, label))
        if gap is None:
            continue
        saved = _saved(rows[label], rows[first.label])
        if contest.corrected.get((first.label, label), 1.0) >= ALPHA and label not in contest.equivalent:
            parts.append(f"{label} is not decided{saved}{_more_seeds(gap, min(seeds[first.label], seeds[label]))}")
        elif contest.score.split("/")[1] != "bits_per_byte":
            low, high = (100 * max(0.0, end) for end in (gap.low, gap.high))
            parts.append(f"{label} loses {low:.0f} to {high:.0f} points{saved}")
    yield "; ".join(parts) + "."


def optimism(choices: Sequence[Choice], contest: Contest | None) -> str | None:
    """By how much the best of several tries looks better than it is, at most; None if nothing was tried twice.

    Of settings that fresh seeds confirmed nothing is said.
    """
    tried = [choice for choice in choices if choice.tries > 1 and choice.index and not choice.confirmed]
    if not tried or contest is None:
        return None
    if contest.seed_spread is None:
        counts = sorted({choice.tries for choice in choices if choice.lr is not None or choice.rank is not None})
        unequal = f", and more so with more tries ({', '.join(map(str, counts))} here)" if len(counts) > 1 else ""
        return (
            "The best of several tries looks better than it is if validation and test share a seed's luck; one seed "
            f"can't tell by how much{unequal}."
        )
    worst = max(tried, key=lambda choice: _luck(choice, contest.seed_spread))
    points = 100 * _luck(worst, contest.seed_spread)
    return (
        f"The best of several tries looks better than it is if validation and test share a seed's luck: by at most "
        f"{points:.1f} points in {contest.score.split('/')[0]} ({worst.label}, best of {worst.tries})."
    )


def _luck(choice: Choice, spread: float) -> float:
    """The expected largest of as many normal means over seeds as there were tries (Blom, 1958)."""
    k = choice.tries
    return float(special.ndtri((k - 0.375) / (k + 0.25))) * spread / len(choice.index) ** 0.5


def _saved(row: Row, reference: Row) -> str:
    ratio = row.over(reference, TRAIN_MEMORY)
    if not ratio or abs(ratio - 1) < 0.02:
        return ""
    return f" and takes {abs(1 - ratio):.0%} {'less' if ratio < 1 else 'more'} memory"


def _more_seeds(gap: Difference, seeds: int) -> str:
    """How many more seeds would find this difference, or show it to be within MARGIN, if it is as large as it looks."""
    target = max(abs(gap.value), MARGIN - abs(gap.value))
    more = math.ceil(seeds * (POWERED * gap.error / target) ** 2) - seeds
    if more < 1:
        return ""
    if more > MOST_SEEDS:
        return " (more seeds alone won't decide it)"
    return f" (about {more} more seed{'s' * (more > 1)} would decide it)"


def listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
