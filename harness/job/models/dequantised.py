"""A model that exists as a GGUF file alone: its weights are dequantised once, into the cache of built models.

``model.path`` names the file, here or on the hub (OWNER/NAME/FILE.gguf). ``$HARNESS_GGUF_DIR`` may name a folder that
has a copy of the hub's file. The weights keep the rounding of the file's format.
"""

from __future__ import annotations

import hashlib
import os
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
    if model.sha256 is not None and (cached := embedded.cache() / _name(model.sha256)).is_dir():
        return cached
    file = _file(model)
    with open(file, "rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if model.sha256 not in (None, sha256):
        raise UserError(f"{file} must have the SHA-256 of model.sha256, {model.sha256}, got {sha256}.")
    try:
        return embedded.built(_name(sha256), partial(embedded.dequantise, file))
    except Exception as error:  # a broken file leads to errors of many kinds
        raise UserError(f"transformers can't read the GGUF file {file} ({first_line(error)}).") from error


def copy_here(path: str) -> Path | None:
    """The file `path`, or its copy in ``$HARNESS_GGUF_DIR``; None if this machine has neither."""
    file, copies = Path(path), os.environ.get("HARNESS_GGUF_DIR")
    if file.is_file():
        return file
    copy = Path(copies).expanduser() / file.name if copies else None
    return copy if copy is not None and copy.is_file() else None


def on_hub(path: str) -> tuple[str, str]:
    """The repository, and the file in it, that `path` names. Raises UserError if it names none."""
    parts = path.split("/")
    if Path(path).is_absolute() or len(parts) < 3 or parts[0] in ("", ".", "..", "~"):
        raise UserError(f"There is no file {os.path.abspath(path)}; check model.path.")
    return "/".join(parts[:2]), "/".join(parts[2:])


def _name(sha256: str) -> str:
    """The name of its folder in the cache."""
    return f"gguf-{sha256[:16]}"


def _file(model: ModelSettings) -> Path:
    """The file on this machine, from the hub if it must be."""
    path = str(model.path)
    if (copy := copy_here(path)) is not None:
        return copy
    repository, file = on_hub(path)
    hub.settle()
    try:
        return Path(hf_hub_download(repository, file, revision=model.revision))
    except (OSError, ValueError) as error:
        remedy = f"set HARNESS_GGUF_DIR to a folder that has {Path(file).name}"
        raise hub.refused(f"The file {path}", error, remedy) from error
