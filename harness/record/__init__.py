"""The record: the one file that a cell leaves behind, and the only contract between running and comparing.

A record is one JSON file, typed, versioned and complete, also when the cell failed. Beside it lie the
items that were scored (``NAME.items.parquet``), the full log (``NAME.log``) and, where that was asked for, the tuned
weights (``NAME/``). Standard library only, so that tables can be made on a machine without torch.

Units: bytes, seconds, tokens. What was not measured is ``null``; there are no sentinels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

SCHEMA = 1
STUDY_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*")  # a folder below results, never beside it
TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tmp")  # the name that `temporary` gives

Status = Literal["ok", "failed", "oom", "diverged", "unfit"]
TrackerName = Literal["tensorboard", "mlflow", "wandb", "trackio"]  # each is also the name of its package

CONFIGS = ("adapter_config.json", "config.json")  # of which a saved model has one, beside its weights
CARD = "README.md"

# Text in which a number may be beyond a float's range, or a string end in half of a pair; few records have any.
# Patterns that begin with one letter are searched for ten times as fast as those with a choice.
DOUBTFUL = [re.compile(pattern) for pattern in (r"e\+?\d{3,}[,\s\]}]", r"E\+?\d{3,}[,\s\]}]", r"\\u[dD]")]


class RecordError(Exception):
    """A file that should be a record is not; the message is one sentence for the user."""


@dataclass
class Memory:
    """Peaks of one phase, in bytes; of a cell on several devices each is that of the device which had most.

    allocated_peak: live tensor storages on the device: what CUDA's allocator says; on CPU a count of our own, in phases
        that such a count does not slow much (load, probe).
    reserved_peak: what CUDA's caching allocator held; null on CPU, which has no such allocator.
    device_process: what NVML says the process held on the device at the window's end, its context included; null
        where NVML does not say.
    process_peak: the process's resident set on the host.
    reserved_p99: of what was reserved after each training step, the 99th percentile; only imported records tell it.
    """

    allocated_peak: int | None = None
    reserved_peak: int | None = None
    device_process: int | None = None
    process_peak: int | None = None
    reserved_p99: int | None = None


@dataclass
class Kinds:
    """Bytes of live tensor storages, by what they hold; a quantised matrix counts what it takes, scales included.

    weights: the base model's parameters and buffers; adapters: what the method added to them; optimizer: its state;
    activations: everything else: saved activations, temporaries, the batch.
    """

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int


@dataclass
class Probe:
    """Live tensors of two optimizer steps on the largest batch, taken apart from the timed ones.

    Of an untuned model: of one pass without gradients over the largest validation batch. Of several devices: of the one
    with the highest peak.

    peak: at the moment when their sum was greatest.
    resident: after the second step, gradients freed: what is held between steps.
    gradients: of all trainable weights, when the last is there; none of them may be left at the peak.
    flops_per_token: of the last step (or pass), a padded token, by torch's counter of matrix products and attention.
    recomputed_flops_per_token: likewise, of what gradient checkpointing did again, which is no part of the former: so
        utilisation is of the model's operations.
    attention: operations of attention that ran in that step, by name and dtype of the query, and how often:
        ``varlen bfloat16``, one kernel for all sequences of a row; ``flash``, ``efficient``, ``cudnn`` or
        ``flash_for_cpu``, a fused one for a padded batch, or for sequences of one length; ``math`` or ``eager``,
        products and a softmax, whose dtype it is then. Empty in records from before it was taken.
    """

    peak: Kinds
    resident: Kinds
    gradients: int
    flops_per_token: float
    attention: dict[str, int] = field(default_factory=dict)
    recomputed_flops_per_token: float = 0.0


@dataclass
class Phase:
    """One window of a job (load, probe, train, infer, merge, score, …); no window overlaps another.

    Imported records may have `job`, which is all of it, where their source tells no phases apart.
    """

    seconds: float
    memory: Memory


@dataclass
class Parameters:
    """Counts of weights; a quantised matrix counts its logical elements, not its packed bytes."""

    total: int
    trainable: int


@dataclass
class Tokens:
    """Tokens by name: raw (non-padding), padded (what the device computed on), supervised (in the loss).

    The harness counts all three; an imported record may know the first alone.
    """

    raw: int
    padded: int | None
    supervised: int | None


@dataclass
class LossPoint:
    """Training loss of one optimizer step: mean over its supervised tokens, in nats.

    grad_norm: of all gradients, before clipping; null where the backward pass itself used them up, one by one.
    """

    step: int
    tokens: int
    loss: float
    lr: float
    grad_norm: float | None


@dataclass
class ValidationPoint:
    """Loss on held-out answers after `step` steps and `tokens` raw training tokens, in nats per token."""

    step: int
    tokens: int
    loss: float


@dataclass
class Train:
    """What the training loop measured. Of several devices that train together: tokens of all, seconds of the slowest.

    step_seconds: each optimizer step from first forward to zeroed gradients, synchronised on both
        sides; data preparation and validation lie outside.
    warmup_steps: how many first steps the steady rate leaves out, and as many after each resume.
    tokens_per_second_steady: median over the steps after warm-up of raw tokens / seconds.
    tokens_per_second_amortised: all raw tokens / all step seconds, first steps and GaLore's SVDs included.
    batches: hash of the token ids in the order they were trained on; equal for cells that saw the same.
    laps: the parts of each step by name, in seconds: forward, backward, optimizer (clipping included). Where the loss
        is taken chunk by chunk (the speed-up fused_loss), the head's gradients are computed in forward.
    joules: over all steps, of the whole devices (NVML) or processor package (RAPL); null where neither can be read.
    save_every: steps between checkpoints, which are made outside of what is timed; null if none were.
    resumed_at: after how many steps the process had ended and another went on from a checkpoint. What is measured here,
        and in the phase train, is of them all; the other phases, `started` and `seconds` are the last process's.
    compile_seconds: of each step, what torch.compile took of it, without caches; empty if nothing is compiled. Steps in
        which something was are no part of the steady rate.

    step_seconds and loss are empty, the steady rate and batches null in imported records that know no single steps.
    """

    steps: int
    tokens: Tokens
    step_seconds: list[float]
    warmup_steps: int
    tokens_per_second_steady: float | None
    tokens_per_second_amortised: float
    loss: list[LossPoint]
    batches: str | None
    laps: dict[str, list[float]] = field(default_factory=dict)
    joules: float | None = None
    save_every: int | None = None
    resumed_at: list[int] = field(default_factory=list)
    compile_seconds: list[float] = field(default_factory=list)

    def steady_steps(self) -> list[int]:
        """Indices of the steps that the steady rate is of: all but those of a warm-up or compilation, or the last."""
        begins = (0, *self.resumed_at)
        left_out = {i for begin in begins for i in range(begin, begin + self.warmup_steps)}
        left_out |= {i for i, seconds in enumerate(self.compile_seconds) if seconds}
        steps = range(len(self.step_seconds))
        return [i for i in steps if i not in left_out] or list(steps[-1:])


@dataclass
class Merge:
    """Whether scoring used merged weights, and how far merging moved the logits of a validation batch.

    dequantised: the base was quantised; its weights were expanded before the adapter was folded in.
    seconds: of folding alone (and of dequantising), without the check of the logits.
    """

    merged: bool
    reason: str | None = None
    max_logit_difference: float | None = None
    dequantised: bool = False
    seconds: float | None = None


@dataclass
class Inference:
    """How fast one form of the model answers: greedy decoding with a cache of keys and values.

    Each repeat reads prompts of `prompt_tokens` and decodes `new_tokens` for `batch_size` sequences at a time.
    prefill_seconds: a repeat's time to the first token; decode_seconds: its time for all tokens after the first,
    of which there are new_tokens - 1 a sequence.
    """

    batch_size: int
    prompt_tokens: int
    new_tokens: int
    prefill_seconds: list[float]
    decode_seconds: list[float]


@dataclass
class Disk:
    """Bytes of safetensors: of the saved adapter (null without one), and of all weights as they are served merged.

    Imported records may know the adapter's alone.
    """

    adapter: int | None
    model: int | None


@dataclass
class Score:
    """One metric of one task over `n` items.

    stderr is the standard error of the mean over items, null for fewer than two items.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    n: int
    num_fewshot: int
    version: str
    higher_is_better: bool


