"""Parts of rules that several articles share: paired gains, ratios of measures, best learning rates."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from harness.grouping import grouped
from harness.plugins.articles.claims import (
    DEPENDS,
    EASIER_ITEMS,
    HARDER_ITEMS,
    MORE_ITEMS,
    ONE_SEED,
    OPEN,
    REFUTED,
    SUPPORTED,
    TOO_SMALL,
    Bounds,
    Decision,
    Judgement,
    fewest_seeds,
    judged,
    lacking,
    names,
)
from harness.plugins.articles.evidence import Evidence
from harness.record import Record, micro_batches
from harness.report import statistics
from harness.report.conditions import differing, numerics, started
from harness.report.select import Choice
from harness.report.statistics import ALPHA, Answers, Interval, MemoryPeak, Run

FLOOR = 0.02  # scores below it, or as close to 1, are of items that are too hard or too easy to tell models apart
POINT = 0.01  # a difference in a score that is surely smaller is too small to matter
BETTER = Bounds(low=POINT, small=(-POINT, POINT), margin="1 point")
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}  # the matrices of attention, as target_modules names them


class Gain(NamedTuple):
    """A judged gain in a score, for claims on several gains. intervals: of the gain, as in `judged`."""

    judgement: Judgement
    intervals: Callable[[float], Interval]

    @property
    def fair(self) -> bool:
        """Whether an interval could decide."""
        return self.judgement.corrected is not None


def gain(
    at: Evidence,
    ones: Sequence[Choice],
    others: Sequence[Choice],
    score: str,
    bounds: Bounds = BETTER,
    weights: Sequence[float] | None = None,
) -> Judgement:
    """The mean score of `ones` minus that of `others`, paired by item, and by seed where they share enough.

    weights: of the choices of both sides; None weighs them alike. Needs two seeds of each side to decide.
    """
    scored = scored_gain(at, ones, others, score, bounds, weights)
    return scored.judgement if isinstance(scored, Gain) else scored


def scored_gain(
    at: Evidence,
    ones: Sequence[Choice],
    others: Sequence[Choice],
    score: str,
    bounds: Bounds = BETTER,
    weights: Sequence[float] | None = None,
) -> Gain | Judgement:
    """`gain` with its intervals; the judgement alone if no scores of the same items are there to compare."""
    records = [*at.chosen(*ones), *at.chosen(*others)]
    used = tuple(record.cell.name for record in records)
    one, other = at.sample(ones, score, weights), at.sample(others, score, weights)
    if one is None or other is None or one[1] != other[1]:
        return Judgement(OPEN, records=used, why=f"No {score.partition('/')[0]} scores of the same items")
    rivals = max(choice.rivals for choice in (*ones, *others))
    difference = statistics.differences([one[0], other[0]])[0, 1].chosen(rivals)
    seeds = min(
        len(sample.values)
        for sample, side in ((one[0], ones), (other[0], others))
        if at.chosen(*side)[0].cell.seed is not None  # an untuned model has no seeds
    )
    unfair, remedy = _at_an_end(one[0], other[0])
    if seeds < 2:
        unfair = ONE_SEED
    elif unequal := differing(at.chosen(*ones), at.chosen(*others), numerics):
        unfair = unlike(unequal)

    def intervals(comparisons: float) -> Interval:
        return difference.statistic.interval(ALPHA / comparisons)

    items = one[0].values.shape[1]
    if not remedy and _shares(one[0], other[0]) and items * abs(bounds.low) < 1:
        remedy = MORE_ITEMS  # one answer is more than the bound
    of_items = difference.items
    judgement = judged(intervals, bounds, seeds, used, items=items, unfair=unfair, of_items=of_items, remedy=remedy)
    return Gain(judgement, intervals)


def _at_an_end(one: Answers, other: Answers) -> tuple[str, str]:
    """Why right and wrong answers can't tell two methods apart, and the remedy; both empty if they can."""
    means = [float(sample.values.mean()) for sample in (one, other)]
    if not _shares(one, other):
        return "", ""
    if max(means) < FLOOR:
        return f"Both score below {100 * FLOOR:.0f}%: the items are too hard to tell them apart", EASIER_ITEMS
    if min(means) > 1 - FLOOR:
        return f"Both score above {100 - 100 * FLOOR:.0f}%: the items are too easy to tell them apart", HARDER_ITEMS
    return "", ""


