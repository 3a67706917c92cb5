"""Turns what others measured into records: peft's published method comparison, and the output files of lm-eval.

    python -m harness import peft FOLDER
    python -m harness import lm-eval FOLDER

What a source did not measure is null in its records; where a number means something else than the harness's own, the
record's `source` says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from harness import record, redact
from harness.errors import UserError
from harness.record import (
    Cell,
    Disk,
    Failure,
    Memory,
    Parameters,
    Phase,
    Record,
    Score,
    Source,
    Tokens,
    Train,
)
from harness.settings import cell_id

PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass
class Imported:
    """A record, the items behind its scores (None where the source has none), and the file that it was read from."""

    record: Record
    items: pd.DataFrame | None
    path: Path


@dataclass
class Summary:
    """Names of records by what became of them, and the files that a later result of the same settings replaced."""

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    older: list[Path] = field(default_factory=list)


def collect(project: str, path: Path, study: str) -> list[Imported]:
    """The records of `study` that the file or folder `path` holds, by the names of files.

    project: a key of `READERS`. Raises UserError for the first file that is no result of it, or if there is none.
    """
    pattern, read = READERS[project]
    if not path.exists():
        raise UserError(f"There is no file or folder {path}.")
    paths = sorted(path.rglob(pattern)) if path.is_dir() else [path]
    if not paths:
        raise UserError(f"There is no {pattern} in {path}; name the folder that holds the results of {project}.")
    return [_read(project, read, found, study) for found in paths]


def store(found: Sequence[Imported], folder: Path) -> Summary:
    """Write the records `found` and their items to `folder`; a second time nothing changes.

    Of results of the same settings the latest stands. Raises UserError, before anything is written, if a record's name
    is that of a cell which the harness ran.
    """
    summary, latest = Summary(), dict[str, Imported]()
    for new in sorted(found, key=lambda imported: imported.record.started):
        name = new.record.cell.name
        summary.older += [latest[name].path] if name in latest else []
        latest[name] = new
    there = {name: record.read(path) for name in latest if (path := folder / f"{name}.json").exists()}
    for name, known in there.items():
        if known.source is None:
            raise UserError(f"{folder / name}.json is a cell that the harness ran; import into another --study.")
    for name, new in latest.items():
        known = there.get(name)
        if known and known.started > new.record.started:
            summary.older.append(new.path)
        elif known and known == dataclasses.replace(new.record, items_sha256=known.items_sha256):
            summary.unchanged.append(name)
        else:
            _write(new, folder / f"{name}.json")
            (summary.changed if known else summary.new).append(name)
    return summary


def _write(new: Imported, path: Path) -> None:
    """The items first, so that no record lacks what it tells of."""
    items = path.with_suffix(".items.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    if new.items is None:
        items.unlink(missing_ok=True)
    else:
        with record.replacing(items) as temporary:
            new.items.to_parquet(temporary, index=False)
        new.record.items_sha256 = record.sha256(items)
    record.write(new.record, path)


def _read(project: str, read: Callable[[dict, Path], Imported], path: Path, study: str) -> Imported:
    """One file's record; whatever does not fit makes a sentence that names the file."""
    try:
        content = path.read_bytes()
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not complete JSON ({error}); get it again, or move it away.") from None
    try:
        found = read(value, path)
        found.record.study = study
        found.record.source.sha256 = hashlib.sha256(content).hexdigest()
        # As a reader will see it: what would not be read must not be written.
        plain = json.loads(json.dumps(dataclasses.asdict(found.record), allow_nan=False))
        found.record = record.decode(Record, plain)
        datetime.fromisoformat(found.record.started)
    except KeyError as error:
        reason = f"it has no {error.args[0]!r}"
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        reason = str(error)
    else:
        return found
    raise UserError(f"{path} is no result file of {project} ({reason}); move it away, or name another PATH.")


def _number(value: Any) -> float | None:
    """A finite number, or None: sources write NaN and "N/A" for what there is not."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _cell(settings: dict[str, Any], **fields: Any) -> Cell:
    """The cell of `settings`, identified as the harness's own are; others may have typed a token among theirs."""
    cell = record.decode(Cell, {"id": "", "name": "", "settings": redact.hide(settings), **fields})
    cell.id = cell_id(cell.settings)
    cell.name = record.cell_name(cell)
    return cell


# peft's method comparison, suite MetaMathQA

