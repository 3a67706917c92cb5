"""Scores a cell's model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from harness import record
from harness.job import pairs
from harness.job.evaluate import scoring
from harness.job.evaluate.held_out import rewards
from harness.job.evaluate.vllm import engine as vllm_engine
from harness.job.evaluate.vllm.process import VllmWriter
from harness.job.local_cell import LocalCell
from harness.job.phases.load import Loaded
from harness.job.recording import Recording
from harness.job.training.objectives import PairObjective
from harness.record import Record


def score(cell: LocalCell, model: nn.Module, loaded: Loaded, recording: Recording) -> None:
    """Score `model` on the tasks, if there are some; of a cell that is trained on pairs, on rewards too."""
    tasks, result = cell.inputs.tasks, recording.result
    given: list[tuple[float, float]] = []
    if isinstance(cell.objective, PairObjective):
        given = pairs.given_rewards(cell, cell.objective, model, loaded.layout)
    if not tasks.leaves:
        return  # eval.tasks=[]: a cell for its cost alone
    settings = cell.settings.eval.local()
    vllm = _vllm_writer(cell, model, result) if settings.engine == "vllm" and tasks.written else None
    cell.reporter.enter("score")
    with cell.meter.window("score"):  # not live: of each token it would be a third
        result.scores, items, used = scoring.score(
            model,
            cell.inputs.tokenizer,
            tasks,
            settings.batch_size,
            torch.bfloat16 if cell.bf16 else None,
            speedups=cell.settings.fast,
            tell_batch=partial(cell.model_facts.__setitem__, "eval_batch_size"),
            answered_so_far=cell.reporter.answered,
            vllm=vllm,
        )
    if given:
        result.scores, items = rewards.beside(result.scores, items, given)
    recording.keep_items(items)
    result.items, result.vllm = record.item_hashes(tasks.sample), None if vllm is None else vllm.usage
    cell.speedups.update(used)


def _vllm_writer(cell: LocalCell, model: nn.Module, result: Record) -> VllmWriter:
    python, path = cell.request.local.vllm_python, Path(cell.request.path)
    assert python is not None  # preflight refuses the cell without it
    cell.reporter.enter("save_for_vllm")
    with cell.meter.window("save_for_vllm"):
        whole = cell.weights if result.saved is not None and result.saved.form != "adapter" else None
        return vllm_engine.writer(python, cell.cell, path, model, cell.inputs.tokenizer, cell.bf16, whole)