def _shares(*samples: Answers) -> bool:
    """Whether all values are shares of right answers."""
    return all(sample.values.min() >= 0 and sample.values.max() <= 1 for sample in samples)


def each_gain(gains: Sequence[Gain], bounds: Bounds) -> Judgement:
    """The judgement on the claim that each of several gains is where `bounds` put it: the least of them is.

    The least gain is surely above a bound if each is, each by its own interval (Berger, 1982). It is surely below a
    bound if any is, so the upper ends are corrected for the number of gains.
    """

    def least(ends: Sequence[Interval], corrected: Sequence[Interval]) -> Interval:
        return Interval(min(e.value for e in ends), min(e.low for e in ends), min(e.high for e in corrected))

    return _of_gains(gains, bounds, least)


def any_gain(gains: Sequence[Gain], bounds: Bounds) -> Judgement:
    """The judgement on the claim that any of several gains is where `bounds` put it: of the greatest."""

    def greatest(ends: Sequence[Interval], corrected: Sequence[Interval]) -> Interval:
        return Interval(max(e.value for e in ends), max(e.low for e in corrected), max(e.high for e in ends))

    return _of_gains(gains, bounds, greatest)


def _of_gains(
    gains: Sequence[Gain], bounds: Bounds, extreme: Callable[[Sequence[Interval], Sequence[Interval]], Interval]
) -> Judgement:
    """extreme: of the gains' intervals and their corrected ones. Of a gain that can't be judged nothing is known."""

    def intervals(comparisons: float, known: bool = False) -> Interval:
        def ends(among: float) -> list[Interval]:
            of = [gain.intervals(among) for gain in gains]
            unknown = [Interval(end.value, -math.inf, math.inf) for end in of]
            return [own if known or gain.fair else any_ for gain, own, any_ in zip(gains, of, unknown, strict=True)]

        return extreme(ends(comparisons), ends(comparisons * len(gains)))

    each = [gain.judgement for gain in gains]
    shown = intervals(1, known=True)
    at = min(each, key=lambda judgement: abs(judgement.effect.value - shown.value) if judgement.effect else math.inf)
    whole = judged(intervals, bounds, fewest_seeds(each), names(each), items=at.items, of_items=at.of_items)
    unfair = next((gain.judgement.why for gain in gains if not gain.fair), "")
    why = unfair or bounds.undecided(shown) if whole.decision == OPEN else ""
    remedy = next((judgement.remedy for judgement in each if judgement.remedy), "")
    return replace(whole, effect=shown, why=why, remedy=remedy)


def unlike(facts: Iterable[str]) -> str:
    """The reason why two sides are not compared."""
    return f"The runs differ in {', '.join(facts)}"


def matched(at: Evidence, one: str, other: str) -> Iterator[tuple[str, list[Record], list[Record]]]:
    """Finished records of two methods with equal batches, training settings and bytes of a weight, and a text that
    names the setting.

    If both methods have ranks, only equal ranks are matched; if both adapt layers, only the same layers.
    """
    sides: list[dict[Hashable, list[Record]]] = [defaultdict(list), defaultdict(list)]
    ranked = all(any(r.cell.rank is not None for r in at.finished(method)) for method in (one, other))
    adapting = all(any(adapt_settings(r) for r in at.finished(method)) for method in (one, other))
    for side, method in zip(sides, (one, other), strict=True):
        for record in at.finished(method):
            train, imported = record.cell.settings.train, record.cell.settings.imported("train")
            free = [{k: v for k, v in imported.items() if k != "seed"}]
            if adapting:
                free += [{k: v for k, v in adapt_settings(record).items() if k not in ("use_dora", "lora_alpha")}]
            key = (train, json.dumps(free, sort_keys=True), micro_batches(record), record.cell.settings.model.dtype)
            side[key, record.cell.rank if ranked else None].append(record)
    pairs = []
    for alike, members in sides[0].items():
        if alike not in sides[1]:
            continue
        by_rank = grouped((record.cell.rank, record) for record in members)
        pairs += [(group, sides[1][alike]) for group in by_rank.values()]
    settings = [_named(group[0]) for group, _ in pairs]
    every = sorted(set().union(*settings) - {"train.batch_size", "train.seed"})
    shown = [name for name in every if len({one.get(name) for one in settings}) > 1]
    for (group, others), named in zip(pairs, settings, strict=True):
        size, _ = micro_batches(group[0]) or (None, None)
        rest = [f"{name}={named[name]}" for name in shown if name in named]
        yield ", ".join([f"r={group[0].cell.rank}", f"train.batch_size={size}", *rest]), group, others


