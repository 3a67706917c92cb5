"""Parts of rules that several articles share: paired gains, ratios of measures, best learning rates."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from harness.record import Record, micro_batches
from harness.report import statistics
from harness.report.claims import OPEN, REFUTED, SUPPORTED, Decision, Judgement, judge, lacking, names
from harness.report.evidence import Evidence
from harness.report.frame import measures
from harness.report.select import Choice
from harness.report.statistics import Interval

NO_GAIN = 0.01  # a gain in a score whose interval lies below it counts as none
STRADDLES = "The interval includes both outcomes"


def better(gain: Interval) -> Decision:
    """The decision on the claim that there is a gain; one below a point counts as none."""
    return SUPPORTED if gain.low > 0 else REFUTED if gain.high < NO_GAIN else OPEN


def gain(
    at: Evidence,
    ones: Sequence[Choice],
    others: Sequence[Choice],
    score: str,
    decide: Callable[[Interval], Decision] = better,
) -> Judgement:
    """The mean score of `ones` minus that of `others`, paired by item. Needs two seeds of each side to decide."""
    records = [*at.chosen(*ones), *at.chosen(*others)]
    used = tuple(record.cell.name for record in records)
    one, other = at.sample(ones, score), at.sample(others, score)
    if one is None or other is None or one[1] != other[1]:
        return Judgement(OPEN, records=used, why=f"No {score.partition('/')[0]} scores of the same items")
    difference = statistics.differences([one[0], other[0]])[0, 1]
    effect = Interval(difference.value, difference.low, difference.high)
    seeds = min(
        len(values)
        for values, side in ((one[0], ones), (other[0], others))
        if at.chosen(*side)[0].cell.seed is not None  # an untuned model has no seeds
    )
    decision, why = decide(effect), ""
    if seeds < 2:
        decision, why = OPEN, "One seed"
    elif decision == OPEN:
        why = STRADDLES
    return Judgement(decision, effect, seeds, one[0].shape[1], used, why)


def matched(at: Evidence, one: str, other: str) -> Iterator[tuple[str, list[Record], list[Record]]]:
    """Finished records of two methods with equal batches and training settings, and a text that names the setting.

    If both methods have ranks, only equal ranks are matched; if both adapt layers, only the same layers.
    """
    sides = [defaultdict(list), defaultdict(list)]
    ranked = all(any(r.cell.rank is not None for r in at.of(method)) for method in (one, other))
    adapting = all(any(adapt_settings(r) for r in at.of(method)) for method in (one, other))
    for side, method in zip(sides, (one, other), strict=True):
        for record in at.of(method):
            train = {k: v for k, v in train_settings(record).items() if k != "seed"}
            adapt = {k: v for k, v in adapt_settings(record).items() if k not in ("use_dora", "lora_alpha")}
            key = json.dumps([train, adapt if adapting else None, micro_batches(record)], sort_keys=True)
            side[key, record.cell.rank if ranked else None].append(record)
    for key, members in sides[0].items():
        if key not in sides[1]:
            continue
        by_rank = defaultdict(list)
        for record in members:
            by_rank[record.cell.rank].append(record)
        for rank, group in by_rank.items():
            size, _ = micro_batches(group[0]) or (None, None)
            yield f"r={rank}, train.batch_size={size}", group, sides[1][key]


def train_settings(record: Record) -> dict[str, Any]:
    """The settings of the training loop."""
    return record.cell.settings.train_dict()


def adapt_settings(record: Record) -> dict[str, Any]:
    """The settings of the adapter; empty if there is none."""
    return record.cell.settings.method.adapt or {}


def ratio(at: Evidence, one: str, other: str, measure: str, low: float, high: float, exact: bool = False) -> Judgement:
    """The judgement on the claim that a measure of `one` over that of `other` lies between `low` and `high`.

    measure: a column of `frame`. exact: the measure has no error, so one run of each side decides. The effect is the
    ratio closest to contradicting the claim, over all pairs of `matched`.
    """
    pairs = []
    for where, ones, others in matched(at, one, other):
        sides = [[v for r in side if (v := measures(r)[measure]) is not None] for side in (ones, others)]
        if not all(sides):
            continue
        effect = statistics.ratio_interval(*sides)
        value = float(np.mean(sides[0]) / np.mean(sides[1]))
        if effect is None:
            effect = Interval(value, value, value) if exact else Interval(value, math.nan, math.nan)
        decision = judge(effect, low, high)
        why = "One run" if math.isnan(effect.low) else STRADDLES if decision == OPEN else ""
        used = tuple(record.cell.name for record in (*ones, *others))
        pairs.append((where, Judgement(decision, effect, min(map(len, sides)), None, used, why)))
    return everywhere(pairs, low, high) if pairs else lacking(one, other)


def everywhere(pairs: Sequence[tuple[str, Judgement]], low: float, high: float) -> Judgement:
    """One judgement for several settings that should agree: not decided if their decisions differ.

    The effect is the one closest to leaving the range from `low` to `high`.
    """
    judgements = [judgement for _, judgement in pairs]
    worst = _worst(judgements, low, high)
    decision, why = worst.decision, worst.why
    if len({judgement.decision for judgement in judgements}) > 1:
        decision = OPEN
        why = "; ".join(f"{judgement.decision} at {where}" for where, judgement in pairs)
    return Judgement(decision, worst.effect, min(j.seeds for j in judgements), None, names(judgements), why)


def hold_all(parts: Sequence[tuple[str, Judgement]], low: float, high: float) -> Judgement:
    """One judgement for a claim with several parts: supported if all are, refuted if one is."""
    judgements = [judgement for _, judgement in parts]
    for judgement in judgements:
        if judgement.effect is None:
            return judgement
    decisions = [judgement.decision for judgement in judgements]
    decision = REFUTED if REFUTED in decisions else OPEN if OPEN in decisions else SUPPORTED
    shown = _worst(judgements, low, high) if decision == SUPPORTED else judgements[decisions.index(decision)]
    undecided = [f"{part}: {j.why or j.decision}" for part, j in parts if j.decision == OPEN]
    why = "; ".join(undecided) if decision == OPEN else ""
    return Judgement(decision, shown.effect, min(j.seeds for j in judgements), None, names(judgements), why)


def _worst(judgements: Sequence[Judgement], low: float, high: float) -> Judgement:
    return min(judgements, key=lambda judgement: min(judgement.effect.value - low, high - judgement.effect.value))


def best_rate(label: str, records: Sequence[Record]) -> Judgement:
    """The learning rate with the least validation loss among `records`, which differ only in rate and seed.

    The effect is the geometric mean over seeds. Its interval covers what seeds and grid leave open: for each seed the
    optimum is known to lie between the midpoints to the neighbouring rates. Never decided: the caller compares it.
    `why` is set if the interval is unknown or rests on one seed.
    """
    used = tuple(record.cell.name for record in records)
    with_loss = [record for record in records if record.cell.lr and record.validation]
    by_seed = defaultdict(list)
    for record in with_loss:
        by_seed[record.cell.seed].append((record.validation[-1].loss, record.cell.lr))
    if not by_seed:
        return Judgement(OPEN, records=used, why=f"No validation losses of {label} by learning rate")
    rates = sorted({record.cell.lr for record in with_loss})
    best = [min(losses)[1] for losses in by_seed.values()]
    if len(rates) == 1:
        return Judgement(OPEN, None, len(best), None, used, f"One rate of {label}")
    if {rates[0], rates[-1]} & set(best):
        why = f"{label}'s best rate is at an end of the rates tried"
        return Judgement(OPEN, None, len(best), None, used, why)
    at = [rates.index(rate) for rate in best]
    effect = Interval(
        math.exp(float(np.mean(np.log(best)))),
        min(math.sqrt(rates[i] * rates[i - 1]) for i in at),
        max(math.sqrt(rates[i] * rates[i + 1]) for i in at),
    )
    return Judgement(OPEN, effect, len(best), None, used, "One seed" if len(best) < 2 else "")


def rate_ratio(one: Judgement, other: Judgement) -> Judgement:
    """The ratio of two rates of `best_rate`, with the widest interval that theirs allow. Never decided."""
    for side in (one, other):
        if side.effect is None or side.why:
            return Judgement(OPEN, None, side.seeds, None, side.records, side.why)
    a, b = one.effect, other.effect
    effect = Interval(a.value / b.value, a.low / b.high, a.high / b.low)
    return Judgement(OPEN, effect, min(one.seeds, other.seeds), None, names([one, other]))


def within(judgement: Judgement, low: float, high: float) -> Judgement:
    """Decides whether the effect of `judgement` lies between `low` and `high`; one without an effect stays open."""
    if judgement.effect is None or judgement.why:
        return judgement
    decision = judge(judgement.effect, low, high)
    why = STRADDLES if decision == OPEN else ""
    return Judgement(decision, judgement.effect, judgement.seeds, None, judgement.records, why)
