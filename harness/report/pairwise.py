"""Compares the methods of a study pairwise, each in its chosen setting: scores with intervals, differences, ties.

The question is whether any other method is as good as the best one: each is tested against it, and where all are
worse, the next best is tested likewise. All these tests of primary scores in one report are corrected together
(`statistics.stepwise`); a task's other metrics and filters show intervals and ranks, and are not tested. Not being told
apart is not being equal: `Contest.equivalent` has the methods that two one-sided tests find within a margin of the best
one.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import special

from harness.record import Record, Score
from harness.report import statistics
from harness.report.frame import score_name
from harness.report.headline import LEARNED, trained_for
from harness.report.items.answered import Items, answers
from harness.report.select import Choice, select
from harness.report.statistics import ALPHA, Answers, Difference, Interval, MethodRank

MANY = 10  # of more methods than this, pairs without the best one are not tested: few would be found, and none read
MOST_PAIRED = 60  # of more, such as settings without a choice, only pairs with the best and the best tuned one are made
MARGIN = 0.02  # methods whose scores are surely closer than this (a fraction of 1) are equivalent
DECISIONS = ("different", "equivalent", "not decided")


@dataclass(frozen=True)
class Standing:
    """One method's score in its chosen setting.

    interval: mean over seeds with a 95% interval (`statistics.mean_intervals`, or `statistics.summary_interval` without
        items); None if the error is unknown. Its lucky end is further out where luck may have chosen the setting, or
        made this method the best one of several that no test tells apart.
    over_seeds: the part of the variance that seeds make; 0 where it is unknown.
    letters: methods that share a letter can't be told apart; None if the method was not tested against others. Those of
        methods that answered other items than most end in /2, /3, …: only equal endings are compared.
    rank: how likely it is the best of the methods with the same items as most, and its expected rank; None for others,
        and of more than MOST_PAIRED.
    """

    choice: Choice
    value: float
    interval: Interval | None
    over_seeds: float = 0.0
    letters: str | None = None
    rank: MethodRank | None = None


@dataclass(frozen=True)
class Contest:
    """The methods of one place compared by one score.

    score: its name in `frame`, TASK/METRIC/FILTER.
    standings: best first.
    paired: labels of methods that answered the same items, best first, for each set of items; most methods first.
    differences: for pairs of `Choice.label`, the one with the better mean first: the first less the second, on the
        seeds that both have, if there are any. Of more than MOST_PAIRED methods for pairs with the best one or the best
        tuned one alone.
    corrected: p-values of those that are tested, by `statistics.stepwise` over all primary contests that were made
        together: of each method against the best one, and, up to MANY methods, of the others against the next best one
        once all are found worse than the best. Differences from an untuned model are a family of their own (Holm): it
        is no method to choose. 1 of a pair whose common seeds speak against the order of the means. Empty if this one
        is not primary.
    equivalent: labels of methods that two one-sided tests find within MARGIN of the best one, corrected likewise.
    one_seed: labels of methods with a single seed: conclusions hold for the trained models, not for other seeds.
    untuned: labels of models as they are, beside which others were tuned.
    clusters: how many groups of items (subjects, passages, templates) are independent; None if items are.
    seed_spread: standard deviation of the score from seed to seed, pooled over methods; None without repeated seeds.
    primary: whether this is the task's one score that is tested.
    proportions: whether the score is one by what it is (`Score.is_proportion`).
    """

    place: tuple[str, str, str]
    score: str
    higher_is_better: bool
    standings: list[Standing]
    paired: list[list[str]]
    differences: dict[tuple[str, str], Difference]
    corrected: dict[tuple[str, str], float]
    equivalent: list[str]
    one_seed: list[str]
    clusters: int | None = None
    seed_spread: float | None = None
    primary: bool = True
    untuned: frozenset[str] = frozenset()
    proportions: bool = True

    @property
    def many(self) -> bool:
        """Whether each method is tested against the best one alone."""
        return any(map(_many, self.paired))

    def gap(self, one: str, other: str) -> Difference:
        """The mean of `one` less that of `other`, whichever is the better; KeyError if they are not paired."""
        if (one, other) in self.differences:
            return self.differences[one, other]
        return self.differences[other, one].turned

    def difference(self, one: str, other: str) -> Difference | None:
        """As `gap`; None if they are not paired."""
        paired = (one, other) in self.differences or (other, one) in self.differences
        return self.gap(one, other) if paired else None

    @property
    def against_best(self) -> dict[str, Difference]:
        """By label, the difference of the best method's score and that of each method paired with it."""
        best = self.standings[0].choice.label
        return {other: gap for (one, other), gap in self.differences.items() if one == best}

    @property
    def by_decision(self) -> dict[str, list[str]]:
        """Labels of `against_best` for each of DECISIONS."""
        return {said: [other for other in self.against_best if self.decision(other) == said] for said in DECISIONS}

    def alike(self, label: str) -> list[str]:
        """Labels of the other methods that answered the same items as `label`, best first."""
        same = next((labels for labels in self.paired if label in labels), [])
        return [other for other in same if other != label]

    def tied(self, label: str) -> list[str]:
        """Those of `alike` that are not told apart from `label`."""
        apart = {frozenset(pair) for pair, p in self.corrected.items() if p < ALPHA}
        return [other for other in self.alike(label) if {label, other} not in apart]

    def decision(self, other: str, best: str | None = None) -> str:
        """One of DECISIONS on `other` against `best`, by default the best method: equivalence to another is not tested.

        Equivalent also if it is surely a little worse: methods within MARGIN tie. Not decided also if the pair was not
        tested.
        """
        first = self.standings[0].choice.label
        if best in (None, first) and other in self.equivalent:
            return "equivalent"
        return "different" if self.corrected.get((best or first, other), 1.0) < ALPHA else "not decided"


