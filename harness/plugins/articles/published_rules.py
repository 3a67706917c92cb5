"""The rules that judge claims on figures which others published: docs/published-results.md has them in words.

rule = PublishedRule({"": Contrast("full", "lora", BETTER, abilities={"numerical"})})
judged_on(claim, rule, Evidence…)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Literal

from harness.grouping import grouped
from harness.plugins.articles.claims import (
    DEPENDS,
    OPEN,
    REFUTED,
    SUPPORTED,
    Bounds,
    Claim,
    Decision,
    Judgement,
    judged,
    names,
)
from harness.plugins.articles.merged import sure_somewhere, surely
from harness.plugins.articles.meta_analysis import RandomEffects, random_effects
from harness.plugins.articles.published_figures import Ability, Figure, Metric, PublishedSetting
from harness.plugins.articles.rules import hold_all
from harness.report.statistics import ALPHA, Interval, Statistic

PERCENT = 100.0  # scores are in percent, effects on them are shares
PEAK_VARIES = 0.015  # standard deviation of a peak of memory, as a share, as in `memory_ratio`
ONE_SOURCE = "One source"
NO_FIGURES = "No published figures"
HIGH_RANKS, LOW_RANKS = (64, 128), (8, 16)

Compared = Literal["value", "spread"]
Ranks = Literal["highest", "equal", "high and low"]


@dataclass(frozen=True)
class Contrast:
    """A comparison of two methods within settings.

    one, other: the effect is `one` minus `other`, of a ratio `one` over `other`. bounds: the claim's. abilities: of the
    tasks that count; empty for all but averages. trained: whether the data train for the task; None for both. compared:
    the figures, or their standard deviations over runs. ranks: which figures of an adapter stand for it: that of the
    highest rank, those of the ranks that both have, or of one method the high ranks against the low ones.
    """

    one: str
    other: str
    bounds: Bounds
    metric: Metric = "score"
    abilities: Collection[Ability] = ()
    trained: bool | None = True
    compared: Compared = "value"
    ranks: Ranks = "highest"

    def counts(self, figure: Figure) -> bool:
        """Whether a figure is of a task that the contrast is about, and of one of its methods."""
        abilities = figure.ability in self.abilities if self.abilities else figure.ability != "average"
        trained = self.trained in (None, figure.trained)
        return abilities and trained and figure.metric == self.metric and figure.method in (self.one, self.other)


@dataclass(frozen=True)
class PublishedRule:
    """How a claim is judged on published figures.

    parts: the contrasts by name. holds: whether the claim needs all of them, or any.
    """

    parts: Mapping[str, Contrast]
    holds: Literal["all", "any"] = "all"


@dataclass(frozen=True)
class Effect:
    """The effect in one setting, over all lengths of its training.

    value, error: of ratios their logarithms. freedom: of the error, if all of it is the source's own or known; None if
    some of it is borrowed, or unknown in its degrees of freedom.
    """

    setting: PublishedSetting
    billions: float
    value: float
    error: float
    freedom: float | None
    borrowed: bool

    def interval(self, alpha: float = ALPHA) -> Interval:
        return Statistic(self.value, self.error, math.inf if self.freedom is None else self.freedom).interval(alpha)


@dataclass(frozen=True)
class Vote:
    """What one source says: the mean of its effects."""

    source: str
    effects: tuple[Effect, ...]

    @cached_property
    def value(self) -> float:
        return fmean(effect.value for effect in self.effects)

    @cached_property
    def error(self) -> float:
        return math.hypot(*(effect.error for effect in self.effects)) / len(self.effects)

    def interval(self) -> Interval:
        """On the scale of `value`, by the normal distribution."""
        return Statistic(self.value, self.error, math.inf).interval()


@dataclass(frozen=True)
class PublishedPart:
    """A contrast, the votes on it and their meta-analysis (None without votes), and the judgement on them."""

    name: str
    contrast: Contrast
    votes: tuple[Vote, ...]
    pooled: RandomEffects | None
    judgement: Judgement

    @property
    def effects(self) -> list[Effect]:
        return [effect for vote in self.votes for effect in vote.effects]

    @property
    def billions(self) -> tuple[float, float] | None:
        """The smallest and the largest model, in 10⁹ weights; None without figures."""
        sizes = [effect.billions for effect in self.effects]
        return (min(sizes), max(sizes)) if sizes else None

    @cached_property
    def without_the_furthest(self) -> tuple[str, RandomEffects] | None:
        """The source without which the mean is another by most, and the meta-analysis without it; None of fewer than
        three sources."""
        if self.pooled is None or len(self.votes) < 3:
            return None
        others = {vote.source: [other for other in self.votes if other is not vote] for vote in self.votes}
        means = {source: _pooled(votes) for source, votes in others.items()}
        mean = self.pooled.value
        return max(means.items(), key=lambda each: abs(each[1].value - mean))

    def in_unit(self, interval: Interval) -> Interval:
        """An interval of this part in the unit of the claim."""
        return _unscaled(interval, self.contrast.bounds.ratio)


@dataclass(frozen=True)
class PublishedVerdict:
    """The verdict on a claim. part: the one whose effect is shown: that closest to contradicting the claim."""

    claim: Claim
    judgement: Judgement
    parts: tuple[PublishedPart, ...]
    part: PublishedPart

    @property
    def decision(self) -> Decision:
        return self.judgement.decision

    @property
    def sources(self) -> list[str]:
        """Of all parts, each once."""
        return list(dict.fromkeys(vote.source for part in self.parts for vote in part.votes))

    @property
    def uncertain(self) -> bool:
        """Whether another source may decide otherwise: the prediction interval is not on the verdict's side."""
        if self.part.pooled is None or self.decision not in (SUPPORTED, REFUTED):
            return False
        predicted = self.part.in_unit(self.part.pooled.prediction())
        return self.part.contrast.bounds.judge(predicted) != self.decision


