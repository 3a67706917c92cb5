"""Claims on rank, alpha and learning rate."""

from __future__ import annotations

from harness.plugins.articles.beyond_lora.data_sets import COMPLEX, trained_on
from harness.plugins.articles.beyond_lora.methods import ADAPTERS
from harness.plugins.articles.claims import Bounds, Judgement, lacking, unchosen
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.rules import MeasuredRate, best_rate, each_batch, gain, hold_all, rate_ratio

FAR = 3.0  # a learning rate within this factor of another is the same choice
HIGHER = Bounds(low=FAR, small=(1 / FAR, FAR), ratio=True, margin="3 times", more="higher", less="lower")


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


def _rate(at: Evidence, method: str) -> MeasuredRate | Judgement:
    """The best learning rate of `method` at its chosen rank and alpha; a judgement if it has no chosen setting."""
    if (choice := at.choices().get((method,))) is None:
        return unchosen(at, [method], [], method)
    return best_rate(at, method, choice.rank, choice.alpha)


def _judged(rate: MeasuredRate | Judgement, bounds: Bounds) -> Judgement:
    return rate.judge(bounds) if isinstance(rate, MeasuredRate) else rate


def _adapters(at: Evidence, bounds: Bounds) -> Judgement:
    """Of the rate of each adapter."""
    return hold_all([(method, _judged(_rate(at, method), bounds)) for method in ADAPTERS])


def _ratios(at: Evidence, bounds: Bounds) -> Judgement:
    """Of the rate of each adapter over that of full fine-tuning."""
    if isinstance(full := _rate(at, "full"), Judgement):
        return full
    parts = []
    for method in ADAPTERS:
        own = _rate(at, method)
        parts.append((method, _judged(rate_ratio(own, full) if isinstance(own, MeasuredRate) else own, bounds)))
    return hold_all(parts)


def lr_adapters(at: Evidence) -> Judgement:
    return each_batch(at, lambda part: _adapters(part, Bounds(low=2e-4 / FAR, ratio=True)))


def lr_full(at: Evidence) -> Judgement:
    near = Bounds(2e-5 / FAR, 2e-5 * FAR, ratio=True)
    return each_batch(at, lambda part: _judged(_rate(part, "full"), near))


def lr_ratio(at: Evidence) -> Judgement:
    return each_batch(at, lambda part: _ratios(part, HIGHER))
