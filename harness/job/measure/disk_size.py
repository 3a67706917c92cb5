"""Size on disk of the adapter as saved, and of a model's weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

from peft import PeftModel
from torch import nn


def adapter(model: nn.Module) -> int | None:
    """Bytes of safetensors in the saved adapter of `model`; null without an adapter."""
    if not isinstance(model, PeftModel):
        return None
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(
            folder, save_embedding_layers=False
        )  # otherwise peft asks the hub whether they were resized
        return sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))


def weights(model: nn.Module) -> int:
    """Bytes of all weights of `model` in their dtypes, tied weights once; NF4 with its scales."""
    return sum({t.data_ptr(): t.nbytes for t in model.state_dict().values()}.values())
