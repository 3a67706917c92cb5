"""What a cell does beside that is trained on pairs of answers: load → refer → adapt → … → reward → score."""

from __future__ import annotations

from torch import nn

from harness.job.data.batching import Layout
from harness.job.data.encoding import Pair
from harness.job.evaluate.held_out import rewards
from harness.job.local_cell import LocalCell
from harness.job.training import attention
from harness.job.training.objectives import PairObjective


def refer_to(cell: LocalCell, objective: PairObjective, base: nn.Module) -> None:
    """Have `objective` take what it needs of `base`, before the method changes it."""
    cell.reporter.enter("refer")
    trained = (drawn for step in cell.inputs.steps for micro in step for drawn in micro)
    everything = (*trained, *cell.inputs.held_out, *cell.inputs.rewarded)
    pairs = [drawn for drawn in everything if isinstance(drawn, Pair)]  # as all are
    layout, _ = attention.layout(base, cell.settings.speedups, cell.inputs.tokenizer.pad_token_id)
    with cell.meter.window("refer"):
        objective.refer_to(base, pairs, cell.batch_size, layout, cell.accelerator)


def given_rewards(
    cell: LocalCell, objective: PairObjective, model: nn.Module, layout: Layout
) -> list[tuple[float, float]]:
    """The rewards of the test part's pairs, if there is one. Ask before scoring leaves `model` in another dtype."""
    if not cell.inputs.rewarded:
        return []
    with cell.entered("reward"):
        batches = objective.batches(layout, cell.inputs.rewarded, cell.batch_size)
        return rewards.of(model, batches, objective, cell.accelerator)
