"""What a cell does beside that is trained on pairs of answers: load → refer → adapt → … → reward → score."""

from __future__ import annotations

from typing import Any

from accelerate.utils import broadcast_object_list
from torch import nn

from harness.job.data.batching import Layout
from harness.job.data.encoding import Pair
from harness.job.evaluate.held_out import rewards
from harness.job.local_cell import LocalCell
from harness.job.training import attention
from harness.job.training.objectives import PairObjective


def refer_to(cell: LocalCell, objective: PairObjective, base: nn.Module) -> None:
    """Have `objective` take what it needs of `base`, before the method changes it.

    Of a model that is to be sharded one device has the base, and tells the others.
    """
    cell.reporter.enter("refer")
    asked = _asked_of_base(cell)
    layout, _ = attention.layout(base, cell.settings.speedups, cell.inputs.tokenizer.pad_token_id)
    with cell.meter.window("refer"):
        objective.refer_to(base, asked, cell.batch_size, layout, cell.accelerator)
        if cell.sharded:
            broadcast_object_list([[objective.reference.get(id(pair)) for pair in asked]])


def receive_references(cell: LocalCell, objective: PairObjective) -> None:
    """Have `objective` take what the device that has the base tells."""
    cell.reporter.enter("refer")
    asked = _asked_of_base(cell)
    with cell.meter.window("refer"):
        received: list[Any] = [None]
        broadcast_object_list(received)
        references = zip(asked, received[0], strict=True)
        objective.reference |= {id(pair): both for pair, both in references if both is not None}


def _asked_of_base(cell: LocalCell) -> list[Pair]:
    trained = (drawn for step in cell.inputs.steps for micro in step for drawn in micro)
    everything = (*trained, *cell.inputs.held_out, *cell.inputs.rewarded)
    return [drawn for drawn in everything if isinstance(drawn, Pair)]  # as all are


def given_rewards(
    cell: LocalCell, objective: PairObjective, model: nn.Module, layout: Layout
) -> list[tuple[float, float]]:
    """The rewards of the test part's pairs, if there is one. Ask before scoring leaves `model` in another dtype."""
    if not cell.inputs.rewarded:
        return []
    with cell.entered("reward"):
        batches = objective.batches(layout, cell.inputs.rewarded, cell.batch_size)
        return rewards.of(model, batches, objective, cell.accelerator)
