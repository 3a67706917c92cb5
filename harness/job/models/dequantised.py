"""A model that exists as a GGUF file alone: its weights are dequantised once, into the cache of built models.

``model.path`` names the file, here or on the hub (OWNER/NAME/FILE.gguf). ``$HARNESS_GGUF_DIR`` may name a folder that
has a copy of the hub's file. The weights keep the rounding of the file's format.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from functools import partial
from pathlib import Path

from huggingface_hub import hf_hub_download

from harness.errors import UserError, first_line
from harness.job.models import embedded, hub
from harness.settings import ModelSettings


def folder(model: ModelSettings) -> Path:
    """The folder of the dequantised model, built if it is not cached; takes a minute for 0.5B weights.

    Raises UserError if the file is out of reach, has another hash than ``model.sha256``, or is no model that
    transformers reads.
    """
    if model.sha256 is not None and cached(model):
        _remove_earlier(model.sha256)
        return _folder(model.sha256)
    file = file_of(model)
    with open(file, "rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if model.sha256 not in (None, sha256):
        raise UserError(f"{file} must have the SHA-256 of model.sha256, {model.sha256}, got {sha256}.")
    try:
        built = embedded.built(_folder(sha256).name, partial(embedded.dequantise, file))
    except Exception as error:  # a broken file leads to errors of many kinds
        raise UserError(f"transformers can't read the GGUF file {file} ({first_line(error)}).") from error
    _remove_earlier(sha256)
    return built


def copy_here(path: str) -> Path | None:
    """The file `path`, or its copy in ``$HARNESS_GGUF_DIR``; None if this machine has neither."""
    file, copies = Path(path), os.environ.get("HARNESS_GGUF_DIR")
    if file.is_file():
        return file
    copy = Path(copies).expanduser() / file.name if copies else None
    return copy if copy is not None and copy.is_file() else None


def no_file(path: str) -> str:
    """The sentence on a `path` that is neither here nor on the hub."""
    return f"There is no file {os.path.abspath(path)}; check model.path."


def cached(model: ModelSettings) -> bool:
    """Whether the weights are dequantised already, which ``model.sha256`` tells without the file."""
    return model.sha256 is not None and _folder(model.sha256).is_dir()


def _folder(sha256: str) -> Path:
    """Its folder in the cache."""
    return embedded.cache() / f"gguf-{sha256}"


def _remove_earlier(sha256: str) -> None:
    """Remove the model's folder of the cache's first layout, which nothing reads: it was named by 16 digits."""
    shutil.rmtree(embedded.cache() / f"gguf-{sha256[:16]}", ignore_errors=True)


def file_of(model: ModelSettings) -> Path:
    """The file on this machine, from the hub if it must be. Raises UserError if it is out of reach."""
    path = str(model.path)
    if (copy := copy_here(path)) is not None:
        return copy
    if model.on_hub is None:
        raise UserError(no_file(path))
    repository, file = model.on_hub
    hub.settle()
    try:
        return Path(hf_hub_download(repository, file, revision=model.revision))
    except (OSError, ValueError) as error:
        remedy = f"set HARNESS_GGUF_DIR to a folder that has {Path(file).name}"
        raise hub.refused(f"The file {path}", error, remedy) from error
