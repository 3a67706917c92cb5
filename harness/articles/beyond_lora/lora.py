"""Claims on LoRA: its parameters, its memory, and its stability at very low rank."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats as distributions

from harness.articles.rules import adapt_settings, ratio
from harness.report import statistics
from harness.report.claims import OPEN, REFUTED, SUPPORTED, Claims, Judgement, judge, lacking, points, times
from harness.report.evidence import Evidence
from harness.report.statistics import Interval

CLAIMS = Claims()
LOW, HIGH = 4, 16  # very low ranks are at most LOW; they are compared with ranks of at least HIGH


@CLAIMS.claim(
    "lora-parameters",
    "LoRA reduces trainable parameters by up to 10,000× (with the smallest adapter: rank 1 on queries and values)",
    "sweep method=lora rank=1 'method.adapt.target_modules=[q_proj,v_proj]' train.max_steps=1 eval.tasks=[] "
    "infer.repeats=0 study=smallest",
    times,
)
def lora_parameters(at: Evidence) -> Judgement:
    """Exact. Only the smallest possible adapter can refute it."""
    cells = [record for record in at.of("lora") if record.parameters]
    if not cells:
        return lacking("lora")
    least = min(cells, key=lambda record: record.parameters.trainable)
    cut = (least.parameters.total - least.parameters.trainable) / least.parameters.trainable
    smallest = least.cell.rank == 1 and set(adapt_settings(least).get("target_modules", ())) == {"q_proj", "v_proj"}
    decision = SUPPORTED if cut >= 10_000 else REFUTED if smallest else OPEN
    why = "A smaller adapter is possible" if decision == OPEN else ""
    return Judgement(decision, Interval(cut, cut, cut), None, None, (least.cell.name,), why)


@CLAIMS.claim("lora-memory", "LoRA reduces memory drastically (to at most half of full's peak)", "sweep memory", times)
def lora_memory(at: Evidence) -> Judgement:
    return ratio(at, "lora", "full", "train_allocated_peak", 0, 0.5, exact=True)


@CLAIMS.claim(
    "low-rank-spread",
    "LoRA is unstable at very low rank: validation losses vary between seeds (at ranks up to 4, at least twice as much "
    "as at 16 and above)",
    "sweep seeds",
    times,
)
def low_rank_spread(at: Evidence) -> Judgement:
    """The ratio of two standard deviations, each pooled over ranks. The interval is that of the F distribution."""
    chosen = {choice.rank: choice for (method, rank), choice in at.choices("rank").items() if method == "lora" and rank}
    groups = [[c for r, c in chosen.items() if r <= LOW], [c for r, c in chosen.items() if r >= HIGH]]
    if not all(groups):
        return lacking(f"lora at ranks up to {LOW}", f"at {HIGH} and above")
    used = tuple(record.cell.name for group in groups for record in at.chosen(*group))
    losses = [[[r.validation[-1].loss for r in at.chosen(c) if r.validation] for c in group] for group in groups]
    freedom = [sum(max(0, len(values) - 1) for values in group) for group in losses]
    seeds = min(len(values) for group in losses for values in group)
    squares = [sum(len(values) * np.var(values) for values in group if values) for group in losses]
    if not all(freedom) or not all(squares):
        return Judgement(OPEN, None, seeds, None, used, "No variation between seeds to compare")
    variances = (squares[0] / freedom[0]) / (squares[1] / freedom[1])
    ends = variances / distributions.f.ppf(statistics.TAILS[::-1], *freedom)
    effect = Interval(*(float(value) ** 0.5 for value in (variances, *ends)))
    decision = judge(effect, low=2)
    return Judgement(decision, effect, seeds, None, used, "Too few seeds" if decision == OPEN else "")


@CLAIMS.claim(
    "low-rank-divergence",
    "LoRA is unstable at very low rank: more runs diverge at ranks up to 4 than at 16 and above, at the same learning "
    "rates (at least 10 points more)",
    "sweep rank lr_scale=2,5,15,50",
    points,
)
def low_rank_divergence(at: Evidence) -> Judgement:
    """The difference of two proportions. The interval is Newcombe's (Stat. Med. 17, 1998, method 10)."""
    runs = [r for r in at.records if r.cell.method == "lora" and r.cell.rank and r.status in ("ok", "diverged")]
    sides = [[r for r in runs if r.cell.rank <= LOW], [r for r in runs if r.cell.rank >= HIGH]]
    shared = set.intersection(*({r.cell.lr for r in side} for side in sides))
    sides = [[r for r in side if r.cell.lr in shared] for side in sides]
    if not all(sides):
        return lacking(f"lora at ranks up to {LOW}", f"at {HIGH} and above")
    shares, lows, highs = [], [], []
    for side in sides:
        test = distributions.binomtest(sum(r.status == "diverged" for r in side), len(side))
        ends = test.proportion_ci(method="wilson")
        shares, lows, highs = [*shares, test.statistic], [*lows, ends.low], [*highs, ends.high]
    value = shares[0] - shares[1]
    below = math.hypot(shares[0] - lows[0], highs[1] - shares[1])
    above = math.hypot(highs[0] - shares[0], shares[1] - lows[1])
    effect = Interval(value, value - below, value + above)
    decision = judge(effect, low=0.1)
    used = tuple(record.cell.name for side in sides for record in side)
    why = "Too few runs" if decision == OPEN else ""
    return Judgement(decision, effect, min(map(len, sides)), None, used, why)
