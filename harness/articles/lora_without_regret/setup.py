"""Claims on the setup of LoRA: which layers to adapt, and how large a batch may be."""

from __future__ import annotations

from harness.articles.lora_without_regret.losses import (
    batch_size,
    higher,
    judged,
    last_losses,
    on_all_layers,
    on_attention_alone,
    penalty,
    smallest_batch,
)
from harness.articles.rules import everywhere
from harness.record import Record
from harness.report.claims import Claims, Judgement, lacking, times
from harness.report.evidence import Evidence

CLAIMS = Claims()
EQUAL = 1.1  # numbers of parameters within this factor count as equal


@CLAIMS.claim(
    "layers-rank",
    "Adapters on all layers beat adapters on attention alone at the same rank (by validation loss)",
    "sweep lora_without_regret_layers",
    times,
)
def layers_rank(at: Evidence) -> Judgement:
    attention, everything = _by_layers(at)
    pairs = [
        (f"r={one[0].cell.rank}", penalty(one, other, higher))
        for one in attention
        for other in everything
        if one[0].cell.rank == other[0].cell.rank
    ]
    return everywhere(pairs, 1, float("inf")) if pairs else lacking("lora on attention alone", "all layers, equal rank")


@CLAIMS.claim(
    "layers-parameters",
    "Adapters on all layers beat adapters on attention alone at equal trainable parameters (within 10%; by validation "
    "loss)",
    "sweep lora_without_regret_layers",
    times,
)
def layers_parameters(at: Evidence) -> Judgement:
    attention, everything = _by_layers(at)
    pairs = [
        (f"r={one[0].cell.rank} on attention alone", penalty(one, other, higher))
        for one in attention
        for other in everything
        if 1 / EQUAL < one[0].parameters.trainable / other[0].parameters.trainable < EQUAL
    ]
    return everywhere(pairs, 1, float("inf")) if pairs else lacking("lora on attention alone", "all layers, equal size")


def _by_layers(at: Evidence) -> tuple[list[list[Record]], list[list[Record]]]:
    """The records of each rank at its best learning rate: adapters on attention alone, and on all layers."""
    at = smallest_batch(at).where(lambda record: record.cell.method == "lora" and record.parameters is not None)
    attention, everything = at.where(on_attention_alone), at.where(on_all_layers)
    return tuple([side.chosen(choice) for choice in side.choices("rank").values()] for side in (attention, everything))


@CLAIMS.claim(
    "batch-penalty",
    "The penalty of LoRA against full fine-tuning (ratio of validation losses) grows with batch size (largest "
    "against smallest)",
    "sweep lora_without_regret_batch",
    times,
)
def batch_penalty(at: Evidence) -> Judgement:
    """The penalty at the largest batch size that both methods were run with, over that at the smallest."""
    by_size = {}
    for size in sorted({size for record in at.records if (size := batch_size(record)) is not None}):
        part = at.where(lambda record, size=size: batch_size(record) == size and on_all_layers(record))
        choices = part.choices()
        if ("lora",) in choices and ("full",) in choices:
            by_size[size] = [part.chosen(choices[method,]) for method in ("lora", "full")]
    if len(by_size) < 2:
        return lacking("lora and full with two batch sizes")
    (small_lora, small_full), (large_lora, large_full) = by_size[min(by_size)], by_size[max(by_size)]
    numerators, denominators = (large_lora, small_full), (large_full, small_lora)
    losses, reference = ([last_losses(group) for group in side] for side in (numerators, denominators))
    records = [record for group in (*numerators, *denominators) for record in group]
    return judged(losses, reference, records, higher)