def contests(records: Sequence[Record], folder: Items | None, choices: Sequence[Choice] | None = None) -> list[Contest]:
    """A contest for each place and score, among the chosen settings that have the score with every seed.

    records: those whose positions `choices` refer to. folder: of the study, where the items are; None compares
    nothing. choices: by default each method's best setting.

    Two methods differ if the corrected p-value of their difference is below 0.05; otherwise they share a letter. Only
    methods that answered the same items, with equal shots and task version, are paired.
    """
    choices = select(records) if choices is None else choices
    unlettered = []
    for place in dict.fromkeys(choice.place for choice in choices):
        here = [choice for choice in choices if choice.place == place]
        scores = [{score_name(score): score for i in choice.index for score in records[i].scores} for choice in here]
        names = list(dict.fromkeys(name for own in scores for name in own))
        groups = [[records[i] for i in choice.index] for choice in here]
        for name in ordered_scores(names, place[2]):
            tested = name == primary(name.partition("/")[0], names, place[2])
            unlettered.append(replace(_contest(groups, here, name, folder), primary=tested))
    return _lettered([contest for contest in unlettered if contest.standings])


def ordered_scores(names: Sequence[str], data: str) -> list[str]:
    """Scores by task, that of what was trained first; of each task the score by which it is tested first."""
    tasks = list(dict.fromkeys(name.partition("/")[0] for name in names))

    def place(name: str) -> tuple[bool, int, bool]:
        task = name.partition("/")[0]
        return task != trained_for(data), tasks.index(task), name != primary(task, names, data)

    return sorted(names, key=place)


def primary(task: str, names: Sequence[str], data: str) -> str:
    """The score by which a task is tested: what the data set trains for, else the first that the task defines."""
    own = [name for name in names if name.partition("/")[0] == task]
    return next((name for name in own if name == LEARNED.get(data) or name in LEARNED.values()), own[0])


