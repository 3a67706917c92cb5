"""Claims about methods: the rule that judges a claim, and what the rule concludes.

A rule is a function of the records of one place (study, model, data). It estimates an effect with a 95% interval, and
`Bounds` say where the claim puts the effect. The claim is supported if the whole interval is there, refuted if the
whole interval is on the other side, and not decided otherwise. A claim that one thing is better than another has one
bound for both sides: an effect that is surely smaller than it, in either direction, is too small to matter. If settings
surely disagree, the claim depends on the setting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from harness import units
from harness.plugins.articles.evidence import Evidence
from harness.report.planned import EXPLORATORY, PlanState
from harness.report.statistics import Interval
from harness.yaml_file import read_yaml

Decision = Literal["supported", "refuted", "too small to matter", "depends", "not decided"]
SUPPORTED: Decision = "supported"
REFUTED: Decision = "refuted"
TOO_SMALL: Decision = "too small to matter"
DEPENDS: Decision = "depends"
OPEN: Decision = "not decided"
MOST_SEEDS = 30  # more are no advice
STRADDLES = "The interval includes both outcomes"
ONE_SEED = "One seed"  # the interval lacks what seeds add
MORE_ITEMS = "with more items (a larger `eval.limit`, or `data.test_share` of your own data)"
EASIER_ITEMS, HARDER_ITEMS = "with easier items", "with harder items"


@dataclass(frozen=True)
class Bounds:
    """Where a claim puts an effect: between `low` and `high`.

    small: between which ends an effect is too small to matter; None if the claim is a range. ratio: whether effects are
    ratios or rates, whose intervals are of logarithms. margin: the bound as text, such as "1 point". more, less: what
    an effect above and below none is called.
    """

    low: float = -math.inf
    high: float = math.inf
    small: tuple[float, float] | None = None
    ratio: bool = False
    margin: str = ""
    more: str = "better"
    less: str = "worse"

    @property
    def range(self) -> tuple[float, float]:
        return self.low, self.high

    def judge(self, effect: Interval) -> Decision:
        """The decision on an effect of which this is the interval; an end that is nan decides nothing."""
        if self.low < effect.low and effect.high < self.high:
            return SUPPORTED
        if self.small and self.small[0] < effect.low and effect.high < self.small[1]:
            return TOO_SMALL
        lowest = self.small[0] if self.small else self.low
        return REFUTED if effect.high < lowest or effect.low > self.high else OPEN

    def undecided(self, effect: Interval) -> str:
        """Why the interval of an effect decides nothing, and what it excludes all the same."""
        if self.small is None:
            return STRADDLES
        none = 1.0 if self.ratio else 0.0
        if effect.low > self.small[0]:
            return self._short_of(self.more, self.less, effect.low > none)
        if effect.high < self.small[1]:
            return self._short_of(self.less, self.more, effect.high < none)
        return STRADDLES

    def _short_of(self, side: str, other: str, surely: bool) -> str:
        if surely:
            return f"{side.capitalize()}, but perhaps by less than {self.margin}"
        return f"Surely not {other} by {self.margin}, perhaps {side}"


@dataclass(frozen=True)
class Judgement:
    """What a rule concludes.

    effect: in the claim's unit; low and high are nan if the interval is unknown. seeds: of the smaller side (for speed
    and memory: runs). items: evaluation items per model. records: names of the records used. why: the reason that
    nothing is decided, or a remark on the verdict; may be empty. range: where the claim puts the effect, its ends
    infinite where it sets none; None if the claim is no such range. of_items: the share of the error's square that is
    of items, which more seeds do not lessen. by_seeds: whether more seeds narrow the interval at all. corrected: the
    decision if the intervals are widened for this many comparisons; None where there is none to widen. small, ratio: as
    of `Bounds`. remedy: what to change in the sweep that decides it, where more seeds are no remedy. parts: the
    decision at each setting and the names of its records, where there are several.
    """

    decision: Decision
    effect: Interval | None = None
    seeds: int | None = None
    items: int | None = None
    records: tuple[str, ...] = ()
    why: str = ""
    range: tuple[float, float] | None = None
    of_items: float = 0.0
    by_seeds: bool = True
    corrected: Callable[[float], Decision] | None = field(default=None, compare=False, repr=False)
    small: tuple[float, float] | None = None
    ratio: bool = False
    remedy: str = ""
    parts: tuple[tuple[Decision, tuple[str, ...]], ...] = ()

    def among(self, comparisons: float) -> Decision:
        """The decision as one of so many: by intervals that all cover in 95% of studies (Bonferroni)."""
        return self.corrected(comparisons) if self.corrected else self.decision

    def scaled(self, value: float) -> float:
        """`value` on the scale on which effects are compared: of a ratio its logarithm, so that 0 is no end."""
        return logarithm(value) if self.ratio else value

    @property
    def inside(self) -> float:
        """How far inside its range the effect lies, from the nearest end, `scaled`; negative outside, infinite without
        an effect or a range."""
        if self.effect is None or self.range is None:
            return math.inf
        value, low, high = map(self.scaled, (self.effect.value, *self.range))
        return min(value - low, high - value)


def judged(
    intervals: Callable[[float], Interval],
    bounds: Bounds,
    seeds: int | None,
    used: tuple[str, ...],
    *,
    items: int | None = None,
    unfair: str = "",
    of_items: float = 0.0,
    by_seeds: bool = True,
    remedy: str = "",
) -> Judgement:
    """The judgement by `bounds` on an effect.

    intervals: of the effect, by the number of comparisons that it is one of. used: names of the records. unfair: why
    nothing can be decided whatever the interval is; empty if it can. The rest as of Judgement.
    """
    effect = intervals(1)
    decision = OPEN if unfair else bounds.judge(effect)
    return Judgement(
        decision,
        effect,
        seeds,
        items,
        used,
        unfair or (bounds.undecided(effect) if decision == OPEN else ""),
        bounds.range,
        of_items,
        by_seeds,
        None if unfair else lambda comparisons: bounds.judge(intervals(comparisons)),
        bounds.small,
        bounds.ratio,
        remedy,
    )


Rule = Callable[[Evidence], Judgement]


@dataclass(frozen=True)
class Meaning:
    """What an article says in a claim, and how a verdict on it is to be read.

    sentence: what the article says, short. quoted: whether these are its own words; else they are a paraphrase.
    measured: the quantity that is judged. bound: where the verdict changes, and the reason for that place. limits: what
    the measurement can't show.
    """

    sentence: str
    measured: str
    bound: str
    limits: str
    quoted: bool = False


@dataclass(frozen=True)
class Claim:
    """A claim and its rule.

    text: the claim, with vague words made exact in brackets. run: the arguments of `harness` that run the
    cells which decide it. shown: formats an effect. meaning: what the article says. least_model: the number of
    parameters from which a model has the ability that the claim is about; a smaller one decides nothing. counted_on:
    the model whose shape alone decides the claim, so that each place has one verdict; empty if records decide it.
    """

    name: str
    text: str
    run: str
    shown: Callable[[float], str]
    rule: Rule
    meaning: Meaning
    least_model: float = 0
    counted_on: str = ""


def read_claims(file: Path, rules: Mapping[str, Rule]) -> dict[str, Claim]:
    """The claims of an article by name, in the order of its claims.yaml, which describes them.

    rules: by the name of the claim that they judge. Raises ValueError for a description with other keys than
    docs/adding/article.md has, for a claim without a rule, and for a rule without a claim.
    """
    described = read_yaml(file)
    if without := described.keys() - rules.keys():
        raise ValueError(f"No rule judges {', '.join(sorted(without))}.")
    if without := rules.keys() - described.keys():
        raise ValueError(f"No claim is named {', '.join(sorted(without))}.")
    return {name: _claim(name, rules[name], **entry) for name, entry in described.items()}


def _claim(
    name: str,
    rule: Rule,
    *,
    text: str,
    run: str,
    unit: str,
    measured: str,
    bound: str,
    limits: str,
    quote: str = "",
    paraphrase: str = "",
    least_model: float = 0,
    counted_on: str = "",
) -> Claim:
    if unit not in UNITS or bool(quote) == bool(paraphrase):
        raise ValueError(f"{name} requires a unit of {', '.join(UNITS)}, and either a quote or a paraphrase.")
    meaning = Meaning(quote or paraphrase, measured, bound, limits, quoted=bool(quote))
    return Claim(name, text, run, UNITS[unit], from_size(rule, least_model), meaning, least_model, counted_on)


def from_size(rule: Rule, least_model: float) -> Rule:
    """`rule`, which decides nothing if the model is smaller than `least_model` parameters; 0 for any.

    Sizes are compared as models are called by them: one of 999,885,952 parameters has 1B.
    """

    if not least_model:
        return rule

    def of_size(at: Evidence) -> Judgement:
        judgement = rule(at)
        parameters = at.model_size
        if judgement.effect is None or parameters is None or round(parameters / least_model, 1) >= 1:
            return judgement
        return replace(judgement, decision=OPEN, why=needs(least_model), by_seeds=False, corrected=None)

    return of_size


def needs(least_model: float) -> str:
    """Needs ≥ 1B"""
    return f"Needs ≥ {least_model / 1e9:g}B"


@dataclass(frozen=True)
class Part:
    """The decision at one setting of a place. settings: of each setting the values of its runs, as text."""

    decision: Decision
    settings: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Verdict:
    """The judgement on a claim in one place: study, model and data.

    fresh: whether it rests on fresh seeds, which confirm the chosen settings. plan: whether it was planned. parts: the
    decision at each setting; empty if the settings are unknown. command: what would decide it, if it is open.
    """

    claim: Claim
    place: tuple[str, str, str]
    judgement: Judgement
    fresh: bool = False
    plan: PlanState = EXPLORATORY
    parts: tuple[Part, ...] = ()
    command: str = field(default="", compare=False)

    @property
    def decision(self) -> Decision:
        """What is decided by now: nothing before the plan is finished."""
        return OPEN if self.plan.word == "interim" else self.judgement.decision


def enough_seeds(judgement: Judgement) -> float | None:
    """How many seeds would decide, if the effect stays and what seeds add to its interval's square shrinks with their
    number; infinite if no number of seeds would, since the items are too few.

    None where the claim is no range, one seed tells nothing of others, seeds are not what tells more, or the interval
    is a point or has no end on the side of a limit.
    """
    return _seeds_to_part(judgement, (*(judgement.range or ()), *(judgement.small or ())))


def excluding_seeds(judgement: Judgement) -> float | None:
    """As `enough_seeds`: how many would show that a claim does not hold; None if its effect is where it puts it.

    Fewer do than decide whether an effect on the other side matters.
    """
    low, high = judgement.range or (-math.inf, math.inf)
    if judgement.effect is None or low < judgement.effect.value < high:
        return None
    return _seeds_to_part(judgement, (low, high))


def _seeds_to_part(judgement: Judgement, limits: Sequence[float]) -> float | None:
    """How many seeds would part the effect's interval from the nearest of `limits` on each side."""
    effect, seeds = judgement.effect, judgement.seeds or 0
    informative = judgement.by_seeds and seeds > 1 and judgement.corrected is not None and not judgement.remedy
    if judgement.decision != OPEN or not informative or effect is None:
        return None
    scaled = logarithm if judgement.ratio else float
    value, low, high = map(scaled, effect)
    ends = [scaled(limit) for limit in limits]
    below = max((end for end in ends if end <= value), default=-math.inf)
    above = min((end for end in ends if end > value), default=math.inf)
    sides = ((value - low, value - below), (high - value, above - value))
    lack = max((half / (room or 1e-9) for half, room in sides if math.isfinite(room)), default=math.inf)
    if lack == 0 or math.isinf(lack):
        return None
    if judgement.of_items * lack**2 >= 1:
        return math.inf
    needed = seeds * (1 - judgement.of_items) / (lack**-2 - judgement.of_items)
    return math.ceil(needed) if needed > seeds else None


