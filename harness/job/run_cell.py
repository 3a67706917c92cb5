"""Runs one cell with weights: load → probe → train → infer → merge → save → score.

Each phase takes what the phases before have returned; harness/job/phases/ has them. What becomes of a failure is
recording.py's part.
"""

from __future__ import annotations

from dataclasses import replace

from accelerate.utils import set_seed
from peft import PeftModel

from harness.job.local_cell import LocalCell
from harness.job.models import adapter_merge, structure
from harness.job.phases.infer import infer, serve
from harness.job.phases.load import load
from harness.job.phases.merge import merge_and_save, merge_expanded, save_adapter
from harness.job.phases.prepare import prepare
from harness.job.phases.probe import probe_forward, probe_steps
from harness.job.phases.score import score
from harness.job.phases.train import free_training, gather, leave, train, validate_untuned
from harness.job.recording import Recording
from harness.job.training import distributed
from harness.job.training.distributed import LaunchedRank
from harness.protocol import Report, RunCell
from harness.record import Merge, Record


def run_cell(request: RunCell, report: Report, rank: LaunchedRank | None = None) -> Record:
    """Run the cell of `request`, write its record to the request's path (its items beside it), and return it.

    `report` is called with phases and with steps of training. Bad input raises UserError and leaves no record; any
    other failure is recorded with its phase, step and reason. A record that can't be written raises UserError too.

    rank: this process's part in a cell on several devices. One of them leaves the record.
    """
    recording = Recording(request, report)
    cell, result = LocalCell(request, report, recording.weights, rank), recording.result
    with recording.failures(cell):
        seed, init_seed = cell.cell.seed or 0, cell.settings.method.init_seed
        set_seed(seed if init_seed is None else init_seed)
        result.fingerprints, result.contamination = cell.inputs.fingerprints, cell.inputs.contamination
        result.own_data, result.lengths = cell.inputs.own_data, cell.inputs.lengths
        if request.position is None and (rank is None or rank.number == 0):  # a sweep says it once, before its cells
            for note in (*cell.inputs.notes, *cell.inputs.tasks.notes):
                report({"note": note})
        model, loaded = load(cell, result)
        if init_seed is not None:
            set_seed(seed)
        if cell.tuned:
            model, plan = prepare(cell, model, loaded)
            result.probe = probe_steps(cell, model, loaded, plan)
            # An optimizer may leave some weights as they are.
            result.parameters = replace(loaded.parameters, trainable=structure.count(model, trainable=True))
            trained = train(cell, model, loaded, plan)
            result.train, result.validation, result.best = trained.train, trained.validations, trained.best
            model = distributed.as_before(model, cell.accelerator)
            free_training(cell)
            if rank is not None:
                weights = leave(cell, rank, model, loaded, result)
                if rank.number > 0:
                    return result  # the first goes on alone
                if cell.sharded:
                    del model  # before there is a whole one
                    model, loaded = gather(cell, weights, loaded)
            trained.raise_if_ended()
        else:
            result.probe = probe_forward(cell, model, loaded)
            result.validation = validate_untuned(cell, model, loaded)
        infer(cell, model, result)
        if isinstance(model, PeftModel) and adapter_merge.quantised(model):
            result.merge = unmerged = Merge(False, adapter_merge.rounding(model))
            save_adapter(cell, model, result)
            score(cell, model, loaded, recording)  # as it was trained
            merge_expanded(cell, model, loaded, result, unmerged)
        else:
            model = merge_and_save(cell, model, loaded, result)
            serve(cell, model, result)
            score(cell, model, loaded, recording)
    return recording.finish(cell, rank)
