"""Claims on rank, alpha and learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from harness.plugins.articles.beyond_lora.data_sets import COMPLEX, trained_on
from harness.plugins.articles.beyond_lora.methods import ADAPTERS
from harness.plugins.articles.claims import (
    OPEN,
    Claims,
    Judgement,
    fewest_seeds,
    lacking,
    names,
    points,
    rate,
    times,
    unchosen,
)
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.rules import best_rate, gain, rate_ratio, within
from harness.report.statistics import Interval

CLAIMS = Claims()
FAR = 3.0  # a learning rate within this factor of the claimed one agrees with it


@CLAIMS.claim(
    "rank-capacity",
    "Complex tasks need r = 64 or 128 (which beat 8 and 16 on problems of several steps by at least 1 point)",
    "sweep rank",
    points,
)
def rank_capacity(at: Evidence) -> Judgement:
    """The mean over methods and ranks, each rank at its best learning rate."""
    if not trained_on(at, COMPLEX):
        return lacking("cell trained on problems of several steps")
    learned, at = at.learned, at.tried
    chosen = at.choices("rank")
    high, low = ([chosen[m, r] for m in ADAPTERS for r in ranks if (m, r) in chosen] for ranks in ((64, 128), (8, 16)))
    shared = {choice.method for choice in high} & {choice.method for choice in low}
    high, low = ([choice for choice in group if choice.method in shared] for group in (high, low))
    if learned is None or not high or not low:
        return unchosen(at, ADAPTERS, ["rank"], "adapters of rank 64 or 128", "8 or 16")
    return gain(at, high, low, learned)


def _best_rates(at: Evidence, methods: Sequence[str]) -> Judgement:
    """The best learning rates of `methods`, each at its chosen rank and alpha; the effect is their geometric mean."""
    each: list[Judgement] = []
    rates: list[Interval] = []
    for method in methods:
        choice = at.choices().get((method,))
        if choice is None:
            return unchosen(at, [method], [], method)
        axes = (choice.rank, choice.alpha)
        best = best_rate(method, [r for r in at.of(method) if (r.cell.rank, r.cell.alpha) == axes])
        if best.effect is None:
            return replace(best, records=names([*each, best]))
        each.append(best)
        rates.append(best.effect)
    mean = math.exp(float(np.mean([math.log(rate.value) for rate in rates])))
    effect = Interval(mean, min(rate.low for rate in rates), max(rate.high for rate in rates))
    seeds = fewest_seeds(each) or 0
    return Judgement(OPEN, effect, seeds, None, names(each), "One seed" if seeds < 2 else "")


def _near(judgement: Judgement, claimed: float) -> Judgement:
    return within(judgement, claimed / FAR, claimed * FAR)


@CLAIMS.claim(
    "lr-adapters",
    "2e-4 is the learning rate for PEFT (the best rates of LoRA, QLoRA and DoRA are within 3×)",
    "sweep lr",
    rate,
)
def lr_adapters(at: Evidence) -> Judgement:
    return _near(_best_rates(at, ADAPTERS), 2e-4)


@CLAIMS.claim(
    "lr-full", "2e-5 is the learning rate for full fine-tuning (the best rate is within 3×)", "sweep lr", rate
)
def lr_full(at: Evidence) -> Judgement:
    return _near(_best_rates(at, ["full"]), 2e-5)


@CLAIMS.claim(
    "lr-ratio",
    "PEFT needs ten times the learning rate of full fine-tuning (3 to 30 times)",
    "sweep lr",
    times,
)
def lr_ratio(at: Evidence) -> Judgement:
    return _near(rate_ratio(_best_rates(at, ADAPTERS), _best_rates(at, ["full"])), 10)
