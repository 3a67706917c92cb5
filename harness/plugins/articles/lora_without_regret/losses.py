"""Validation losses of chosen runs, and how the rules of this article compare them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from harness.plugins.articles.claims import OPEN, REFUTED, SUPPORTED, Decision, Judgement, judge
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.rules import ATTENTION, adapt_settings, judged_ratio, train_settings
from harness.record import Record
from harness.report import statistics
from harness.report.statistics import Interval

TIE = 1.01  # a loss that is at most 1% higher counts as equal
Decide = Callable[[Interval], Decision]


def last_losses(records: Sequence[Record]) -> dict[int | None, float]:
    """The last validation loss by seed of records that differ in their seeds, nats per token."""
    return {record.cell.seed: record.validation[-1].loss for record in records if record.validation}


def penalty(
    ones: Sequence[Sequence[Record]],
    others: Sequence[Sequence[Record]],
    decide: Decide,
    field: Sequence[Sequence[Record]] = (),
) -> Judgement:
    """The ratio of the product of the validation losses of `ones` to that of `others`, judged by `decide`.

    Each is the records of one setting, with several seeds: at least two decide. field: all settings that the rule
    compares; with two seeds their spread counts too (`statistics.of_losses`).
    """
    compared = [*ones, *others]
    used = tuple(record.cell.name for group in compared for record in group)
    losses, reference = ([last_losses(group) for group in side] for side in (ones, others))
    seeds = min(map(len, [*losses, *reference]))
    if seeds == 0:
        return Judgement(OPEN, None, 0, None, used, "No validation losses")
    found = statistics.of_losses(losses, reference, [last_losses(group) for group in field if group not in compared])
    if found is None:
        means = [math.prod(fmean(values.values()) for values in side) for side in (losses, reference)]
        return Judgement(OPEN, Interval(means[0] / means[1], math.nan, math.nan), seeds, None, used, "One seed")
    return judged_ratio(found, decide, used)


def higher(ratio: Interval) -> Decision:
    """The decision on the claim that a loss is higher than another; within 1% it counts as equal."""
    return SUPPORTED if ratio.low > 1 else REFUTED if ratio.high < TIE else OPEN


def equal(ratio: Interval) -> Decision:
    """The decision on the claim that a loss is at most 1% higher than another."""
    return judge(ratio, high=TIE)


def batch_size(record: Record) -> int | None:
    """Sequences per optimizer step; None if unknown."""
    train = train_settings(record)
    size = train.get("batch_size")
    return size * (train.get("grad_accum") or 1) if isinstance(size, int) else None


def smallest_batch(at: Evidence) -> Evidence:
    """The evidence at the smallest batch size, since a larger one costs LoRA more than full fine-tuning."""
    least = min((size for record in at.records if (size := batch_size(record)) is not None), default=None)
    return at.where(lambda record: least is None or batch_size(record) == least)


def on_all_layers(record: Record) -> bool:
    """Whether the cell is no adapter, or one on attention and other layers."""
    targets = adapt_settings(record).get("target_modules")
    return targets is None or isinstance(targets, str) or bool(set(targets) - ATTENTION)


def on_attention_alone(record: Record) -> bool:
    targets = adapt_settings(record).get("target_modules")
    return isinstance(targets, list) and set(targets) == ATTENTION
