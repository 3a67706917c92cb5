"""Saves tuned weights in safetensors, as plain peft and transformers read them, and loads them again.

An adapter is saved as peft saves it. A merged model, and the model of a method without adapter, are saved whole. The
tokenizer is saved beside them. No saved file names a path of this machine, except that an adapter's config names the
folder of a base that is not the hub's: peft looks for it there. What is pushed to the hub names no folder.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from harness.errors import UserError, first_line
from harness.job import shortage
from harness.job.models import adapting, loading, placement, structure
from harness.record import Cell, Record, Saved, hashes
from harness.settings import ModelSettings

Form = Literal["adapter", "merged", "model"]
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")  # what peft calls them


def form(save: Literal["none", "adapter", "merged"], net: nn.Module) -> Form | None:
    """The form in which the tuned `net` is saved for the setting `save`; None for nothing."""
    if save == "none":
        return None
    return save if isinstance(net, PeftModel) else "model"


def form_of(record: Record) -> Form:
    """The form in which the tuned weights of `record` are saved. Raises UserError if none are."""
    if record.saved is None:
        raise UserError(f"{record.cell.name} has no saved weights.")
    return record.saved.form


def write(net: nn.Module, form: Form, tokenizer: PreTrainedTokenizerBase, cell: Cell, folder: Path) -> Saved:
    """Save `net`, which has the form `form`, and its tokenizer in `folder`. Raises OSError."""
    if form == "adapter":
        assert isinstance(net, PeftModel)  # as `form` has it
        folder.mkdir(parents=True)
        # By its default peft asks the hub whether embeddings were resized.
        net.save_pretrained(str(folder), save_embedding_layers=False)
        _name_base(folder / ADAPTER[0], cell.settings.model)
        tokenizer.save_pretrained(folder)
    else:
        write_whole(net, tokenizer, folder)
    return Saved(form, hashes(folder))


def write_whole(net: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save `net`, which has no adapter, and its tokenizer in `folder`. Raises OSError."""
    folder.mkdir(parents=True)
    structure.inner(net).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _name_base(config: Path, model: ModelSettings) -> None:
    """Name the base in an adapter's `config` so that peft finds it from any working directory.

    peft itself takes the path that was loaded from, which may be relative, or that of a commit in the hub's cache.
    """
    base = Path(loading.source(model))
    adapter_config = json.loads(config.read_text(encoding="utf-8"))
    path = str(base.resolve()) if base.is_dir() else model.path
    adapter_config |= {"base_model_name_or_path": path, "revision": model.revision}
    config.write_text(json.dumps(adapter_config, indent=2, sort_keys=True), encoding="utf-8")


def load(record: Record, folder: Path, on: torch.device) -> nn.Module:
    """The model of `record` on the device `on`: its base if it is untuned, else as saved in `folder`.

    One that had to be divided after training is divided again, over the devices of this machine. An adapter is added to
    the base as it was for training. Raises UserError if the base is out of reach, if `folder` has no safetensors, or if
    they don't fit the base.
    """
    cell, over = record.cell, placement.again(record)
    if record.saved is None:
        return loading.load(cell, on, over)
    try:
        return _load(cell, record.saved.form, folder, on, over)
    except UserError:
        raise
    except Exception as error:  # transformers, peft, safetensors and torch raise a dozen kinds
        if shortage.of_memory(error):
            raise
        raise UserError(f"The weights in {folder} can't be loaded ({first_line(error)}).") from error


def _load(cell: Cell, form: Form, folder: Path, on: torch.device, over: dict[int, int] | None) -> nn.Module:
    if form != "adapter":
        settings = dataclasses.replace(cell.settings, model=ModelSettings(path=str(folder)))
        return loading.load(dataclasses.replace(cell, settings=settings), on, over)
    if not (folder / ADAPTER[1]).is_file():
        raise UserError(f"{folder} has no {ADAPTER[1]}; pickled weights can run code, so they are not loaded.")
    return adapting.adapt(loading.load(cell, on, over), cell, saved=folder)
