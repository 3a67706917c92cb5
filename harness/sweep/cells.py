"""A cell: one point of the grid, fully resolved, and the identity that decides whether it is run at all."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from harness import cell_runner, redact, validate
from harness import config as settings_of
from harness.errors import UserError
from harness.record import Cell, cell_name, check_length, check_settings
from harness.settings import (
    AUTO,
    WITH_MARGIN,
    DataSettings,
    EvalSettings,
    InferSettings,
    MethodSettings,
    ModelSettings,
    Settings,
    TrainSettings,
    cell_id,
    plain,
)

AXES = ("rank", "alpha", "lr", "seed")
OF_API = ("name", "base_url", "tokenizer", "thinking")  # fields of ModelSettings

T = TypeVar("T", MethodSettings, ModelSettings, DataSettings, EvalSettings, TrainSettings, InferSettings)


def from_config(config: DictConfig) -> Cell:
    """The cell that a composed configuration means.

    Its id hashes the resolved settings without the raw axes, so that points that mean the same run (full
    fine-tuning at rank 8 and at rank 64; the untuned base at any seed or number of steps) are one cell.
    Where it is run and stored (data_root, results_dir, study) is no part of it, nor how often it is saved, nor the
    model's architecture: the job takes that from the weights, so a corrected dimension changes no result.

    Raises UserError for settings that can't work.
    """
    validate.check(config)
    _name_relatively(config)
    resolved: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    by_plugins = (runner.composed(resolved) for runner in cell_runner.runners())
    settings = next((composed for composed in by_plugins if composed is not None), None) or _of_weights(resolved)
    _refuse_unrecordable({"method.knobs": resolved["method"]["knobs"]} | plain(settings))
    raw = json.dumps(OmegaConf.to_container(config.method, resolve=False))
    used = {axis: resolved[axis] if f"${{{axis}}}" in raw else None for axis in AXES} | {"seed": settings.seed}
    cell = Cell(
        id=cell_id(settings),
        name="",
        method=resolved["method"]["name"],
        model=resolved["model"]["name"],
        data=_described(resolved["data"], resolved["train"]),
        **used,
        knobs=resolved["method"]["knobs"],
        settings=settings,
    )
    check_settings(cell)
    check_length(cell)
    cell.name = cell_name(cell)
    return cell


def part(kind: type[T], group: dict[str, Any]) -> T:
    """The settings `kind` (EvalSettings, …) of a resolved `group` of the configuration, which may have more."""
    return kind(**{field.name: group[field.name] for field in dataclasses.fields(kind) if field.name in group})


def evaluation(group: dict[str, Any]) -> EvalSettings:
    """Those of a resolved group `eval`, as records name them."""
    encoder = group["bertscore"]
    return part(EvalSettings, group | {"bertscore": None if encoder is None else relative(encoder)})


def _of_weights(resolved: dict[str, Any]) -> Settings:
    """Those of a cell that the core runs. Raises UserError if its model is behind an API."""
    for name in (*OF_API[1:], "key_env"):
        if resolved["model"][name]:
            raise UserError(f"model.{name} is refused: no installed plug-in runs cells of models behind an API.")
    method, infer = part(MethodSettings, resolved["method"]), part(InferSettings, resolved["infer"])
    if not method.tuned or method.adapt is None:  # it draws nothing
        method = dataclasses.replace(method, init_seed=None)
    model = {name: value for name, value in resolved["model"].items() if name not in OF_API}
    return Settings(
        method=method,
        model=part(ModelSettings, model | {"path": relative(model["path"])}),
        data=part(DataSettings, resolved["data"]),
        eval=evaluation(resolved["eval"]),
        train=_training(part(TrainSettings, resolved["train"]), method.tuned),
        infer=infer if infer.repeats else InferSettings(),
        speedups=resolved["speedups"],
        seed=resolved["seed"] if method.tuned else None,
    )


def _training(train: TrainSettings, tuned: bool) -> TrainSettings:
    """What of the training settings a cell has a use for."""
    train = train if train.paired else dataclasses.replace(train, preference_beta=None)
    train = train if train.objective in WITH_MARGIN else dataclasses.replace(train, preference_margin=None)
    if not tuned:  # only how the validation loss is taken can change the result
        return TrainSettings(
            train.max_length,
            train.validation_items,
            train.precision,
            validate.SETTINGS["train.batch_size"].default if train.batch_size == AUTO else train.batch_size,
            objective=train.objective,
            preference_beta=train.preference_beta,
            preference_margin=train.preference_margin,
        )
    return dataclasses.replace(train, parallel=None) if train.total_devices == 1 else train


def relative(place: str) -> str:
    """A folder or file as it is seen from where one works, and any other text as it is."""
    path = Path(place).expanduser()
    return os.path.relpath(path) if path.is_absolute() else place


def _described(settings: dict[str, Any], train: dict[str, Any]) -> str:
    """The data in a table: a file by its name, and what was changed in them; cells are compared within one.

    Losses of pairs are losses of another kind, so their objective is named, with its weight.
    """
    name = Path(settings["path"]).name if settings["path"] and settings["columns"] else settings["name"]
    options = (f"{key}={settings_of.typed(value)}" for key, value in sorted(settings["options"].items()))
    changed = [f"{k}={settings[k]:g}" for k in ("limit", "noise") if settings[k]]
    objective = [] if train["objective"] == "sft" else [f"{train['objective']}={train['preference_beta']:g}"]
    if train["objective"] in WITH_MARGIN:
        objective.append(f"margin={train['preference_margin']:g}")
    return " ".join([name, *options, *changed, *objective])


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
            raise UserError(f"{key} must be a finite number, got {value}; a very large one means no limit.")
