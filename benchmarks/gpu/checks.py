"""The checks of `benchmarks/gpu`, the most important first. Each returns a Check, or raises Skip with the reason."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import math
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import mean, median
from typing import Any

from harness import units
from harness.config import ROOT
from harness.errors import UserError
from harness.protocol import LocalPaths, PlannedCell
from harness.record import Calibration, Cell, Probe, Record, Train, read_study, train_memory
from harness.studies import doctor as facts_of
from harness.sweep import planner, runner
from harness.sweep.cells import from_config
from harness.sweep.estimates.card import Card
from harness.sweep.estimates.times import Times
from harness.sweep.planner import Impossible, Plan, Planned

from .bench import MODELS, SAVERS, TRAINING_ALONE, UNTUNED, Bench, Check, OutOfTime, Rows, Skip, in_words

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
TIME, TIME_MEDIAN = 0.35, 0.15  # relative errors that nine of ten planned times, and half of them, must not exceed
TWO = 2
PARALLEL = {
    "one": [],
    "ddp": [f"train.devices={TWO}", "train.parallel=ddp"],
    "fsdp": [f"train.devices={TWO}", "train.parallel=fsdp"],
}
MOST_OTHER = 0.05  # largest difference of a score of vLLM: rounding changes a few answers
LARGE, LARGE_BYTES = "llama_3_1_8b", 17e9
LARGE_METHODS = ("lora", "qlora")
LARGE_LOAD = [
    *("data=wordmath", "train.packing=true", "train.max_length=2048", "train.batch_size=4", "train.max_steps=6"),
    *("train.validation_items=4", "eval.tasks=[]", "infer.repeats=0"),
]
NO_CELL = "no cell is recorded; run the check `cells` first"
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


def _cells(bench: Bench, *overrides: str) -> Check:
    table = Rows(strict=bench.on_cuda)  # a CPU may lack what a method needs
    for method in bench.methods:
        with table.row(method=method) as row:
            if reason := bench.obstacle(method):
                raise Skip(reason)
            row |= _summary(bench.record(bench.cell(method, *overrides)))
            if row["status"] != "ok":
                table.wrong.append(f"{method}: {row['reason']}")
    good = sum(row.get("status") == "ok" for row in table.rows)
    told = [f"{good} of {len(table.rows)} cells are ok with finite losses", *table.wrong, *table.skipped]
    return table.check("; ".join(told))


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
    table = Rows(strict=True)
    for method, record in _records(bench):
        with table.row(method=method) as row:
            row |= _peaks(bench, method, record)
    differences = [row["difference"] for row in table.rows if "difference" in row]
    if not differences and not table.wrong:
        raise Skip("; ".join(table.skipped) or NO_CELL)
    near, worst = sum(abs(one) <= NEAR for one in differences), max(differences, key=abs, default=math.nan)
    detail = f"{near} of {len(differences)} predicted peaks are within {NEAR:.0%} of the measured; largest {worst:+.1%}"
    return table.check("; ".join([detail, *table.wrong]), near == len(differences))


def _peaks(bench: Bench, method: str, record: Record) -> dict[str, Any]:
    """Predicted and measured peak of training, in bytes. Raises Skip if there is none of either."""
    point, tensors = _prediction(bench, method), _probed(record).peak.total
    phase = record.phases["validate" if method in UNTUNED else "train"]
    untuned = phase.memory.allocated_peak if bench.on_cuda else tensors
    measured = untuned if method in UNTUNED else train_memory(record)
    if measured is None:
        raise Skip("no peak was measured")
    predicted = point.peak + (_workspaces(record, method) if bench.on_cuda else 0)
    row = {"predicted": predicted, "measured": measured, "tensors": tensors}
    return row | {"difference": predicted / measured - 1, "reserved": phase.memory.reserved_peak}


def _workspaces(record: Record, method: str) -> int:
    """Bytes of cuBLAS' workspaces, which the allocator has beside tensors: one of the forward pass, and one of the
    backward pass, another thread. By torch's CUDABlas.cpp 32 MiB on Hopper and Blackwell, else 8 MiB and 128 KiB.
    """
    major = int(record.environment["device"]["capability"].partition(".")[0])
    return (1 if method in UNTUNED else 2) * (32 * 2**20 if major in (9, 10) else 8_519_680)


def _prediction(bench: Bench, method: str) -> Planned:
    """The plan of a method's cell. Raises Skip if there is none."""
    point = bench.planned[method]
    if isinstance(point, Impossible) or "unknown" in point.prediction:
        raise Skip(point.reason if isinstance(point, Impossible) else point.prediction["unknown"])
    return point