def _named(record: Record) -> dict[str, str]:
    """Its settings of training, and the format of its weights, as they are written on a command line."""
    training = {f"train.{name}": json.dumps(value) for name, value in train_settings(record).items()}
    return training | {"model.dtype": str(record.cell.settings.model.dtype)}


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
    pairs, bounds = [], Bounds(low, high, ratio=True)
    for where, ones, others in matched(at, one, other):
        sides = [[v for r in side if (v := at.numbers(r)[measure]) is not None] for side in (ones, others)]
        if not all(sides):
            continue
        value = sides[0][0] / sides[1][0]
        used = tuple(record.cell.name for record in (*ones, *others))
        if any(len(set(side)) > 1 for side in sides):
            pairs.append((where, unknown(value, bounds, 1, used, "Counts differ")))
            continue
        pairs.append((where, exact(value, bounds, min(map(len, sides)), used)))
    return everywhere(pairs) if pairs else lacking(one, other)


def exact(value: float, bounds: Bounds, seeds: int | None, used: tuple[str, ...], unfair: str = "") -> Judgement:
    """The judgement on an effect that has no error; the rest as of `judged`."""
    return judged(lambda comparisons: Interval(value, value, value), bounds, seeds, used, unfair=unfair)


def unknown(value: float, bounds: Bounds, seeds: int, used: tuple[str, ...], why: str) -> Judgement:
    """The judgement on an effect whose error is unknown, which decides nothing."""
    return judged(lambda comparisons: Interval(value, math.nan, math.nan), bounds, seeds, used, unfair=why)


def memory_ratio(at: Evidence, one: str, other: str, measure: str, low: float, high: float) -> Judgement:
    """The judgement on the claim that a peak of memory of `one` over that of `other` lies between `low` and `high`.

    measure: a column of `frame` in bytes. Only runs alike in device, precision, versions and attention are compared.
    The effect is the ratio closest to contradicting the claim, over all pairs of `matched`; a verdict says for which
    batch, model and device it holds, since a ratio at another batch is another one.
    """
    pairs, apart, bounds = [], [], Bounds(low, high, ratio=True)
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
        pairs.append((where, judged(ratio.among, bounds, ratio.units, used)))
    return _alike(pairs, apart, at, one, other)


def time_ratio(
    at: Evidence, one: str, other: str, seconds: Callable[[Record], float | None], low: float, high: float
) -> Judgement:
    """The judgement on the claim that a time of `one` over that of `other` lies between `low` and `high`.

    seconds: of a run, or None. Runs that overlapped with others or were resumed are left out. What is independent
    follows from the order in which all cells ran: `statistics.of_times`.
    """
    if not all(any(seconds(record) for record in at.finished(method)) for method in (one, other)):
        return lacking(f"{one} with measured times", other)
    pairs, apart, disturbed, bounds = [], [], 0, Bounds(low, high, ratio=True)
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
            pairs.append((where, unknown(value, bounds, fewest, used, why)))
            continue
        ran = min(map(len, clean))  # more than ratio.units, where some runs are one unit
        pairs.append((where, judged(ratio.among, bounds, ran, used)))
    if disturbed and not pairs:
        return Judgement(OPEN, why=f"All {disturbed} runs overlapped with others or were resumed")
    return _alike(pairs, apart, at, one, other)


def _alike(
    pairs: Sequence[tuple[str, Judgement]], apart: Sequence[str], at: Evidence, one: str, other: str
) -> Judgement:
    """`everywhere`, or why there is nothing to compare."""
    if pairs:
        judgement = everywhere(pairs)
        if judgement.decision == OPEN or judgement.why:
            return judgement
        places = dict.fromkeys(where for where, _ in pairs)
        ran = next(r for r in at.records if r.cell.name in judgement.records)
        on = at.conditions(ran).get("device")
        where = "; ".join(places)
        return replace(judgement, why=f"Measured at {where}, {ran.cell.model}{f' on {on}' if on else ''}")
    if apart:
        return Judgement(OPEN, why=unlike(dict.fromkeys(apart)))
    if at.finished(one) and at.finished(other):
        return Judgement(OPEN, why=f"No runs of {one} and {other} with equal batches and settings")
    return lacking(one, other)


