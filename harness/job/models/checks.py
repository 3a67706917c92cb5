"""Refuses a model, a rank or an optimizer that does not work, before anything is loaded."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from hydra.utils import instantiate

from harness import redact
from harness.config import ADAMW
from harness.errors import UserError
from harness.job.measure import device
from harness.job.models.empty_weights import NeedsValues, outline
from harness.job.models.loading import _first_line, config_of
from harness.job.models.structure import inner
from harness.record import Cell


def check(cell: Cell) -> None:
    """Raise UserError if the model can't be had, a rank is above the smallest matrix it would apply to, or the
    optimizer does not take the model's weights or is not for this machine.

    Needs the model's config only: the model is built without storage. A method that looks at weights is not checked.
    """
    precision = cell.settings["train"]["precision"]
    if cell.settings["model"].get("upcast") and device.compute_dtype(precision) is not torch.bfloat16:
        raise UserError(
            "model.upcast=true requires train.precision=bf16: its matrices stay in 16 bits, and only autocast "
            "multiplies those with activations in fp32."
        )
    if device.here().type != "cuda":
        asked = [value for _, value in redact.leaves(cell.settings["method"])]
        for kind in ("paged", "paged_8bit"):
            if ADAMW[kind] in asked:
                raise UserError(f"method.adamw={kind} requires a CUDA device.")
    with suppress(NeedsValues):  # then the job itself will tell
        net = outline(cell, config_of(cell.settings["model"]), 2)
        if cell.settings["train"].get("gradient_checkpointing") and not inner(net).supports_gradient_checkpointing:
            raise UserError(
                f"train.gradient_checkpointing=true requires an architecture that transformers can checkpoint, and "
                f"{type(inner(net)).__name__} is none; take train.gradient_checkpointing=false."
            )
        if (slot := cell.settings["method"]["optim"]) is not None:
            try:
                instantiate(slot, _convert_="all")(net)
            except UserError:
                raise
            except (TypeError, ValueError) as error:
                raise UserError(f"method={cell.method} has no optimizer here: {_first_line(error)}") from error
            except Exception:
                pass  # it may be for want of values; if not, the cell fails, and its record says why


def check_length(model: dict[str, Any], tokens: int) -> None:
    """Raise UserError if the model has no positions for sequences of so many tokens."""
    positions = getattr(config_of(model).get_text_config(), "max_position_embeddings", None)
    if positions is not None and tokens > positions:
        raise UserError(
            f"Sequences of {tokens} tokens are beyond the {positions} positions of {model['path']}; "
            f"train.max_length={positions} cuts them."
        )
