"""Records of the results that peft publishes of its method comparison (suite MetaMathQA)."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from harness.plugins.exchange.importers.records import PRECISIONS, Imported, finite_number, imported_cell
from harness.record import Cell, Disk, Failure, Memory, Parameters, Phase, Record, Score, Source, Tokens, Train

GSM8K_TEST = 1319  # items of GSM8K's test split; the suite uses all
VALIDATION_ITEMS = 50  # its accuracies are multiples of 0.02
WIKI_PAGES = 100  # `get_wiki_small` in the suite's data.py
FILE_SIZE_UNKNOWN = 99_999_999  # the suite's value if the adapter could not be saved
VALIDATION = "validation"  # accuracy on held-out items after the last step
# Settings of a peft config that do not describe the method; AdaLoRA's rank_pattern is what training made of its ranks
BESIDE_THE_METHOD = {"peft_version", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"}
OF_LOOP = ("max_steps", "batch_size")  # settings with the same meaning in both projects
PEFT_NOTES = [
    "Imported from the results that huggingface/peft publishes of its method comparison (MetaMathQA).",
    "peft's accuracy uses its own answer parser, zero-shot, on the 1,319 test items of GSM8K; errors are binomial, as "
    "single items are not published. Its loss increase is per token on 100 pages of finewiki, from before to after "
    "training, without an error.",
    "peft's tokens/s include the time to prepare batches. Its memory after a step includes gradients, and its peak of "
    "the whole job includes generation for the evaluations, in larger batches.",
]


def read_peft(value: dict[str, Any], path: Path, sha256: str) -> Imported:
    """sha256: of the file's bytes."""
    run, trained, meta = value["run_info"], value["train_info"], value["meta_info"]
    config, adapter = run["train_config"], run["peft_config"]
    cell = _peft_cell(run["experiment_name"], config, adapter)
    *windows, last = trained["metrics"] or [{}]
    record = Record(
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
        source=Source("peft", path.name, sha256, list(PEFT_NOTES)),
    )
    data = [f"{name}@{info['sha']}" for name, info in sorted(meta["dataset_info"].items())]
    record.fingerprints["data"] = f"hub:{','.join(data)}"
    if trained["status"] != "success":
        oom = "out of memory" in run["error_msg"].lower()
        record.status = "oom" if oom else "failed"
        reason = (run["error_msg"].splitlines() or [trained["status"]])[0]
        record.failure = Failure("train", last.get("step"), reason)
        return Imported(record, None, path)
    seconds = sum(window["train time"] for window in windows)
    tokens = sum(window["train time"] * window["tokens / sec"] for window in windows)
    record.phases["train"] = Phase(seconds, Memory(reserved_p99=trained["accelerator_memory_reserved_99th"]))
    record.train = Train(
        steps=last["step"],
        tokens=Tokens(last["train total tokens"], None, None),
        step_seconds=[],
        warmup_steps=0,
        tokens_per_second_steady=None,
        tokens_per_second_amortised=tokens / seconds,
        loss=[],
        batches=None,
    )
    record.scores = _peft_scores(last, windows)
    return Imported(record, None, path)


def _peft_cell(experiment: str, config: dict[str, Any], adapter: dict[str, Any] | None) -> Cell:
    """The experiment's name is an axis of its own: variants of a method can share rank, alpha and learning rate."""
    if adapter is None:
        method = "full"
    else:
        method = "dora" if adapter.get("use_dora") else adapter["peft_type"].lower()
        beside = BESIDE_THE_METHOD | ({"rank_pattern"} if method == "adalora" else set())
        adapter = {name: _sorted(part) for name, part in adapter.items() if name not in beside}
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
    return imported_cell(
        settings,
        method=method,
        model=model,
        data="metamath",
        rank=rank,
        alpha=finite_number(alpha),
        lr=finite_number(config["optimizer_kwargs"]["lr"]),
        seed=config["seed"],
        knobs={"experiment": variant},
    )


def _sorted(part: Any) -> Any:
    """peft's files store sets as unordered lists."""
    return sorted(part) if isinstance(part, list) and all(isinstance(entry, str) for entry in part) else part


def _peft_environment(meta: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    packages, versions = meta["package_info"], {}
    for name in ("torch", "transformers", "peft", "datasets", "bitsandbytes"):
        commit = packages.get(f"{name}-commit-hash")
        versions[name] = packages[f"{name}-version"] + (f" ({commit[:12]})" if commit else "")
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


def _peft_scores(last: dict[str, Any], windows: list[dict[str, Any]]) -> list[Score]:
    """The scores; stderr is that of a proportion, sqrt(p (1 - p) / (n - 1))."""
    scores = [_accuracy("gsm8k", last["test accuracy"], GSM8K_TEST)]
    validated = [window["valid accuracy"] for window in windows if "valid accuracy" in window]
    if validated:
        scores.append(_accuracy(VALIDATION, validated[-1], VALIDATION_ITEMS))
    forgetting = finite_number(last.get("forgetting"))
    if forgetting is not None:
        scores.append(Score("finewiki", "loss_increase", "none", forgetting, None, WIKI_PAGES, 0, "peft", False))
    return scores


def _accuracy(task: str, accuracy: float, n: int) -> Score:
    if abs(accuracy * n - round(accuracy * n)) > 1e-6:
        raise ValueError(f"its accuracy on {task} is no share of {n:,} items")
    return Score(task, "accuracy", "none", accuracy, math.sqrt(accuracy * (1 - accuracy) / (n - 1)), n, 0, "peft", True)
