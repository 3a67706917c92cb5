"""Compares the predictions of `plan` with measurements: our cells on SmolLM2-135M, and what others published of GPUs.

    harness sweep memory study=reference/memory                # the measured cells, about 3 minutes on 2 cores
    python benchmarks/plan.py --data-root DIR --write          # PLAN.md, the record and its page; about 3 minutes
    python benchmarks/plan.py published --data-root DIR        # published programs of the data alone
    python benchmarks/plan.py further                          # further rows of the same programs, 3 minutes
    python benchmarks/plan.py reserved --data-root DIR         # what they reserved, at real depth; about 5 minutes
    python benchmarks/plan.py --render                         # the page of published programs anew, from its records

Below DIR lie `peft_results`, result files of the MetaMathQA suite in huggingface/peft's method_comparison, and
`published_memory`, peaks that training programs published. Without it, `own` has no table of peft's runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import hydra
from programs import compare, page, reserved
from tabulate import tabulate

from harness import units
from harness.config import CONF, ROOT
from harness.errors import UserError, about_file
from harness.job.predict.prediction import Predictor
from harness.job.training import fused_dora, fused_lora, uncast_inputs
from harness.record import Record, read_study
from harness.sweep import app
from harness.sweep.cells import from_config

PLAN = ROOT / "benchmarks" / "PLAN.md"
# Records of published programs, by part.
PEAKS = ("published", "further")
MEASURED = {part: ROOT / "benchmarks" / "measured" / f"{part}_memory.json" for part in (*PEAKS, "reserved")}
PARTS = ("own", *MEASURED)
PAGE = ROOT / "docs" / "plan.md"

# Of each published run: its file, and the settings that make our cell the same.
QV = "method.adapt.target_modules=[q_proj,v_proj]"
PUBLISHED = {
    "LoRA, rank 32 on q and v": ("lora--llama-3.2-3B-rank32", ["method=lora", "rank=32", QV]),
    "DoRA, rank 32 on q and v": ("lora--llama-3.2-3B-rank32-dora", ["method=dora", "rank=32", QV]),
    "Full fine-tuning": ("full-finetuning--llama-3.2-3B-lr_0.00001", ["method=full_bf16"]),
}


def ours(folder: Path) -> list[dict[str, Any]]:
    """Measured and predicted peaks in bytes, one row per record of `folder`."""
    records, problems = read_study(folder)
    if problems or not records:
        raise SystemExit("\n".join(problems) or f"There are no records in {folder}; run the sweep `memory` first.")
    planner = Predictor(None, auto="fp32")
    return [_our_row(planner, record) for record in records]


def _our_row(planner: Predictor, record: Record) -> dict[str, Any]:
    settings, measured = record.cell.settings, record.probe
    if measured is None:
        raise SystemExit(f"{record.cell.name} has no measured peak; run it again.")
    # As the record's device computed, which need not be this one.
    train = dataclasses.replace(settings.train, precision=record.environment["precision"])
    cell = dataclasses.replace(record.cell, settings=dataclasses.replace(settings, train=train))
    speedups = record.environment.get("speedups", {})
    with ExitStack() as stack:  # a record may be older than some
        for module in (fused_dora, fused_lora, uncast_inputs):
            if speedups.get(module.NAME) != "on":
                stack.enter_context(mock.patch.object(module, "enable"))
        predicted = planner.predict(cell, None)
    return {
        "method": record.cell.method,
        "batch": "{sequences} ({tokens} tokens)".format(**predicted["shape"]),
        "measured": measured.peak.total,
        "predicted": sum(predicted["peak"].values()),
    }


def published(folder: Path) -> list[dict[str, Any]]:
    """Published and predicted memory after a step in bytes, one row per run.

    The suite reads the allocator after the optimizer's step, while gradients and outputs still exist. So the prediction
    is resident tensors + gradients + logits (bf16, for the tokens of a mean step).
    """
    app.register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return [_published_row(folder, name, *what) for name, what in PUBLISHED.items()]


def _published_row(folder: Path, name: str, file: str, overrides: list[str]) -> dict[str, Any]:
    found = json.loads((folder / f"{file}.json").read_text())
    train, metrics = found["run_info"]["train_config"], found["train_info"]["metrics"]
    shape = [f"train.batch_size={train['batch_size']}", f"train.max_length={train['max_seq_length']}"]
    config = hydra.compose("config", ["model=llama_3_2_3b", "train.gradient_checkpointing=false", *overrides, *shape])
    architecture = dict(config.model.architecture)
    line = Predictor(None, auto="bf16", kernels="cuda").predict(from_config(config), architecture)
    adapters = 4 * line["trainable"] if line["trainable"] < line["total"] else 2 * line["trainable"]
    logits = 2 * architecture["vocab_size"] * metrics[-1]["train total tokens"] / train["max_steps"]
    resident = sum(line["resident"].values())
    measured = [m["mem allocated avg"] for m in metrics if "mem allocated avg" in m]
    return {
        "run": name,
        "published": sum(measured) / len(measured),
        "resident": resident,
        "gradients": adapters,
        "logits": logits,
        "predicted": resident + adapters + logits,
    }


def savers() -> list[list[str]]:
    """Predicted peaks on a GPU, one row per method: without and with gradient checkpointing."""
    app.register()
    planner, rows = Predictor(None, auto="bf16", kernels="cuda"), []
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for method in ("lora", "qlora", "full"):
            peaks = []
            for checkpointing in ("false", "true"):
                shape = ["train.batch_size=1", "train.max_length=2048", f"train.gradient_checkpointing={checkpointing}"]
                config = hydra.compose("config", ["model=llama_3_1_8b", f"method={method}", "rank=16", *shape])
                line = planner.predict(from_config(config), dict(config.model.architecture))
                peaks.append(units.size(sum(line["peak"].values())))
            rows.append([method, *peaks])
    return rows


def document(own: list[dict[str, Any]], others: list[dict[str, Any]] | None) -> str:
    """The document in Markdown."""
    rows = [[r["method"], r["batch"], *_compared(r["measured"], r["predicted"])] for r in own]
    head = ["method", "largest batch", "measured peak", "predicted peak", "difference"]
    out = ["# Predicted and measured memory", "", "Made by `python benchmarks/plan.py`.", ""]
    out += ["## SmolLM2-135M: peak of live tensors in a training step", "", _table(rows, head), ""]
    out += ["`base` is measured in one forward pass. Records: `results/reference/memory`.", ""]
    head = ["method", "without", "with gradient checkpointing"]
    out += ["## Llama-3.1-8B in bf16 on a GPU: predicted peak", "", _table(savers(), head), ""]
    out += ["One sequence of 2,048 tokens, all in the loss; rank 16. These peaks were not measured.", ""]
    if others is not None:
        head = ["run", "resident", "gradients", "logits", "published", "predicted", "difference"]
        kinds = ("resident", "gradients", "logits")
        rows = [
            [r["run"], *(units.size(r[k]) for k in kinds), *_compared(r["published"], r["predicted"])] for r in others
        ]
        out += ["## Llama-3.2-3B in bf16: allocated memory after a step, as published by peft", "", _table(rows, head)]
        out += ["", *(inspect.getdoc(published) or "").splitlines()[2:], ""]
    return "\n".join(out)


def _compared(measured: float, predicted: float) -> list[str]:
    return [units.size(measured), units.size(predicted), _difference(measured, predicted)]


def _difference(measured: float, predicted: float) -> str:
    return f"{100 * (predicted / measured - 1):+.2f}%"


def _table(rows: list[list[str]], head: list[str]) -> str:
    return tabulate(rows, head, "pipe", disable_numparse=True)


def of_programs(path: Path) -> list[dict[str, Any]]:
    """The programs of the file `path` beside their predictions, as JSON: a row a measurement. Raises UserError."""
    return [dataclasses.asdict(row) for row in compare.compare(path)]


def recorded() -> list[dict[str, Any]]:
    """The rows of all records of peaks."""
    return [row for part in PEAKS for row in json.loads(MEASURED[part].read_text(encoding="utf-8"))]


def main(arguments: list[str] | None = None) -> None:
    """The command line; `arguments` are those of the process if none are given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="own, published, further, reserved (none: all)")
    parser.add_argument("--records", type=Path, default=ROOT / "results" / "reference" / "memory", metavar="DIR")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder of peft_results and published_memory")
    parser.add_argument("--write", action="store_true", help="renew the committed documents and the record")
    parser.add_argument("--render", action="store_true", help="renew the page from its record, predict nothing")
    options = parser.parse_args(arguments)
    try:
        run(options)
    except (UserError, OSError) as error:
        print(error if isinstance(error, UserError) else about_file(error), file=sys.stderr)
        sys.exit(2)


