"""The checks of `benchmarks/gpu`, the most important first. Each returns a Check, or raises Skip with the reason."""

from __future__ import annotations

import importlib.util
import inspect
import math
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any

from harness import units
from harness.config import ROOT
from harness.errors import UserError
from harness.record import Cell, Probe, Record, Train, read_study, train_memory
from harness.studies import doctor as facts_of
from harness.sweep.cells import from_config
from harness.sweep.planner import Impossible

from .bench import SAVERS, TRAINING_ALONE, UNTUNED, Bench, Check, OutOfTime, Skip

NEAR = 0.05  # largest relative difference of a predicted peak to the allocator's
SAME_ANSWERS = 0.98  # smallest share of equal answers; rounding may change the others
FIRST_LOSS, LAST_LOSS = 0.01, 0.05  # largest relative differences to the CPU's losses: see `quickstart`
RESUMED_STEPS = ["data=wordmath", "train.max_steps=24"]  # the kill arrives some steps after its signal
KILLED_AFTER = 3
RESUMED = {"cpu": 0.0, "cuda": 2e-3}  # largest relative difference: CUDA's attention adds gradients in any order
SAME_LOSS = 0.02  # largest relative difference of the mean training losses of the harness and a Trainer
SPEED = 0.95  # smallest share of the Trainer's tokens/s
RIVALS = ("lora", "qlora", "dora", "galore_rsvd", "full")
BUSY = ("lora", "full")
REFERENCE = ROOT / "results" / "reference" / "quickstart"


def doctor(bench: Bench) -> Check:
    """The device, its number formats and the packages, by `harness doctor`."""
    compute = bench.facts["job"]["compute"]
    unmet = [f"{package} must be {wanted}, got {here or 'none'}" for package, wanted, here in bench.facts["unmet"]]
    formats = [f"{name}: {how}" for name, how in compute["formats"].items() if how.startswith("no")]
    problems = unmet + formats
    formats_here = ", ".join(name for name, how in compute["formats"].items() if how == "yes")
    print("\n".join(facts_of.lines(bench.facts)), file=sys.stderr)
    detail = "; ".join(problems) or f"all requirements are met; {formats_here}"
    return Check("failed" if problems else "passed", detail)


def cells(bench: Bench) -> Check:
    """One cell of every core method, with the default settings."""
    return _cells(bench)


def cells_plain(bench: Bench) -> Check:
    """The same with speedups=off."""
    return _cells(bench, "speedups=off")


def cells_without_liger(bench: Bench) -> Check:
    """The same without Liger, if it is installed."""
    if importlib.util.find_spec("liger_kernel") is None:
        raise Skip("liger-kernel is not installed; all cells ran without it")
    with bench.hidden("liger_kernel"):
        return _cells(bench, folder="without_liger")


def _cells(bench: Bench, *overrides: str, folder: str = "") -> Check:
    rows, broken = [], []
    for method in bench.methods:
        row: dict[str, Any] = {"method": method}
        rows.append(row)
        try:
            if reason := bench.obstacle(method):
                raise Skip(reason)
            record = bench.record(bench.cell(method, *overrides), folder)
            row |= _summary(record)
            if row["status"] != "ok":
                broken.append(f"{method}: {row['reason']}")
        except (Skip, UserError) as reason:
            refused = isinstance(reason, UserError) and bench.on_cuda  # a CPU may lack what a method needs
            row |= {"status": "refused" if refused else "not run", "reason": str(reason)}
            broken += [f"{method}: {reason}"] if refused else []
    good = sum(row["status"] == "ok" for row in rows)
    skipped = [f"{row['method']}: {row['reason']}" for row in rows if row["status"] == "not run"]
    if not good and not broken:
        raise Skip("; ".join(skipped))
    detail = "; ".join([f"{good} of {len(rows)} cells are ok with finite losses", *broken, *skipped])
    return Check("failed" if broken else "passed", detail, rows=rows)


