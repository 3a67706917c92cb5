"""Reads the config of a saved adapter, which may be anybody's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.errors import UserError

NAME = "adapter_config.json"
KINDS: dict[str, type] = {"peft_type": str, "base_model_name_or_path": str}
KINDS_OF_LORA: dict[str, type] = {"bias": str, "r": int}


def read(folder: Path) -> dict[str, Any]:
    """The config of the adapter in `folder`. Raises UserError if it is no JSON object."""
    path = folder / NAME
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{path} must be an adapter's config as a JSON object; train its cell again.")
    return config


def complete(folder: Path) -> dict[str, Any]:
    """As `read`, with what decides how an adapter is served. Raises UserError if that is missing, too."""
    config = read(folder)
    for key, kind in (KINDS | (KINDS_OF_LORA if config.get("peft_type") == "LORA" else {})).items():
        if not isinstance(value := config.get(key), kind):
            wanted = "a text" if kind is str else "an integer"
            raise UserError(
                f"{key} in {folder / NAME} must be {wanted}, got {json.dumps(value)}; train its cell again."
            )
    return config
