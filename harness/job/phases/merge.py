"""Merges the adapter of a cell's model, and saves its weights."""

from __future__ import annotations

import shutil

from peft import PeftModel
from torch import nn

from harness import redact
from harness.job import shortage
from harness.job.evaluate import decoding
from harness.job.local_cell import LocalCell
from harness.job.measure import disk_size
from harness.job.models import adapter_merge, adapting, saved
from harness.job.phases.infer import serve
from harness.job.phases.load import Loaded
from harness.record import Disk, Merge, Record


def save_adapter(cell: LocalCell, model: nn.Module, result: Record) -> None:
    """Save the adapter on a quantised base before it is scored, so that it is there if memory runs out later.

    Where the merged model is asked for, it is saved in place of the adapter if it fits. No adapter is saved whose base
    was changed for it: on the plain base it is another model.
    """
    if saved.form(cell.request.save, model) is not None and not adapting.changes_base(cell.cell):
        _save_weights(cell, model, "adapter", result)


def merge_and_save(cell: LocalCell, model: nn.Module, loaded: Loaded, result: Record) -> nn.Module:
    """`model`, which is used up, with its adapter folded into it, if there is one. Saves the form asked for."""
    form = saved.form(cell.request.save, model) if cell.tuned else None
    if form == "adapter" and result.saved is None:
        _save_weights(cell, model, form, result)
    cell.reporter.enter("merge")
    batch = loaded.layout.batch(cell.inputs.held_out[:4])
    with cell.meter.window("merge"):  # not live: to count tensors would slow what is timed
        adapter = disk_size.adapter(model)
        model, result.merge = adapter_merge.merge(model, batch, cell.accelerator)
        cell.holders.set_model(model)
        result.disk = Disk(adapter, disk_size.weights(model))
    if form in ("merged", "model"):
        _save_weights(cell, model, "adapter" if isinstance(model, PeftModel) else form, result)
    return model


def merge_expanded(cell: LocalCell, model: nn.Module, loaded: Loaded, result: Record, unmerged: Merge) -> None:
    """Merge into a quantised base, expanded to the dtype that it was quantised from, where that fits."""
    try:
        serve(cell, merge_and_save(cell, model, loaded, result), result)
    except Exception as error:
        if not shortage.of_memory(error):
            raise
        merge = result.merge or unmerged
        merge.reason = f"{merge.reason} Dequantised, the model did not fit: {redact.reason(error)}"
        if cell.request.save == "merged" and result.saved is not None:
            merge.reason += " Its adapter is saved instead."


def _save_weights(cell: LocalCell, model: nn.Module, form: saved.Form, result: Record) -> None:
    cell.reporter.enter("save")
    if form != "adapter":
        decoding.end_at(model, cell.inputs.turn_end)  # where it was taught to
    shutil.rmtree(cell.weights, ignore_errors=True)  # the adapter, in whose place the merged model is saved
    with cell.meter.window("save"):
        result.saved = saved.write(model, form, cell.inputs.tokenizer, cell.cell, cell.weights)