@dataclass
class Overlap:
    """Evaluation items of a task that share `words` words in a row with what a cell trained on.

    looked_at: of the `items` those of 8 words or more (of one with fewer than `words` all its words are taken).
    """

    words: int
    items: int
    looked_at: int
    shared: int


@dataclass
class Api:
    """What the answers of a model behind an API took: those that the scores rest on, also if they came before a crash.

    kind: completions (log-probabilities of given answers, and text) or chat (text alone, in the model's own format):
        not the same measurement.
    requests: how many there are; cached: those of them that another cell of the study had asked, and paid, for.
    tries: requests that failed and were made again, by the last process.
    read, written: tokens of the prompts and of the answers, as the endpoint counts them; null if it does not.
    seconds: of waiting for the answers, summed over requests, `concurrency` of which may be under way at a time.
    price_read, price_written: dollars for a million tokens, as the settings said; null if they did not.
    dollars: for the answers that this cell asked for, at those prices; null without them, or without counts.
    cut: answers that ended at their limit of tokens; null where that was not written down.
    left_out: settings of the tasks that the endpoint refuses; without `temperature` answers are drawn at random.
    """

    kind: Literal["completions", "chat"]
    requests: int
    cached: int
    tries: int
    read: int | None
    written: int | None
    seconds: float
    concurrency: int
    price_read: float | None
    price_written: float | None
    dollars: float | None
    cut: int | None = None
    left_out: list[str] = field(default_factory=list)