def items(folder: Items, records: Sequence[Record], name: str) -> tuple[Answers, tuple[Any, ...]] | None:
    """The values of the score `name` of one setting's records by seed, with clusters, and an identifier of the items.

    Items of one subject, or of one value in the column `cluster`, are a cluster. None if a file is missing or lacks the
    score, if two seeds answered different items, or if a value is missing (null or nan).
    """
    records = sorted(records, key=lambda record: record.cell.seed or 0)
    by_seed = [of_record for record in records if (of_record := _read(folder, record, name))]
    if len(by_seed) < len(records) or len({which for _, which in by_seed}) != 1:
        return None
    first, which = by_seed[0]
    seeds = tuple(record.cell.seed for record in records)
    return Answers(np.stack([answers.values[0] for answers, _ in by_seed]), first.clusters, seeds), which


def _read(folder: Items, record: Record, name: str) -> tuple[Answers, tuple[Any, ...]] | None:
    """One record's answers sorted by subject and index; only the columns needed are read."""
    score = score_of(record, name)
    if score is None:
        return None
    table = answers(folder, record, score)
    if not table or len(table) < 2 or not np.isfinite(table.values).all():
        return None
    values = table.values
    if score.by_subject:  # so that the mean over items is that of the subjects' means, and deviations weigh alike
        sizes = np.array([*table.subjects.values()])
        weights = np.repeat(len(values) / len(sizes) / sizes, sizes)
        mean = float((weights * values).mean())
        values = mean + weights * (values - mean)
    return Answers(values[None], table.clusters()), (score.num_fewshot, score.version, *table.identity)


def of_summaries(scores: Sequence[Score]) -> Interval | None:
    """The mean of scores, one a seed, and its interval by what their records say of their items; None if nothing."""
    shares = all(score.is_proportion for score in scores)
    worth = min((score.clusters or score.n for score in scores), default=0)
    interval = statistics.summary_interval(
        [score.value for score in scores], [score.stderr for score in scores], worth if shares and worth else None
    )
    return _within(interval) if interval and shares else interval


def _within(interval: Interval) -> Interval:
    """The part of a proportion's interval that lies between 0 and 1."""
    return Interval(interval.value, max(0.0, interval.low), min(1.0, interval.high))


def score_of(record: Record, name: str) -> Score | None:
    return next((score for score in record.scores if score_name(score) == name), None)


def _contest(groups: list[list[Record]], choices: list[Choice], name: str, folder: Items | None) -> Contest:
    """A contest without letters. groups: the records of each choice."""
    standings: list[Standing] = []
    samples: dict[str, tuple[Answers, tuple[Any, ...]]] = {}
    higher, shares = True, True
    for choice, records in zip(choices, groups, strict=True):
        scores = [score for record in records if (score := score_of(record, name))]
        if not records or len(scores) < len(records):
            continue
        higher = scores[0].higher_is_better
        shares = shares and all(score.is_proportion for score in scores)
        standings.append(Standing(choice, float(np.mean([score.value for score in scores])), of_summaries(scores)))
        if folder and (sample := items(folder, records, name)):
            samples[choice.label] = sample
    standings.sort(key=lambda standing: -standing.value if higher else standing.value)
    labels = [standing.choice.label for standing in standings if standing.choice.label in samples]
    paired: list[list[str]] = []
    intervals: dict[str, Interval] = {}
    over_seeds: dict[str, float] = {}
    gaps: dict[tuple[str, str], Difference] = {}
    ranked: dict[str, MethodRank] = {}
    rivals = {choice.label: choice.rivals for choice in choices}
    tuned = {c.label for c, group in zip(choices, groups, strict=True) if group and group[0].cell.seed is not None}
    for which, _ in Counter(samples[label][1] for label in labels).most_common():
        group = [label for label in labels if samples[label][1] == which]
        answered = [samples[label][0] for label in group]
        over_items = statistics.mean_intervals(answered)
        intervals |= zip(group, map(_within, over_items) if shares else over_items, strict=True)
        over_seeds |= {
            label: float(level.variance) for label, level in zip(group, statistics.levels(answered), strict=True)
        }
        if len(group) > 1:
            pairs = _paired(group, tuned) if len(group) > MOST_PAIRED else None
            gaps |= {
                (group[i], group[j]): gap.chosen(max(rivals[group[i]], rivals[group[j]]))
                for (i, j), gap in statistics.differences(answered, pairs).items()
            }
        if 1 < len(group) <= MOST_PAIRED and not paired:
            ranked = dict(zip(group, statistics.ranks(answered, higher), strict=True))
        paired.append(group)
    ordered = [samples[label][0] for label in paired[0]] if paired else []
    first = ordered[0] if ordered else None
    return Contest(
        place=choices[0].place,
        score=name,
        higher_is_better=higher,
        standings=[
            replace(
                s,
                interval=intervals.get(s.choice.label, s.interval),
                over_seeds=over_seeds.get(s.choice.label, 0.0),
                rank=ranked.get(s.choice.label),
            )
            for s in standings
        ],
        paired=paired,
        differences=gaps,
        corrected={},
        equivalent=[],
        one_seed=[c.label for c, group in zip(choices, groups, strict=True) if _single(group)],
        clusters=first.groups if first is not None else None,
        seed_spread=_seed_spread(ordered),
        untuned=frozenset(s.choice.label for s in standings) - tuned if tuned else frozenset(),
        proportions=shares,
    )