def planned_time(bench: Bench) -> Check:
    """The time of a training step by `plan`, from the card's rates alone, against the measured."""
    table = Rows(strict=True)
    trained = [(method, record) for method, record in _records(bench) if record.train is not None]
    for method, record in trained:
        with table.row(method=method) as row:
            row |= _step_times(bench, method, record)
    return _time_check(table)


def _step_times(bench: Bench, method: str, record: Record) -> dict[str, Any]:
    """Seconds of a step, planned and measured (steady median). Raises Skip if there are none of either."""
    name = bench.facts["job"]["compute"]["device"].get("name") or bench.device
    if bench.card is None:
        raise Skip(f"plan knows no rates of {name}: no file of conf/device names it")
    points = [(method, record.cell)]
    return _compared(
        bench, record, planner.make(points, bench.architectures, None, None, "cuda", bench.card, remedies=False)
    )


def calibrated_time(bench: Bench) -> Check:
    """The time of a training step by `plan`, from kernels timed on this device, against the measured."""
    trained = [(method, record) for method, record in _records(bench) if record.train is not None]
    if not trained:
        raise Skip(NO_CELL)
    architecture = bench.architectures.get(trained[0][1].cell.model)
    cells = [PlannedCell(record.cell, architecture) for _, record in trained]
    calibration = runner.calibrate(cells, lambda event: None, bench.seconds())
    table = Rows(strict=True)
    for method, record in trained:
        with table.row(method=method) as row:
            row |= _calibrated_times(bench, method, record, calibration)
    return _time_check(table)


def _calibrated_times(bench: Bench, method: str, record: Record, calibration: Calibration) -> dict[str, Any]:
    """As `_step_times`, with the kernels of the `calibration`."""
    points = [(method, record.cell)]
    plan = planner.make(points, bench.architectures, None, None, remedies=False, calibrations=[calibration])
    return _compared(bench, record, plan)


def _compared(bench: Bench, record: Record, plan: Plan) -> dict[str, Any]:
    """Seconds of a step by the `plan` of one cell, and in its `record`. Raises Skip if there are none of either."""
    (point,) = plan.points
    if isinstance(point, Impossible):
        raise Skip(point.reason)
    # No records are in this folder: those of this run would give the very times that are to be predicted.
    seconds = None if "unknown" in point.prediction else Times(bench.out / "none", *of_plan(plan)).seconds(point)
    train = _trained(record)
    if seconds is None or not train.tokens_per_second_steady:
        raise Skip(str(point.prediction.get("unknown", "plan gives no time")))
    planned = seconds / train.steps
    measured = train.tokens.raw / train.tokens_per_second_steady / train.steps
    return {"planned s": planned, "measured s": measured, "difference": planned / measured - 1}


def of_plan(plan: Plan) -> tuple[dict[str, Any], str, Card | None]:
    """What Times takes of a plan."""
    return plan.environment, plan.kernels, plan.card


def _time_check(table: Rows) -> Check:
    errors = [abs(row["difference"]) for row in table.rows if "difference" in row]
    if not errors and not table.wrong:
        raise Skip("; ".join(dict.fromkeys(table.skipped)) or NO_CELL)
    near = sum(error <= TIME for error in errors)
    middle = median(errors) if errors else math.nan
    detail = (
        f"{near} of {len(errors)} planned times are within {TIME:.0%} of the measured, the median within {middle:.0%}"
    )
    good = near >= 0.9 * len(errors) and middle <= TIME_MEDIAN
    return table.check("; ".join([detail, *table.wrong]), good)


