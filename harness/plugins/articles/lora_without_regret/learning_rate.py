"""Claims on the best learning rate of LoRA: its ratio to full fine-tuning's, and its dependence on rank."""

from __future__ import annotations

from harness.plugins.articles.claims import OPEN, Bounds, Judgement, unchosen
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.lora_without_regret.losses import on_all_layers
from harness.plugins.articles.rules import best_rate, each_batch, rate_ratio

TIMES, FAR = 10, 3.0  # a ratio within this factor of the claimed one agrees with it
SPREAD = 8  # the ranks that are compared must span this factor


def lr_ratio(at: Evidence) -> Judgement:
    return each_batch(at.where(on_all_layers), _ratio)


def _ratio(at: Evidence) -> Judgement:
    rates = []
    for method in ("lora", "full"):
        choice = at.choices().get((method,))
        if choice is None:
            return unchosen(at, [method], [], method)
        rates.append(best_rate(at, method, choice.rank, choice.alpha))
    return rate_ratio(rates[0], rates[1]).judge(Bounds(TIMES / FAR, TIMES * FAR, ratio=True))


def lr_rank(at: Evidence) -> Judgement:
    """The ratio of the best rate at the highest rank to that at the lowest rank of the same alpha.

    alpha must be equal, since the article scales updates by alpha / rank: alpha = 2r would scale rates too.
    """
    return each_batch(at.where(on_all_layers), _change_with_rank)


def _change_with_rank(at: Evidence) -> Judgement:
    chosen = {rank: choice for (method, rank), choice in at.choices("rank").items() if method == "lora" and rank}
    if not chosen or max(chosen) < SPREAD * min(chosen):
        return unchosen(at, ["lora"], ["rank"], f"lora at ranks that span {SPREAD}×")
    high, low = chosen[max(chosen)], chosen[min(chosen)]
    if high.alpha != low.alpha:
        return Judgement(OPEN, why=f"alpha differs between ranks ({low.alpha:g} and {high.alpha:g})")
    highest, lowest = (best_rate(at, "lora", c.rank, c.alpha, f"lora r={c.rank}") for c in (high, low))
    return rate_ratio(highest, lowest).judge(Bounds(1 / FAR, FAR, ratio=True))