def _with_luck(contest: Contest) -> Contest:
    """With intervals that include how each setting was chosen, and that the best method is seen to be the best.

    The best one was picked of all methods that no test finds worse, and their settings of others by validation losses.
    """
    if not contest.standings:
        return contest
    first, *others = (_lucky(s, s.choice.rivals, s.over_seeds, contest.higher_is_better) for s in contest.standings)
    best = contest.standings[0]
    tied = contest.tied(best.choice.label)
    if contest.primary and tied:
        rivals = best.choice.rivals + sum(s.choice.rivals for s in contest.standings if s.choice.label in tied)
        errors = [contest.gap(best.choice.label, other).error for other in tied]
        own = max(best.over_seeds, float(np.mean(np.square(errors))) / 2)
        first = _lucky(best, rivals, own, contest.higher_is_better)
    return replace(contest, standings=[first, *others])


def _lucky(standing: Standing, rivals: int, own: float, higher: bool) -> Standing:
    """With the interval of a score that was picked of `rivals`. own: what each has of its variance for itself."""
    if standing.interval is None or rivals < 2:
        return standing
    value, low, high = standing.interval
    half = (high - low) / 2 / -float(special.ndtri(ALPHA / 2))
    times = statistics.luck(rivals, own / half**2) if half else 1.0
    if higher:
        least = 0.0 if low >= 0 else -math.inf
        return replace(standing, interval=Interval(value, max(least, value - times * (value - low)), high))
    return replace(standing, interval=Interval(value, low, value + times * (high - value)))


def _paired(labels: Sequence[str], tuned: Collection[str]) -> list[tuple[int, int]]:
    """The pairs of positions that have the best of `labels`, which are best first, or the best of `tuned`."""
    first = next((i for i, label in enumerate(labels) if label in tuned), 0)
    return [(i, j) for i, j in itertools.combinations(range(len(labels)), 2) if i == 0 or first in (i, j)]


def _seed_spread(samples: Sequence[Answers]) -> float | None:
    """The standard deviation of the score from seed to seed beyond what the items' own chance makes."""
    repeated = [(statistics.seed_level(sample), len(sample.values)) for sample in samples if len(sample.values) > 1]
    if not repeated:
        return None
    weights = [n - 1 for _, n in repeated]
    return max(0.0, float(np.average([n * level.variance for level, n in repeated], weights=weights))) ** 0.5


def _single(records: list[Record]) -> bool:
    return len(records) == 1 and records[0].cell.seed is not None