def _summary(record: Record) -> dict[str, Any]:
    """A record's status as columns of a table; a loss that is not finite counts as a failure."""
    row = {"status": record.status, "cell": record.cell.name}
    if record.failure is not None:
        return row | {"reason": record.failure.reason}
    row["fused loss"] = record.environment["speedups"]["fused_loss"]
    losses = [point.loss for point in record.train.loss] if record.train else []
    losses += [point.loss for point in record.validation]
    if not all(map(math.isfinite, losses)):
        return row | {"status": "failed", "reason": "a loss is not finite"}
    return row


def memory(bench: Bench) -> Check:
    """The peak of training by `plan` against the allocator's; on a CPU, against that of counted tensors."""
    rows: list[dict[str, Any]] = []
    differences: list[float] = []
    for method, record in _records(bench):
        point = bench.planned[method]
        if isinstance(point, Impossible) or "unknown" in point.prediction:
            reason = point.reason if isinstance(point, Impossible) else point.prediction["unknown"]
            rows.append({"method": method, "difference": None, "reason": reason})
            continue
        tensors = _probed(record).peak.total
        phase = record.phases["validate" if method in UNTUNED else "train"]
        untuned = phase.memory.allocated_peak if bench.on_cuda else tensors
        measured = untuned if method in UNTUNED else train_memory(record)
        predicted = point.peak
        if measured is None:
            rows.append({"method": method, "difference": None, "reason": "no peak was measured"})
            continue
        differences.append(difference := predicted / measured - 1)
        row = {"method": method, "predicted": predicted, "measured": measured, "tensors": tensors}
        rows.append(row | {"difference": difference, "reserved": phase.memory.reserved_peak})
    if not differences:
        raise Skip("no cell is recorded; run the check `cells` first")
    near, worst = sum(abs(one) <= NEAR for one in differences), max(differences, key=abs)
    detail = f"{near} of {len(differences)} predicted peaks are within {NEAR:.0%} of the measured; largest {worst:+.1%}"
    return Check("passed" if near == len(differences) else "failed", detail, rows=rows)


def attention(bench: Bench) -> Check:
    """Which attention ran in a training step: on CUDA one bfloat16 kernel for all sequences of a row."""
    rows, wrong = [], []
    for method, record in _records(bench):
        ran = _probed(record).attention
        rows.append({"method": method, "attention": ", ".join(f"{name}: {n}" for name, n in ran.items())})
        suited = record.environment["speedups"]["padding_free"] == "on"
        if not ran or (bench.on_cuda and suited and set(ran) != {"varlen bfloat16"}):
            wrong.append(f"{method} ran {rows[-1]['attention'] or 'none'}")
    if not rows:
        raise Skip("no cell is recorded; run the check `cells` first")
    kinds = sorted({row["attention"] for row in rows})
    return Check("failed" if wrong else "passed", "; ".join(wrong or kinds), rows=rows)


def _trained(record: Record) -> Train:
    """What the training of a cell measured. Raises ValueError if it was not trained."""
    if record.train is None:
        raise ValueError(f"{record.cell.name} has no measurements of training: {_reason(record)}")
    return record.train


def _probed(record: Record) -> Probe:
    """What the probe of a cell measured. Raises ValueError if there was none."""
    if record.probe is None:
        raise ValueError(f"{record.cell.name} has no probe: {_reason(record)}")
    return record.probe


def _reason(record: Record) -> str:
    """Why a cell failed; its status if nothing says why."""
    return record.failure.reason if record.failure else record.status


def _records(bench: Bench) -> list[tuple[str, Record]]:
    """By method, the records with status ok."""
    records, _ = read_study(bench.out) if bench.out.is_dir() else ([], [])
    by_id = {record.cell.id: record for record in records if record.status == "ok"}
    cells = {method: cell for method, cell in bench.cells.items() if isinstance(cell, Cell)}
    return [(method, by_id[cell.id]) for method, cell in cells.items() if cell.id in by_id]


