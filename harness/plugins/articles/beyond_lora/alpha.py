"""Claims on alpha: what alpha = 2r scores at a common learning rate, and whether it keeps the best rate where it is."""

from __future__ import annotations

import math
from collections import defaultdict
from statistics import fmean

from harness.plugins.articles.beyond_lora.methods import ADAPTERS
from harness.plugins.articles.claims import (
    OPEN,
    Bounds,
    Claims,
    Judgement,
    fewest_seeds,
    judged,
    lacking,
    names,
    points,
    times,
    unchosen,
)
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.rules import best_rate, gain, rate_ratio
from harness.record import Record
from harness.report.select import Choice
from harness.report.statistics import Interval

CLAIMS = Claims()
SPAN = 8  # times the lowest rank, at least, that the highest is
STEP = 1.5  # times as far a move that is not noticed: half a step of a usual grid of rates
MOVES = Bounds(high=1 / STEP, small=(1 / STEP, STEP), ratio=True, margin="1.5 times", more="more", less="less")

Pair = tuple[Choice, Choice]


def _alpha_gain(at: Evidence, times: int) -> Judgement:
    """The gain of alpha = 2r over alpha = `times` r at one rate, the mean over methods and ranks: `_at_common_rate`."""
    learned, at = at.learned, at.tried
    by_rate: dict[tuple[str, int], dict[float, Pair]] = defaultdict(dict)
    chosen = at.choices("rank", "alpha", "lr")
    for (method, rank, alpha, lr), choice in chosen.items():
        other = chosen.get((method, rank, times * rank, lr)) if rank else None
        if method in ADAPTERS and other and alpha == 2 * rank:
            by_rate[method, rank][lr] = choice, other
    if not by_rate or learned is None:
        lacks = ("adapters with alpha = 2r", f"alpha = {'' if times == 1 else times}r at the same learning rates")
        return unchosen(at, ADAPTERS, ["rank", "alpha", "lr"], *lacks)
    found = [_at_common_rate(pairs) for pairs in by_rate.values()]
    pairs = [pair for pair in found if pair]
    if not pairs:
        return Judgement(OPEN, why="The rate that is best for both alphas is at an end of the rates that both tried")
    return gain(at, [one for one, _ in pairs], [other for _, other in pairs], learned)


def _at_common_rate(by_rate: dict[float, Pair]) -> Pair | None:
    """The pair at the rate with the least mean validation loss of both; None if that is an end of the rates."""
    losses = {lr: fmean(loss for c in pair if (loss := c.loss) is not None) for lr, pair in by_rate.items()}
    best = min(losses, key=losses.__getitem__)
    return by_rate[best] if min(losses) < best < max(losses) else None


@CLAIMS.claim(
    "alpha-r",
    "alpha = 2r keeps the scaling of updates consistent (it scores at least 1 point more than alpha = r, at the "
    "learning rate that is best for both together)",
    "sweep alpha",
    points,
)
def alpha_r(at: Evidence) -> Judgement:
    return _alpha_gain(at, 1)


@CLAIMS.claim(
    "alpha-4r",
    "alpha = 2r keeps the scaling of updates consistent (it scores at least 1 point more than alpha = 4r, at the "
    "learning rate that is best for both together)",
    "sweep alpha",
    points,
)
def alpha_4r(at: Evidence) -> Judgement:
    return _alpha_gain(at, 4)


@CLAIMS.claim(
    "alpha-rank",
    "alpha = 2r keeps the scaling of updates consistent over ranks (from the lowest rank to one of at least 8 "
    "times, the best learning rate of LoRA moves by a factor at least 1.5 times smaller than with one alpha for "
    "both)",
    "sweep lr method=lora rank=4,64 alpha=8,128 study=alpha_rank",
    times,
)
def alpha_rank(at: Evidence) -> Judgement:
    """The effect is the factor by which the best rate moves with alpha = 2r, over that with a fixed alpha.

    Its interval is that of both factors at their worst, so it is rather too wide.
    """
    at = at.tried
    chosen = {(rank, alpha): c for (m, rank, alpha), c in at.choices("rank", "alpha").items() if m == "lora" and rank}
    ranks = [rank for rank, alpha in chosen if alpha == 2 * rank]
    if not ranks or max(ranks) < SPAN * min(ranks):
        return lacking(f"lora with alpha = 2r at ranks that span {SPAN}×")
    low, high = min(ranks), max(ranks)
    fixed = [alpha for rank, alpha in chosen if rank == low and (high, alpha) in chosen]
    if not fixed:
        return lacking(f"lora at r={low} and r={high} with one alpha")
    rates = [
        best_rate(f"lora r={rank} alpha={alpha:g}", _like(at, rank, alpha))
        for rank, alpha in ((high, 2 * high), (low, 2 * low), (high, min(fixed)), (low, min(fixed)))
    ]
    moves = [rate_ratio(*rates[:2]), rate_ratio(*rates[2:])]
    if lack := next((move for move in moves if move.effect is None or move.why), None):
        return lack
    scaled, kept = (_size(move.effect) for move in moves if move.effect)
    effect = Interval(scaled.value / kept.value, scaled.low / kept.high, scaled.high / kept.low)
    return judged(lambda comparisons: effect, MOVES, fewest_seeds(rates), names(rates))


def _like(at: Evidence, rank: int, alpha: float) -> list[Record]:
    return [record for record in at.of("lora") if (record.cell.rank, record.cell.alpha) == (rank, alpha)]


def _size(ratio: Interval) -> Interval:
    """By what factor a rate moves, up or down: at least 1."""
    value, low, high = ratio
    if low > 1:
        return ratio
    down = Interval(1 / value, 1 / high, 1 / low if low else math.inf)
    if high < 1:
        return down
    return Interval(max(value, down.value), 1.0, max(high, down.high))
