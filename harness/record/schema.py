"""What a record holds, field by field.

Units: bytes, seconds, tokens. What was not measured is ``null``; there are no sentinels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from harness.settings import EvalSettings, Settings

SCHEMA = 2

Status = Literal["ok", "failed", "oom", "diverged", "unfit"]
TrackerName = Literal["tensorboard", "mlflow", "wandb", "trackio"]  # each is also the name of its package


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
    """One point of the grid. `settings` is all that decides its result; `id` is the hash of its canonical form.

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
    settings: Settings


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

    tasks: those of the record's scores that are of it. settings: what they were asked by; environment, phases: as in a
    record. started: in UTC.
    """

    tasks: list[str]
    started: str
    settings: EvalSettings
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


def micro_batches(record: Record) -> tuple[int, int] | None:
    """Sequences (or packs) a micro-batch, and micro-batches a step, as the cell ran; None where that is not known."""
    if (ran := record.smaller_batches) is not None:
        return ran.batch_size, ran.grad_accum
    train = record.cell.settings.train
    if train.sizes_itself or train.batch_size is None:
        return None
    return train.batch_size, train.grad_accum or 1
