"""Claims on the setup of LoRA: which layers to adapt, and how large a batch may be."""

from __future__ import annotations

from collections.abc import Callable

from harness.plugins.articles.claims import Judgement, lacking
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.lora_without_regret.losses import (
    HIGHER,
    on_all_layers,
    on_attention_alone,
    penalty,
    smallest_batch,
)
from harness.plugins.articles.rules import batch_size, everywhere
from harness.record import Record

EQUAL = 1.1  # numbers of parameters within this factor count as equal


def layers_rank(at: Evidence) -> Judgement:
    return _attention_alone(at, lambda one, other: one.cell.rank == other.cell.rank, "r={}", "all layers, equal rank")


def layers_parameters(at: Evidence) -> Judgement:
    def equal(one: Record, other: Record) -> bool:
        if not one.parameters or not other.parameters:
            return False
        return 1 / EQUAL < one.parameters.trainable / other.parameters.trainable < EQUAL

    return _attention_alone(at, equal, "r={} on attention alone", "all layers, equal size")


def _attention_alone(at: Evidence, comparable: Callable[[Record, Record], bool], label: str, missing: str) -> Judgement:
    """The penalty of adapters on attention alone, at each pair of ranks whose records are `comparable`.

    label: of a pair, by the rank on attention alone. missing: what to record besides, where there is no pair.
    """
    attention, everything = _by_layers(at)
    pairs = [
        (label.format(one[0].cell.rank), penalty([one], [other], HIGHER, [*attention, *everything]))
        for one in attention
        for other in everything
        if comparable(one[0], other[0])
    ]
    return everywhere(pairs) if pairs else lacking("lora on attention alone", missing)


def _by_layers(at: Evidence) -> tuple[list[list[Record]], list[list[Record]]]:
    """The records of each rank at its best learning rate: adapters on attention alone, and on all layers."""
    at = smallest_batch(at).where(lambda record: record.cell.method == "lora" and record.parameters is not None)

    def by_rank(side: Evidence) -> list[list[Record]]:
        return [side.chosen(choice) for choice in side.choices("rank").values()]

    return by_rank(at.where(on_attention_alone)), by_rank(at.where(on_all_layers))


def batch_penalty(at: Evidence) -> Judgement:
    """The penalty at the largest batch size that both methods were run with, over that at the smallest."""
    by_size: dict[int, tuple[list[Record], list[Record]]] = {}
    for size in sorted({size for record in at.records if (size := batch_size(record)) is not None}):
        part = at.where(_of_batch(size))
        choices = part.choices()
        if ("lora",) in choices and ("full",) in choices:
            by_size[size] = part.chosen(choices["lora",]), part.chosen(choices["full",])
    if len(by_size) < 2:
        return lacking("lora and full with two batch sizes")
    (small_lora, small_full), (large_lora, large_full) = by_size[min(by_size)], by_size[max(by_size)]
    return penalty([large_lora, small_full], [large_full, small_lora], HIGHER)


def _of_batch(size: int) -> Callable[[Record], bool]:
    return lambda record: batch_size(record) == size and on_all_layers(record)
