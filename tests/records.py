"""Fixture records for tests: plausible numbers of a small model, the same on every call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from harness.record import (
    ApiUsage,
    Cell,
    Disk,
    Failure,
    HeldOut,
    Inference,
    Kinds,
    Memory,
    Merge,
    Parameters,
    Phase,
    Probe,
    Record,
    Score,
    Status,
    Tokens,
    Train,
    ValidationPoint,
    cell_name,
    sealed,
    sha256,
    write,
)
from harness.settings import Settings, cell_id

MIB = 2**20
SEEN = {"flash_for_cpu float32": 30}  # of attention, in a step
TOTAL = 134_515_008
UNTRAINED = ("base", "base_nf4", "api")

# method: trainable weights, MiB in training, steady and amortised tokens/s, validation loss, exact match
METHODS = {
    "base": (0, None, None, None, 2.345, 0.180),
    "base_nf4": (0, None, None, None, 2.401, 0.165),
    "full": (TOTAL, 2048, 400.0, 396.0, 1.2346, 0.250),
    "lora": (4_884_480, 1024, 500.0, 495.0, 1.2501, 0.230),
    "qlora": (4_884_480, 512, 300.0, 297.0, 1.2703, 0.220),
    "dora": (5_160_960, 1126, 350.0, 347.0, 1.2400, 0.235),
    "galore": (TOTAL, 1331, 380.0, 285.0, 1.2600, 0.225),
}

ENVIRONMENT = {
    "versions": {"torch": "2.11.0", "transformers": "5.1.0", "peft": "0.18.0", "lm_eval": "0.4.12"},
    "device": {"type": "cuda", "name": "NVIDIA H100", "memory_bytes": 80 * 2**30},
    "precision": "bf16",
    "threads": 2,
    "git": {"commit": "0123456789abcdef", "dirty": False},
}


def make_score(value: float = 0.23, stderr: float | None = 0.03, **fields: Any) -> Score:
    """GSM8K's exact match over 200 items, unless `fields` say otherwise."""
    defaults = {"task": "gsm8k", "metric": "exact_match", "filter": "strict-match", "n": 200, "num_fewshot": 5}
    return Score(value=value, stderr=stderr, **(defaults | {"version": "3.0", "higher_is_better": True} | fields))


def make_record(
    method: str = "lora",
    rank: int | None = None,
    alpha: float | None = None,
    lr: float | None = None,
    seed: int | None = 0,
    *,
    status: Status = "ok",
    scores: list[Score] | None = None,
    knobs: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    model: str = "smollm2-135m",
    data: str = "gsm8k",
    study: str = "demo",
    environment: dict[str, Any] | None = None,
) -> Record:
    """A record of `method` as the first version of the harness left it: `measured` adds what others do.

    A status other than ok means that training stopped at step 3 and scored nothing; unfit that nothing was started.
    """
    trainable, mib, steady, amortised, loss, accuracy = METHODS.get(method, METHODS["lora"])
    trained = method not in UNTRAINED
    if not trained:
        seed = None
    usual = {"model": {"name": model}, "data": {"name": data}, "train": {"max_steps": 50}}
    usual |= {"axes": {"rank": rank, "alpha": alpha, "lr": lr} | (knobs or {})} | (settings or {})
    resolved = changed(Settings(seed=seed), **usual)
    resolved = changed(resolved, method={"name": method}) if resolved.method.name is None else resolved
    key = cell_id(resolved)[:6]
    parts = {"r": rank, "a": alpha, "lr": lr, "s": seed}
    name = "-".join([method, *(f"{k}{v:g}" for k, v in parts.items() if v is not None), key])
    record = Record(
        cell=Cell(key, name, method, model, data, rank, alpha, lr, seed, knobs or {}, resolved),
        study=study,
        status=status,
        started="2026-01-02T03:04:05+00:00",
        seconds=120.0,
        environment=ENVIRONMENT if environment is None else environment,
        parameters=Parameters(TOTAL + (trainable if trainable != TOTAL else 0), trainable),
        phases={"load": Phase(2.0, _memory(300, 320, 900))},
    )
    if trained:
        record.phases["train"] = Phase(60.0, _memory(mib, mib + 64, 3000))
    if status == "unfit":
        record.parameters, record.phases, record.seconds = None, {}, 0.0
        record.failure = Failure("plan", None, "It needs 96.0 GiB of 80.0 GiB. Lower the batch size.")
        return record
    if status != "ok":
        reason = {"oom": "CUDA out of memory. Tried to allocate 2.00 GiB.", "diverged": "The loss is not finite."}
        record.failure = Failure("train", 3, reason.get(status, "RuntimeError: the weights | were lost"))
        return record
    if trained:
        tokens = Tokens(raw=20_000, padded=25_600, supervised=9_000)
        seconds = [20_000 / amortised / 50] * 50
        record.train = Train(50, tokens, seconds, 2, steady, amortised, [], "b" * 16)
        record.validation = [ValidationPoint(25, 10_000, loss + 0.2), ValidationPoint(50, 20_000, loss)]
    else:
        record.validation = [ValidationPoint(0, 0, loss)]
    record.phases["score"] = Phase(30.0, _memory(400, 420, 1500))
    record.scores = [make_score(accuracy)] if scores is None else scores
    return record