def attention(bench: Bench) -> Check:
    """Which attention ran in a training step: in bf16 on CUDA one kernel for all sequences of a row."""
    table = Rows(strict=True)
    for method, record in _records(bench):
        with table.row(method=method) as row:
            ran = _probed(record).attention
            row["attention"] = ", ".join(f"{name}: {n}" for name, n in ran.items())
            suited = record.environment["speedups"]["padding_free"] == "on"
            if not ran or (bench.bf16 and suited and set(ran) != {"varlen bfloat16"}):
                table.wrong.append(f"{method} ran {row['attention'] or 'none'}")
    if not table.rows:
        raise Skip(NO_CELL)
    return table.check("; ".join(table.wrong or sorted({row["attention"] for row in table.rows})))


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
    table, shares = Rows(strict=True), []
    for precision in ("exact", "bfloat16") if bench.bf16 else ("exact",):
        with table.row(precision=precision) as row:
            row |= bench.beside("engine", cell=cell, autocast=None if precision == "exact" else precision)
            share = f"{row['same']} of {row['answers']} answers are equal, {row['theirs'] / row['ours']:.1f}× as fast"
            shares.append(f"{row['precision']}: {share}")
            if precision == "exact" and row["same"] < SAME_ANSWERS * row["answers"]:
                table.wrong.append(f"at least {SAME_ANSWERS:.0%} of the answers must be equal in {row['precision']}")
    return table.check("; ".join([*shares, *table.wrong]))


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
    table, records = Rows(strict=True), dict(_records(bench))
    for method, name in itertools.product([method for method in RIVALS if method in records], rivals):
        with table.row(method=method, trainer=name) as row:
            row |= _beside_trainer(bench, records[method], rivals[name])
            if row["×"] < SPEED and bench.on_cuda:  # times on a CPU with other work prove nothing
                table.wrong.append(f"{method} has {row['×']:.2f} times the tokens/s of {name}")
            if abs(row["its mean loss"] / row["our mean loss"] - 1) > SAME_LOSS:
                losses = f"{row['our mean loss']:.4f}, {name} of {row['its mean loss']:.4f}"
                table.wrong.append(f"{method} has a mean loss of {losses}")
    if not table.rows:
        raise Skip(NO_CELL)
    compared = [row["×"] for row in table.rows if row["trainer"] == "Trainer" and "×" in row]
    detail = f"no method was compared of {len(table.rows)}"
    if compared:
        detail = f"{min(compared):.2f} to {max(compared):.2f} times the Trainer's tokens/s for {len(compared)} methods"
    return table.check("; ".join([detail, *table.wrong]))


def _beside_trainer(bench: Bench, record: Record, trl: bool) -> dict[str, Any]:
    train = _trained(record)
    ours = {"ours": train.tokens_per_second_steady, "our peak": record.phases["train"].memory.allocated_peak}
    loss = mean(point.loss for point in train.loss)
    rival = bench.beside("trainer", cell=record.cell, trl=trl)
    row = ours | {"its": rival["rate"], "its peak": rival["peak"], "×": ours["ours"] / rival["rate"]}
    return row | {"our mean loss": loss, "its mean loss": rival["loss"]}


def busy(bench: Bench) -> Check:
    """The share of a step in which kernels run, and kernels per step, of which speed-ups should need fewer."""
    table = Rows(strict=True)
    same = ["train.precision=bf16"] if bench.bf16 else []  # speedups=off alone would change it
    for method, speedups in itertools.product(BUSY, ("auto", "off")):
        with table.row(method=method, speedups=speedups) as row:
            cell = bench.cell(method, *TRAINING_ALONE, f"speedups={speedups}", *same)
            step = bench.beside("busy", cell=cell)
            row |= {"kernels": step["kernels"], "share": step["seconds"] / step["wall"]}
    measured = {(row["method"], row["speedups"]): row for row in table.rows if "share" in row}
    pairs = [(measured[method, "auto"], measured[method, "off"]) for method in BUSY if _both(measured, method)]
    ours, plainly = (sum(pair[i]["kernels"] for pair in pairs) for i in (0, 1))
    told = ", ".join(f"{ours['method']} {ours['share']:.0%}" for ours, _ in pairs)
    good = ours <= plainly and all(0 < row["share"] <= 1.05 for row in measured.values())
    times = f"{ours / plainly:.2f}" if plainly else "–"
    detail = f"kernels run for {told or '–'} of a step; {times} times as many kernels as with speedups=off"
    return table.check("; ".join([detail, *table.wrong]), good or not bench.on_cuda)


def _both(measured: dict[tuple[str, str], Any], method: str) -> bool:
    return (method, "auto") in measured and (method, "off") in measured