def logarithm(value: float) -> float:
    """Of 0 and less it is minus infinity."""
    return math.log(value) if value > 0 else -math.inf


def lacking(*what: str) -> Judgement:
    """The judgement if no finished cell of `what` is in the study."""
    return Judgement(OPEN, why=f"No finished {' and '.join(what)}")


def unchosen(at: Evidence, methods: Iterable[str], by: Sequence[str], *what: str) -> Judgement:
    """The judgement if no setting of some of `methods` is chosen by (method, *by): `lacking` if none finished."""
    for choice in at.unchosen(*by):
        if choice.method in methods and at.finished(choice.method):
            return Judgement(OPEN, why=f"No setting of {choice.label} is chosen: {choice.reason}")
    return lacking(*what)


def fewest_seeds(judgements: Sequence[Judgement]) -> int | None:
    """The least number of seeds of those that have one; None if none has."""
    return min((judgement.seeds for judgement in judgements if judgement.seeds is not None), default=None)


def names(judgements: Sequence[Judgement]) -> tuple[str, ...]:
    """The records of all judgements, each once."""
    return tuple(dict.fromkeys(name for judgement in judgements for name in judgement.records))


# Formats of effects


def times(value: float) -> str:
    return f"{value:,.0f}×" if value >= 100 else f"{units.significant(value, 3)}×"


def bits_per_byte(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f} bits per byte".replace("-", "−")


def rate(value: float) -> str:
    return f"{value:.1e}" if value else "0"


UNITS = {"times": times, "points": units.points, "bits_per_byte": bits_per_byte, "rate": rate}
"""Formats of effects, by their names in claims.yaml."""