def run(options: argparse.Namespace) -> None:
    parts = options.parts or [*PARTS]
    for part in parts:
        if part not in PARTS:
            raise UserError(f"PART must be one of {', '.join(PARTS)}, got {part}.")
    if options.render:
        PAGE.write_text(rendered_page(), encoding="utf-8")
        return
    if "own" in parts:
        others = published(options.data_root / "peft_results") if options.data_root else None
        _shown(document(ours(options.records), others), PLAN if options.write else None)
    for part in ("published", "reserved"):
        if part in parts and options.data_root is None:
            raise UserError(f"{part} requires --data-root.")
    for part in parts:
        if part in PEAKS:
            _show_peaks(part, _of_part(part, options.data_root or Path()), options.write)
        elif part == "reserved":
            _show_reserved(options.data_root / compare.FILE, options.write)


def _show_peaks(part: str, rows: list[dict[str, Any]], write: bool) -> None:
    """Show the `rows` of the record `part`; with `write`, renew it and the page."""
    if not write:
        _shown(page.page(rows), None)
        return
    _keep(part, rows)
    PAGE.write_text(rendered_page(), encoding="utf-8")


def _show_reserved(path: Path, write: bool) -> None:
    """The same of what the programs of the file `path` reserved."""
    published = [dataclasses.asdict(row) for row in reserved.compare(path)]
    record = {"published": published, "depths": reserved.depths()}
    if not write:
        _shown("\n".join(reserved.section(record)), None)
        return
    _keep("reserved", record)
    PAGE.write_text(rendered_page(), encoding="utf-8")


def _keep(part: str, record: Any) -> None:
    MEASURED[part].write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _of_part(part: str, data_root: Path) -> list[dict[str, Any]]:
    """The rows of the record `part`, as JSON."""
    return of_programs(compare.FURTHER if part == "further" else data_root / compare.FILE)


def rendered_page() -> str:
    """The page docs/plan.md, of all records."""
    record = json.loads(MEASURED["reserved"].read_text(encoding="utf-8"))
    return page.page(recorded(), reserved.section(record))


def _shown(text: str, file: Path | None) -> None:
    if file is None:
        print(text, end="")
    else:
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