@dataclass
class Cell:
    """One point of the grid. `settings` is all that decides its result, resolved; `id` is its hash.

    rank, alpha, lr and seed are null where the method does not use them; `knobs` are the method's own axes.
    """

    id: str
    name: str
    method: str
    model: str
    data: str
    rank: int | None
    alpha: float | None
    lr: float | None
    seed: int | None
    knobs: dict[str, Any]
    settings: dict[str, Any]


@dataclass
class Shortage:
    """Memory on the device, in bytes, at the moment when no more of it could be had.

    weights, adapters, gradients, optimizer: live tensors, as in Kinds. rest: whatever else was allocated: activations,
    temporaries, caches, weights of a model that was still being loaded.
    allocated: all of these, as CUDA's allocator says or as our own count on CPU has it. On CPU tensors are counted in
        the phases load, probe and score alone: in others it and rest are null.
    largest_free: the largest block that could have been had, from the allocator or the device; null on CPU.
    """

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    rest: int | None
    allocated: int | None
    largest_free: int | None


@dataclass
class Failure:
    """Why a cell has no (complete) result: the phase and the training step it was in, if any, and one sentence.

    memory: of a cell that ran out of it.
    """

    phase: str
    step: int | None
    reason: str
    memory: Shortage | None = None


@dataclass
class SmallerBatches:
    """The micro-batches of a cell that were chosen for the device's memory: smaller ones, but more a step.

    That is so where train.batch_size=auto asks for it, and where the cell had run out of memory as it was asked for. A
    step's examples and their order stay as they were; what was asked for is in the cell's settings.

    batch_size: sequences a micro-batch, at most; grad_accum: micro-batches a step; after: the failures that led here.
    planned: the batch_size that was predicted to fit, of train.batch_size=auto; null where nothing could be predicted.
    """

    batch_size: int
    grad_accum: int
    after: list[Failure]
    planned: int | None = None


