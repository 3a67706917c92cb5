"""What a cell does beside that is trained on answers that are compared: load → refer → adapt → … → reward → score."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import nn

from harness.job.data.batching import Layout
from harness.job.data.encoding import Drawn, compared
from harness.job.evaluate.held_out import rewards
from harness.job.local_cell import LocalCell
from harness.job.training import attention
from harness.job.training.divergence import HeldOutLoss
from harness.job.training.objectives import PairBatch, PairObjective


def refer_to(cell: LocalCell, objective: PairObjective, base: nn.Module) -> None:
    """Have `objective` take what it needs of `base`, before the method changes it."""
    cell.reporter.enter("refer")
    trained = [compared(micro) for step in cell.inputs.steps for micro in step]
    scored = [compared(cell.inputs.held_out), cell.inputs.rewarded]
    batches = [*trained, *(part for items in scored for part in objective.parts(items, cell.batch_size))]
    layout, _ = attention.layout(base, cell.settings.speedups, cell.inputs.tokenizer.pad_token_id)
    with cell.meter.window("refer"):
        objective.refer_to(base, batches, cell.batch_size, layout, cell.accelerator)


def given_rewards(
    cell: LocalCell, objective: PairObjective, model: nn.Module, layout: Layout
) -> list[rewards.ItemRewards]:
    """The rewards of the test part's items, if there is one. Ask before scoring leaves `model` in another dtype."""
    if not cell.inputs.rewarded:
        return []
    with cell.entered("reward"):
        batches = objective.batches(layout, cell.inputs.rewarded, cell.batch_size)
        return rewards.of_items(cell.inputs.rewarded, rewards.of_answers(model, batches, objective, cell.accelerator))


@torch.no_grad()
def validate(
    model: nn.Module,
    items: Sequence[Drawn],
    batches: list[PairBatch],
    objective: PairObjective,
    accelerator: Accelerator,
) -> HeldOutLoss:
    """The mean loss of `items`, which `batches` have in their order, in nats, and their rewards."""
    model.eval()
    total, of_answers = 0.0, []
    for batch in batches:
        batch = batch.to(accelerator.device)
        with accelerator.autocast():
            summed, logs = objective.summed_with_logs(model, batch)
        total += float(summed)
        of_answers += objective.rewards(logs, batch).tolist()
    means = rewards.means(rewards.of_items(compared(items), of_answers))
    return HeldOutLoss(total / sum(map(objective.weight, batches)), means)
