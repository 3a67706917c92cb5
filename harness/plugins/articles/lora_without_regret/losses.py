"""Validation losses of chosen runs, and how the rules of this article compare them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from harness.plugins.articles.claims import OPEN, Bounds, Judgement, judged
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.rules import ATTENTION, adapt_settings, batch_size, unknown
from harness.record import Record, losses_by_seed
from harness.report import statistics

TIE = 1.01  # losses that differ by less than 1% count as equal
HIGHER = Bounds(low=TIE, small=(1 / TIE, TIE), ratio=True, margin="1%", more="higher", less="lower")
EQUAL = Bounds(low=0.0, high=TIE, ratio=True)


def penalty(
    ones: Sequence[Sequence[Record]],
    others: Sequence[Sequence[Record]],
    bounds: Bounds,
    field: Sequence[Sequence[Record]] = (),
) -> Judgement:
    """The ratio of the product of the validation losses of `ones` to that of `others`, judged by `bounds`.

    Each is the records of one setting, with several seeds: at least two decide. field: all settings that the rule
    compares; with two seeds their spread counts too (`statistics.of_losses`).
    """
    compared = [*ones, *others]
    used = tuple(record.cell.name for group in compared for record in group)
    losses, reference = ([losses_by_seed(group) for group in side] for side in (ones, others))
    seeds = min(map(len, [*losses, *reference]))
    if seeds == 0:
        return Judgement(OPEN, None, 0, None, used, "No validation losses")
    ratio = statistics.of_losses(losses, reference, [losses_by_seed(group) for group in field if group not in compared])
    if ratio is None:
        means = [math.prod(fmean(values.values()) for values in side) for side in (losses, reference)]
        return unknown(means[0] / means[1], bounds, seeds, used, "One seed")
    return judged(ratio.among, bounds, ratio.units, used)


def smallest_batch(at: Evidence) -> Evidence:
    """The evidence at the smallest batch size, since a larger one costs LoRA more than full fine-tuning."""
    least = min((size for record in at.records if (size := batch_size(record)) is not None), default=None)
    return at.where(lambda record: least is None or batch_size(record) == least)


def on_all_layers(record: Record) -> bool:
    """Whether the cell is no adapter, or one on attention and other layers."""
    targets = _targets(record)
    return targets is None or bool(targets - ATTENTION)


def on_attention_alone(record: Record) -> bool:
    return _targets(record) == ATTENTION


def _targets(record: Record) -> set[str] | None:
    """The modules that adapters are on; None if the settings have no list of them."""
    targets = adapt_settings(record).get("target_modules")
    return set(map(str, targets)) if isinstance(targets, list) else None