def engine(bench: Bench) -> Check:
    """Our scoring against lm-eval's own class: equal answers, and how much faster."""
    few = ["eval.limit=64", "eval.batch_size=64"] if bench.on_cuda else ["eval.limit=6"]
    cell = bench.cell("base", "eval.tasks=[wordmath,facts]", "eval.num_fewshot=4", *few)
    answer = bench.beside("engine", cell=cell)
    rows = [{"precision": name, **numbers} for name, numbers in answer.items()]
    exact = rows[0]
    shares = [
        f"{row['same']} of {row['answers']} answers are equal, {row['theirs'] / row['ours']:.1f}× as fast"
        for row in rows
    ]
    detail = "; ".join(f"{row['precision']}: {share}" for row, share in zip(rows, shares, strict=True))
    good = exact["same"] >= SAME_ANSWERS * exact["answers"]
    return Check("passed" if good else "failed", detail, rows=rows)


def resume(bench: Bench) -> Check:
    """A LoRA cell that is killed in training and resumed has the losses of one that is not."""
    every = {"save_every": 2}
    cell = bench.cell("lora", *TRAINING_ALONE, *RESUMED_STEPS)
    whole = bench.record(cell)
    losses = [point.loss for point in _trained(whole).loss]
    killed = bench.kill_at(cell, "killed", KILLED_AFTER, precautions=every)
    if killed.status != "failed" or "SIGKILL" not in _reason(killed):
        return Check("failed", f"the cell was killed; its record has status {killed.status}")
    resumed = bench.record(cell, "killed", precautions=every)
    if resumed.status != "ok":
        return Check("failed", _reason(resumed))
    again = [point.loss for point in _trained(resumed).loss]
    apart = max(abs(a - b) / abs(a) for a, b in zip(losses, again, strict=True))
    after = _trained(resumed).resumed_at
    detail = f"resumed after step {after} of {len(losses)}; losses differ by at most {apart:.1e}"
    good = after and after[-1] < len(losses) and apart <= RESUMED[bench.device]
    return Check("passed" if good else "failed", detail)


def out_of_memory(bench: Bench) -> Check:
    """A micro-batch that is too large is recorded as oom, and the next cell runs."""
    bench.needs_cuda()
    full = bench.planned["full"]
    most = (None if isinstance(full, Impossible) else full.prediction.get("largest_batch")) or 1
    size = 4 * most
    record = bench.record(bench.cell("full", *TRAINING_ALONE, f"train.batch_size={size}", "train.max_steps=1"))
    failure = record.failure
    if record.status != "oom" or failure is None or failure.memory is None:
        why = f"{record.status}: {failure.reason}" if failure else record.status
        return Check("failed", f"micro-batch of {size} sequences: the record has status {why}")
    after = bench.record(bench.cell("lora", *TRAINING_ALONE), anew=True)
    shortage = failure.memory
    sizes = (shortage.allocated, shortage.largest_free)
    allocated, free = ("an unknown amount" if n is None else units.size(n) for n in sizes)
    detail = (
        f"micro-batch of {size} sequences: oom in {failure.phase} with {allocated} allocated, "
        f"largest free block {free}; the next cell has status {after.status}"
    )
    row = {"batch": size, "reason": failure.reason} | asdict(shortage)
    return Check("passed" if after.status == "ok" else "failed", detail, rows=[row])


def throughput(bench: Bench) -> Check:
    """Tokens/s and peak against transformers' Trainer and, if installed, TRL's, on the same batches."""
    rivals = {"Trainer": False} | ({"SFTTrainer": True} if importlib.util.find_spec("trl") else {})
    rows, worse = [], []
    records = dict(_records(bench))
    for method in RIVALS:
        if (record := records.get(method)) is None:
            continue
        row: dict[str, Any] = {"method": method, "ours": _trained(record).tokens_per_second_steady}
        row["our peak"] = record.phases["train"].memory.allocated_peak
        row["our mean loss"] = mean(point.loss for point in _trained(record).loss)
        rows.append(row)
        for name, trl in rivals.items():
            try:
                rival = bench.beside("trainer", cell=record.cell, trl=trl)
            except OutOfTime:
                break
            row |= {name: rival["rate"], f"peak of {name}": rival["peak"], f"loss of {name}": rival["loss"]}
            row[f"× {name}"] = row["ours"] / rival["rate"]
            if row[f"× {name}"] < SPEED and bench.on_cuda:  # times on a CPU with other work prove nothing
                worse.append(f"{method} has {row[f'× {name}']:.2f} times the tokens/s of {name}")
            if abs(rival["loss"] / row["our mean loss"] - 1) > SAME_LOSS:
                worse.append(f"{method} has a mean loss of {row['our mean loss']:.4f}, {name} of {rival['loss']:.4f}")
    compared = [row["× Trainer"] for row in rows if "× Trainer" in row]
    if not compared:
        raise Skip("no cell is recorded; run the check `cells` first")
    detail = f"{min(compared):.2f} to {max(compared):.2f} times the Trainer's tokens/s for {len(compared)} methods"
    return Check("failed" if worse else "passed", "; ".join([detail, *worse]), rows=rows)


