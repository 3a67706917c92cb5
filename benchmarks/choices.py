"""Situations of `make validity` in which something was chosen by its luck: the best of many methods, or of settings."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special
from simulated import Noise, Study, answer, known
from situations import FLAT, Outcome, inside, situation

from harness.report.pairwise import contests
from harness.report.select import select
from harness.report.statistics import ALPHA

# Each method is compared with the best one

EQUAL = {
    f"{n} methods, {k} seed{'s' * (k > 1)}, all equal": {"methods": n, "seeds": k, **FLAT}
    for n, k in ((6, 1), (6, 3), (12, 1), (12, 3), (15, 3), (40, 2))
}
WORSE = {
    f"12 methods, {k} seed{'s' * (k > 1)}, half {gap:g} points worse": {"methods": 12, "seeds": k, "gap": gap, **FLAT}
    for k, gap in ((1, 10), (3, 2), (3, 10))
}
WORSE |= {"6 methods, 3 seeds, half 10 points worse": {"methods": 6, "seeds": 3, "gap": 10, **FLAT}}
GROUPED = {"12 methods, 3 seeds, all equal, 57 subjects × 20": {"methods": 12, "seeds": 3}}


@situation("told from the best, no better", **EQUAL, **WORSE, **GROUPED)
def many(draw: np.random.Generator, methods: int, seeds: int, gap: float = 0, **noise: Any) -> Outcome:
    """Wrong: a method is called worse than the best observed one that is as good or better."""
    study = Study(draw)
    true = {f"m{i:02}": 0.5 - gap / 100 * (i % 2) for i in range(methods)}
    answer(study, "wordmath", true, seeds, Noise(seed_points=seeds > 1, **noise))
    (contest,) = contests(study.records, study.tables)
    worse = [other for (best, other), p in contest.corrected.items() if p < ALPHA and true[other] >= true[best]]
    return {
        "wrong": bool(worse),
        "covers": float(np.mean([inside(s.interval, true[s.choice.method]) for s in contest.standings])),
    }


STEP = 0.0202  # the standard error of a difference between two methods of 3 seeds, as it varies over studies


@situation(
    "told from the best, 3 seeds",
    **{f"one of {n} methods is 3 standard errors better": {"methods": n} for n in (2, 6)},
)
def better(draw: np.random.Generator, methods: int) -> Outcome:
    """Found: the share of the others that are called worse than the best method."""
    study = Study(draw)
    true = {f"m{i:02}": 0.5 + 3 * STEP * (i == 0) for i in range(methods)}
    answer(study, "wordmath", true, 3, Noise(**FLAT))
    (contest,) = contests(study.records, study.tables)
    found = [other for (best, other), p in contest.corrected.items() if p < ALPHA and best == "m00"]
    wrong = any(p < ALPHA and "m00" not in pair for pair, p in contest.corrected.items())
    return {"wrong": wrong, "found": len(found) / (methods - 1)}


# Of several settings the one with the lowest validation loss is chosen. Validation and test share a seed's luck.


def tuned(draw: np.random.Generator, seeds: int, fresh: int, lora: int = 9, full: int = 3) -> Study:
    """Settings of LoRA and of full, all equal, with `seeds` seeds; `fresh` more of those that are chosen."""
    study, noise = Study(draw), Noise(seed_points=0, **FLAT)
    n = noise.clusters
    item = draw.normal(0, noise.item, n)
    own = {method: item + draw.normal(0, noise.rest, n) for method in ("lora", "full")}

    def run(method: str, lr: float, seed: int, confirmation: bool = False) -> None:
        luck = draw.normal(0, 0.2)
        right = (draw.random(n) < special.expit(own[method] + luck)).astype(float)
        loss = 1 - 0.1 * luck + draw.normal(0, 0.005)
        made = study.add(method, seed, lr=lr, loss=loss, confirmation=confirmation)
        study.score(made, "wordmath", right, np.arange(n))

    for method, count in (("lora", lora), ("full", full)):
        for lr in range(count):
            for seed in range(seeds):
                run(method, 1e-5 * (1 + lr), seed)
    for choice in select(study.records) if fresh else []:
        for seed in range(seeds, seeds + fresh):
            run(choice.method, known(choice.lr), seed, confirmation=True)
    return study


@situation("intervals of chosen settings, 12 tries against 2", **{f"{n} seeds": {"seeds": n} for n in (2, 3, 5)})
def chosen(draw: np.random.Generator, seeds: int) -> Outcome:
    """covers: of the method with 12 tries. Intervals of differences are on the safe side: only errors count."""
    study = tuned(draw, seeds, 0, 12, 2)
    (contest,) = contests(study.records, study.tables)
    interval = next(s.interval for s in contest.standings if s.choice.method == "lora")
    return {"wrong": min(contest.corrected.values()) < ALPHA, "covers": inside(interval, 0.5)}


@situation("the best of 15 equal methods", **{f"{n} seeds": {"seeds": n} for n in (1, 3, 5)})
def best_of_many(draw: np.random.Generator, seeds: int) -> Outcome:
    study = Study(draw)
    answer(study, "wordmath", {f"m{i:02}": 0.5 for i in range(15)}, seeds, Noise(seed_points=seeds > 1, **FLAT))
    (contest,) = contests(study.records, study.tables)
    return {"covers": inside(contest.standings[0].interval, 0.5)}


TRIES = {"1 seed, 9 tries against 3": {"seeds": 1}, "3 seeds, 9 tries against 3": {"seeds": 3}}


@situation("letters: a method told apart that had more tries", **TRIES)
def tries(draw: np.random.Generator, seeds: int) -> Outcome:
    """Of one seed the table says that no method won."""
    study = tuned(draw, seeds, fresh=0)
    (contest,) = contests(study.records, study.tables)
    apart = min(contest.corrected.values()) < ALPHA
    return {"wrong": apart and contest.standings[0].choice.label not in contest.one_seed, "as models": apart}


@situation(
    "sweep --confirm, the best of 9 tries against that of 3",
    **{f"chosen on {n} seed{'s' * (n > 1)}, {m} fresh": {"seeds": n, "fresh": m} for n, m in ((1, 2), (1, 3), (3, 3))},
)
def confirmed(draw: np.random.Generator, seeds: int, fresh: int) -> Outcome:
    study = tuned(draw, seeds, fresh)
    (contest,) = contests(study.records, study.tables)
    lora = next(s for s in contest.standings if s.choice.method == "lora")
    assert lora.choice.confirmed
    return {
        "wrong": min(contest.corrected.values()) < ALPHA,
        "covers": float(np.mean([inside(s.interval, 0.5) for s in contest.standings])),
        "too high by": lora.value - 0.5,
    }