def published_verdicts(
    claims: Mapping[str, Claim], rules: Mapping[str, PublishedRule], figures: Sequence[Figure]
) -> list[PublishedVerdict]:
    """A verdict for each of `rules`, in their order."""
    borrowed = {metric: pooled_deviation(figures, metric) for metric in ("score", "seconds")}
    return [_verdict(claims[name], rule, figures, borrowed) for name, rule in rules.items()]


def pooled_deviation(figures: Iterable[Figure], metric: str) -> float | None:
    """The standard deviation of a run, pooled over all figures of `metric` that are means of several runs, each with
    its degrees of freedom; of seconds as a share of them. None if there is none."""
    squares, freedom = 0.0, 0.0
    for figure in figures:
        if figure.metric == metric and figure.error_is in ("sd", "se") and (figure.runs or 0) > 1:
            squares += (_freedom(figure) or 0) * (_deviation(figure) or 0) ** 2
            freedom += _freedom(figure) or 0
    return math.sqrt(squares / freedom) if freedom else None


def _verdict(
    claim: Claim, rule: PublishedRule, figures: Sequence[Figure], borrowed: Mapping[str, float | None]
) -> PublishedVerdict:
    parts = tuple(_part(name, contrast, figures, borrowed) for name, contrast in rule.parts.items())
    judgements = [(part.name, part.judgement) for part in parts]
    if len(parts) == 1:
        judgement = parts[0].judgement
    else:
        judgement = _hold_each(judgements) if rule.holds == "all" else _hold_any(judgements)
    closest = next((part for part in parts if part.judgement.effect is judgement.effect), parts[0])
    return PublishedVerdict(claim, judgement, parts, closest)


def _hold_each(parts: Sequence[tuple[str, Judgement]]) -> Judgement:
    """`hold_all`, where parts without figures leave open what no other part refutes."""
    measured = [(name, judgement) for name, judgement in parts if judgement.effect is not None]
    if not measured:
        return Judgement(OPEN, why=NO_FIGURES)
    judgement = hold_all(measured)
    missing = [name for name, one in parts if one.effect is None]
    if not missing or judgement.decision == REFUTED:
        return judgement
    parts_of = "; ".join(f"{name}: {one.decision}" for name, one in measured)
    why = f"{NO_FIGURES} of {' and '.join(missing)}; {parts_of}"
    return replace(judgement, decision=OPEN, why=why, corrected=None)