def busy(bench: Bench) -> Check:
    """The share of a step in which kernels run, and kernels per step, of which speed-ups should need fewer."""
    rows = []
    same = ["train.precision=bf16"] if bench.on_cuda else []  # speedups=off alone would change it
    for method in BUSY:
        for speedups in ("auto", "off"):
            cell = bench.cell(method, *TRAINING_ALONE, f"speedups={speedups}", *same)
            busy = bench.beside("busy", cell=cell)
            share = busy["seconds"] / busy["wall"]
            rows.append({"method": method, "speedups": speedups, "kernels": busy["kernels"], "share": share})
    ours, plainly = (sum(row["kernels"] for row in rows if row["speedups"] == s) for s in ("auto", "off"))
    shares = ", ".join(f"{row['method']} {row['share']:.0%}" for row in rows if row["speedups"] == "auto")
    good = ours <= plainly and all(0 < row["share"] <= 1.05 for row in rows)
    detail = f"kernels run for {shares} of a step; {ours / plainly:.2f} times as many kernels as with speedups=off"
    return Check("passed" if good or not bench.on_cuda else "failed", detail, rows=rows)


def savers(bench: Bench) -> Check:
    """Gradient checkpointing, offload, compile, the largest batch that fits: same first loss, less memory."""
    known = bench.config().train
    asked = {"": [], **{name: more for name, more in SAVERS.items() if name in known}}
    rows: list[dict[str, Any]] = []
    wrong = []
    for name, more in asked.items():
        row: dict[str, Any] = {"switch": name or "none"}
        try:
            record = bench.record(bench.cell("lora", *TRAINING_ALONE, *more))
        except (OutOfTime, UserError) as reason:
            rows.append(row | {"status": "not run", "reason": str(reason)})
            wrong += [f"{name}: {reason}"] if isinstance(reason, UserError) and bench.on_cuda else []
            continue
        rows.append(row)
        row |= _summary(record)
        if row["status"] != "ok":
            wrong.append(f"{name}: {row['reason']}")
            continue
        train = _trained(record)
        row |= {"first loss": train.loss[0].loss, "tokens/s": train.tokens_per_second_steady}
        if (peak := train_memory(record)) is None:
            wrong.append(f"{name}: no peak was measured")
            continue
        row["peak"], plainly = peak, rows[0]
        if "peak" not in plainly or name == "global_batch":  # whose batches are others
            continue
        if abs(row["first loss"] / plainly["first loss"] - 1) > FIRST_LOSS:
            wrong.append(f"{name}: the first loss must be {plainly['first loss']:.4f}, got {row['first loss']:.4f}")
        if name in ("gradient_checkpointing", "activation_offload") and peak >= plainly["peak"]:
            wrong.append(f"{name}: the peak must be below {units.size(plainly['peak'])}, got {units.size(peak)}")
    peaks = [f"{row['switch']} {units.size(row['peak'])}" for row in rows if "peak" in row]
    return Check("failed" if wrong else "passed", "; ".join([f"peaks: {', '.join(peaks)}", *wrong]), rows=rows)