def make_answered(kind: str = "chat", name: str = "far-away", value: float = 0.4, **fields: Any) -> Record:
    """The record of a model behind an API that was asked by `kind`."""
    task = "gsm8k (chat)" if kind == "chat" else "gsm8k"
    settings = {"model": {"name": name, "base_url": "https://host/v1"}, "train": {}}
    record = make_record("api", model=name, settings=settings, scores=[make_score(value, task=task)])
    record.environment = {name: part for name, part in ENVIRONMENT.items() if name in ("versions", "git")}
    record.parameters, record.validation = None, []
    record.phases = {"score": Phase(30.0, Memory())}
    usual = {"requests": 200, "cached": 0, "tries": 0, "read": 50_000, "written": 10_000, "seconds": 400.0}
    usual |= {"concurrency": 8, "price_read": 0.5, "price_written": 1.5, "dollars": 0.04}
    record.api = ApiUsage(kind=kind, **(usual | fields))
    return record


def measured(record: Record, slowdown: float = 1.0) -> Record:
    """`record`, with what it cost in detail; `slowdown` is of decoding."""
    adapter = record.cell.method not in (*UNTRAINED, "full", "galore")
    if train := record.train:
        train.laps = {
            name: [share * seconds for seconds in train.step_seconds]
            for name, share in {"forward": 0.3, "backward": 0.6, "optimizer": 0.1}.items()
        }
        train.joules = 50_000.0
        record.probe = Probe(_kinds(513, 19, 0, 37, 346), _kinds(513, 19, 0, 37, 0), 19 * MIB, 2e9, SEEN)
    elif record.cell.method in UNTRAINED:
        record.probe = Probe(_kinds(513, 0, 0, 0, 96), _kinds(513, 0, 0, 0, 0), 0, 6e8, SEEN)
    device = record.environment["device"] | {"matmul_flops_per_second": 4e12}
    record.environment = record.environment | {"device": device}
    fast = Inference(8, 128, 65, [0.24, 0.25, 0.26], [slowdown * seconds for seconds in (0.63, 0.64, 0.65)])
    slow = Inference(8, 128, 65, [0.5, 0.5, 0.5], [slowdown * 1.28] * 3)
    disabled = Inference(8, 128, 65, [0.2] * 3, [0.512] * 3)
    record.inference = {"merged" if record.train else "base": fast}
    if adapter:
        record.inference |= {"base": disabled, "unmerged": slow}
    record.merge = Merge(True, None, 0.001, seconds=0.125) if adapter else None
    record.held_out = HeldOut(3_000, 9_000)
    record.disk = Disk(18 * MIB if adapter else None, 257 * MIB)
    return record


def changed(settings: Settings, **groups: Any) -> Settings:
    """`settings` with other fields, as `changed(settings, train={"batch_size": 4})`; what is no field is in `other`."""
    for name, value in groups.items():
        if name not in vars(settings):
            settings = replace(settings, other=settings.other | {name: value})
        elif isinstance(value, dict):
            part = getattr(settings, name)
            known = {field: value[field] for field in value.keys() & vars(part).keys()}
            settings = replace(settings, **{name: replace(part, **known)})
            if rest := {field: of for field, of in value.items() if field not in known}:
                settings = replace(settings, other=settings.other | {name: settings.other.get(name, {}) | rest})
        else:
            settings = replace(settings, **{name: value})
    return settings


def change(record: Record, **groups: Any) -> None:
    """Give the cell of `record` other settings, as `changed`."""
    record.cell.settings = changed(record.cell.settings, **groups)


def _kinds(*mib: int) -> Kinds:
    return Kinds(*(n * MIB for n in mib))


def _memory(allocated: int, reserved: int, process: int) -> Memory:
    return Memory(allocated * MIB, reserved * MIB, process_peak=process * MIB)


def make_study() -> list[Record]:
    """Base, its NF4 form and five methods, one seed each; QLoRA ran out of memory at rank 64."""
    return [
        make_record("galore", 16, None, 1e-3, knobs={"scale": 0.25}),
        make_record("dora", 16, 32.0, 2e-4),
        make_record("qlora", 64, 128.0, 2e-4, status="oom"),
        make_record("qlora", 16, 32.0, 2e-4),
        make_record("lora", 16, 32.0, 2e-4),
        make_record("full", None, None, 2e-5),
        make_record("base_nf4"),
        make_record("base"),
    ]


def reseal(path: Path, value: dict[str, Any]) -> None:
    """Write `value`, a record's JSON that was changed, to `path` as its writer would have: under a hash that fits."""
    path.write_bytes(sealed({key: part for key, part in value.items() if key != "sha256"}))


def sound(record: Record, folder: Path, values: tuple[float, ...] = (1.0, 0.0, 0.0, 1.0)) -> Path:
    """Lay `record` down in `folder` as `verify` wants it: under its settings' id and name, each score with its items.

    values: of the items of every score, in order. Returns the record's path.
    """
    cell = record.cell
    cell.id = cell_id(cell.settings)
    cell.name = cell_name(cell)
    path = folder / f"{cell.name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for score in record.scores:
        score.n, score.value = len(values), sum(values) / len(values)
        same = {"task": score.task, "subject": score.task, "filter": score.filter, "metric": score.metric}
        rows += [same | {"item": i, "value": value} for i, value in enumerate(values)]
    if rows:
        items = path.with_suffix(".items.parquet")
        pq.write_table(pa.Table.from_pylist(rows), items)
        record.items_sha256 = sha256(items)
    write(record, path)
    return path