def _hold_any(parts: Sequence[tuple[str, Judgement]]) -> Judgement:
    """The judgement on the claim that one of several holds: supported if one surely does, corrected for their number;
    refuted if each that has sources surely does not."""
    measured = [(name, judgement) for name, judgement in parts if judgement.effect is not None]
    if not measured:
        return Judgement(OPEN, why=NO_FIGURES)

    def decide(comparisons: float) -> Decision:
        if any(judgement.among(comparisons * len(measured)) == SUPPORTED for _, judgement in measured):
            return SUPPORTED
        return REFUTED if all(j.among(comparisons) == REFUTED for _, j in measured) else OPEN

    name, largest = max(measured, key=lambda part: part[1].effect.value if part[1].effect else -math.inf)
    decision = decide(1)
    why = f"{name} has the largest effect"
    why = f"{why}: {largest.why[0].lower()}{largest.why[1:]}" if decision == OPEN and largest.why else why
    used = names([judgement for _, judgement in measured])
    return replace(largest, decision=decision, records=used, why=why, corrected=decide)


def _part(
    name: str, contrast: Contrast, figures: Sequence[Figure], borrowed: Mapping[str, float | None]
) -> PublishedPart:
    by_setting = grouped((figure.setting, figure) for figure in figures if contrast.counts(figure))
    lengths = grouped(
        (setting._replace(length=""), effect)
        for setting, group in by_setting.items()
        if (effect := _effect(setting, group, contrast, borrowed)) is not None
    )
    by_source = grouped((setting.source, _over_lengths(setting, several)) for setting, several in lengths.items())
    votes = tuple(Vote(source, tuple(effects)) for source, effects in by_source.items())
    pooled = _pooled(votes) if votes else None
    return PublishedPart(name, contrast, votes, pooled, _judgement(contrast, votes, pooled))


def _pooled(votes: Sequence[Vote]) -> RandomEffects:
    return random_effects([vote.value for vote in votes], [vote.error for vote in votes])


def _judgement(contrast: Contrast, votes: Sequence[Vote], pooled: RandomEffects | None) -> Judgement:
    ratio, sources = contrast.bounds.ratio, tuple(vote.source for vote in votes)
    if pooled is None:
        return Judgement(OPEN, why=NO_FIGURES)
    if len(votes) == 1:
        alone = _unscaled(Interval(pooled.value, math.nan, math.nan), ratio)
        return Judgement(OPEN, alone, records=sources, why=ONE_SOURCE, range=contrast.bounds.range, ratio=ratio)
    judgement = judged(
        lambda comparisons: _unscaled(pooled.interval(ALPHA / comparisons), ratio),
        contrast.bounds,
        None,
        sources,
        by_seeds=False,
    )
    effects = [effect for vote in votes for effect in vote.effects if effect.freedom is not None]
    each = [judged(_corrected(effect, ratio), contrast.bounds, None, ()) for effect in effects]
    if len(somewhere := sure_somewhere(each)) < 2:
        return judgement
    sure = sorted(zip(surely(each), each, effects, strict=True), key=lambda one: -abs(one[1].inside))
    clearest = {decision: effect.setting for decision, _, effect in reversed(sure)}
    where = [f"{d} in {clearest[d].source} ({clearest[d].label})" for d in sorted(somewhere) if d in clearest]
    why = "; ".join(where) or "Settings differ"
    return replace(judgement, decision=DEPENDS, why=why[0].upper() + why[1:], corrected=lambda _: DEPENDS)


def _corrected(effect: Effect, ratio: bool) -> Callable[[float], Interval]:
    return lambda comparisons: _unscaled(effect.interval(ALPHA / comparisons), ratio)


def _over_lengths(setting: PublishedSetting, effects: Sequence[Effect]) -> Effect:
    """One effect of those at several lengths of the same runs, with the error of a single one."""
    freedoms = [effect.freedom for effect in effects]
    own = [freedom for freedom in freedoms if freedom is not None]
    return replace(
        effects[0],
        setting=setting,
        value=fmean(effect.value for effect in effects),
        error=math.sqrt(fmean(effect.error**2 for effect in effects)),
        freedom=min(own) if len(own) == len(freedoms) else None,
        borrowed=any(effect.borrowed for effect in effects),
    )


