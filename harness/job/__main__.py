"""python -m harness.job DESCRIPTOR: the holder of jobs, see serve.py; what a job does is `main`.

A job answers one request by events (JSON lines) on the output. A request checks cells, predicts what they take, runs
one, scores the weights of one again, puts prompts to models, or asks what there is on this machine. Whatever libraries
print goes to standard error, which is the cell's log.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from harness import redact
from harness.errors import UserError
from harness.record import Cell, Precautions, SmallerBatches, decode
from harness.settings import EvalSettings


def main(request: dict[str, Any]) -> int:
    """Serve `request`; exit status 2 for bad input, whose sentence is sent as the event ``refused``."""
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def report(event: dict) -> None:
        try:
            print(json.dumps(event), file=events, flush=True)
        except BrokenPipeError:
            os._exit(1)  # the sweep is gone: nobody waits for this cell, and its claim will be taken over

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import torch

        from harness.job.measure import device

        cells = [decode(Cell, cell) for cell in request.get("check", [request["cell"]] if "cell" in request else [])]
        count = max((cell.settings.train.devices for cell in cells), default=1)
        # Before libraries that may set up CUDA come in: what they hold would look like another's.
        for number in range(min(count, torch.cuda.device_count())) if request.get("warn") else ():
            if words := device.busy(number):
                report({"warning": words})
        from harness.job import preflight, recording
        from harness.job.api import run_api_cell
        from harness.job.training import distributed

        if "doctor" in request:
            from harness.job import machine

            report({"phase": "doctor", "doctor": machine.examine(**request["doctor"])})
        elif "plan" in request:
            from harness.job.predict import workers

            planned = [(decode(Cell, asked["cell"]), asked["architecture"]) for asked in request["plan"]]
            of = {name: request[name] for name in ("data_root", "budget", "beside", "tight", "kernels")}
            for event in workers.answer(planned, **of):
                report({"phase": "plan"} | event)
        elif "synthesize" in request:
            from harness.job.data.generators import synthesis

            asking = decode(synthesis.Asking, request["synthesize"])
            summary = synthesis.synthesize(asking, lambda event: report({"phase": "synthesize"} | event))
            report({"phase": "synthesize", "summary": summary})
        elif "ask" in request:
            from harness.job.evaluate import prompting

            answers = prompting.ask(
                decode(prompting.Asking, request["ask"]), lambda event: report({"phase": "ask"} | event)
            )
            report({"phase": "ask", "answers": answers})
        elif "check" in request:
            preflight.check(cells, request["data_root"])
            for cell in cells:
                if asking := request.get("asking", {}).get(cell.id):
                    found = run_api_cell.estimate(cell, decode(run_api_cell.Asking, asking), request["data_root"])
                    report({"phase": "check", "id": cell.id, "estimate": found})
        elif "tasks" in request:
            from harness.job import prepared_inputs
            from harness.job.evaluate import rescoring

            settings = decode(EvalSettings, request["tasks"])
            if "path" in request:
                rescoring.rescore(Path(request["path"]), settings, request["data_root"], report)
            else:
                prepared_inputs.tasks(settings, request["data_root"])
        else:
            checkpoints = request.get("checkpoints")
            asked = {
                "cell": cells[0],
                "study": request["study"],
                "path": Path(request["path"]),
                "data_root": request["data_root"],
                "checkpoints": None if checkpoints is None else Path(checkpoints),
                "precautions": decode(Precautions | None, request.get("precautions")),
                "smaller": decode(SmallerBatches | None, request.get("smaller_batches")),
                "save": request.get("save", "none"),
                "tracker": request.get("tracker"),
                "asking": decode(run_api_cell.Asking | None, request.get("asking")),
            }
            if count > 1:
                return distributed.run(count, recording.run, asked, report)
            recording.run(**asked, report=report)
    except UserError as error:
        report({"refused": str(error)})
        return 2
    return 0


if __name__ == "__main__":
    from harness.job.measure import heap
    from harness.job.serve import serve

    # All jobs keep freed memory, or the time of a step depends on what the process had freed before.
    heap.keep()
    # Before libraries come in, which keep the streams they find.
    sys.stdout, sys.stderr = redact.Redacting(sys.stdout), redact.Redacting(sys.stderr)
    sys.exit(serve(int(sys.argv[1]), main))
