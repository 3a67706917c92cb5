"""Refuses a model, a file of data or a results folder by a look at the disk, before a job loads its libraries.

What only libraries can tell (is it a model? has it these columns?) the job says.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from harness import data_files, task_names
from harness.errors import UserError, nearest
from harness.settings import HELD_OUT, ModelSettings
from harness.sweep.app.point import Point

GGUF = struct.Struct("<4sIQQ")  # how a file of that format begins: GGUF, its version, numbers of tensors and of keys
TOKENIZERS = ("tokenizer*.json", "*.model", "vocab*", "*.tiktoken", "tekken.json")  # files, one of which says how


def require(points: Sequence[Point]) -> None:
    """Raise UserError for the first input of `points`, whose cells run here, that is not there or is of another kind.

    Cells of models behind an API have no model here.
    """
    for study, results in {point.study.folder: point.results for point in points}.items():
        _require_results(study, results)
    for model in {point.cell.settings.model.path: None for point in points if point.is_local}:
        if model is not None:
            _require_model(ModelSettings(path=model))
    for encoder in {point.cell.settings.eval.bertscore: None for point in points}:
        if encoder is not None:
            _require_encoder(encoder)
    _require_tasks(points)
    require_data(points)


def _require_results(study: Path, results: str) -> None:
    """Raise UserError if the folder `study`, which need not exist, would lie below a file."""
    there = next(path for path in (study, *study.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"results_dir={results} can't be written: {there} is no folder; name another one.")


def _require_model(model: ModelSettings) -> None:
    """Raise UserError for a file, an adapter, or a folder that lacks its config or tokenizer.

    So for what is not there and can't be on the hub.
    """
    path = Path(str(model.path))
    if not path.exists() and model.on_hub is None:
        kind = "file" if model.is_gguf else "folder"
        raise UserError(f"There is no {kind} {os.path.abspath(path)}; check model.path.")
    if model.is_gguf:
        _require_gguf(path)
        return
    if path.is_file():
        raise UserError(f"model.path must be a folder, a GGUF file or a hub id, got the file {path}; name its folder.")
    if not path.is_dir():
        return
    if not (path / "config.json").is_file():
        if (adapter := path / "adapter_config.json").is_file():
            raise UserError(f"model.path={path} is an adapter; name its base model: {_base(adapter)}.")
        raise UserError(f"model.path={path} has no config.json; name the folder that a model was saved in.")
    if _config(path / "config.json").get("is_encoder_decoder"):
        raise UserError(
            f"model.path={path} is an encoder-decoder; only models that write from left to right are tuned."
        )
    _require_tokenizer(path, "model.path")


def _require_encoder(encoder: str) -> None:
    """Raise UserError for a folder of BERTScore's model that is not there, or that lacks its config or tokenizer."""
    path = Path(encoder)
    if path.is_file():
        raise UserError(f"eval.bertscore must be a folder or a hub id, got the file {path}; name its folder.")
    if not path.exists() and ModelSettings(path=encoder).on_hub is None:
        raise UserError(f"There is no folder {os.path.abspath(path)}; check eval.bertscore.")
    if not path.is_dir():
        return
    if not (path / "config.json").is_file():
        raise UserError(f"eval.bertscore={path} has no config.json; name the folder that a model was saved in.")
    _require_tokenizer(path, "eval.bertscore")


def _require_tasks(points: Sequence[Point]) -> None:
    """Raise UserError for the first task of `points` that lm-eval has not."""
    scored = {(tuple(point.cell.settings.eval.tasks), point.request.local.include_path): None for point in points}
    for tasks, include in scored:
        task_names.require([task for task in tasks if task != HELD_OUT], include)


def _require_tokenizer(path: Path, setting: str) -> None:
    if not any(any(path.glob(pattern)) for pattern in TOKENIZERS):
        raise UserError(f"{setting}={path} has no tokenizer; put the model's tokenizer.json and its config there.")


def _require_gguf(path: Path) -> None:
    """Raise UserError for a file of another format, or one without weights; one that is not here is the hub's."""
    if not path.is_file():
        return
    with path.open("rb") as stream:
        header = stream.read(GGUF.size)
    if not header.startswith(b"GGUF"):
        raise UserError(f"model.path={path} is no GGUF file; name one, or a model's folder.")
    if len(header) < GGUF.size or not GGUF.unpack(header)[2]:
        raise UserError(f"model.path={path} has no weights; get the whole file again.")


def _base(adapter: Path) -> str:
    """The setting that names the model which the adapter of this config was trained on."""
    return f"model.path={_config(adapter).get('base_model_name_or_path') or 'FOLDER or hub id'}"


def _config(path: Path) -> dict[str, object]:
    """A model's or adapter's config; empty if it is no JSON, which its library will say."""
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def require_data(points: Sequence[Point]) -> None:
    """Raise UserError for the first data of the user's own whose file or folder is not named, or not there."""
    for data, root in {(point.cell.settings.data, point.request.data_root): None for point in points}:
        if not data.own:
            continue
        if data.path is None:
            raise data_files.no_path(documents=data.documents)
        _require_file(data.path, Path(root or "."))
        if data.documents:
            data_files.require_documents(Path(root or ".") / data.path, data.path)


def _require_file(file: str, root: Path) -> None:
    """Raise UserError if the `file` of data, below `root`, is not there."""
    path = root / file
    if data_files.behind(path):
        if path.is_file():
            data_files.require_suffix(path, file)
        return
    if data_files.names_hub(file, root):
        return
    place = file if not file.startswith("..") else os.path.abspath(path)
    if path.is_dir():
        raise UserError(f"data.path must be a file, or a folder that has some, got the empty folder {place}.")
    beside = [other.name for other in path.parent.glob("*")] if path.parent.is_dir() else []
    near = nearest(path.name, beside)
    hint = f"did you mean {Path(place).parent / near}?" if near else "check data.path, and data_root if it is set."
    raise UserError(f"There is no file {place}; {hint}")
