"""Parts of rules that several articles share: paired gains, ratios of measures, best learning rates."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from harness.record import Record, micro_batches
from harness.report import statistics
from harness.report.claims import DEPENDS, OPEN, REFUTED, SUPPORTED, Decision, Judgement, judge, lacking, names
from harness.report.evidence import Evidence, differing, numerics, started
from harness.report.select import Choice
from harness.report.statistics import Interval, MemoryPeak, Ratio, Run, Statistic

NO_GAIN = 0.01  # a gain in a score whose interval lies below it counts as none
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}  # the matrices of attention, as target_modules names them
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
    """The mean score of `ones` minus that of `others`, paired by item, and by seed where they share enough.

    Needs two seeds of each side to decide.
    """
    return scored_gain(at, ones, others, score, decide)[0]


def scored_gain(
    at: Evidence,
    ones: Sequence[Choice],
    others: Sequence[Choice],
    score: str,
    decide: Callable[[Interval], Decision] = better,
) -> tuple[Judgement, Statistic | None]:
    """`gain`, and the difference with its error, for tests that are corrected over several gains."""
    records = [*at.chosen(*ones), *at.chosen(*others)]
    used = tuple(record.cell.name for record in records)
    one, other = at.sample(ones, score), at.sample(others, score)
    if one is None or other is None or one[1] != other[1]:
        return Judgement(OPEN, records=used, why=f"No {score.partition('/')[0]} scores of the same items"), None
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
    return Judgement(decision, effect, seeds, size, used, why, claimed, difference.items), difference.statistic


def unlike(facts: Sequence[str]) -> str:
    """The reason why two sides are not compared."""
    return f"The runs differ in {', '.join(facts)}"


def matched(at: Evidence, one: str, other: str) -> Iterator[tuple[str, list[Record], list[Record]]]:
    """Finished records of two methods with equal batches and training settings, and a text that names the setting.

    If both methods have ranks, only equal ranks are matched; if both adapt layers, only the same layers.
    """
    sides = [defaultdict(list), defaultdict(list)]
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
    for key, members in sides[0].items():
        if key not in sides[1]:
            continue
        by_rank = defaultdict(list)
        for record in members:
            by_rank[record.cell.rank].append(record)
        pairs += [(group, sides[1][key]) for group in by_rank.values()]
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
        found = statistics.of_memory(*([MemoryPeak(v, r.cell.seed, r.cell.lr) for r, v in side] for side in sides))
        used = tuple(r.cell.name for side in sides for r, _ in side)
        pairs.append((where, judged_ratio(found, lambda ratio: judge(ratio, low, high), used)))
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
        if unequal := differing(*clean, at.conditions):
            apart += unequal
            continue
        own = {id(r) for side in clean for r in side}
        runs: dict[str, list[Run]] = {one: [], other: []}
        for record in at.records:
            if id(record) in own:
                runs[record.cell.method].append(Run(seconds(record), record.cell.seed, started(record)))
        found = statistics.of_times(runs, one, other)
        used = tuple(r.cell.name for side in clean for r in side)
        if found is None:
            value = float(np.exp(np.mean(np.log([run.value for run in runs[one]]))))
            value /= float(np.exp(np.mean(np.log([run.value for run in runs[other]]))))
            fewest = min(len(own) for own in statistics.units(runs).values())
            why = "One run" if min(map(len, clean)) < 2 else "Cells of a method ran one after another"
            pairs.append((where, Judgement(OPEN, Interval(value, math.nan, math.nan), fewest, None, used, why)))
            continue
        ran = min(map(len, clean))  # more than found.units, where some runs are one unit
        pairs.append((where, judged_ratio(found, lambda ratio: judge(ratio, low, high), used, ran)))
    if disturbed and not pairs:
        return Judgement(OPEN, why=f"All {disturbed} runs overlapped with others or were resumed")
    return _alike(pairs, apart, at, one, other, low, high)


def judged_ratio(
    found: Ratio, decide: Callable[[Interval], Decision], used: tuple[str, ...], seeds: int | None = None
) -> Judgement:
    """The judgement by `decide` on a measured ratio. used: names of its records; seeds: by default its units."""
    decision = decide(found.interval)
    why = STRADDLES if decision == OPEN else ""
    return Judgement(
        decision,
        found.interval,
        found.units if seeds is None else seeds,
        None,
        used,
        why,
        corrected=lambda settings: decide(found.among(settings)),
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
        found = everywhere(pairs, low, high)
        if found.decision == OPEN or found.why:
            return found
        places = dict.fromkeys(where for where, _ in pairs)
        ran = next(r for r in at.records if r.cell.name in found.records)
        on = at.conditions(ran).get("device")
        where = "; ".join(places)
        return replace(found, why=f"Holds at {where}, {ran.cell.model}{f' on {on}' if on else ''}")
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
    seeds = min(judgement.seeds for judgement in judgements)
    return Judgement(decision, worst.effect, seeds, None, names(judgements), why, (low, high))


def hold_all(parts: Sequence[tuple[str, Judgement]], low: float, high: float) -> Judgement:
    """One judgement for a claim with several parts: supported if all are, refuted if one is.

    It depends on the setting if a part does, and no other is refuted or not decided.
    """
    judgements = [judgement for _, judgement in parts]
    for judgement in judgements:
        if judgement.effect is None:
            return judgement
    decisions = [judgement.decision for judgement in judgements]
    decision = next((found for found in (REFUTED, OPEN, DEPENDS) if found in decisions), SUPPORTED)
    shown = _worst(judgements, low, high) if decision == SUPPORTED else judgements[decisions.index(decision)]
    reasons = [f"{part}: {j.why or j.decision}" for part, j in parts if j.decision == decision]
    why = "; ".join(reasons) if decision in (OPEN, DEPENDS) else ""
    seeds = min(judgement.seeds for judgement in judgements)
    return Judgement(decision, shown.effect, seeds, None, names(judgements), why, (low, high))


def _worst(judgements: Sequence[Judgement], low: float, high: float) -> Judgement:
    return min(judgements, key=lambda judgement: min(judgement.effect.value - low, high - judgement.effect.value))


def best_rate(label: str, records: Sequence[Record]) -> Judgement:
    """The learning rate with the least validation loss among `records`, which differ only in rate and seed.

    The effect is `statistics.optimum`. Never decided: the caller compares it. `why` is set if there is no optimum or it
    rests on one seed.
    """
    used = tuple(record.cell.name for record in records)
    losses = defaultdict(dict)
    for record in records:
        if record.cell.lr and record.validation:
            losses[record.cell.lr][record.cell.seed] = record.validation[-1].loss
    seeds = len(set.intersection(*(set(of) for of in losses.values()))) if losses else 0
    found = statistics.optimum(losses)
    if isinstance(found, str):
        why = found.replace("The best rate", f"{label}'s best rate", 1)
        return Judgement(OPEN, None, seeds, None, used, why if label in why else f"{found} of {label}")
    return Judgement(OPEN, found, seeds, None, used, "One seed" if seeds < 2 else "")


def rate_ratio(one: Judgement, other: Judgement) -> Judgement:
    """The ratio of two rates of `best_rate`. Never decided."""
    for side in (one, other):
        if side.effect is None or side.why:
            return Judgement(OPEN, None, side.seeds, None, side.records, side.why)
    effect = statistics.ratio_of_optima(one.effect, other.effect)
    return Judgement(OPEN, effect, min(one.seeds, other.seeds), None, names([one, other]))


def within(judgement: Judgement, low: float, high: float) -> Judgement:
    """Decides whether the effect of `judgement` lies between `low` and `high`; one without an effect stays open."""
    if judgement.effect is None or judgement.why:
        return judgement
    decision = judge(judgement.effect, low, high)
    why = STRADDLES if decision == OPEN else ""
    return replace(judgement, decision=decision, items=None, why=why, range=(low, high))