def everywhere(pairs: Sequence[tuple[str, Judgement]]) -> Judgement:
    """One judgement for several settings, each named: if they surely disagree, it depends on the setting.

    Among many settings one is soon on the wrong side by chance, so it depends only if settings still have different
    verdicts by intervals that are corrected for their number. The effect is the one closest to leaving its range.
    """
    judgements = [judgement for _, judgement in pairs]

    def decide(comparisons: float) -> Decision:
        decisions = {judgement.among(comparisons) for judgement in judgements}
        if len(decisions) == 1:
            return decisions.pop()
        surely = {judgement.among(comparisons * len(pairs)) for judgement in judgements} - {OPEN}
        return DEPENDS if len(surely) > 1 or DEPENDS in surely else OPEN

    worst, decision = _worst(judgements), decide(1)
    why, decisions = worst.why, {judgement.decision for judgement in judgements}
    if len(decisions) > 1:
        places = grouped((judgement.decision, where) for where, judgement in pairs)
        why = "; ".join(f"{verdict} at {' and at '.join(dict.fromkeys(at))}" for verdict, at in places.items())
        if decision == OPEN and len(decisions - {OPEN}) > 1:
            why += f"; of {len(pairs)} settings that may be chance"
    parts = [part for one in judgements for part in (one.parts or ((one.decision, one.records),))]
    return replace(_composed(worst, judgements, decision, why, decide), parts=tuple(parts))


def hold_all(parts: Sequence[tuple[str, Judgement]]) -> Judgement:
    """One judgement for a claim with several parts, each named: supported if all are, each by its own interval.

    Refuted if any part is by intervals that are corrected for the number of parts, since any may fail by chance; too
    small to matter if a part is likewise, and the others are that or supported. It depends on the setting if a part
    does and the others are supported.
    """
    judgements = [judgement for _, judgement in parts]

    def decide(comparisons: float) -> Decision:
        alone = {judgement.among(comparisons) for judgement in judgements}
        surely = {judgement.among(comparisons * len(parts)) for judgement in judgements}
        if alone == {SUPPORTED} or REFUTED in surely:
            return SUPPORTED if alone == {SUPPORTED} else REFUTED
        for verdict in (TOO_SMALL, DEPENDS):
            if verdict in surely and alone <= {SUPPORTED, verdict}:
                return verdict
        return OPEN

    decision = decide(1)
    if decision == OPEN and (lacks := [judgement for judgement in judgements if judgement.effect is None]):
        return lacks[0]
    deciding = [
        (part, judgement)
        for part, judgement in parts
        if (judgement.decision != SUPPORTED if decision == OPEN else judgement.among(len(parts)) == decision)
    ]
    shown = _worst([judgement for _, judgement in deciding] or judgements)
    named = " and ".join(part for part, _ in deciding)
    whys = {SUPPORTED: "", REFUTED: f"Refuted by {named}", TOO_SMALL: f"Too small of {named}"}
    why = whys[decision] if decision in whys else _reasons(deciding, len(parts))
    return _composed(shown, judgements, decision, why, decide)


def _reasons(deciding: Sequence[tuple[str, Judgement]], parts: int) -> str:
    """Why the parts that decide are as they are; without their names if that is so of all `parts` for one reason."""
    by_reason = grouped((judgement.why or judgement.decision, part) for part, judgement in deciding)
    if len(by_reason) == 1 and len(deciding) == parts:
        return next(iter(by_reason))
    return "; ".join(f"{' and '.join(named)}: {reason}" for reason, named in by_reason.items())


def _composed(
    shown: Judgement,
    judgements: Sequence[Judgement],
    decision: Decision,
    why: str,
    corrected: Callable[[float], Decision],
) -> Judgement:
    """`shown` with the decision on all `judgements`, their records and their fewest seeds."""
    seeds, used = fewest_seeds(judgements), names(judgements)
    return replace(shown, decision=decision, seeds=seeds, records=used, why=why, corrected=corrected)


