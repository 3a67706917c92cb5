"""Scores of a record as lm-eval writes its own: `results_DATE.json`, for leaderboards and scripts that read those.

    write(records, folder, out)

The layout is that of `lm_eval.result_schema.EvalResults`, with the fields that its `EvaluationTracker` adds. What a
record does not know is null. No samples are written, as records have no texts of questions.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from harness.errors import UserError
from harness.grouping import grouped
from harness.record import Record, Score, micro_batches
from harness.record.model_card import base_of
from harness.report.items.answered import batches
from harness.settings import plain

Values = dict[str, dict[str, Any]]
KEYS = ["task", "subject", "metric", "filter"]


def write(records: Sequence[Record], folder: Path, out: Path) -> list[Path]:
    """Write `out`/MODEL/results_DATE.json for each of `records` that has scores; returns the paths.

    MODEL is STUDY__CELL, as lm-eval writes the name of a model in a path. DATE is when the cell started, so writing
    again replaces the same files. folder: of the study, where the items are, which name the subjects of groups.
    """
    paths = []
    for record in records:
        if record.scores:
            value = results(record, folder)
            date = datetime.fromisoformat(record.started).strftime("%Y-%m-%dT%H-%M-%S.%f")
            path = out / value["model_name_sanitized"] / f"results_{date}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            paths.append(path)
    return paths


def results(record: Record, folder: Path) -> dict[str, Any]:
    """The content of the file of `record`, whose items are in `folder`."""
    subjects = _subjects(folder / f"{record.cell.name}.items.parquet")
    by_task = grouped((score.task, score) for score in record.scores)
    groups = {task: list(subjects[task]) for task in by_task if set(subjects.get(task, {})) - {task}}
    parts: Values = {name: {} for name in ("results", "versions", "n-shot", "higher_is_better", "n-samples", "configs")}
    for task, scores in by_task.items():
        _add(parts, task, scores, _metrics(scores), None if task in groups else scores[0].n, record)
        for leaf in groups.get(task, ()):
            values = subjects[task][leaf]
            _add(parts, leaf, scores, _means(values), max(map(len, values.values())), record)
    return {
        **parts,
        **({"groups": {task: parts["results"][task] for task in groups}} if groups else {}),
        "group_subtasks": groups,
        **_run(record),
    }


def _add(
    parts: Values, name: str, scores: Sequence[Score], metrics: dict[str, Any], n: int | None, record: Record
) -> None:
    """Enter a task, or a group of which n is None: lm-eval counts samples and keeps configs by task alone."""
    first, limit = scores[0], record.cell.settings.eval.limit
    samples = n if n is not None else first.n
    parts["results"][name] = {"name": name, "alias": name, "sample_len": samples, **metrics}
    parts["versions"][name] = float(first.version) if re.fullmatch(r"\d+(\.\d+)?", first.version) else first.version
    parts["n-shot"][name] = first.num_fewshot
    parts["higher_is_better"][name] = {score.metric: score.higher_is_better for score in scores}
    if n is not None:
        parts["n-samples"][name] = {"original": n if limit is None else None, "effective": n}
        parts["configs"][name] = {
            "task": name,
            "num_fewshot": first.num_fewshot,
            "metric_list": [
                {"metric": metric, "higher_is_better": better}
                for metric, better in parts["higher_is_better"][name].items()
            ],
            "metadata": {"version": parts["versions"][name]},
        }


def _metrics(scores: Iterable[Score]) -> dict[str, Any]:
    """Values and standard errors as lm-eval names them: ``acc,none`` and ``acc_stderr,none``."""
    metrics: dict[str, Any] = {}
    for score in scores:
        metrics[f"{score.metric},{score.filter}"] = score.value
        metrics[f"{score.metric}_stderr,{score.filter}"] = "N/A" if score.stderr is None else score.stderr
    return metrics


def _means(values: dict[tuple[str, str], list[float]]) -> dict[str, Any]:
    """As `_metrics`, of one subject's items, by metric and filter."""
    metrics: dict[str, Any] = {}
    for (metric, kind), of in values.items():
        metrics[f"{metric},{kind}"] = float(np.mean(of))
        error = float(np.std(of, ddof=1) / len(of) ** 0.5) if len(of) > 1 else "N/A"
        metrics[f"{metric}_stderr,{kind}"] = error
    return metrics


def _subjects(path: Path) -> dict[str, dict[str, dict[tuple[str, str], list[float]]]]:
    """The values of items by task, subject, and metric and filter; empty without a file.

    Raises UserError for a file that has other content.
    """
    values: dict[str, Any] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    try:
        for batch in batches(path, [*KEYS, "value"]) if path.is_file() else ():
            for (task, subject, metric, kind), of in batch.to_pandas().groupby(KEYS, sort=False)["value"]:
                values[task][subject][metric, kind].extend(map(float, of))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(f"{path} can't be read as items ({' '.join(str(error).split())}).") from None
    return values


def _run(record: Record) -> dict[str, Any]:
    """What lm-eval says of the model and the run, and in `config.finetune_harness` how the model was tuned."""
    cell, settings, environment = record.cell, record.cell.settings, record.environment
    versions = environment.get("versions") or {}
    device = environment.get("device") or {}
    model_name = f"{record.study}/{cell.name}"
    base, commit = base_of(record)
    scoring = record.phases.get("score")
    source = "hf" if settings.model.base_url is None else "api"
    return {
        "config": {
            "model": source,
            "model_args": {"pretrained": base, "dtype": settings.model.dtype},
            "model_num_parameters": record.parameters.total if record.parameters else None,
            "model_dtype": settings.model.dtype,
            "model_revision": settings.model.revision or "main",
            "model_sha": commit,
            "batch_size": environment.get("eval_batch_size", settings.eval.batch_size),
            "batch_sizes": [],
            "device": device.get("type"),
            "limit": settings.eval.limit,
            "gen_kwargs": {},
            "finetune_harness": {
                **{
                    name: getattr(cell, name)
                    for name in ("id", "method", "data", "rank", "alpha", "lr", "seed", "knobs")
                },
                "micro_batch": (micro_batches(record) or (None,))[0],
                "eval": plain(settings.eval),
            },
        },
        "git_hash": (environment.get("git") or {}).get("commit"),
        "date": datetime.fromisoformat(record.started).timestamp(),
        "pretty_env_info": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "transformers_version": versions.get("transformers"),
        "lm_eval_version": versions.get("lm_eval"),
        "upper_git_hash": None,
        "task_hashes": {},
        "model_source": source,
        "model_name": model_name,
        "model_name_sanitized": re.sub(r"[\"<>:/|\\?*\[\]]+", "__", model_name),
        "system_instruction": settings.eval.system_instruction,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": settings.eval.fewshot_as_multiturn,
        "chat_template": None,
        "chat_template_sha": None,
        "total_evaluation_time_seconds": str(scoring.seconds if scoring else record.seconds),
    }
