"""Claims about methods: the rule that judges a claim, and what the rule concludes.

A rule is a function of the records of one place (study, model, data). It estimates an effect with a 95% interval. The
claim is supported if the whole interval agrees with it, refuted if the whole interval contradicts it, and not decided
otherwise. If it is supported at one setting and refuted at another, it depends on the setting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from harness import units
from harness.plugins.articles.evidence import Evidence
from harness.report.statistics import Interval

Decision = Literal["supported", "refuted", "depends", "not decided"]
SUPPORTED: Decision = "supported"
REFUTED: Decision = "refuted"
DEPENDS: Decision = "depends"
OPEN: Decision = "not decided"
MOST_SEEDS = 30  # more are no advice


@dataclass(frozen=True)
class Judgement:
    """What a rule concludes.

    effect: in the claim's unit; low and high are nan if the interval is unknown. seeds: of the smaller side (for speed
    and memory: runs). items: evaluation items per model. records: names of the records used. why: the reason that
    nothing is decided, or a remark on the verdict; may be empty. range: where the claim puts the effect, its ends
    infinite where it sets none; None if the claim is no such range. of_items: the share of the error's square that is
    of items, which more seeds do not lessen. by_seeds: whether more seeds narrow the interval at all. corrected: the
    decision if the interval is widened for this many comparisons; None where there is no interval to widen.
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
    corrected: Callable[[int], Decision] | None = field(default=None, compare=False, repr=False)


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
    parameters from which a model has the ability that the claim is about; a smaller one decides nothing.
    """

    name: str
    text: str
    run: str
    shown: Callable[[float], str]
    rule: Rule
    meaning: Meaning | None = None
    least_model: float = 0


class Claims(dict[str, Claim]):
    """The claims of a module by name, in order of definition."""

    def claim(
        self, name: str, text: str, run: str, shown: Callable[[float], str], least_model: float = 0
    ) -> Callable[[Rule], Rule]:
        """Decorator: adds a claim with the decorated rule, which smaller models than `least_model` leave open."""

        def add(rule: Rule) -> Rule:
            sized = from_size(rule, least_model) if least_model else rule
            self[name] = Claim(name, text, run, shown, sized, least_model=least_model)
            return rule

        return add


def from_size(rule: Rule, least_model: float) -> Rule:
    """`rule`, which decides nothing if the model is smaller than `least_model` parameters.

    Sizes are compared as models are called by them: one of 999,885,952 parameters has 1B.
    """

    def of_size(at: Evidence) -> Judgement:
        judgement = rule(at)
        parameters = at.model_size
        if judgement.effect is None or parameters is None or round(parameters / least_model, 1) >= 1:
            return judgement
        why = f"{needs(least_model)} parameters; {at.records[0].cell.model} has {units.count(parameters)}"
        return replace(judgement, decision=OPEN, why=why, by_seeds=False, corrected=None)

    return of_size


def needs(least_model: float) -> str:
    """Needs ≥ 1B"""
    return f"Needs ≥ {least_model / 1e9:g}B"


@dataclass(frozen=True)
class Verdict:
    """The judgement on a claim in one place: study, model and data.

    fresh: whether it rests on fresh seeds, which confirm the chosen settings.
    """

    claim: Claim
    place: tuple[str, str, str]
    judgement: Judgement
    fresh: bool = False


def judge(effect: Interval, low: float = -math.inf, high: float = math.inf) -> Decision:
    """The decision on the claim that the effect lies between `low` and `high`."""
    if low < effect.low and effect.high < high:
        return SUPPORTED
    return REFUTED if effect.high < low or effect.low > high else OPEN


def enough_seeds(judgement: Judgement) -> float | None:
    """How many seeds would decide, if the effect stays and what seeds add to its interval's square shrinks with their
    number; infinite if no number of seeds would, since the items are too few.

    None where the claim is no range, one seed tells nothing of others, seeds are not what tells more, or the interval
    has no end on the side of a limit.
    """
    effect, claimed, seeds = judgement.effect, judgement.range, judgement.seeds or 0
    informative = judgement.by_seeds and seeds > 1
    if judgement.decision != OPEN or not informative or effect is None or claimed is None:
        return None
    inside = claimed[0] < effect.value < claimed[1]
    limits = [limit for limit in claimed if math.isfinite(limit)]
    value, low, high = effect
    if min(value, *limits) > 0:  # a ratio or a rate: its interval is one of logarithms
        value, low, high, *limits = (math.log(number) if number > 0 else -math.inf for number in (*effect, *limits))
    if not inside:
        limits = [min(limits, key=lambda limit: abs(limit - value))]
    lack = max((high - value if limit > value else value - low) / (abs(limit - value) or 1e-9) for limit in limits)
    if math.isinf(lack):
        return None
    if judgement.of_items * lack**2 >= 1:
        return math.inf
    needed = seeds * (1 - judgement.of_items) / (lack**-2 - judgement.of_items)
    return math.ceil(needed) if needed > seeds else None


def lacking(*what: str) -> Judgement:
    """The judgement if no finished cell of `what` is in the study."""
    return Judgement(OPEN, why=f"No finished {' and '.join(what)}")


def unchosen(at: Evidence, methods: Iterable[str], by: Sequence[str], *what: str) -> Judgement:
    """The judgement if no setting of some of `methods` is chosen by (method, *by): `lacking` if none finished."""
    for choice in at.unchosen(*by):
        if choice.method in methods and at.of(choice.method):
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


def points(value: float) -> str:
    return f"{100 * value:+.1f} points".replace("-", "−")


def bits_per_byte(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f} bits per byte".replace("-", "−")


def rate(value: float) -> str:
    return f"{value:.1e}" if value else "0"