def quickstart(bench: Bench) -> Check:
    """The losses of the quickstart against those of a CPU, in results/reference/quickstart.

    The first loss is of the same weights on the same batch. bf16 keeps 8 bits; in a mean over hundreds of tokens its
    rounding leaves less than 1%. After 20 steps at five times the usual learning rates the runs have diverged further:
    5%. At the usual rates, bf16 and fp32 on one CPU differ by up to 1% (benchmarks/RESULTS.md).
    """
    if bench.model != ["model=smollm2_135m"]:
        raise Skip("it requires the embedded SmolLM2")
    rows = []
    for reference in read_study(REFERENCE)[0]:
        config = bench.config(f"method={reference.cell.method}", name="quickstart")
        try:
            rows.append(against(reference, bench.record(from_config(config), "quickstart")))
        except OutOfTime:
            break
    if not rows:
        raise OutOfTime("the time limit was reached")
    apart = [f"{row['method']}: {row['apart']}" for row in rows if row["apart"]]
    furthest = max((row["last"] for row in rows if "last" in row), key=abs, default=math.nan)
    detail = f"{len(rows) - len(apart)} of {len(rows)} methods agree, validation losses within {abs(furthest):.1%}"
    return Check("failed" if apart else "passed", "; ".join([detail, *apart]), rows=rows)


def against(reference: Record, record: Record) -> dict[str, Any]:
    """Relative differences of the first and the last loss; `apart` names those that are too large."""
    row: dict[str, Any] = {"method": reference.cell.method}
    if record.status != "ok":
        return row | {"apart": _reason(record)}
    row |= {"validation loss": record.validation[-1].loss, "reference": reference.validation[-1].loss}
    row["last"] = row["validation loss"] / row["reference"] - 1
    apart = [f"the last loss differs by {row['last']:+.1%}"] if abs(row["last"]) > LAST_LOSS else []
    if record.train is not None:
        published = _trained(reference)
        row["first"] = record.train.loss[0].loss / published.loss[0].loss - 1
        apart += [f"the first loss differs by {row['first']:+.1%}"] if abs(row["first"]) > FIRST_LOSS else []
        apart += ["the batches differ"] if record.train.batches != published.batches else []
    return row | {"apart": ", ".join(apart)}


def gpu_tests(bench: Bench) -> Check:
    """The tests that require a CUDA device."""
    bench.needs_cuda()
    with open(bench.out / "tests.log", "wb") as log:
        files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *files]
        out = bench.command(command, log).decode()
        log.write(out.encode())
    last = out.strip().splitlines()[-1] if out.strip() else "pytest printed nothing"
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)}
    failed = [line.removeprefix("FAILED ") for line in out.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    good = counts.get("passed", 0) and not failed and "error" not in last
    return Check("passed" if good else "failed", "; ".join([last.strip("= "), *failed]))


@dataclass(frozen=True)
class Step:
    """A check, and about how many seconds it takes on a GPU; with less time left it is skipped."""

    take: Callable[[Bench], Check]
    seconds: float


CHECKS = {
    "doctor": Step(doctor, 0),
    "cells": Step(cells, 30),
    "memory": Step(memory, 0),
    "attention": Step(attention, 0),
    "engine": Step(engine, 60),
    "resume": Step(resume, 60),
    "oom": Step(out_of_memory, 60),
    "throughput": Step(throughput, 30),
    "busy": Step(busy, 60),
    "quickstart": Step(quickstart, 40),
    "savers": Step(savers, 60),
    "liger": Step(cells_without_liger, 30),
    "plain": Step(cells_plain, 30),
    "tests": Step(gpu_tests, 60),
}


def run(name: str, bench: Bench) -> Check:
    """Run the check `name`. Any exception becomes its result, so that the other checks still run."""
    step, begun = CHECKS[name], time.monotonic()
    try:
        if bench.left < step.seconds:
            raise OutOfTime(f"the time limit was reached: the check takes about {step.seconds:.0f} s")
        check = step.take(bench)
    except Skip as reason:
        check = Check("skipped", str(reason))
    except Exception as error:
        words = " ".join(str(error).split())
        check = Check("failed", f"{type(error).__name__}: {words}")
    about = (inspect.getdoc(step.take) or "").partition("\n")[0].rstrip(".")
    return replace(check, name=name, about=about, seconds=time.monotonic() - begun)