GSM8K_TEST = 1319  # items of GSM8K's test split, all of which the suite asks
WIKI_PAGES = 100  # `get_wiki_small` in the suite's data.py
FILE_SIZE_UNKNOWN = 99_999_999  # what the suite writes where the adapter could not be saved
# What a peft config tells of its own making, not of the method
BESIDE_THE_METHOD = {"peft_version", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"}

OF_LOOP = ("max_steps", "batch_size")  # which mean the same there and here

PEFT_NOTES = [
    "Imported from the results that huggingface/peft publishes of its method comparison (MetaMathQA).",
    "Its accuracy is of its own parser of answers, over the 1,319 test items of GSM8K, without shots; their errors are "
    "binomial, as single items are not published. Its loss increase is that of the mean token of 100 pages of finewiki "
    "from before to after training, and has no error.",
    "Its tokens/s have the making of the batches in their time. Its memory after a step is read with the gradients in "
    "it, and its peak of the whole job is polluted by generation for the evaluations, in larger batches.",
]


def _peft(value: dict, path: Path) -> Imported:
    run, trained, meta = value["run_info"], value["train_info"], value["meta_info"]
    config, adapter = run["train_config"], run["peft_config"]
    cell = _peft_cell(run["experiment_name"], config, adapter)
    *windows, last = trained["metrics"] or [{}]
    found = Record(
        cell=cell,
        study="",
        status="ok",
        started=run["created_at"],
        seconds=run["total_time"],
        environment=_peft_environment(meta, config),
        parameters=Parameters(trained["num_total_params"], trained["num_trainable_params"]),
        phases={"job": Phase(run["total_time"], Memory(reserved_peak=trained["accelerator_memory_max"]))},
        disk=_peft_disk(trained["file_size"], adapter),
        fingerprints={"model": f"hub:{meta['model_info']['sha']}"},
        source=Source("peft", path.name, "", list(PEFT_NOTES)),
    )
    data = [f"{name}@{info['sha']}" for name, info in sorted(meta["dataset_info"].items())]
    found.fingerprints["data"] = f"hub:{','.join(data)}"
    if trained["status"] != "success":
        oom = "out of memory" in run["error_msg"].lower()
        found.status = "oom" if oom else "failed"
        reason = (run["error_msg"].splitlines() or [trained["status"]])[0]
        found.failure = Failure("train", last.get("step"), reason)
        return Imported(found, None, path)
    seconds = sum(window["train time"] for window in windows)
    tokens = sum(window["train time"] * window["tokens / sec"] for window in windows)
    found.phases["train"] = Phase(seconds, Memory(reserved_p99=trained["accelerator_memory_reserved_99th"]))
    found.train = Train(
        steps=last["step"],
        tokens=Tokens(last["train total tokens"], None, None),
        step_seconds=[],
        warmup_steps=0,
        tokens_per_second_steady=None,
        tokens_per_second_amortised=tokens / seconds,
        loss=[],
        batches=None,
    )
    found.scores = _peft_scores(last)
    return Imported(found, None, path)


def _peft_cell(experiment: str, config: dict[str, Any], adapter: dict[str, Any] | None) -> Cell:
    """An experiment's name is an axis of its own: variants of a method can share rank, alpha and learning rate."""
    if adapter is None:
        method = "full"
    else:
        method = "dora" if adapter.get("use_dora") else adapter["peft_type"].lower()
        adapter = {name: _sorted(part) for name, part in adapter.items() if name not in BESIDE_THE_METHOD}
    model = config["model_id"].rsplit("/", 1)[-1]
    variant = re.sub(rf"^{re.escape(model)}-", "", experiment.rsplit("/", 1)[-1], flags=re.IGNORECASE)
    optimizer = {"_target_": f"torch.optim.{config['optimizer_type']}", **config["optimizer_kwargs"]}
    apart = {"model_id", "dtype", "seed", "batch_size_eval", "generation_kwargs", "max_seq_length", "grad_norm_clip"}
    apart |= {"optimizer_type", "optimizer_kwargs", "eval_steps", *OF_LOOP}
    settings = {
        "method": {
            "name": method,
            "load": {"dtype": config["dtype"]},
            "adapt": adapter,
            "optim": {"optimizer": optimizer},
        },
        "model": {"path": config["model_id"], "dtype": config["dtype"]},
        "data": {"name": "metamath"},
        "eval": {"tasks": ["gsm8k"], "num_fewshot": 0},
        "train": {
            **{name: config[name] for name in OF_LOOP if name in config},
            "grad_accum": 1,
            "max_length": config["max_seq_length"],
            "max_grad_norm": config["grad_norm_clip"],
        },
        "seed": config["seed"],
        "other": {
            "eval": {"generation": config["generation_kwargs"]},
            "train": {name: setting for name, setting in config.items() if name not in apart},
            "experiment": experiment,
        },
    }
    rank, alpha = (adapter or {}).get("r"), (adapter or {}).get("lora_alpha", (adapter or {}).get("alpha"))
    return _cell(
        settings,
        method=method,
        model=model,
        data="metamath",
        rank=rank,
        alpha=_number(alpha),
        lr=_number(config["optimizer_kwargs"]["lr"]),
        seed=config["seed"],
        knobs={"experiment": variant},
    )


def _sorted(part: Any) -> Any:
    """Sets lie in peft's files as lists in no order."""
    return sorted(part) if isinstance(part, list) and all(isinstance(entry, str) for entry in part) else part


def _peft_environment(meta: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    told, versions = meta["package_info"], {}
    for name in ("torch", "transformers", "peft", "datasets", "bitsandbytes"):
        commit = told.get(f"{name}-commit-hash")
        versions[name] = told[f"{name}-version"] + (f" ({commit[:12]})" if commit else "")
    system = meta["system_info"]
    return {
        "versions": versions,
        "platform": f"{system['system']} {system['machine']}",
        "device": {"name": system["accelerator"]},
        "precision": PRECISIONS.get(config["dtype"]),
    }


def _peft_disk(size: int, adapter: dict[str, Any] | None) -> Disk | None:
    if size == FILE_SIZE_UNKNOWN:
        return None
    return Disk(None, size) if adapter is None else Disk(size, None)


def _peft_scores(last: dict[str, Any]) -> list[Score]:
    """stderr is that of a mean of n zeros and ones, as for every score: sqrt(p (1 - p) / (n - 1))."""
    accuracy, n = last["test accuracy"], GSM8K_TEST
    if abs(accuracy * n - round(accuracy * n)) > 1e-6:
        raise ValueError(f"its test accuracy is no share of GSM8K's {n:,} test items")
    error = math.sqrt(accuracy * (1 - accuracy) / (n - 1))
    scores = [Score("gsm8k", "accuracy", "none", accuracy, error, n, 0, "peft", True)]
    forgetting = _number(last["forgetting"])
    if forgetting is not None:
        scores.append(Score("finewiki", "loss_increase", "none", forgetting, None, WIKI_PAGES, 0, "peft", False))
    return scores


# lm-eval's output files

LM_EVAL_NOTES = ["Imported from output files of lm-eval, which tell nothing of how a model was made."]


def _lm_eval(value: dict, path: Path) -> Imported:
    config, results = value["config"], value["results"]
    arguments = _arguments(config["model_args"])
    location = arguments.pop("pretrained", None) or arguments.pop("model", None) or arguments.pop("path", None)
    if location is None:
        raise ValueError(f"its model_args {config['model_args']!r} name no model")
    children = value.get("group_subtasks", {})
    grouped = {child for group in children.values() for child in group}
    tops = [name for name in {**children, **results} if name not in grouped]
    asked = [name for top in tops for name in _scored(top, results, children)]
    members = {name: _leaves(name, children) for name in asked}
    scores = [score for name, leaves in members.items() for score in _lm_eval_scores(name, leaves, value)]
    if not scores:
        raise ValueError("it has no scores")
    settings = {
        "method": {"name": "lm-eval", "load": arguments, "adapt": None, "optim": None},
        "model": {"path": location, "revision": config.get("model_revision"), "dtype": config.get("model_dtype")},
        "eval": {
            "tasks": asked,
            "chat_template": value.get("chat_template_sha") is not None,
            "system_instruction": value.get("system_instruction_sha"),
            "fewshot_as_multiturn": bool(value.get("fewshot_as_multiturn")),
        },
        "other": {
            "eval": {
                "limit": config.get("limit"),
                "num_fewshot": {leaf: value["n-shot"][leaf] for leaves in members.values() for leaf in leaves},
                "gen_kwargs": config.get("gen_kwargs"),
                "fewshot_seed": config.get("fewshot_seed"),
                "chat_template": value.get("chat_template_sha"),
            },
        },
    }
    adapter = arguments.get("peft")
    cell = _cell(
        settings,
        method="lm-eval",
        model=_basename(location),
        data="unknown",
        rank=None,
        alpha=None,
        lr=None,
        seed=None,
        knobs={"peft": _basename(adapter)} if adapter else {},
    )
    items = _lm_eval_items(path, members)
    fingerprints = {f"items of {leaf}": digest for leaf, digest in value.get("task_hashes", {}).items()}
    if config.get("model_sha"):
        fingerprints["model"] = f"hub:{config['model_sha']}"
    found = Record(
        cell=cell,
        study="",
        status="ok",
        started=datetime.fromtimestamp(value["date"], UTC).isoformat(timespec="seconds"),
        seconds=float(value["total_evaluation_time_seconds"]),
        environment={
            "versions": {"transformers": value.get("transformers_version"), "lm_eval": value.get("lm_eval_version")},
            "device": {"type": str(config["device"]).partition(":")[0]} if config.get("device") else {},
            "precision": PRECISIONS.get(str(config.get("model_dtype")).removeprefix("torch.")),
        },
        scores=scores,
        items={} if items is None else {k: sorted(set(g.tolist())) for k, g in items.groupby("subject")["item"]},
        fingerprints=fingerprints,
        source=Source("lm-eval", path.name, "", list(LM_EVAL_NOTES)),
    )
    return Imported(found, items, path)


def _arguments(told: dict[str, Any] | str) -> dict[str, Any]:
    """model_args, which older versions keep as typed: ``pretrained=gpt2,dtype=float32``."""
    if isinstance(told, str):
        return dict(part.split("=", 1) for part in told.split(",") if "=" in part)
    return dict(told)


def _basename(path: str) -> str:
    return re.split(r"[/\\:]", path.rstrip("/\\"))[-1]


def _scored(name: str, results: dict[str, dict], children: dict[str, list[str]]) -> list[str]:
    """The task or group `name` if it has scores of its own; of a group that only bundles, its members that have."""
    if _values(results.get(name, {})):
        return [name]
    return [found for child in children.get(name, []) for found in _scored(child, results, children)]


def _leaves(name: str, children: dict[str, list[str]]) -> list[str]:
    """The tasks that the group `name` comes down to; of a task, itself."""
    below = children.get(name)
    return [leaf for child in below for leaf in _leaves(child, children)] if below else [name]


def _values(result: dict[str, Any]) -> dict[tuple[str, str], float]:
    """The numbers of one task by metric and filter, their standard errors among the metrics."""
    found = {tuple(key.split(",", 1)): _number(value) for key, value in result.items() if "," in key}
    return {key: number for key, number in found.items() if number is not None}


def _lm_eval_scores(name: str, leaves: list[str], value: dict[str, Any]) -> list[Score]:
    values = _values(value["results"][name])
    better = value.get("higher_is_better", {}).get(name, {})
    return [
        Score(
            task=name,
            metric=metric,
            filter=kind,
            value=number,
            stderr=values.get((f"{metric}_stderr", kind)),
            n=sum(value["n-samples"][leaf]["effective"] for leaf in leaves),
            num_fewshot=value["n-shot"][leaves[0]],
            version=str(value["versions"].get(name) or value["versions"][leaves[0]]),
            higher_is_better=better.get(metric) is not False,
        )
        for (metric, kind), number in values.items()
        if not metric.endswith("_stderr")
    ]


def _lm_eval_items(path: Path, members: dict[str, list[str]]) -> pd.DataFrame | None:
    """The items of ``samples_TASK_DATE.jsonl`` beside ``…_DATE.json``, as the harness keeps them; None without any.

    A row for each item, filter and metric: task (as asked for), subject (the leaf task), item, hash (of the document),
    filter, metric, value, prediction, target.
    """
    date, rows = path.stem.rpartition("_")[2], []
    for task, leaves in members.items():
        for leaf in leaves:
            samples = path.with_name(f"samples_{leaf}_{date}.jsonl")
            if not samples.exists():
                continue
            try:
                lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
            except ValueError as error:
                raise ValueError(f"{samples.name} beside it is not complete JSON: {error}") from None
            rows += [row for line in lines for row in _item_rows(task, leaf, line)]
    return pd.DataFrame(rows) if rows else None


def _item_rows(task: str, leaf: str, entry: dict[str, Any]) -> list[dict[str, Any]]:
    same = {"task": task, "subject": leaf, "item": entry["doc_id"], "hash": entry["doc_hash"]}
    answer = {"prediction": str(entry["filtered_resps"]), "target": str(entry["target"])}
    values = {metric: entry[metric] for metric in entry["metrics"] if isinstance(entry[metric], bool | int | float)}
    return [
        same | {"filter": entry["filter"], "metric": metric, "value": float(value)} | answer
        for metric, value in values.items()
    ]


READERS: dict[str, tuple[str, Callable[[dict, Path], Imported]]] = {
    "peft": ("*.json", _peft),
    "lm-eval": ("results_*.json", _lm_eval),
}
