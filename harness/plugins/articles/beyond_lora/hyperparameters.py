"""Claims on rank, alpha and learning rate."""

from __future__ import annotations

from harness.plugins.articles.beyond_lora.data_sets import COMPLEX, trained_on
from harness.plugins.articles.beyond_lora.methods import ADAPTERS
from harness.plugins.articles.claims import Bounds, Claims, Judgement, lacking, points, rate, times, unchosen
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.rules import Rate, best_rate, each_batch, gain, hold_all, rate_ratio

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


def _rate(at: Evidence, method: str) -> Rate | Judgement:
    """The best learning rate of `method` at its chosen rank and alpha; a judgement if it has no chosen setting."""
    if (choice := at.choices().get((method,))) is None:
        return unchosen(at, [method], [], method)
    axes = (choice.rank, choice.alpha)
    return best_rate(method, [r for r in at.of(method) if (r.cell.rank, r.cell.alpha) == axes])


def _near(rate: Rate | Judgement, claimed: float) -> Judgement:
    bounds = Bounds(claimed / FAR, claimed * FAR, ratio=True)
    return rate.judge(bounds) if isinstance(rate, Rate) else rate


def _adapters_near(at: Evidence, claimed: float) -> Judgement:
    return hold_all([(method, _near(_rate(at, method), claimed)) for method in ADAPTERS])


def _ratios_near(at: Evidence, claimed: float) -> Judgement:
    """Of the rate of each adapter to that of full fine-tuning."""
    if isinstance(full := _rate(at, "full"), Judgement):
        return full
    parts = []
    for method in ADAPTERS:
        own = _rate(at, method)
        parts.append((method, _near(rate_ratio(own, full) if isinstance(own, Rate) else own, claimed)))
    return hold_all(parts)


@CLAIMS.claim(
    "lr-adapters",
    "2e-4 is the learning rate for PEFT (the best rates of LoRA, QLoRA and DoRA are within 3×)",
    "sweep lr",
    rate,
)
def lr_adapters(at: Evidence) -> Judgement:
    return each_batch(at, lambda part: _adapters_near(part, 2e-4))


@CLAIMS.claim(
    "lr-full", "2e-5 is the learning rate for full fine-tuning (the best rate is within 3×)", "sweep lr", rate
)
def lr_full(at: Evidence) -> Judgement:
    return each_batch(at, lambda part: _near(_rate(part, "full"), 2e-5))


@CLAIMS.claim(
    "lr-ratio",
    "PEFT needs ten times the learning rate of full fine-tuning (3 to 30 times)",
    "sweep lr",
    times,
)
def lr_ratio(at: Evidence) -> Judgement:
    return each_batch(at, lambda part: _ratios_near(part, 10))
