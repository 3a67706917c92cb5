"""Runs one cell that is trained on pairs of answers: load → refer → adapt → probe → train → … → reward → score."""

from __future__ import annotations

import torch
from torch import nn

from harness.job.evaluate.held_out import rewards
from harness.job.models import loading
from harness.job.run_cell import LocalCell
from harness.job.training import attention
from harness.record import Record


class PairCell(LocalCell):
    """A cell whose objective refers to the base, and gives the pairs of its test part rewards."""

    def _load(self, phase: str, on: torch.device) -> None:
        with self._entered(phase):
            base = loading.load(self.cell, on)
        self._refer_to(base)
        with self._entered("adapt") as see:
            self._adapt(base, see)

    def _refer_to(self, base: nn.Module) -> None:
        """Have the objective take what it needs of the base, before the method changes it."""
        self.reporter.enter("refer")
        trained = (pair for step in self.inputs.steps for micro in step for pair in micro)
        pairs = [*trained, *self.inputs.held_out, *self.inputs.rewarded]
        layout, _ = attention.layout(base, self.settings.speedups, self.inputs.tokenizer.pad_token_id)
        with self.meter.window("refer"):
            self.objective.refer_to(base, pairs, self.batch_size, layout, self.accelerator)

    def score(self, result: Record) -> None:
        given = self._rewards()
        super().score(result)
        if given:
            result.scores, self.items = rewards.beside(result.scores, self.items, given)

    def _rewards(self) -> list[tuple[float, float]]:
        """The rewards of the test part's pairs, before scoring leaves the model in another dtype."""
        if not self.inputs.rewarded:
            return []
        with self._entered("reward"):
            batches = self.objective.batches(self.layout, self.inputs.rewarded, self.batch_size)
            return rewards.of(self.model, batches, self.objective, self.accelerator)
