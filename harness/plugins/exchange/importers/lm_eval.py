"""Records of the output files of lm-eval."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from harness.plugins.exchange.importers.records import PRECISIONS, Imported, finite_number, imported_cell
from harness.record import Record, Score, Source, item_hashes

LM_EVAL_NOTES = ["Imported from output files of lm-eval, which do not say how a model was trained."]
EXPORT_NOTES = ["Imported from files that `harness export` wrote: scores, and what each cell was, without its costs."]
AXES = ("method", "data", "rank", "alpha", "lr", "seed", "knobs")


def read_lm_eval(value: dict[str, Any], path: Path, sha256: str) -> Imported:
    """sha256: of the file's bytes."""
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
            }
        },
    }
    named = {"model_name": name} if (name := _other_name(value, location)) else {}
    settings["other"] |= named
    own = _exported(config)
    if own is not None:  # one base has many cells, which all name it as their model
        settings["other"] |= {"exported": own["id"]}
        cell = imported_cell(settings, model=_basename(location), **{axis: own[axis] for axis in AXES})
    else:
        adapter = arguments.get("peft")
        knobs = {"peft": _basename(adapter)} if adapter else named
        axes = dict.fromkeys(("rank", "alpha", "lr", "seed"))
        cell = imported_cell(settings, method="lm-eval", model=_basename(location), data="unknown", **axes, knobs=knobs)
    items = _lm_eval_items(path, members)
    fingerprints = {f"items of {leaf}": digest for leaf, digest in value.get("task_hashes", {}).items()}
    if config.get("model_sha"):
        fingerprints["model"] = f"hub:{config['model_sha']}"
    record = Record(
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
        items={} if items is None else item_hashes(_ids(items)),
        fingerprints=fingerprints,
        source=Source("lm-eval", path.name, sha256, list(LM_EVAL_NOTES if own is None else EXPORT_NOTES)),
    )
    return Imported(record, items, path)


def _exported(config: dict[str, Any]) -> dict[str, Any] | None:
    """What `harness export` says of the cell; None of files of lm-eval itself."""
    own = config.get("finetune_harness")
    return own if isinstance(own, dict) and {"id", *AXES} <= own.keys() else None


def _other_name(value: dict[str, Any], location: str) -> str | None:
    """The file's `model_name`, where it is not just the model's location: what tells tuned models of one base apart."""
    name = value.get("model_name")
    return name if isinstance(name, str) and name and name not in (location, _basename(location)) else None


def _ids(items: pd.DataFrame) -> dict[str, list[int]]:
    """The ids of the items by task, in ascending order."""
    return {leaf: sorted(set(ids.tolist())) for leaf, ids in items.groupby("subject")["item"]}


def _arguments(model_args: dict[str, Any] | str) -> dict[str, Any]:
    """model_args as a dict; older versions store the typed text, such as ``pretrained=gpt2,dtype=float32``."""
    if isinstance(model_args, str):
        return dict(part.split("=", 1) for part in model_args.split(",") if "=" in part)
    return dict(model_args)


def _basename(path: str) -> str:
    return re.split(r"[/\\:]", path.rstrip("/\\"))[-1]


def _scored(name: str, results: dict[str, dict[str, Any]], children: dict[str, list[str]]) -> list[str]:
    """The task or group `name` if it has scores, else the members of the group that have scores."""
    return _first_below(name, children, lambda one: bool(_values(results.get(one, {}))))


def _leaves(name: str, children: dict[str, list[str]]) -> list[str]:
    """The tasks in the group `name`; a task is its own leaf."""
    leaves = _first_below(name, children, lambda one: not children.get(one))
    if not leaves:
        raise ValueError(f"its group {name!r} has no tasks")
    return leaves


def _first_below(name: str, children: dict[str, list[str]], ends: Callable[[str], bool]) -> list[str]:
    """`name` if it `ends`, else the first below it on each way that do, in order.

    Each name is looked at once: a file may have a group in many others, and in itself.
    """
    first, visited, waiting = [], set(), [name]
    while waiting:
        one = waiting.pop()
        if one in visited:
            continue
        visited.add(one)
        if ends(one):
            first.append(one)
        else:
            waiting += reversed(children.get(one, []))
    return first


def _values(result: dict[str, Any]) -> dict[tuple[str, str], float]:
    """The numbers of one task by (metric, filter), including standard errors."""
    numbers = {}
    for key, value in result.items():
        metric, comma, kind = key.partition(",")
        if comma and (number := finite_number(value)) is not None:
            numbers[metric, kind] = number
    return numbers


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
            by_subject=_by_subject(number, leaves, (metric, kind), value),
        )
        for (metric, kind), number in values.items()
        if not metric.endswith("_stderr")
    ]


def _by_subject(number: float, leaves: list[str], score: tuple[str, str], value: dict[str, Any]) -> bool:
    """Whether a group's score is the mean of its tasks' means and not that of all items; the file does not say."""
    values_of_leaves = (_values(value["results"].get(leaf, {})).get(score) for leaf in leaves)
    means = [mean for mean in values_of_leaves if mean is not None]
    if len(leaves) < 2 or len(means) < len(leaves):
        return False
    sizes = [value["n-samples"][leaf]["effective"] for leaf in leaves]
    over_items = sum(mean * size for mean, size in zip(means, sizes, strict=True)) / sum(sizes)
    return math.isclose(number, sum(means) / len(means)) and not math.isclose(number, over_items)


def _lm_eval_items(path: Path, members: dict[str, list[str]]) -> pd.DataFrame | None:
    """The items of ``samples_TASK_DATE.jsonl`` beside ``…_DATE.json``, in the harness's form; None without any.

    A row for each item, filter and metric: task (as requested), subject (the leaf task), item, hash (of the document),
    filter, metric, value, prediction, target.
    """
    date, rows = path.stem.rpartition("_")[2], []
    for task, leaves in members.items():
        for leaf in leaves:
            samples = path.with_name(f"samples_{leaf}_{date}.jsonl")
            if not samples.exists():
                continue
            try:
                texts = samples.read_text(encoding="utf-8").split("\n")  # lm-eval leaves U+2028 in them, unescaped
                lines = [json.loads(text) for text in texts if text]
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
