"""The implicit rewards of held-out pairs as scores: an objective's own account of which answer a model prefers.

Each pair of the task ``held_out`` has two values more, in the task ``rewards``: whether the chosen answer has the
larger reward (accuracy, the win rate of the chosen answers), and by how much (margin).
harness/job/training/objectives.py says what a reward is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean

import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn

from harness.job.training.objectives import PairBatch, PairObjective, log_probabilities
from harness.record import PairRewards, Score, cluster_numbers, clustered_error
from harness.settings import HELD_OUT

REWARDS = "rewards"  # the task's name


@torch.no_grad()
def of(
    model: nn.Module, batches: Iterable[PairBatch], objective: PairObjective, accelerator: Accelerator
) -> list[tuple[float, float]]:
    """The rewards that `objective` gives the chosen and the rejected answer of each pair, in their order."""
    model.eval()
    rewards: list[tuple[float, float]] = []
    for batch in batches:
        batch = batch.to(accelerator.device)
        with accelerator.autocast():
            logs = log_probabilities(model, batch)
        rewards += [(chosen, rejected) for chosen, rejected in objective.rewards(logs, batch).tolist()]
    return rewards


def means(rewards: Sequence[Sequence[float]]) -> PairRewards:
    """Of the `rewards` of the chosen and the rejected answer of each pair."""
    better, worse = (fmean(each) for each in zip(*rewards, strict=True))
    return PairRewards(better, worse, better - worse, fmean(float(good > bad) for good, bad in rewards))


def beside(
    scores: list[Score], items: pd.DataFrame, rewards: list[tuple[float, float]]
) -> tuple[list[Score], pd.DataFrame]:
    """`scores` and `items` as scoring has them, with those of `rewards`, of the pairs of ``held_out`` in order."""
    score = next(score for score in scores if score.task == HELD_OUT)  # any one is of the same items
    like = items[(items["task"] == HELD_OUT) & (items["metric"] == score.metric) & (items["filter"] == score.filter)]
    like = like.sort_values("item", kind="stable")
    values = {
        "accuracy": [float(chosen > rejected) for chosen, rejected in rewards],
        "margin": [chosen - rejected for chosen, rejected in rewards],
    }
    told = {"task": REWARDS, "prediction": [f"{chosen:.4g} {rejected:.4g}" for chosen, rejected in rewards]}
    rows = [like.assign(**told, metric=metric, value=value) for metric, value in values.items()]
    clusters = cluster_numbers(like["subject"].tolist(), None)
    more = [
        replace(
            score,
            task=REWARDS,
            metric=metric,
            higher_is_better=True,
            value=fmean(value),
            stderr=clustered_error(value, clusters) if len(value) > 1 else None,
        )
        for metric, value in values.items()
    ]
    return [*scores, *more], pd.concat([items, *rows], ignore_index=True)
