"""A cell: one point of the grid, fully resolved, and the identity that decides whether it is run at all."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness import config as settings_of
from harness import redact
from harness.errors import UserError
from harness.record import AUTO, Cell, cell_id, cell_name

AXES = ("rank", "alpha", "lr", "seed")
# What these were before there was a choice, by group: cells that leave them so keep their id.
AS_EVER = {
    "data": {"path": None, "columns": {}, "prompt_if_empty": None, "limit": None, "noise": 0.0},
    "eval": {
        "engine": "auto",
        "chat_template": False,
        "fewshot_as_multiturn": False,
        "system_instruction": None,
        "unsafe_code": False,
    },
    "model": {"trust_remote_code": False, "use_safetensors": True, "upcast": False},
    "train": {
        "max_tokens": None,
        "packing": False,
        "global_batch": None,
        "activation_offload": False,
        "compile": False,
        "gradient_checkpointing": False,
    },
}
# Of a model: how it is called, what `plan` knows of it, a default of train's, and what is of those behind an API alone.
NO_PART = ("name", "architecture", "gradient_checkpointing", "base_url", "tokenizer", "key_env", "price", "thinking")


def from_config(config: DictConfig) -> Cell:
    """The cell that a composed configuration means.

    Its id hashes the resolved settings without the raw axes, so that points that mean the same run (full
    fine-tuning at rank 8 and at rank 64; the untuned base at any seed or number of steps) are one cell.
    Where it is run and stored (data_root, results_dir, study) is no part of it, nor how often it is saved, nor the
    model's architecture: the job takes that from the weights, so a corrected dimension changes no result.

    Raises UserError for settings that can't work.
    """
    settings_of.check(config)
    _name_relatively(config)
    if config.speedups == "off" and config.train.precision == "auto":
        config.train.precision = "fp32"
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    slots = {k: v for k, v in resolved["method"].items() if k in ("name", "load", "adapt", "optim")}
    if resolved["method"]["init"] is not None:
        slots["init"] = resolved["method"]["init"]
    train = {k: v for k, v in _chosen(resolved, "train").items() if k != "save_every"}
    if train["devices"] == 1:  # however they would share it
        train = {k: v for k, v in train.items() if k not in ("devices", "parallel")}
    seed: int | None = resolved["seed"]
    if slots["optim"] is None:
        # Untuned: only how the validation loss is taken can change the result.
        train = {k: train[k] for k in ("max_length", "validation_items", "precision", "batch_size")}
        if train["batch_size"] == AUTO:
            train["batch_size"] = settings_of.Train().batch_size
        seed = None
    elsewhere = resolved["model"]["base_url"] is not None
    settings = {
        "method": slots,
        "model": _model(resolved["model"]),
        "data": _chosen(resolved, "data"),
        "eval": _chosen(resolved, "eval"),
        "train": train,
        "infer": resolved["infer"] if resolved["infer"]["repeats"] else {"repeats": 0},
        "speedups": resolved["speedups"],
        "seed": seed,
    }
    if elsewhere:
        settings |= _asked(resolved)
        del settings["speedups"]
    _refuse_unrecordable({"method.knobs": resolved["method"]["knobs"]} | settings)
    raw = json.dumps(OmegaConf.to_container(config.method, resolve=False))
    used = {axis: resolved[axis] if f"${{{axis}}}" in raw else None for axis in AXES} | {"seed": seed}
    cell = Cell(
        id=cell_id(settings),
        name="",
        method=resolved["method"]["name"],
        model=resolved["model"]["name"],
        data=_described(resolved["data"]),
        **used,
        knobs=resolved["method"]["knobs"],
        settings=settings,
    )
    cell.name = cell_name(cell)
    return cell


def _chosen(resolved: dict[str, Any], group: str) -> dict[str, Any]:
    """The settings of `group` without those that are as they ever were."""
    return {k: v for k, v in resolved[group].items() if (k, v) not in AS_EVER[group].items()}


def _model(settings: dict[str, Any]) -> dict[str, Any]:
    """What of the model's settings decides a result. A folder is named from where one works: a record tells no more."""
    kept = {k: v for k, v in settings.items() if k not in NO_PART and (k, v) not in AS_EVER["model"].items()}
    return kept | {"path": _relative(kept["path"])}


def _asked(resolved: dict[str, Any]) -> dict[str, Any]:
    """Those settings of a model behind an API that decide its answers, in place of those of one that is here."""
    model = {key: resolved["model"][key] for key in ("name", "base_url")}
    if (tokenizer := resolved["model"]["tokenizer"]) is not None:
        model["tokenizer"] = _relative(tokenizer)
    if thinking := resolved["model"]["thinking"]:
        model["thinking"] = thinking
    return {
        "model": model | {"base_url": model["base_url"].rstrip("/")},
        "data": {"name": resolved["data"]["name"]},
        "eval": {k: v for k, v in _chosen(resolved, "eval").items() if k not in ("batch_size", "engine")},
        "train": {},
        "infer": {"repeats": 0},
    }


def _relative(place: str) -> str:
    path = Path(place).expanduser()
    return os.path.relpath(path) if path.is_absolute() else place


def _described(settings: dict[str, Any]) -> str:
    """The data in a table: a file by its name, and what was changed in them; cells are compared within one."""
    name = Path(settings["path"]).name if settings["path"] and settings["columns"] else settings["name"]
    return " ".join([name, *(f"{k}={settings[k]:g}" for k in ("limit", "noise") if settings[k])])


def _name_relatively(config: DictConfig) -> None:
    """Name a file of data from data_root, or from where one works: a record tells no more."""
    if config.data.path is not None and (path := Path(config.data.path).expanduser()).is_absolute():
        config.data.path = os.path.relpath(path, Path(config.data_root or ".").expanduser())


def _refuse_unrecordable(settings: dict[str, Any]) -> None:
    """Raise UserError for a setting that a record can't hold.

    That is the absolute path of something, which means nothing on another machine, and a number that JSON has not.
    """
    for key, value in redact.leaves(settings):
        if isinstance(value, str) and value.strip("/") and value.startswith("/") and os.path.exists(value):
            raise UserError(
                f"{key}={value} is a place on this machine, and settings are recorded; name it relative to data_root "
                "if it is data, else to the folder you work in."
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value} can't be: it must be a finite number; a very large one may do as well.")
