"""Merges the adapter of a cell's model, and saves its weights."""

from __future__ import annotations

from peft import PeftModel
from torch import nn

from harness import redact
from harness.job import shortage
from harness.job.local_cell import LocalCell
from harness.job.measure import disk_size
from harness.job.models import adapter_merge, saved
from harness.job.phases.infer import serve
from harness.job.phases.load import Loaded
from harness.record import Disk, Merge, Record


def merge_and_save(cell: LocalCell, model: nn.Module, loaded: Loaded, result: Record) -> nn.Module:
    """`model`, which is used up, with its adapter folded into it, if there is one. Saves the form asked for."""
    form = saved.form(cell.request.save, model) if cell.tuned else None
    if form == "adapter":
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


def _save_weights(cell: LocalCell, model: nn.Module, form: saved.Form, result: Record) -> None:
    cell.reporter.enter("save")
    with cell.meter.window("save"):
        result.saved = saved.write(model, form, cell.inputs.tokenizer, cell.cell, cell.weights)