@dataclass
class Precautions:
    """What was asked for in case that something goes wrong; no part of the cell, since it changes no result.

    timeout: seconds that the cell may take; null for as long as it does. save_every: steps between checkpoints; null
    for none. on_oom: whether it is run again in smaller micro-batches if it runs out of memory.
    """

    timeout: float | None = None
    save_every: int | None = None
    on_oom: bool = False


@dataclass
class Saved:
    """Tuned weights that were saved beside the record, as peft and transformers read them.

    form: an ``adapter``, the ``merged`` model, or the ``model`` of a method that has no adapter.
    files: the SHA-256 of each by its path in the folder, but for README.md: a model card may be edited.
    """

    form: Literal["adapter", "merged", "model"]
    files: dict[str, str]


@dataclass
class Scoring:
    """A scoring after the cell had ended (`harness score`), of its saved weights or, if it is untuned, its base.

    tasks: those of the record's scores that are of it. settings: as `eval` in a cell's; environment, phases: as in a
    record. started: in UTC.
    """

    tasks: list[str]
    started: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    phases: dict[str, Phase]


@dataclass
class Source:
    """Whose measurements an imported record holds.

    project: who made them; file: its name; sha256: of its bytes; notes: one sentence each on what its numbers mean
    where they mean something else than the harness's own.
    """

    project: str
    file: str
    sha256: str
    notes: list[str]


@dataclass
class Record:
    cell: Cell
    study: str
    status: Status
    started: str
    seconds: float
    environment: dict[str, Any]
    failure: Failure | None = None
    precautions: Precautions = field(default_factory=Precautions)  # none in records from before they were kept
    smaller_batches: SmallerBatches | None = None  # null if it was run as it was asked for
    # As in harness.config.Config; none in records from before they were kept:
    save: Literal["none", "adapter", "merged"] = "none"
    tracker: TrackerName | None = None
    parameters: Parameters | None = None
    phases: dict[str, Phase] = field(default_factory=dict)
    probe: Probe | None = None
    train: Train | None = None
    validation: list[ValidationPoint] = field(default_factory=list)
    merge: Merge | None = None
    inference: dict[str, Inference] = field(default_factory=dict)  # by form: base, unmerged, merged
    disk: Disk | None = None
    api: Api | None = None  # of a model behind an API; null for weights that were here
    scores: list[Score] = field(default_factory=list)
    items: dict[str, Any] = field(default_factory=dict)
    items_sha256: str | None = None  # of NAME.items.parquet; null without one, and in records from before it was taken
    saved: Saved | None = None  # null where no weights were kept; its folder may have been removed since
    rescored: list[Scoring] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)
    contamination: dict[str, Overlap] = field(default_factory=dict)  # by task; empty where it was not looked for
    source: Source | None = None  # of a record that was imported; null for what the harness ran
    schema: int = SCHEMA


def behind_api(cell: Cell) -> bool:
    """Whether the cell's model is behind an API, so that nothing but its answers is known of it."""
    model = cell.settings.get("model")
    return isinstance(model, dict) and "base_url" in model


