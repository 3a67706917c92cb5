"""Situations of `make validity`: simulated studies in which a verdict, a letter or an interval can be wrong.

Each is a function of a random generator that makes one study and returns what came out, by name:

    wrong            whether a verdict was wrong, or equal methods were told apart
    open             whether the claim was not decided; what is neither wrong nor open was right
    found            the share of true differences that were told
    covers           whether the interval (or the share of intervals that) has the truth in it
    differences      likewise of the differences of methods
    estimate, half   of one interval: the estimate and half its length, which tell whether it is as wide as need be
    ratio            the high end of an interval over its low end
    too high by      a score less its truth: 0.01 is a point

Those of a choice (of settings, of the best of many methods) are in choices.py, those of a decision in decisions.py,
those of claims of articles in verdict_situations.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from simulated import METHODS, Noise, Study, answer, known

from harness.report import statistics
from harness.report.pairwise import Contest, contests
from harness.report.statistics import ALPHA, Run

Outcome = dict[str, float]
Situation = Callable[[np.random.Generator], Outcome]
F = TypeVar("F", bound=Callable[..., Outcome])
SITUATIONS: dict[str, Situation] = {}


def situation(name: str, **cases: dict[str, Any]) -> Callable[[F], F]:
    """Decorator: a function of a generator and arguments, in several cases."""

    def add(function: F) -> F:
        for case, arguments in cases.items():
            SITUATIONS[f"{name}, {case.replace('_', ' ')}"] = functools.partial(function, **arguments)
        return function

    return add


SEEDS = {f"{n} seeds, sd {sd} points": {"seeds": n, "sd": sd} for n in (2, 3, 10) for sd in (0, 1, 3)}
FLAT: dict[str, Any] = {"clusters": 400, "size": 1, "shared": 0.0, "own": 0.0}
ALIKE = {"10 seeds that move both by 3 points": {"seeds": 10, "sd": 3, "together": 0.9}}
CROSSING = {f"{n} seeds that move both by 3 points": {"seeds": n, "sd": 3, "together": 0.9} for n in (3, 5, 9, 11, 30)}
CROSSING |= {f"{n} seeds that move each by 3 points": {"seeds": n, "sd": 3} for n in (5, 9, 11, 30)}
LOST = {f"{case}, one run lost": {**how, "lost": 1} for case, how in (ALIKE | CROSSING).items() if how["seeds"] > 3}


@situation(
    "equal methods told apart",
    **{f"57 subjects × 20, {case}": arguments for case, arguments in SEEDS.items()},
    **{"57 subjects × 20, 1 seed": {"seeds": 1, "sd": 0}},
    **{"57 subjects × 20, 1 seed, method-by-subject": {"seeds": 1, "sd": 0, "own": 0.8}},
    **{"13 templates × 20, 3 seeds": {"seeds": 3, "sd": 1, "clusters": 13}},
    **{"20 passages × 10, 3 seeds": {"seeds": 3, "sd": 1, "clusters": 20, "size": 10}},
    **{f"no clusters, {n} seed{'s' * (n > 1)}": {"seeds": n, "sd": n > 1, **FLAT} for n in (1, 2, 3)},
)
def equal(draw: np.random.Generator, seeds: int, sd: float, **noise: Any) -> Outcome:
    study = Study(draw)
    answer(study, "wordmath", dict.fromkeys(METHODS, 0.5), seeds, Noise(seed_points=sd, **noise))
    (contest,) = contests(study.records, study.tables)
    return {"wrong": min(contest.corrected.values()) < ALPHA} | intervals(contest)


@situation(
    "equal methods told apart",
    **{"one of two varies by 3 points, 10 seeds": {"seeds": 10, "methods": METHODS[:2]}},
    **{f"seeds of one vary by 3 points and of four by 0, {n} seeds": {"seeds": n} for n in (2, 3, 10)},
    **{"2 seeds of one vary by 5 points, 5 seeds of four by 1": {"seeds": 5, "sd": 1, "lost": 3}},
    **{
        "2 seeds of one vary by 5 points, 5 seeds of five by 1": {
            "seeds": 5,
            "methods": (*METHODS, "sixth"),
            "sd": 1,
            "lost": 3,
        }
    },
)
def erratic(
    draw: np.random.Generator, seeds: int, methods: Sequence[str] = METHODS, sd: float = 0, lost: int = 0
) -> Outcome:
    study = Study(draw)
    more, noise = {methods[0]: Noise(seed_points=max(3.0, 5 * sd), **FLAT)}, Noise(seed_points=sd, **FLAT)
    answer(study, "wordmath", dict.fromkeys(methods, 0.5), seeds, noise, more, {methods[0]: lost})
    (contest,) = contests(study.records, study.tables)
    wrong = {"wrong": float(min(contest.corrected.values()) < ALPHA)}
    return wrong | ({"covers": intervals(contest)["covers"]} if lost else {})


class Ends(Protocol):
    """An interval of an estimate, a ratio or a difference."""

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


def inside(interval: Ends | None, truth: float) -> bool:
    """Whether an interval has the truth in it."""
    ends = known(interval)
    return ends.low <= truth <= ends.high


def intervals(contest: Contest) -> Outcome:
    """Of methods whose true accuracies are 50%."""
    first = next(known(s.interval) for s in contest.standings if s.choice.method == METHODS[0])
    return {
        "covers": float(np.mean([inside(s.interval, 0.5) for s in contest.standings])),
        "differences": float(np.mean([inside(gap, 0) for gap in contest.differences.values()])),
        "estimate": first.value,
        "half": (first.high - first.low) / 2,
    }


@situation(
    "intervals of 2 methods, no clusters",
    **{f"{n} seeds": {"seeds": n} for n in (2, 3, 10)},
    **ALIKE,
    **CROSSING,
    **LOST,
)
def pair(draw: np.random.Generator, seeds: int, sd: float = 1, together: float = 0.0, lost: int = 0) -> Outcome:
    study = Study(draw)
    noise = Noise(seed_points=sd, together=together, **FLAT)
    answer(study, "wordmath", dict.fromkeys(METHODS[:2], 0.5), seeds, noise, lost={METHODS[0]: lost})
    (contest,) = contests(study.records, study.tables)
    (((first, _), gap),) = contest.differences.items()  # the better one is first
    signed = gap if first == METHODS[0] else gap.turned
    return intervals(contest) | {"estimate": signed.value, "half": (gap.high - gap.low) / 2}


@situation(
    "equal methods told apart",
    **{f"57 subjects × 20, {n} seeds that move all by 3 points": {"seeds": n} for n in (2, 3, 5, 10)},
    **{"57 subjects × 20, 5 seeds that move all by 3 points, one run lost": {"seeds": 5, "lost": 1}},
)
def alike(draw: np.random.Generator, seeds: int, lost: int = 0) -> Outcome:
    study = Study(draw)
    noise = Noise(seed_points=3, together=0.9)
    answer(study, "wordmath", dict.fromkeys(METHODS, 0.5), seeds, noise, lost={METHODS[0]: lost})
    (contest,) = contests(study.records, study.tables)
    return {"wrong": min(contest.corrected.values()) < ALPHA} | intervals(contest)


# Ratios of times and of losses, and best learning rates


@situation(
    "ratios of times",
    **{f"{n} seeds, runs differ by {sd}%": {"seeds": n, "sd": sd} for n in (2, 3, 10) for sd in (3, 20)},
)
def ratio_of_times(draw: np.random.Generator, seeds: int, sd: float) -> Outcome:
    runs = {m: [Run(float(np.exp(draw.normal(0, sd / 100))), s, None) for s in range(seeds)] for m in METHODS}
    found = known(statistics.of_times(runs, "dora", "lora"))
    return {"covers": inside(found, 1), "ratio": found.high / found.low}


@situation("ratios of times: an interval of a single run", **{"1 seed, correlated steps": {}})
def single_run(draw: np.random.Generator) -> Outcome:
    return {"wrong": statistics.of_times({m: [Run(0.1, 0, None)] for m in METHODS}, "dora", "lora") is not None}


SHAPES = {
    "a parabola": lambda u: u**2,
    "steeper above": lambda u: 2 * (np.exp(u) - u - 1),
    "steeper below": lambda u: 2 * (np.exp(-u) + u - 1),
}
CURVES = {f"{shape}, {n} seeds": {"curve": curve, "seeds": n} for shape, curve in SHAPES.items() for n in (2, 3)}


@situation("best learning rates", **CURVES)
def best_rate(draw: np.random.Generator, curve: Callable[[float], float], seeds: int) -> Outcome:
    """Six rates of which one of the middle is best; losses differ by 0.02 and seeds by 0.05."""
    rates = np.log(2.5) * (np.arange(6) - 2 + draw.uniform(-1, 0))
    levels = draw.normal(0, 0.05, seeds)
    losses = {np.exp(u): dict(enumerate(1 + 0.1 * curve(u) + levels + draw.normal(0, 0.02, seeds))) for u in rates}
    return _covered(losses)


@situation("best learning rates, the last rate diverges", **{f"{n} seeds": {"seeds": n} for n in (2, 3)})
def best_beside_divergence(draw: np.random.Generator, seeds: int) -> Outcome:
    """As "steeper above", but at the highest rate losses are fourfold and differ by a quarter from seed to seed."""
    curve = SHAPES["steeper above"]
    rates = np.log(2.5) * (np.arange(5) - 1 + draw.uniform(-1, 0))
    levels = draw.normal(0, 0.05, seeds)
    losses = {np.exp(u): dict(enumerate(1 + 0.1 * curve(u) + levels + draw.normal(0, 0.02, seeds))) for u in rates}
    losses[np.exp(rates[-1])] = dict(enumerate(4 + draw.normal(0, 1, seeds)))
    return _covered(losses)


ERRATIC = {f"{n} seeds": {"seeds": n} for n in (2, 3, 5)}
CLIFFS = {
    "losses fourfold 1.75 steps above the best, 3 seeds": {"times": 4, "above": 1.6},
    "losses double 0.9 steps above the best, 3 seeds": {"times": 2, "above": 0.8},
}


@situation("best learning rates, the last rates vary ten times as much", **ERRATIC)
def best_beside_erratic(draw: np.random.Generator, seeds: int) -> Outcome:
    """Eight rates. From the second above the best on, losses differ by 0.2 and not by 0.02; a tenth of them diverge."""
    rates = np.log(2.5) * (np.arange(8) - 4 + draw.uniform(-1, 0))
    levels = draw.normal(0, 0.05, seeds)
    losses = {}
    for u in rates:
        erratic = u > np.log(2.5)
        of = SHAPES["steeper above"](u) / 10 + levels + draw.normal(0, 0.2 if erratic else 0.02, seeds)
        of = np.where(draw.random(seeds) < 0.1 * erratic, np.inf, np.exp(of))
        losses[np.exp(u)] = dict(enumerate(of))
    return _covered(losses)


@situation("best learning rates, a cliff", **CLIFFS)
def best_beside_cliff(draw: np.random.Generator, times: float, above: float) -> Outcome:
    """Eight rates. `above` the best, in logarithms, losses are `times` as high, at once."""
    rates, levels = np.log(2.5) * (np.arange(8) - 4 + draw.uniform(-1, 0)), draw.normal(0, 0.05, 3)
    logs = {u: SHAPES["steeper above"](u) / 10 + (np.log(times) if u > above else 0) + levels for u in rates}
    return _covered({np.exp(u): dict(enumerate(np.exp(of + draw.normal(0, 0.02, 3)))) for u, of in logs.items()})


def _covered(losses: dict[float, dict[int, float]]) -> Outcome:
    """Whether the interval of the best rate has 1, the true one."""
    found = statistics.optimum(losses)
    if isinstance(found, str):
        return {"covers at least": np.nan, "has both ends": 0, "ratio": np.nan}
    both = found.low > 0 and found.high < np.inf
    covers = found.low <= 1 <= found.high
    return {"covers at least": covers, "has both ends": both, "ratio": found.high / found.low if both else np.nan}


@situation(
    "ratios of losses",
    **{f"{n} seeds, {tail}": {"seeds": n, "tail": tail} for n in (2, 3, 10) for tail in ("normal", "t")},
    **{f"{n} seeds, normal, seeds move all by 5%": {"seeds": n, "shared": 0.05} for n in (2, 3, 10)},
    **{
        f"{n} seeds, {tail}, 4 other settings": {"seeds": n, "tail": tail, "others": 4}
        for n in (2, 3)
        for tail in ("normal", "t")
    },
    **{
        f"{n} seeds, normal, 4 other settings, {kind}": {"seeds": n, "others": 4, "spread": spread}
        for n in (2, 3)
        for kind, spread in (("half vary twice as much", 2.0), ("half vary half as much", 0.5))
    },
)
def ratio_of_losses(
    draw: np.random.Generator,
    seeds: int,
    tail: str = "normal",
    shared: float = 0.0,
    others: int = 0,
    spread: float = 1.0,
) -> Outcome:
    """shared: how much a seed changes all losses, which the interval need not know. spread: of half of the others."""
    noise = (lambda: draw.normal(0, 0.01, seeds)) if tail == "normal" else (lambda: draw.standard_t(4, seeds) * 0.007)
    common = draw.normal(0, shared, seeds)
    scales = [1.0, 1.0] + [spread if i % 2 else 1.0 for i in range(others)]
    by_seed: list[dict[Hashable, float]] = [dict(enumerate(np.exp(common + scale * noise()))) for scale in scales]
    one, other, *field = by_seed
    found = known(statistics.of_losses([one], [other], field))
    return {"covers": inside(found, 1), "ratio": found.high / found.low}
