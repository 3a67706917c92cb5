"""The implicit rewards of held-out answers as scores: an objective's own account of which answers a model prefers.

Each item of the task ``held_out`` has two values in the task ``rewards``: of a pair whether the chosen answer has the
larger reward (accuracy, the win rate of the chosen answers), and by how much (margin); of a single answer whether its
reward is positive if it is good, and negative if it is bad, and the reward itself, a bad one's negated.
harness/job/training/objectives.py says what a reward is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn

from harness.job.data.encoding import Compared
from harness.job.evaluate import scoring
from harness.job.evaluate.clusters import cluster_of
from harness.job.training.objectives import PairBatch, PairObjective, log_probabilities
from harness.record import PairRewards, Score, cluster_numbers, clustered_error
from harness.settings import HELD_OUT, REWARDS


@dataclass(frozen=True)
class ItemRewards:
    """The implicit rewards of an item's answers. signs: as of the item, 1 of a good answer and -1 of a bad one."""

    rewards: tuple[float, ...]
    signs: tuple[int, ...]

    @property
    def margin(self) -> float:
        """By how much good answers are preferred: of a pair the chosen one to the rejected one."""
        return sum(sign * reward for sign, reward in zip(self.signs, self.rewards, strict=True))

    @property
    def accuracy(self) -> float:
        return float(self.margin > 0)


def of_items(items: Iterable[Compared], rewards: Iterable[Sequence[float]]) -> list[ItemRewards]:
    """The `rewards` of the answers of each of `items`, in their order."""
    return [ItemRewards(tuple(each), item.signs) for item, each in zip(items, rewards, strict=True)]


@torch.no_grad()
def of_answers(
    model: nn.Module, batches: Iterable[PairBatch], objective: PairObjective, accelerator: Accelerator
) -> list[list[float]]:
    """The rewards that `objective` gives the answers of each item of `batches`, in their order."""
    model.eval()
    rewards: list[list[float]] = []
    for batch in batches:
        batch = batch.to(accelerator.device)
        with accelerator.autocast():
            logs = log_probabilities(model, batch)
        rewards += objective.rewards(logs, batch).tolist()
    return rewards


def means(items: Sequence[ItemRewards]) -> PairRewards:
    """Of the rewards of `items`: of good answers, of bad ones, and of what tells them apart."""
    every = [pair for item in items for pair in zip(item.signs, item.rewards, strict=True)]
    good, bad = (_mean([reward for sign, reward in every if sign == wanted]) for wanted in (1, -1))
    margin = None if good is None or bad is None else good - bad
    return PairRewards(good, bad, margin, fmean(item.accuracy for item in items))


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None


def beside(
    scores: list[Score], items: pd.DataFrame, rewards: list[ItemRewards], tasks: scoring.Tasks
) -> tuple[list[Score], pd.DataFrame]:
    """`scores` and `items` as scoring has them, with those of `rewards`, of the sampled items of ``held_out``."""
    task, numbers = tasks.leaves[HELD_OUT], tasks.sample[HELD_OUT]
    docs = [task.eval_docs[number] for number in numbers]
    clusters = cluster_numbers([HELD_OUT] * len(docs), [cluster_of(doc) for doc in docs])
    groups = max(clusters) + 1
    columns: dict[str, Any] = {
        "task": REWARDS,
        "subject": HELD_OUT,
        "item": numbers,
        "hash": [scoring.hash_of(doc) for doc in docs],
        "filter": "none",
        "prediction": [" ".join(f"{reward:.4g}" for reward in item.rewards) for item in rewards],
        "target": [str(task.doc_to_target(doc)) for doc in docs],
        "cluster": [cluster_of(doc) for doc in docs],
        "question": [scoring.question_of(task, doc) for doc in docs],
    }
    frames, more = [items], []
    for metric in ("accuracy", "margin"):
        values = [float(getattr(item, metric)) for item in rewards]
        frames.append(pd.DataFrame(columns | {"metric": metric, "value": values}))
        more.append(
            Score(
                task=REWARDS,
                metric=metric,
                filter="none",
                value=fmean(values),
                stderr=clustered_error(values, clusters) if len(values) > 1 else None,
                n=len(values),
                num_fewshot=task.config.num_fewshot,
                version=str(task.VERSION),
                higher_is_better=True,
                clusters=groups if groups < len(values) else None,
            )
        )
    return [*scores, *more], pd.concat(frames, ignore_index=True)