@dataclass(frozen=True)
class _Side:
    """A figure as an effect needs it: its value, of a ratio its logarithm, and the squared error of that."""

    value: float
    square: float
    freedom: float | None
    borrowed: bool


def _effect(
    setting: PublishedSetting, group: Sequence[Figure], contrast: Contrast, borrowed: Mapping[str, float | None]
) -> Effect | None:
    """The effect in one setting; None if a side, or its error, is missing."""
    pairs = []
    for ones, others in _compared(group, contrast):
        sides = [[_side(figure, contrast, borrowed) for figure in figures] for figures in (ones, others)]
        pairs.append([[side for side in figures if side is not None] for figures in sides])
    pairs = [pair for pair in pairs if all(pair)]
    if not pairs:
        return None
    values = [fmean(s.value for s in ones) - fmean(s.value for s in others) for ones, others in pairs]
    shares = [(s, 1 / len(side) / len(pairs)) for pair in pairs for side in pair for s in side]
    square = math.fsum(share**2 * side.square for side, share in shares)
    terms = [(side.square * share**2, side.freedom) for side, share in shares]
    return Effect(
        setting,
        group[0].billions,
        fmean(values),
        math.sqrt(square),
        _welch(square, terms),
        any(side.borrowed for side, _ in shares),
    )


def _compared(group: Sequence[Figure], contrast: Contrast) -> list[tuple[list[Figure], list[Figure]]]:
    """The figures of a setting whose means are compared, as pairs of sides."""
    ones = {figure.rank: figure for figure in group if figure.method == contrast.one}
    others = {figure.rank: figure for figure in group if figure.method == contrast.other}
    if contrast.ranks == "equal":
        return [([ones[rank]], [others[rank]]) for rank in ones if rank is not None and rank in others]
    if contrast.ranks == "high and low":
        high, low = ([ones[rank] for rank in ranks if rank in ones] for ranks in (HIGH_RANKS, LOW_RANKS))
        return [(high, low)] if high and low else []
    if not ones or not others:
        return []
    return [([ones[max(ones, key=_known_rank)]], [others[max(others, key=_known_rank)]])]


def _known_rank(rank: int | None) -> int:
    return rank or 0


def _side(figure: Figure, contrast: Contrast, borrowed: Mapping[str, float | None]) -> _Side | None:
    """None if the figure has no error, and there is none to borrow."""
    if contrast.compared == "spread":
        if figure.error is None or (freedom := _freedom(figure)) is None:
            return None
        return _Side(math.log(figure.error), 1 / (2 * freedom), math.inf, borrowed=False)
    ratio = contrast.bounds.ratio
    value = math.log(figure.value) if ratio else figure.value / PERCENT
    if figure.metric == "memory":
        return _Side(value, PEAK_VARIES**2, math.inf, borrowed=False)
    unit = figure.value if ratio else PERCENT
    if figure.error is not None:
        runs = (figure.runs or 1) if figure.error_is == "sd" else 1
        return _Side(value, (figure.error / unit) ** 2 / runs, _freedom(figure), borrowed=False)
    if (deviation := borrowed.get(figure.metric)) is None:
        return None
    share = deviation if ratio else deviation / PERCENT
    return _Side(value, share**2 / (figure.runs or 1), None, borrowed=True)


def _freedom(figure: Figure) -> float | None:
    return figure.runs - 1 if figure.runs and figure.runs > 1 else None


def _deviation(figure: Figure) -> float | None:
    """The standard deviation of a run; of seconds as a share."""
    if figure.error is None:
        return None
    deviation = figure.error * (math.sqrt(figure.runs or 1) if figure.error_is == "se" else 1)
    return deviation / figure.value if figure.metric == "seconds" else deviation


def _welch(square: float, parts: Sequence[tuple[float, float | None]]) -> float | None:
    """The degrees of freedom of a sum of squared errors, by Welch and Satterthwaite; None if those of a part are."""
    below = 0.0
    for part, freedom in parts:
        if freedom is None:
            return None
        below += part**2 / freedom
    return square**2 / below if below else math.inf


def _unscaled(interval: Interval, ratio: bool) -> Interval:
    return Interval(*map(math.exp, interval)) if ratio else interval