def cell_id(settings: dict[str, Any]) -> str:
    """A cell's identity: the SHA-256 of its resolved settings, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def device_count(settings: dict[str, Any]) -> int:
    """How many devices a cell of these settings trains on."""
    train = settings.get("train")  # in an imported record anything
    return train.get("devices", 1) if isinstance(train, dict) else 1


def bits(load: dict[str, Any]) -> int | None:
    """Of the base's matrices, as a method's slot `load` has them quantised; None where they are not."""
    quantised = load.get("quantization_config")
    if not quantised:
        return None
    return 8 if str(quantised.get("_target_")).endswith(".int8") else 4


AUTO = "auto"  # the train.batch_size that is chosen where a cell is run


def micro_batch(train: Mapping[str, Any]) -> int:
    """Sequences (or packs) of a micro-batch that the settings `train` ask for; of `auto` those of the whole step.

    What is trained on in a step depends on nothing else; how it is cut for a device's memory is in SmallerBatches.
    """
    return train["global_batch"] if train["batch_size"] == AUTO else train["batch_size"]


def fits_itself(cell: Cell) -> bool:
    """Whether the cell takes the largest micro-batch that fits: train.batch_size=auto."""
    train = cell.settings.get("train")  # in an imported record anything
    return isinstance(train, dict) and train.get("batch_size") == AUTO


def micro_batches(record: Record) -> tuple[int, int] | None:
    """Sequences (or packs) a micro-batch, and micro-batches a step, as the cell ran; None where that is not known."""
    if (ran := record.smaller_batches) is not None:
        return ran.batch_size, ran.grad_accum
    train = record.cell.settings.get("train")  # in an imported record anything
    if fits_itself(record.cell) or not isinstance(train, dict) or not isinstance(train.get("batch_size"), int):
        return None
    return train["batch_size"], train.get("grad_accum") or 1


def cell_name(cell: Cell) -> str:
    """``lora-r16-a32-lr2e-4-s0-1f3c9a``: for people first, the id's head last; safe as a file's name."""
    parts = [re.sub(r"[^\w.]+", "_", cell.method)]
    for letter, value in (("r", cell.rank), ("a", cell.alpha), ("lr", cell.lr), ("s", cell.seed)):
        if value is not None:
            parts.append(letter + short(value))
    return "-".join([*parts, cell.id[:6]])


def names_a_file(name: str) -> bool:
    """Whether a cell's name can be a file's: one that leads to another folder is nobody's but an attacker's."""
    return name not in ("", ".", "..") and not re.search(r"[/\\\x00]", name)


def short(value: float) -> str:
    """A number as people type it: 16, 0.5, 2e-4."""
    if 0 < abs(value) < 0.01:
        mantissa, exponent = f"{value:.5e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"


def write(record: Record, path: Path) -> None:
    """Write `record` to `path` as JSON, all or nothing: a reader never sees half a file."""
    write_json(dataclasses.asdict(record), path)


def write_json(value: Any, path: Path) -> None:
    """Write `value` to `path`, all or nothing."""
    text = json.dumps(value, indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file in the folder of `path` to be written to, which then takes its place, synced.

    Whatever happens on the way, the file that was there stays whole. An OSError names `path`.
    """
    made = temporary(path)
    try:
        with naming(path):
            yield made
            with open(made, "rb") as file:
                os.fsync(file.fileno())
            os.replace(made, path)
    finally:
        with contextlib.suppress(OSError):  # a read-only folder, in which there is none
            made.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # some file systems sync no folders
        _sync(path.parent)


def place(made: Path, folder: Path) -> None:
    """Put the folder `made` into the place of `folder`, synced; what was there goes. An OSError names `folder`."""
    gone = _aside(folder, "old")
    with naming(folder):
        for path in (*made.rglob("*"), made):
            _sync(path)
        if folder.exists():
            shutil.rmtree(gone, ignore_errors=True)
            os.rename(folder, gone)
        os.rename(made, folder)
    shutil.rmtree(gone, ignore_errors=True)


def beginnings(path: Path) -> list[Path]:
    """Where folders that belong to the record at `path` are made, or were left by a process that died meanwhile."""
    return [_aside(model_folder(path), kind) for kind in ("tmp", "old")]


