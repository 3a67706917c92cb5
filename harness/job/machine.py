"""Examines this machine through the libraries: the device, and the models and data sets that can be loaded.

Nothing is downloaded, and nothing waits long for an unreachable hub.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes
import datasets
import torch
from datasets.naming import camelcase_to_snakecase
from huggingface_hub import auth_check, constants, get_token, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from harness import redact
from harness.errors import UserError
from harness.job.data import synthetic
from harness.job.measure import device
from harness.job.models import dequantised, embedded
from harness.job.models.hub import answers
from harness.settings import ModelSettings

NO_VIRTUAL_MEMORY = "operation not supported"  # CUDA's words on a virtual GPU, or a Jetson
NO_SEGMENTS = "set PYTORCH_ALLOC_CONF=expandable_segments:False, as this GPU has no virtual memory"
PATIENCE = 3.0  # seconds to wait for the hub

# State of a model or data set: a word (ready, download, gated, missing), and a detail.
Standing = tuple[str, str]


def examine(
    models: dict[str, dict[str, Any]], data: dict[str, dict[str, Any]], data_root: str | None
) -> dict[str, Any]:
    """The facts that ``harness doctor`` shows.

    models: settings by name, of which path, revision and sha256 are used. data: likewise, of which load and path are.
    """
    hub = _reach_hub()
    return {
        "hub": {"endpoint": redact.redact(constants.ENDPOINT), "state": hub, "token": get_token() is not None},
        "models": _at_once({n: partial(_model, _settings(m), hub) for n, m in models.items()}),
        "data": _at_once({n: partial(_data, d, data_root, hub) for n, d in data.items()}),
        "caches": {"embedded": str(embedded.cache()), "hub": constants.HF_HUB_CACHE},
        "compute": _compute(),
    }


def _compute() -> dict[str, Any]:
    """The device as in a record, with its free memory in bytes, and the number formats that work on it."""
    on = device.here()
    facts = device.describe(on)
    facts["device"]["free_bytes"] = torch.cuda.mem_get_info(on)[0] if on.type == "cuda" else None
    return facts | {
        "simd": torch.backends.cpu.get_cpu_capability(),
        "torch_cuda": torch.version.cuda,
        "formats": _formats(on),
    }


def _formats(on: torch.device) -> dict[str, str]:
    """By number format: yes, "slower than fp32", or why not, by a small product forward and backward."""

    def product(dtype: torch.dtype) -> None:
        x = torch.ones(64, 64, device=on, dtype=dtype, requires_grad=True)
        (x @ x).sum().backward()

    def nf4() -> None:
        layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4").to(on)
        x = torch.ones(4, 64, device=on, requires_grad=True)
        layer(x).sum().backward()

    tries: dict[str, Callable[[], None]] = {
        "fp32": lambda: product(torch.float32),
        "bf16": lambda: product(torch.bfloat16),
        "fp16": lambda: product(torch.float16),
        "NF4": nf4,
    }
    verdicts = {}
    for name, attempt in tries.items():
        try:
            attempt()
            verdicts[name] = "yes"
        except Exception as error:  # a library without a kernel may raise anything
            verdicts[name] = f"no: {NO_SEGMENTS if NO_VIRTUAL_MEMORY in str(error) else type(error).__name__}"
    if verdicts["bf16"] == "yes" and device.compute_dtype("auto") is not torch.bfloat16:
        verdicts["bf16"] = "slower than fp32"
    return verdicts


def _settings(model: dict[str, Any]) -> ModelSettings:
    """Those of the settings `model` that say where it is."""
    return ModelSettings(path=model["path"], revision=model.get("revision"), sha256=model.get("sha256"))


def _model(model: ModelSettings, hub: str) -> Standing:
    path = str(model.path)
    kind, _, name = path.partition(":")
    if kind == "embedded":
        if (embedded.cache() / name).is_dir():
            return "ready", "embedded, cached"
        try:
            embedded.wheel()
        except UserError as error:
            if name != "tiny":  # which needs no wheel
                return "missing", str(error)
        return "ready", "embedded, built at first use"
    if model.is_gguf:
        return _gguf(model, path, hub)
    if Path(path).is_dir():
        return "ready", "a local folder"
    return ("ready", f"{path}, cached") if _model_is_cached(path, model.revision) else _at_hub(path, "model", hub)


def _gguf(model: ModelSettings, path: str, hub: str) -> Standing:
    """The state of a model that is a GGUF file, here or on the hub."""
    if dequantised.cached(model):
        return "ready", f"{Path(path).name}, dequantised"
    if (copy := dequantised.copy_here(path)) is not None:
        return "ready", f"{copy}, dequantised at first use"
    if model.on_hub is None:
        return "missing", dequantised.no_file(path)
    repository, file = model.on_hub
    if try_to_load_from_cache(repository, file, revision=model.revision) is not None:
        return "ready", f"{path}, cached"
    return _at_hub(repository, "model", hub)


def _model_is_cached(path: str, revision: str | None) -> bool:
    """Whether the hub's cache has all weights of the model, not only its config."""
    try:
        weights = snapshot_download(path, revision=revision, allow_patterns="*.safetensors*", local_files_only=True)
    except LocalEntryNotFoundError:
        return False
    folder = Path(weights)
    index = folder / "model.safetensors.index.json"
    shards = set(json.loads(index.read_bytes())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    return all((folder / shard).exists() for shard in shards)


def _data(settings: dict[str, Any], data_root: str | None, hub: str) -> Standing:
    load = settings["load"]
    if load["_target_"] == "harness.job.data.synthetic.load":
        file = settings.get("path") or synthetic.FILE
        return ("ready", file) if Path(data_root or ".", file).is_file() else ("missing", f"there is no file {file}")
    if load["_target_"] in ("harness.job.data.sources.from_file", "harness.job.data.sources.from_documents"):
        return "ready", "your own file: data.path=FILE"
    if load["_target_"] != "harness.job.data.sources.from_hub":
        return "ready", "generated"
    path = load["path"]
    if data_root is not None:
        there = (Path(data_root) / path).is_dir()
        return ("ready", f"{path} below data_root") if there else ("missing", f"{path} is not below data_root")
    # Where `datasets` looks when the hub is unreachable.
    *owner, name = path.split("/")
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "___".join([*owner, camelcase_to_snakecase(name)])
    cached = any(folder.glob(f"{load['subset'] or '*'}/*/*/*.arrow"))
    return ("ready", f"{path}, cached") if cached else _at_hub(path, "dataset", hub)


def _at_hub(path: str, repo_type: str, hub: str) -> Standing:
    """The state of a model or data set that is not on this machine, by asking the hub."""
    if hub != "reachable":
        return "missing", f"{path} is not cached"
    try:
        auth_check(path, repo_type=repo_type)
    except GatedRepoError:
        remedy = "accept its licence on the hub" if get_token() else "accept its licence on the hub and set HF_TOKEN"
        return "gated", f"{path}: {remedy}"
    except RepositoryNotFoundError:
        return "missing", f"{path}: the hub has none of that name, or it is private and HF_TOKEN is not set"
    except Exception as error:  # the hub answered before, so this is rare
        return "missing", f"{path}: the hub answers {type(error).__name__}"
    return "download", f"{path}, downloaded at first use"


def _reach_hub() -> str:
    """reachable, out of reach, or offline (by HF_HUB_OFFLINE)."""
    if constants.HF_HUB_OFFLINE:
        return "offline"
    return "reachable" if answers(PATIENCE) else "out of reach"


def _at_once(questions: dict[str, Callable[[], Standing]]) -> dict[str, Standing]:
    """Answer `questions` in parallel; "missing" for those that take longer than PATIENCE.

    A connection's time-out does not cover looking up the hub's name, which can hang too.
    """
    answers: dict[str, Standing] = dict.fromkeys(questions, ("missing", "no answer in time"))

    def ask(name: str) -> None:
        answers[name] = questions[name]()

    threads = [threading.Thread(target=ask, args=[name], daemon=True) for name in questions]
    for thread in threads:
        thread.start()
    until = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return dict(answers)
