"""Claims on alpha: what alpha = 2r scores at a common learning rate, and whether it keeps the best rate where it is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from harness.plugins.articles.beyond_lora.methods import ADAPTERS
from harness.plugins.articles.claims import OPEN, Bounds, Judgement, lacking, unchosen
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.rules import MeasuredRate, best_rate, each_batch, gain, rate_ratio
from harness.report.select import Choice
from harness.report.statistics import Interval

SPAN = 8  # times the lowest rank, at least, that the highest is
STEP = 1.5  # times as far a move that is not noticed: half a step of a usual grid of rates
MOVES = Bounds(low=STEP, small=(1 / STEP, STEP), ratio=True, margin="1.5 times", more="further", less="less far")

ROUNDING = 1e-9

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
    weighted = [entry for pairs in by_rate.values() for entry in _at_common_rate(pairs)]
    if not weighted:
        return Judgement(OPEN, why="The rate that is best for both alphas is at an end of the rates that both tried")
    ones, others = [one for (one, _), _ in weighted], [other for (_, other), _ in weighted]
    return gain(at, ones, others, learned, weights=[weight for _, weight in weighted])


def _at_common_rate(by_rate: dict[float, Pair]) -> list[tuple[Pair, float]]:
    """The pairs at the two rates around the one that is best for both alphas together, with weights that interpolate
    between them; none if the best of the rates is an end of them.

    The best rate is the vertex of a parabola through the mean losses of both alphas at the best rate that was tried and
    its neighbours. It rarely was tried itself, and on either side of it one of the alphas is favoured.
    """
    losses = {lr: fmean(loss for c in pair if (loss := c.loss) is not None) for lr, pair in by_rate.items()}
    rates = sorted(losses)
    best = rates.index(min(losses, key=losses.__getitem__))
    if best in (0, len(rates) - 1):
        return []
    near = rates[best - 1 : best + 2]
    vertex = _vertex([math.log(lr) for lr in near], [losses[lr] for lr in near])
    low, high = near[:2] if vertex < math.log(near[1]) else near[1:]
    share = (vertex - math.log(low)) / math.log(high / low)
    return [(by_rate[lr], weight) for lr, weight in ((low, 1 - share), (high, share)) if weight > ROUNDING]


def _vertex(x: Sequence[float], y: Sequence[float]) -> float:
    """Where the parabola through three points is least, of which the middle one is the lowest."""
    falls, rises = (y[0] - y[1]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    share = falls / (falls + rises) if falls + rises else 0.5
    return (x[0] + x[1]) / 2 + share * (x[2] - x[0]) / 2


def alpha_r(at: Evidence) -> Judgement:
    return _alpha_gain(at, 1)


def alpha_4r(at: Evidence) -> Judgement:
    return _alpha_gain(at, 4)


def alpha_rank(at: Evidence) -> Judgement:
    """The effect is the factor by which the best rate moves with one alpha, over that with alpha = 2r.

    Its interval is that of both factors at their worst, so it is rather too wide.
    """
    return each_batch(at.tried, _further)


def _further(at: Evidence) -> Judgement:
    chosen = {(rank, alpha): c for (m, rank, alpha), c in at.choices("rank", "alpha").items() if m == "lora" and rank}
    ranks = [rank for rank, alpha in chosen if alpha == 2 * rank]
    if not ranks or max(ranks) < SPAN * min(ranks):
        return lacking(f"lora with alpha = 2r at ranks that span {SPAN}×")
    low, high = min(ranks), max(ranks)
    fixed = [alpha for rank, alpha in chosen if rank == low and (high, alpha) in chosen]
    if not fixed:
        return lacking(f"lora at r={low} and r={high} with one alpha")
    scaled = rate_ratio(_best(at, high, 2 * high), _best(at, low, 2 * low))
    kept = rate_ratio(_best(at, high, min(fixed)), _best(at, low, min(fixed)))
    used, seeds = tuple(dict.fromkeys((*scaled.used, *kept.used))), min(scaled.seeds, kept.seeds)
    if (own := scaled.intervals) is None or (other := kept.intervals) is None:
        return MeasuredRate(None, seeds, used, scaled.why or kept.why).judge(MOVES)

    def intervals(comparisons: float) -> Interval:
        near, far = _size(own(comparisons)), _size(other(comparisons))
        return Interval(far.value / near.value, far.low / near.high, far.high / near.low)

    return MeasuredRate(intervals, seeds, used).judge(MOVES)


def _best(at: Evidence, rank: int, alpha: float) -> MeasuredRate:
    return best_rate(at, "lora", rank, alpha, f"lora r={rank} alpha={alpha:g}")


def _size(ratio: Interval) -> Interval:
    """By what factor a rate moves, up or down: at least 1."""
    value, low, high = ratio
    if low > 1:
        return ratio
    down = Interval(1 / value, 1 / high, 1 / low if low else math.inf)
    if high < 1:
        return down
    return Interval(max(value, down.value), 1.0, max(high, down.high))