def _aside(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")


def temporary(path: Path) -> Path:
    """A new name beside `path` for what is to take its place. It tells who is at it, should it be left behind."""
    return path.with_name(f".{path.name}.{machine_tag()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def maker(path: Path) -> tuple[str, int] | None:
    """Whose temporary file or folder `path` is: the tag of a machine and a process there; None if it is none."""
    found = TEMPORARY.fullmatch(path.name)
    return None if found is None else (found[1], int(found[2]))


@functools.cache
def machine() -> str:
    """What must be the same for a process id to mean the same: the boot, and the namespace (a container has its own).

    Names of hosts don't tell: containers may share theirs.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not on Linux
        return socket.gethostname()


def machine_tag() -> str:
    """The machine in few letters, for a file's name."""
    return hashlib.sha256(machine().encode()).hexdigest()[:8]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError within names `path`: those of writing name no file, others a temporary one."""
    try:
        yield
    except OSError as error:
        words = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno or errno.EIO, words, str(path)) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def model_folder(path: Path) -> Path:
    """Where the weights lie that belong to the record at `path`."""
    return path.with_suffix("")


def hashes(folder: Path) -> dict[str, str]:
    """As `Saved.files`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: sha256(path) for name, path in named.items() if name != CARD}


def pending(path: Path) -> Path:
    """Where what will be the record at `path` waits until the items that it was written with are in place."""
    return path.with_name(f".{path.name}.scored")


def settle(path: Path) -> None:
    """End what a process left that died between putting new items and the new record at `path` into place."""
    waiting, items = pending(path), path.with_suffix(".items.parquet")
    if not waiting.exists():
        return
    if items.exists() and read(waiting).items_sha256 == sha256(items):
        os.replace(waiting, path)
    else:
        waiting.unlink()


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path) -> Record:
    """Read one record; RecordError says in a sentence why a file is not one."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text, parse_constant=_finite)
        if any(pattern.search(text) for pattern in DOUBTFUL):
            value = json.loads(text, parse_constant=_finite, parse_float=_finite)
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate would break the table that shows it
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is not complete JSON ({error}); delete it and run its cell again.") from None
    except OSError as error:
        raise RecordError(f"{path} can't be read ({error.strerror}).") from None
    if not isinstance(value, dict) or "schema" not in value or "cell" not in value:
        raise RecordError(f"{path} is JSON but not a record of this harness; move it out of the study's folder.")
    if value["schema"] != SCHEMA:
        raise RecordError(f"{path} has record schema {value['schema']!r}; this version of the harness reads {SCHEMA}.")
    try:
        found = decode(Record, value)
        _check_reckoned(value)
        if not names_a_file(found.cell.name):
            raise _Misfit(f"is {found.cell.name!r}, which names no file of the study", ".cell.name")
        return found
    except (_Misfit, OverflowError) as error:
        raise RecordError(f"{path} is a damaged record ({error}); delete it and run its cell again.") from None


# Of settings and environment, which are free, what reports reckon with; any of it may be left out.
RECKONED: dict[str, type] = {
    "cell.settings.train": dict,
    "cell.settings.train.max_steps": int,
    "cell.settings.train.batch_size": int,
    "cell.settings.train.global_batch": int,
    "cell.settings.train.grad_accum": int,
    "cell.settings.method.adapt": dict,
    "environment.boot": str,
    "environment.cpu.name": str,
    "environment.cpu.memory_bytes": int,
    "environment.device.matmul_flops_per_second": float,
}


def _check_reckoned(value: dict[str, Any]) -> None:
    """Raise _Misfit for the first of RECKONED that is of another type in a record's JSON."""
    for way, kind in RECKONED.items():
        found: Any = value
        for key in way.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        if key == "batch_size" and found == AUTO:
            continue
        try:
            _decoder(kind | None)(found)
        except _Misfit as misfit:
            misfit.way = f".{way}"
            raise


def read_study(folder: Path) -> tuple[list[Record], list[str]]:
    """All records of a study's folder, by name, and one sentence for each JSON file that is not one."""
    records, problems = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(read(path))
        except RecordError as error:
            problems.append(str(error))
        if len(records) > 1 and records[-1].items == records[-2].items:
            records[-1].items = records[-2].items  # one list for all, not one of thousands of items for each
    return records, problems


