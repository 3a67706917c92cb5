"""Scores a cell's model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from harness import record
from harness.job import pairs
from harness.job.evaluate import answer_engines, scoring
from harness.job.evaluate.answer_engines import SAVE_FOR, ElsewhereWriter, ScoredModel
from harness.job.evaluate.cut_requests import CutRequests
from harness.job.evaluate.held_out import rewards
from harness.job.local_cell import LocalCell
from harness.job.phases.load import Loaded
from harness.job.recording import Recording
from harness.job.training.objectives import PairObjective
from harness.record import Record


def score(cell: LocalCell, model: nn.Module, loaded: Loaded, recording: Recording) -> None:
    """Score `model` on the tasks, if there are some; of a cell that compares answers, on rewards too."""
    tasks, result = cell.inputs.tasks, recording.result
    item_rewards: list[rewards.ItemRewards] = []
    if isinstance(cell.objective, PairObjective):
        item_rewards = pairs.given_rewards(cell, cell.objective, model, loaded.layout)
    if not tasks.leaves:
        return  # eval.tasks=[]: a cell for its cost alone
    settings = cell.settings.eval.local()
    writer = _writer(cell, model, result) if tasks.written else None
    cell.reporter.enter("score")
    with cell.meter.window("score"):  # not live: of each token it would be a third
        result.scores, items, used = scoring.score(
            model,
            cell.inputs.tokenizer,
            tasks,
            settings.batch_size,
            torch.bfloat16 if cell.bf16 else None,
            speedups=cell.settings.fast and cell.divided_over is None,
            tell_batch=partial(cell.model_facts.__setitem__, "eval_batch_size"),
            answered_so_far=cell.reporter.answered,
            writer=writer,
            tell_cut=partial(_keep_cut, result),
        )
    if item_rewards:
        result.scores, items = rewards.beside(result.scores, items, item_rewards, tasks)
    result.classes = scoring.class_counts(tasks, items)
    recording.keep_items(items)
    result.items, result.vllm = record.item_hashes(tasks.sample), None if writer is None else writer.usage
    cell.speedups.update(used)


def _keep_cut(result: Record, cut: CutRequests) -> None:
    result.truncated_requests, result.written_answers, result.cut_answers = cut.requests, cut.answers, cut.unfinished


def _writer(cell: LocalCell, model: nn.Module, result: Record) -> ElsewhereWriter | None:
    """What writes answers in place of `model`, if the cell has another engine do so."""
    name = cell.settings.eval.engine
    if (engine := answer_engines.named(name)) is None:
        return None
    phase = f"{SAVE_FOR}{name}"
    cell.reporter.enter(phase)
    with cell.meter.window(phase):
        path = Path(cell.request.path)
        whole = cell.weights if result.saved is not None and result.saved.form != "adapter" else None
        scored = ScoredModel(cell.cell, path, model, cell.inputs.tokenizer, cell.bf16, whole)
        return engine.writer(scored, cell.request.local)
