"""Parts of rules that several articles share: paired gains, ratios of measures, best learning rates."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from harness.plugins.articles.claims import (
    DEPENDS,
    OPEN,
    REFUTED,
    SUPPORTED,
    Decision,
    Judgement,
    fewest_seeds,
    judge,
    lacking,
    names,
)
from harness.plugins.articles.evidence import Evidence
from harness.record import Record, micro_batches
from harness.report import statistics
from harness.report.conditions import differing, numerics, started
from harness.report.select import Choice
from harness.report.statistics import Interval, MemoryPeak, Ratio, Run, Statistic

NO_GAIN = 0.01  # a gain in a score whose interval lies below it counts as none
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}  # the matrices of attention, as target_modules names them
STRADDLES = "The interval includes both outcomes"


def better(gain: Interval) -> Decision:
    """The decision on the claim that there is a gain; one below a point counts as none."""
    return SUPPORTED if gain.low > 0 else REFUTED if gain.high < NO_GAIN else OPEN


class Gain(NamedTuple):
    """A judged gain in a score, for tests that are corrected over several gains.

    effect: that of the judgement. difference: the gain with its error.
    """

    judgement: Judgement
    effect: Interval
    difference: Statistic


def gain(
    at: Evidence,
    ones: Sequence[Choice],
    others: Sequence[Choice],
    score: str,
    decide: Callable[[Interval], Decision] = better,
) -> Judgement:
    """The mean score of `ones` minus that of `others`, paired by item, and by seed where they share enough.

    Needs two seeds of each side to decide.
    """
    judged = scored_gain(at, ones, others, score, decide)
    return judged.judgement if isinstance(judged, Gain) else judged


def scored_gain(
    at: Evidence,
    ones: Sequence[Choice],
    others: Sequence[Choice],
    score: str,
    decide: Callable[[Interval], Decision] = better,
) -> Gain | Judgement:
    """`gain` with its difference; the judgement alone if no scores of the same items are there to compare."""
    records = [*at.chosen(*ones), *at.chosen(*others)]
    used = tuple(record.cell.name for record in records)
    one, other = at.sample(ones, score), at.sample(others, score)
    if one is None or other is None or one[1] != other[1]:
        return Judgement(OPEN, records=used, why=f"No {score.partition('/')[0]} scores of the same items")
    difference = statistics.differences([one[0], other[0]])[0, 1]
    effect = Interval(difference.value, difference.low, difference.high)
    seeds = min(
        len(sample.values)
        for sample, side in ((one[0], ones), (other[0], others))
        if at.chosen(*side)[0].cell.seed is not None  # an untuned model has no seeds
    )
    decision, why = decide(effect), ""
    if seeds < 2:
        decision, why = OPEN, "One seed"
    elif unequal := differing(at.chosen(*ones), at.chosen(*others), numerics):
        decision, why = OPEN, unlike(unequal)
    elif decision == OPEN:
        why = STRADDLES
    claimed = (0.0, math.inf) if decide is better else None
    size = one[0].values.shape[1]
    judgement = Judgement(decision, effect, seeds, size, used, why, claimed, difference.items)
    return Gain(judgement, effect, difference.statistic)


def unlike(facts: Iterable[str]) -> str:
    """The reason why two sides are not compared."""
    return f"The runs differ in {', '.join(facts)}"


def matched(at: Evidence, one: str, other: str) -> Iterator[tuple[str, list[Record], list[Record]]]:
    """Finished records of two methods with equal batches and training settings, and a text that names the setting.

    If both methods have ranks, only equal ranks are matched; if both adapt layers, only the same layers.
    """
    sides: list[dict[Hashable, list[Record]]] = [defaultdict(list), defaultdict(list)]
    ranked = all(any(r.cell.rank is not None for r in at.of(method)) for method in (one, other))
    adapting = all(any(adapt_settings(r) for r in at.of(method)) for method in (one, other))
    for side, method in zip(sides, (one, other), strict=True):
        for record in at.of(method):
            train, imported = record.cell.settings.train, record.cell.settings.other.get("train", {})
            free = [{k: v for k, v in imported.items() if k != "seed"}]
            if adapting:
                free += [{k: v for k, v in adapt_settings(record).items() if k not in ("use_dora", "lora_alpha")}]
            key = (train, json.dumps(free, sort_keys=True), micro_batches(record))
            side[key, record.cell.rank if ranked else None].append(record)
    pairs = []
    for alike, members in sides[0].items():
        if alike not in sides[1]:
            continue
        by_rank = defaultdict(list)
        for record in members:
            by_rank[record.cell.rank].append(record)
        pairs += [(group, sides[1][alike]) for group in by_rank.values()]
    settings = [_named(group[0]) for group, _ in pairs]
    every = sorted(set().union(*settings) - {"batch_size", "seed"})
    shown = [name for name in every if len({one.get(name) for one in settings}) > 1]
    for (group, others), named in zip(pairs, settings, strict=True):
        size, _ = micro_batches(group[0]) or (None, None)
        rest = [f"train.{name}={named[name]}" for name in shown if name in named]
        yield ", ".join([f"r={group[0].cell.rank}", f"train.batch_size={size}", *rest]), group, others


def _named(record: Record) -> dict[str, str]:
    """Its settings of training, as they are written on a command line."""
    return {name: json.dumps(value) for name, value in train_settings(record).items()}


def train_settings(record: Record) -> dict[str, Any]:
    """The settings of the training loop."""
    return record.cell.settings.train_dict()


def adapt_settings(record: Record) -> dict[str, Any]:
    """The settings of the adapter; empty if there is none."""
    return record.cell.settings.method.adapt or {}


def counted(at: Evidence, one: str, other: str, measure: str, low: float, high: float) -> Judgement:
    """The judgement on the claim that a count of `one` over that of `other` lies between `low` and `high`.

    measure: a column of `frame` that follows from the settings alone, so it is exact; two runs of equal settings that
    differ are not counted but measured, and open. The effect is the ratio closest to contradicting the claim.
    """
    pairs = []
    for where, ones, others in matched(at, one, other):
        sides = [[v for r in side if (v := at.numbers(r)[measure]) is not None] for side in (ones, others)]
        if not all(sides):
            continue
        value = sides[0][0] / sides[1][0]
        used = tuple(record.cell.name for record in (*ones, *others))
        if any(len(set(side)) > 1 for side in sides):
            pairs.append((where, Judgement(OPEN, Interval(value, math.nan, math.nan), 1, None, used, "Counts differ")))
            continue
        effect = Interval(value, value, value)
        pairs.append((where, Judgement(judge(effect, low, high), effect, min(map(len, sides)), None, used)))
    return everywhere(pairs, low, high) if pairs else lacking(one, other)


def memory_ratio(at: Evidence, one: str, other: str, measure: str, low: float, high: float) -> Judgement:
    """The judgement on the claim that a peak of memory of `one` over that of `other` lies between `low` and `high`.

    measure: a column of `frame` in bytes. Only runs alike in device, precision, versions and attention are compared.
    The effect is the ratio closest to contradicting the claim, over all pairs of `matched`; a verdict says for which
    batch, model and device it holds, since a ratio at another batch is another one.
    """
    pairs, apart = [], []
    for where, ones, others in matched(at, one, other):
        sides = [[(r, v) for r in side if (v := at.numbers(r)[measure])] for side in (ones, others)]
        if not all(sides):
            continue
        unequal = differing([r for r, _ in sides[0]], [r for r, _ in sides[1]], at.conditions)
        if unequal:
            apart += unequal
            continue
        peaks = [[MemoryPeak(v, r.cell.seed, r.cell.lr) for r, v in side] for side in sides]
        ratio = statistics.of_memory(peaks[0], peaks[1])
        used = tuple(r.cell.name for side in sides for r, _ in side)
        pairs.append((where, judged_ratio(ratio, lambda interval: judge(interval, low, high), used)))
    return _alike(pairs, apart, at, one, other, low, high)


def time_ratio(
    at: Evidence, one: str, other: str, seconds: Callable[[Record], float | None], low: float, high: float
) -> Judgement:
    """The judgement on the claim that a time of `one` over that of `other` lies between `low` and `high`.

    seconds: of a run, or None. Runs that overlapped with others or were resumed are left out. What is independent
    follows from the order in which all cells ran: `statistics.of_times`.
    """
    if not all(any(seconds(record) for record in at.of(method)) for method in (one, other)):
        return lacking(f"{one} with measured times", other)
    pairs, apart, disturbed = [], [], 0
    for where, ones, others in matched(at, one, other):
        timed = [[r for r in side if seconds(r)] for side in (ones, others)]
        if not all(timed):
            continue
        clean = [[r for r in side if r.cell.name not in at.disturbed] for side in timed]
        if not all(clean):
            disturbed += sum(map(len, timed))
            continue
        if unequal := differing(clean[0], clean[1], at.conditions):
            apart += unequal
            continue
        own = {id(r) for side in clean for r in side}
        runs: dict[str, list[Run]] = {one: [], other: []}
        for record in at.records:
            if id(record) in own and (time := seconds(record)):
                runs[record.cell.method].append(Run(time, record.cell.seed, started(record)))
        ratio = statistics.of_times(runs, one, other)
        used = tuple(r.cell.name for side in clean for r in side)
        if ratio is None:
            value = float(np.exp(np.mean(np.log([run.value for run in runs[one]]))))
            value /= float(np.exp(np.mean(np.log([run.value for run in runs[other]]))))
            fewest = min(len(own) for own in statistics.units(runs).values())
            why = "One run" if min(map(len, clean)) < 2 else "Cells of a method ran one after another"
            pairs.append((where, Judgement(OPEN, Interval(value, math.nan, math.nan), fewest, None, used, why)))
            continue
        ran = min(map(len, clean))  # more than ratio.units, where some runs are one unit
        pairs.append((where, judged_ratio(ratio, lambda interval: judge(interval, low, high), used, ran)))
    if disturbed and not pairs:
        return Judgement(OPEN, why=f"All {disturbed} runs overlapped with others or were resumed")
    return _alike(pairs, apart, at, one, other, low, high)


def judged_ratio(
    ratio: Ratio, decide: Callable[[Interval], Decision], used: tuple[str, ...], seeds: int | None = None
) -> Judgement:
    """The judgement by `decide` on a measured ratio. used: names of its records; seeds: by default its units."""
    decision = decide(ratio.interval)
    why = STRADDLES if decision == OPEN else ""
    return Judgement(
        decision,
        ratio.interval,
        ratio.units if seeds is None else seeds,
        None,
        used,
        why,
        corrected=lambda settings: decide(ratio.among(settings)),
    )


def _alike(
    pairs: Sequence[tuple[str, Judgement]],
    apart: Sequence[str],
    at: Evidence,
    one: str,
    other: str,
    low: float,
    high: float,
) -> Judgement:
    """`everywhere`, or why there is nothing to compare."""
    if pairs:
        judgement = everywhere(pairs, low, high)
        if judgement.decision == OPEN or judgement.why:
            return judgement
        places = dict.fromkeys(where for where, _ in pairs)
        ran = next(r for r in at.records if r.cell.name in judgement.records)
        on = at.conditions(ran).get("device")
        where = "; ".join(places)
        return replace(judgement, why=f"Measured at {where}, {ran.cell.model}{f' on {on}' if on else ''}")
    if apart:
        return Judgement(OPEN, why=unlike(dict.fromkeys(apart)))
    if at.of(one) and at.of(other):
        return Judgement(OPEN, why=f"No runs of {one} and {other} with equal batches and settings")
    return lacking(one, other)


def everywhere(pairs: Sequence[tuple[str, Judgement]], low: float, high: float) -> Judgement:
    """One judgement for several settings: of decisions that differ, supported and refuted ones mean that it depends.

    Among many settings one is soon on the wrong side by chance, so it depends only if there are still settings on both
    sides by intervals that are corrected for their number. The effect is the one closest to leaving the range from
    `low` to `high`.
    """
    judgements = [judgement for _, judgement in pairs]
    worst = _worst(judgements, low, high)
    decision, why = worst.decision, worst.why
    decisions = {judgement.decision for judgement in judgements}
    if len(decisions) > 1:
        surely = {j.corrected(len(pairs)) if j.corrected else j.decision for j in judgements}
        decision = DEPENDS if {SUPPORTED, REFUTED} <= surely else OPEN
        places = defaultdict(list)
        for where, judgement in pairs:
            places[judgement.decision].append(where)
        why = "; ".join(f"{found} at {' and at '.join(dict.fromkeys(at))}" for found, at in places.items())
        if decision == OPEN and {SUPPORTED, REFUTED} <= decisions:
            why += f"; of {len(pairs)} settings that may be chance"
    seeds = fewest_seeds(judgements)
    return Judgement(decision, worst.effect, seeds, None, names(judgements), why, (low, high))


def hold_all(parts: Sequence[tuple[str, Judgement]], low: float, high: float) -> Judgement:
    """One judgement for a claim with several parts: supported if all are, refuted if one is.

    It depends on the setting if a part does, and no other is refuted or not decided.
    """
    judgements = [judgement for _, judgement in parts]
    for judgement in judgements:
        if judgement.effect is None:
            return judgement
    decision = next((one for one in (REFUTED, OPEN, DEPENDS) if any(j.decision == one for j in judgements)), SUPPORTED)
    alike = [judgement for judgement in judgements if judgement.decision == decision]
    shown = _worst(alike, low, high) if decision == SUPPORTED else alike[0]
    reasons = [f"{part}: {j.why or j.decision}" for part, j in parts if j.decision == decision]
    why = "; ".join(reasons) if decision in (OPEN, DEPENDS) else ""
    seeds = fewest_seeds(judgements)
    return Judgement(decision, shown.effect, seeds, None, names(judgements), why, (low, high))


def _worst(judgements: Sequence[Judgement], low: float, high: float) -> Judgement:
    """The one whose effect is closest to leaving the range, or beyond it; one without an effect comes first."""

    def margin(judgement: Judgement) -> float:
        effect = judgement.effect
        return -math.inf if effect is None else min(effect.value - low, high - effect.value)

    return min(judgements, key=margin)


def best_rate(label: str, records: Sequence[Record]) -> Judgement:
    """The learning rate with the least validation loss among `records`, which differ only in rate and seed.

    The effect is `statistics.optimum`. Never decided: the caller compares it. `why` is set if there is no optimum or it
    rests on one seed.
    """
    used = tuple(record.cell.name for record in records)
    losses: dict[float, dict[int | None, float]] = defaultdict(dict)
    for record in records:
        if record.cell.lr and record.validation:
            losses[record.cell.lr][record.cell.seed] = record.validation[-1].loss
    seeds = len(set.intersection(*(set(of) for of in losses.values()))) if losses else 0
    optimum = statistics.optimum(losses)
    if isinstance(optimum, str):
        why = optimum.replace("The best rate", f"{label}'s best rate", 1)
        return Judgement(OPEN, None, seeds, None, used, why if label in why else f"{optimum} of {label}")
    return Judgement(OPEN, optimum, seeds, None, used, "One seed" if seeds < 2 else "")


def rate_ratio(one: Judgement, other: Judgement) -> Judgement:
    """The ratio of two rates of `best_rate`. Never decided."""
    if one.effect is None or one.why:
        return Judgement(OPEN, None, one.seeds, None, one.records, one.why)
    if other.effect is None or other.why:
        return Judgement(OPEN, None, other.seeds, None, other.records, other.why)
    effect = statistics.ratio_of_optima(one.effect, other.effect)
    return Judgement(OPEN, effect, fewest_seeds([one, other]), None, names([one, other]))


def within(judgement: Judgement, low: float, high: float) -> Judgement:
    """Decides whether the effect of `judgement` lies between `low` and `high`; one without an effect stays open."""
    if judgement.effect is None or judgement.why:
        return judgement
    decision = judge(judgement.effect, low, high)
    why = STRADDLES if decision == OPEN else ""
    return replace(judgement, decision=decision, items=None, why=why, range=(low, high))
