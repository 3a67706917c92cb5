"""Refuses a model, a rank or an optimizer that does not work, before any weight is loaded."""

from __future__ import annotations

from contextlib import suppress

import torch
from hydra.utils import instantiate

from harness import redact
from harness.config import ADAMW
from harness.errors import UserError, first_line
from harness.job.measure import device
from harness.job.models import targets
from harness.job.models.empty_weights import NeedsValues, outline
from harness.job.models.loading import config_of
from harness.job.models.structure import inner
from harness.record import Cell
from harness.settings import Settings, plain


def check_device(settings: Settings) -> None:
    """Raise UserError if the settings need a precision or an optimizer that the device here lacks."""
    if settings.model.upcast and device.compute_dtype(settings.train.validated().precision) is not torch.bfloat16:
        raise UserError(
            "model.upcast=true requires train.precision=bf16: matrices stay in 16 bits, and only autocast multiplies "
            "them with activations in fp32."
        )
    if device.here().type != "cuda":
        method_values = [value for _, value in redact.leaves(plain(settings.method))]
        for kind in ("paged", "paged_8bit"):
            if ADAMW[kind] in method_values:
                raise UserError(f"method.adamw={kind} requires a CUDA device.")


def check(cell: Cell) -> str | None:
    """What the cell's adapters leave as it is, as a sentence; None if nothing is, or if only the job will show it.

    Only the model's config is needed: the model is built without storage. A method that reads weights is not checked.

    Raises UserError if the model is out of reach, the rank is above the size of a matrix, or the optimizer does not
    work with the model.
    """
    with suppress(NeedsValues):  # then the job itself shows it
        net = outline(cell, config_of(cell.settings.model), 2)
        if cell.settings.train.gradient_checkpointing and not inner(net).supports_gradient_checkpointing:
            raise UserError(
                "train.gradient_checkpointing=true requires an architecture that transformers can checkpoint, got "
                f"{type(inner(net)).__name__}."
            )
        if (slot := cell.settings.method.optim) is not None:
            try:
                instantiate(slot, _convert_="all")(net)
            except UserError:
                raise
            except (TypeError, ValueError) as error:
                reason = first_line(error)
                raise UserError(f"The optimizer of method={cell.method} does not work here: {reason}.") from error
            except Exception:
                pass  # perhaps for lack of values; otherwise the cell fails, and its record says why
        return targets.left_out(net, cell)
    return None


def check_length(settings: Settings, tokens: int) -> None:
    """Raise UserError if the model has no positions for sequences of `tokens` tokens after those of the method."""
    model, own = settings.model, (settings.method.adapt or {}).get("num_virtual_tokens", 0)
    positions = getattr(config_of(model).get_text_config(), "max_position_embeddings", None)
    if positions is not None and tokens > positions - own:
        but = f" but for {own} of the method's own tokens" if own else ""
        raise UserError(
            f"Sequences must have at most {positions - own} tokens, the positions of {model.path}{but}, got {tokens}; "
            f"train.max_length={positions - own} truncates them."
        )