def savers(bench: Bench) -> Check:
    """Gradient checkpointing, offload, compile, the largest batch that fits: same first loss, less memory."""
    known = bench.config().train
    asked = {"none": [], **{name: more for name, more in SAVERS.items() if name in known}}
    table = Rows(strict=bench.on_cuda)
    for name, more in asked.items():
        with table.row(switch=name) as row:
            record = bench.record(bench.cell("lora", *TRAINING_ALONE, *more))
            row |= _summary(record)
            if row["status"] != "ok":
                table.wrong.append(f"{name}: {row['reason']}")
                continue
            train = _trained(record)
            row |= {"first loss": train.loss[0].loss, "tokens/s": train.tokens_per_second_steady}
            if (peak := train_memory(record)) is None:
                table.wrong.append(f"{name}: no peak was measured")
                continue
            row["peak"] = peak
            if name != "global_batch":  # whose batches are others
                table.wrong += _unlike(row, table.rows[0])
    peaks = [f"{row['switch']} {units.size(row['peak'])}" for row in table.rows if "peak" in row]
    return table.check("; ".join([f"peaks: {', '.join(peaks)}", *table.wrong]))


def _unlike(row: dict[str, Any], plainly: dict[str, Any]) -> list[str]:
    """In what a row of `savers` is not as it should be beside the one without any; nothing if that has no figures."""
    if row is plainly or "peak" not in plainly:
        return []
    name, peak, wrong = row["switch"], row["peak"], []
    if abs(row["first loss"] / plainly["first loss"] - 1) > FIRST_LOSS:
        wrong.append(f"{name}: the first loss must be {plainly['first loss']:.4f}, got {row['first loss']:.4f}")
    if name in ("gradient_checkpointing", "activation_offload") and peak >= plainly["peak"]:
        wrong.append(f"{name}: the peak must be below {units.size(plainly['peak'])}, got {units.size(peak)}")
    return wrong


def several_gpus(bench: Bench) -> Check:
    """LoRA on two GPUs, each with the whole model (ddp) or a share (fsdp): the losses of one, and time and memory."""
    if bench.on_cuda and len(bench.gpus) < TWO:
        raise Skip(f"it requires {TWO} GPUs, got {len(bench.gpus)}")
    table = Rows(strict=True)
    for name, more in PARALLEL.items():
        with table.row(devices=name) as row, bench.seeing(bench.gpus[: 1 if name == "one" else TWO]):
            record = bench.record(bench.cell("lora", *TRAINING_ALONE, *more), "devices")
            row |= _summary(record)
            if row["status"] != "ok":
                table.wrong.append(f"{name}: {row['reason']}")
                continue
            train = _trained(record)
            row |= {"first loss": train.loss[0].loss, "last loss": train.loss[-1].loss}
            row |= {"tokens/s": train.tokens_per_second_steady}
            row["peak of each"] = record.phases["train"].memory.allocated_peak
            table.wrong += _apart(row, table.rows[0])
    rates = [f"{row['devices']} {row['tokens/s']:,.0f} tokens/s" for row in table.rows if "tokens/s" in row]
    return table.check("; ".join([", ".join(rates), *table.wrong]))


def _apart(row: dict[str, Any], alone: dict[str, Any]) -> list[str]:
    """Which losses of a row of `several_gpus` are not those of one device."""
    limits = {"first loss": FIRST_LOSS, "last loss": LAST_LOSS}
    return [
        f"{row['devices']}: the {name} must be {alone[name]:.4f}, got {row[name]:.4f}"
        for name, limit in limits.items()
        if name in alone and abs(row[name] / alone[name] - 1) > limit
    ]


def vllm(bench: Bench) -> Check:
    """Answers of a LoRA cell that vLLM writes against those of our engine: like scores, and the time of both."""
    python = vllm_python()
    if python is None:
        raise Skip("no vLLM: HARNESS_VLLM_PYTHON names no python, and this one has no vllm")
    table, items = Rows(strict=True), 64 if bench.on_cuda else 4
    asked = ["eval.tasks=[wordmath]", f"eval.limit={items}", "infer.repeats=0"]
    for name in ("auto", "vllm"):
        with table.row(engine=name) as row:
            cell = bench.cell("lora", *asked, f"eval.engine={name}")
            record = bench.record(cell, "vllm", local=LocalPaths(python))
            row |= _summary(record)
            if row["status"] != "ok":
                table.wrong.append(f"{name}: {row['reason']}")
                continue
            score = record.scores[0]
            row |= {"score": score.value, "stderr": score.stderr, "answers": score.n}
            row["seconds"] = record.phases["score"].seconds
            row["writing"] = record.vllm.seconds if record.vllm else None
            if "score" in (ours := table.rows[0]) and abs(row["score"] - ours["score"]) > MOST_OTHER:
                table.wrong.append(f"{name}: the score must be near {ours['score']:.3f}, got {row['score']:.3f}")
    told = [f"{row['engine']} {row['score']:.3f} in {row['seconds']:.0f} s" for row in table.rows if "score" in row]
    return table.check("; ".join([", ".join(told), *table.wrong]))


