"""Scores a recorded cell on further tasks, with its saved weights, and adds the scores to its record.

The model is the one that was scored first: an adapter on the same base, merged if it was merged then, in the same
precision and with the same speed-ups. Scores and items are added together or not at all.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import PeftModel

from harness import env, gate, record, redact
from harness.errors import UserError, about_file
from harness.job import prepared_inputs
from harness.job.ended import CellEnded
from harness.job.evaluate import answer_engines, scoring
from harness.job.evaluate.answer_engines import ScoredModel
from harness.job.measure import device, heap
from harness.job.measure.phases import Meter
from harness.job.models import adapting, loading, placement, saved, structure
from harness.job.reporter import Reporter
from harness.job.training import attention
from harness.protocol import NO_PATHS, LocalPaths, Report
from harness.record import Cell, Record, Scoring, model_card
from harness.settings import AUTO, HELD_OUT, EvalSettings


def rescore(
    path: Path,
    settings: EvalSettings,
    data_root: str | None,
    report: Report,
    local: LocalPaths = NO_PATHS,
    typed: Cell | None = None,
) -> None:
    """Score the cell of the record at `path` by `settings` (as `eval` of a cell), replacing its scores on these tasks.

    A cell that failed in scoring is ok once it has its own scores. typed: the cell as a command line has it, as in
    `gate.admitted`.
    Raises UserError if scoring fails; the record stays unchanged then.
    """
    report({"phase": "start"})
    recorded = gate.admitted(path, typed)
    tasks = prepared_inputs.tasks(settings, recorded.cell.settings.data, data_root, local.include_path)
    if HELD_OUT in settings.tasks and not prepared_inputs.same_items(recorded, data_root):
        raise UserError(f"{recorded.cell.name} is not scored: its data have changed.")
    _refuse_twice(recorded, tasks)
    answer_engines.check(replace(recorded.cell.settings, eval=settings), local)
    tokenizer = loading.tokenizer(recorded.cell.settings.model)
    scoring.check_template(settings, tokenizer)
    if loading.fingerprint(recorded.cell.settings.model) != recorded.fingerprints.get("model"):
        raise UserError(f"{recorded.cell.name} is not scored: its base model has changed.")
    encoder = recorded.fingerprints.get("encoder")
    if HELD_OUT in settings.tasks and encoder is not None and prepared_inputs.encoder_fingerprint(settings) != encoder:
        raise UserError(f"{recorded.cell.name} is not scored: the model of its BERTScore has changed.")
    try:
        _score(recorded, path, tasks, tokenizer, settings, report, local)
    except UserError:
        raise
    except CellEnded as error:
        raise UserError(f"{recorded.cell.name} is not scored: {error}") from error
    except OSError as error:
        raise UserError(about_file(error) if error.filename else str(error)) from error
    except Exception as error:
        print(redact.redact(traceback.format_exc()), file=sys.stderr)  # into the cell's log
        why = " ".join(redact.clean(f"{type(error).__name__}: {error}").split())[:300].rstrip(".")
        raise UserError(f"{recorded.cell.name} is not scored: {why}.") from error
    finally:
        shutil.rmtree(record.scored_model(path), ignore_errors=True)
    report({"phase": "recorded"})


def _refuse_twice(recorded: Record, tasks: scoring.Tasks) -> None:
    """Raise UserError if the record has items of the same leaf tasks under another name, such as a group's."""
    again = tasks.sample.keys() & recorded.items.keys() - _leaves(recorded, tasks)
    if again:
        raise UserError(f"{recorded.cell.name} was already scored on {min(again)}, as part of another task.")


def _leaves(recorded: Record, tasks: scoring.Tasks) -> set[str]:
    """The leaf tasks of tasks that are scored again."""
    scored_tasks = {score.task for score in recorded.scores}
    return {leaf for name, loaded in tasks.by_name.items() if name in scored_tasks for leaf in loaded["tasks"]}