def _worst(judgements: Sequence[Judgement]) -> Judgement:
    """The one whose effect is closest to leaving its range, or beyond it; one without an effect comes last."""
    return min(judgements, key=lambda judgement: judgement.inside)


@dataclass(frozen=True)
class MeasuredRate:
    """A best learning rate, or a ratio of two.

    intervals: as of `judged`; None if there is none, for the reason `why`. seeds, used: as of `judged`.
    """

    intervals: Callable[[float], Interval] | None
    seeds: int
    used: tuple[str, ...]
    why: str = ""

    def judge(self, bounds: Bounds) -> Judgement:
        """The judgement on a rate; `bounds` of a ratio."""
        if self.intervals is None:
            return Judgement(OPEN, None, self.seeds, None, self.used, self.why)
        return judged(self.intervals, bounds, self.seeds, self.used)


def best_rate(at: Evidence, method: str, rank: int | None, alpha: float | None, label: str = "") -> MeasuredRate:
    """The learning rate with the least validation loss of `method` at a rank and an alpha: `statistics.optimum`.

    A run that diverged has an infinite loss. label: of the setting, in sentences (default: `method`).
    """
    label = label or method
    cells = [r for r in at.records if (r.cell.method, r.cell.rank, r.cell.alpha) == (method, rank, alpha)]
    records = [r for r in cells if r.status == "diverged" or (r.status == "ok" and r.validation)]
    used = tuple(record.cell.name for record in records)
    losses: dict[float, dict[int | None, float]] = defaultdict(dict)
    for record in records:
        if record.cell.lr:
            diverged = record.status == "diverged"
            losses[record.cell.lr][record.cell.seed] = math.inf if diverged else record.validation[-1].loss
    seeds = len(set.intersection(*(set(of) for of in losses.values()))) if losses else 0
    optimum = statistics.optimum(losses)
    if isinstance(optimum, str):
        why = optimum.replace("The best rate", f"{label}'s best rate", 1)
        return MeasuredRate(
            None, seeds, used if len(losses) > 1 else (), why if label in why else f"{optimum} of {label}"
        )
    best = optimum

    def intervals(comparisons: float) -> Interval:
        widened = statistics.optimum(losses, ALPHA / comparisons)
        return best if isinstance(widened, str) else widened  # whether there is one does not depend on the level

    return MeasuredRate(intervals, seeds, used)


def rate_ratio(one: MeasuredRate, other: MeasuredRate) -> MeasuredRate:
    """The ratio of two rates of `best_rate`."""
    seeds, used = min(one.seeds, other.seeds), tuple(dict.fromkeys((*one.used, *other.used)))
    if (ones := one.intervals) is None or (others := other.intervals) is None:
        return MeasuredRate(None, seeds, used if one.used and other.used else (), one.why or other.why)
    return MeasuredRate(
        lambda comparisons: statistics.ratio_of_optima(ones(comparisons), others(comparisons)), seeds, used
    )


def each_batch(at: Evidence, rule: Callable[[Evidence], Judgement]) -> Judgement:
    """What `rule` concludes at each batch size, combined by `everywhere`: a best learning rate is that of its batch
    size.

    Batch sizes without the cells that the rule needs are left out where others have them.
    """
    sizes = sorted({batch_size(record) or 0 for record in at.records})
    parts = [(f"batch size {size or None}", rule(at.where(_of_batch(size)))) for size in sizes]
    tried = [(where, judgement) for where, judgement in parts if judgement.effect or judgement.records]
    if len(tried) < 2:
        return next((judgement for _, judgement in (*tried, *parts)), None) or rule(at)  # the last: without records
    return everywhere(tried)


def _of_batch(size: int) -> Callable[[Record], bool]:
    return lambda record: (batch_size(record) or 0) == size


def batch_size(record: Record) -> int | None:
    """Sequences per optimizer step; None if unknown."""
    train = train_settings(record)
    if isinstance(whole := train.get("global_batch"), int):
        return whole
    size = train.get("batch_size")
    return size * (train.get("grad_accum") or 1) if isinstance(size, int) else None