def vllm_python() -> str | None:
    """The python of an environment with vLLM: HARNESS_VLLM_PYTHON, that of `make test-vllm`, or this one."""
    if named := os.environ.get("HARNESS_VLLM_PYTHON"):
        return named
    own = ROOT / ".venv-vllm" / "bin" / "python"
    if own.exists():
        return str(own)
    return sys.executable if importlib.util.find_spec("vllm") else None


def large(bench: Bench) -> Check:
    """A model of Llama-3.1-8B's shape with random weights, at 4 × 2048 tokens: memory and time against `plan`."""
    bench.needs_cuda()
    folder = MODELS / LARGE
    table = Rows(strict=True)
    eight = bench.of_model([f"model={LARGE}", f"model.path={folder}"], LARGE_METHODS)
    eight.load = LARGE_LOAD
    fitting = [method for method in eight.methods if eight.obstacle(method) is None]
    if fitting:
        try:
            eight.build_random(folder, LARGE_BYTES)
        except UserError as reason:
            raise Skip(str(reason)) from None
        eight = eight.of_model(eight.model, eight.methods)  # whose plan knows the tokenizer, and so the lengths
        eight.load = LARGE_LOAD
    for method in eight.methods:
        with table.row(method=method) as row:
            if (obstacle := eight.obstacle(method)) is not None:
                raise Skip(obstacle)
            record = eight.record(eight.cell(method), "large")
            row |= _summary(record)
            if row["status"] != "ok":
                table.wrong.append(f"{method}: {row['reason']}")
                continue
            row["tokens/s"] = _trained(record).tokens_per_second_steady
            for name, figures, most in (("peak", _peaks, NEAR), ("time", _step_times, TIME)):
                try:
                    figure = figures(eight, method, record)
                except Skip as reason:  # the row was run all the same
                    row[f"{name} off"] = str(reason)
                    continue
                off = figure.pop("difference")
                row |= figure | {f"{name} off": off}
                if abs(off) > most:
                    table.wrong.append(f"{method}: the planned {name} is {off:+.1%} off")
    rates = [f"{row['method']} {row['tokens/s']:,.0f} tokens/s" for row in table.rows if "tokens/s" in row]
    return table.check("; ".join([", ".join(rates), *table.wrong, *table.skipped]))


def quickstart(bench: Bench) -> Check:
    """The losses of the quickstart against those of a CPU, in results/reference/quickstart.

    The first loss is of the same weights on the same batch. bf16 keeps 8 bits; in a mean over hundreds of tokens its
    rounding leaves less than 1%. After 20 steps at five times the usual learning rates the runs have diverged further:
    5%. At the usual rates, bf16 and fp32 on one CPU differ by up to 1% (benchmarks/RESULTS.md).
    """
    if bench.model != ["model=smollm2_135m"]:
        raise Skip("it requires the embedded SmolLM2")
    table = Rows(strict=True)
    for reference in read_study(REFERENCE)[0]:
        with table.row(method=reference.cell.method) as row:
            config = bench.config(f"method={reference.cell.method}", name="quickstart")
            row |= against(reference, bench.record(from_config(config), "quickstart"))
            table.wrong += [f"{row['method']}: {row['apart']}"] if row["apart"] else []
    agree = sum(row.get("apart") == "" for row in table.rows)
    furthest = max((row["last"] for row in table.rows if "last" in row), key=abs, default=math.nan)
    detail = f"{agree} of {len(table.rows)} methods agree, validation losses within {abs(furthest):.1%}"
    return table.check("; ".join([detail, *table.wrong]))


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
    "time": Step(planned_time, 10),
    "calibrate": Step(calibrated_time, 60),
    "devices": Step(several_gpus, 60),
    "vllm": Step(vllm, 60),
    "large": Step(large, 180),
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
        check = Check("failed", in_words(error))
    about = (inspect.getdoc(step.take) or "").partition("\n")[0].rstrip(".")
    return replace(check, name=name, about=about, seconds=time.monotonic() - begun)