def studies(results: Path) -> list[str]:
    """Names of the studies below `results`: folders, at any depth, that hold a JSON file.

    Neither hidden ones nor saved models count.
    """
    found = list(results.rglob("*.json"))
    configured = {path.parent for path in found if path.name in CONFIGS}
    models = {folder for folder in configured if any(folder.glob("*.safetensors"))}
    folders = {path.parent.relative_to(results) for path in found if path.parent not in models}
    return sorted(f.as_posix() for f in folders if f.parts and not any(part.startswith(".") for part in f.parts))


def _finite(number: str) -> float:
    """The number that JSON spells so; ValueError for NaN and infinities, which Python's json would let pass."""
    if not math.isfinite(float(number)):
        raise ValueError(f"the number {number} is not finite")
    return float(number)


def decode(kind: Any, value: Any) -> Any:
    """`value` (from JSON) as `kind`; a ValueError names the field that does not fit."""
    return _decoder(kind)(value)


class _Misfit(ValueError):
    """A value that is not what the schema says; those who pass it on prepend the way to it."""

    def __init__(self, what: str, way: str = ""):
        self.what, self.way = what, way

    def __str__(self) -> str:
        return f"{self.way.removeprefix('.') or 'the record'} {self.what}"


@functools.cache
def _decoder(kind: Any) -> Callable[[Any], Any]:
    """What makes a value from JSON a `kind`, or raises _Misfit. Made once a kind: studies have thousands of records."""
    if dataclasses.is_dataclass(kind):
        return _object_decoder(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (list, dict):
        return _container_decoder(origin, arguments[-1])
    if origin in (types.UnionType, typing.Union):  # the latter with a Literal
        (inner,) = [_decoder(a) for a in arguments if a is not types.NoneType]
        return lambda value: None if value is None else inner(value)

    def decode(value: Any) -> Any:
        if kind is Any or type(value) is kind:
            return value
        if origin is Literal:
            if value in arguments:
                return value
            raise _Misfit(f"is {value!r}, which is none of {', '.join(map(repr, arguments))}")
        if kind is float and type(value) is int:
            return float(value)
        raise _Misfit(f"should be of type {kind.__name__}, not {type(value).__name__}")

    return decode


def _object_decoder(kind: type) -> Callable[[Any], Any]:
    hints = typing.get_type_hints(kind)
    decoders = {name: _decoder(hint) for name, hint in hints.items()}
    fields = dataclasses.fields(kind)
    missing = dataclasses.MISSING
    required = {f.name for f in fields if f.default is missing and f.default_factory is missing}

    def decode(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _Misfit("should be an object")
        if not value.keys() <= decoders.keys():
            raise _Misfit(f"has the unknown field {min(value.keys() - decoders.keys())!r}")
        if not required <= value.keys():
            raise _Misfit("is missing", f".{min(required - value.keys())}")
        found = {}
        try:
            for name, part in value.items():
                found[name] = part if type(part) is hints[name] else decoders[name](part)
        except _Misfit as misfit:
            misfit.way = f".{name}{misfit.way}"
            raise
        return kind(**found)

    return decode


def _container_decoder(container: type, kind: Any) -> Callable[[Any], Any]:
    inner = _decoder(kind)
    plain = {kind} if kind in (int, float, str) else set()

    def decode(value: Any) -> Any:
        if type(value) is not container:
            raise _Misfit("should be a list" if container is list else "should be an object")
        if container is list and value and set(map(type, value)) == plain:
            return value
        found = {}
        try:
            for i, part in enumerate(value) if container is list else value.items():
                found[i] = inner(part)
        except _Misfit as misfit:
            misfit.way = (f"[{i}]" if container is list else f".{i}") + misfit.way
            raise
        return list(found.values()) if container is list else found

    return decode