def _score(
    recorded: Record,
    path: Path,
    tasks: scoring.Tasks,
    tokenizer: Any,
    settings: EvalSettings,
    report: Report,
    local: LocalPaths,
) -> None:
    started, cell_settings = datetime.now(UTC), recorded.cell.settings
    bf16 = device.compute_dtype(cell_settings.train.validated().precision) is torch.bfloat16
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
    meter = Meter(accelerator.device)
    speedups: dict[str, str] = {}
    reporter = Reporter(report, meter, None)
    if cell_settings.fast:
        speedups["kept_memory"] = heap.keep(accelerator.device.type)
    set_seed(recorded.cell.seed or 0)
    reporter.enter("load")
    with meter.window("load"):
        net = saved.load(recorded, record.model_folder(path), accelerator.device)
        loaded = structure.describe(structure.inner(net))
    whole_on_one = placement.again(recorded) is None  # what is faster keeps its rows on one device
    layout, _ = attention.layout(net, cell_settings.speedups or AUTO, tokenizer.pad_token_id)
    if layout.flat and whole_on_one:
        attention.enable(net)
    if isinstance(net, PeftModel) and recorded.merge is not None and recorded.merge.merged:
        net = net.merge_and_unload(safe_merge=True)
        adapting.forget_adapters(net)
    writer, engine = None, answer_engines.named(settings.engine)
    if engine is not None and tasks.written:
        whole = record.model_folder(path) if recorded.saved is not None and recorded.saved.form != "adapter" else None
        writer = engine.writer(ScoredModel(recorded.cell, path, net, tokenizer, bf16, whole), local)
    reporter.enter("score")
    with meter.window("score"):
        scores, items, used = scoring.score(
            net,
            tokenizer,
            tasks,
            settings.local().batch_size,
            torch.bfloat16 if bf16 else None,
            speedups=cell_settings.fast and whole_on_one,
            tell_batch=partial(loaded.__setitem__, "eval_batch_size"),
            answered_so_far=reporter.answered,
            writer=writer,
        )
    environment = env.describe() | device.describe(accelerator.device) | loaded
    environment |= {"precision": "bf16" if bf16 else "fp32", "speedups": speedups | used}
    names = list(tasks.by_name)
    rescoring = Scoring(
        names,
        started.isoformat(timespec="seconds"),
        settings,
        environment,
        meter.phases,
        None if writer is None else writer.usage,
    )
    _add(recorded, path, tasks, scores, items, rescoring)


def _add(
    recorded: Record,
    path: Path,
    tasks: scoring.Tasks,
    scores: list[record.Score],
    items: pd.DataFrame,
    rescoring: Scoring,
) -> None:
    """Write the record and its items with the new scores: both, or neither."""
    cards = record.model_folder(path) / record.CARD
    plain = cards.is_file() and cards.read_text(encoding="utf-8") == model_card.text(recorded)  # not edited by hand
    again, beside = set(rescoring.tasks), path.with_suffix(".items.parquet")
    leaves = _leaves(recorded, tasks)
    recorded.scores = [s for s in recorded.scores if s.task not in again] + scores
    recorded.items = {leaf: hashes for leaf, hashes in recorded.items.items() if leaf not in leaves}
    recorded.items |= record.item_hashes(tasks.sample)
    recorded.classes = {task: table for task, table in recorded.classes.items() if task not in again}
    recorded.classes |= scoring.class_counts(tasks, items)
    for earlier in recorded.rescored:
        earlier.tasks = [name for name in earlier.tasks if name not in again]
    recorded.rescored = [earlier for earlier in recorded.rescored if earlier.tasks] + [rescoring]
    completed = record.awaits_scoring(recorded) and rescoring.settings == recorded.cell.settings.eval
    discarded = completed and recorded.save == "none"  # the weights were kept for this scoring
    if completed:
        recorded.status, recorded.failure, recorded.vllm = "ok", None, rescoring.vllm
    if discarded:
        recorded.saved = None
    if beside.exists():
        old_items = pd.read_parquet(beside)
        items = pd.concat([old_items[~old_items["task"].isin(again)], items], ignore_index=True)
    with record.replacing(beside) as temporary:
        items.to_parquet(temporary, index=False)
        recorded.items_sha256 = record.sha256(temporary)
        record.write(recorded, record.pending(path))
    os.replace(record.pending(path), path)
    if discarded:
        shutil.rmtree(record.model_folder(path), ignore_errors=True)
    elif plain:
        with record.replacing(cards) as temporary:
            temporary.write_text(model_card.text(recorded), encoding="utf-8")