def _lettered(unlettered: list[Contest]) -> list[Contest]:
    """Each primary contest with corrected p-values, letters, and the methods that are equivalent to the best."""
    tested = [contest for contest in unlettered if contest.primary]
    groups = [(contest, _methods(contest, labels)) for contest in tested for labels in contest.paired]
    corrected = iter(statistics.stepwise([_family(contest, methods) for contest, methods in groups]))
    beside = [_with_untuned(contest, labels) for contest in tested for labels in contest.paired]
    gained_by = [_p(contest, pair) for (contest, _), pairs in zip(groups, beside, strict=True) for pair in pairs]
    gained = iter(statistics.holm(gained_by))
    pairs_of = iter(beside)
    close = iter(statistics.holm([p for contest in tested for p in _closeness(contest).values()]))
    complete = []
    for contest in unlettered:
        if contest.primary:
            ps: dict[tuple[str, str], float] = {}
            for labels in contest.paired:
                own, methods = next(corrected), _methods(contest, labels)
                positions = itertools.combinations(range(len(methods)), 2)
                ps |= {(methods[i], methods[j]): float(own[i, j]) for i, j in positions if not math.isnan(own[i, j])}
                ps |= {pair: float(next(gained)) for pair in next(pairs_of)}
            near = [label for label in _closeness(contest) if next(close) < ALPHA]
            contest = replace(_with_letters(contest, ps), equivalent=near)
        complete.append(_with_luck(contest))
    return complete


def _many(labels: Sequence[str]) -> bool:
    return len(labels) > MANY


def _methods(contest: Contest, labels: Sequence[str]) -> list[str]:
    """Those of `labels` that are compared with each other: the tuned ones, or all if none was tuned."""
    return [label for label in labels if label not in contest.untuned] or [*labels]


def _with_untuned(contest: Contest, labels: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of `labels` that have an untuned model which methods are held against."""
    methods = {*_methods(contest, labels)}
    pairs = itertools.combinations(labels, 2)
    return [pair for pair in pairs if not {*pair} <= methods and pair in contest.differences]


def _family(contest: Contest, labels: Sequence[str]) -> statistics.Family:
    """The tests of methods that answered the same items."""
    p, freedom = np.ones((2, len(labels), len(labels)))
    for i, j in itertools.combinations(range(len(labels)), 2):
        if gap := contest.differences.get((labels[i], labels[j])):
            p[i, j], freedom[i, j] = _p(contest, (labels[i], labels[j])), math.inf if gap.exact else gap.freedom
    return statistics.Family(p, freedom, all_pairs=not _many(labels))


def _p(contest: Contest, pair: tuple[str, str]) -> float:
    """That the first of a pair is no better than the second; 1 if it is not better on the seeds that both have.

    Its mean may be the better one by lucky seeds that the other lacks.
    """
    gap = contest.differences[pair]
    return gap.p if (gap.value > 0) == contest.higher_is_better else 1.0


def _closeness(contest: Contest) -> dict[str, float]:
    """By label, the p-value of the hypothesis that a method is MARGIN or more from the best one."""
    return {other: gap.statistic.p_within(MARGIN) for other, gap in contest.against_best.items()}


def _with_letters(contest: Contest, corrected: dict[tuple[str, str], float]) -> Contest:
    letters: dict[str, str] = {}
    for number, labels in enumerate(contest.paired, 1):
        if len(labels) < 2:
            continue
        different = np.zeros((len(labels), len(labels)), dtype=bool)
        for i, j in itertools.combinations(range(len(labels)), 2):
            different[i, j] = different[j, i] = corrected.get((labels[i], labels[j]), 1.0) < ALPHA
        ending = f"/{number}" if number > 1 else ""
        letters |= {one: own + ending for one, own in zip(labels, statistics.letters(different), strict=True)}
    standings = [replace(standing, letters=letters.get(standing.choice.label)) for standing in contest.standings]
    return replace(contest, standings=standings, corrected=corrected)
