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
    """Memory peaks of one phase in bytes. On several devices, those of the device with the highest peak."""

    allocated_peak: int | None = None
    """Live tensor storages on the device. CUDA: the allocator's figure. CPU: our own count, only in phases that it does
    not slow much (load, probe)."""
    reserved_peak: int | None = None
    """Memory held by CUDA's caching allocator. null on CPU, which has no such allocator."""
    device_process: int | None = None
    """Memory of the process on the device at the end of the phase, its context included, from NVML. null where NVML
    does not report it."""
    process_peak: int | None = None
    """Resident set of the process on the host."""
    reserved_p99: int | None = None
    """99th percentile of reserved memory after each training step. Imported records only."""


@dataclass
class Kinds:
    """Bytes of live tensor storages by kind. Quantised weights count with their scales."""

    weights: int
    """Parameters and buffers of the base model."""
    adapters: int
    """Parameters that the method added."""
    gradients: int
    """Gradients of trainable weights."""
    optimizer: int
    """Optimizer state."""
    activations: int
    """Everything else: saved activations, temporaries, the batch."""


@dataclass
class Probe:
    """Live tensors in two untimed optimizer steps on the largest batch. Of an untuned model: in one forward pass over
    the largest validation batch. On several devices, those of the device with the highest peak."""

    peak: Kinds
    """Bytes by kind at the moment of their largest sum."""
    resident: Kinds
    """Bytes by kind after the second step, without gradients: what stays between steps."""
    gradients: int
    """Bytes of all gradients when the last one is there. At the peak some may be freed already."""
    flops_per_token: float
    """FLOPs per padded token in the last step (or pass), from torch's counter of matrix products and attention."""
    attention: dict[str, int] = field(default_factory=dict)
    """Attention operations in the last step, by name and dtype of the query, and their number. varlen: one kernel for
    all sequences of a row. flash, efficient, cudnn, flash_for_cpu: a fused kernel for a padded batch or sequences of
    one length. math, eager: products and a softmax, with the softmax's dtype."""
    recomputed_flops_per_token: float = 0.0
    """FLOPs per padded token that gradient checkpointing recomputed. Not part of flops_per_token."""


@dataclass
class Phase:
    """One window of a job: load, probe, train, infer, merge, score and others. Windows do not overlap. Imported records
    may have one window, `job`."""

    seconds: float
    """Duration in seconds."""
    memory: Memory
    """Memory peaks."""


@dataclass
class Parameters:
    """Counts of weights. A quantised matrix counts its logical elements, not its packed bytes."""

    total: int
    """All weights."""
    trainable: int
    """Trained weights."""


@dataclass
class Tokens:
    """Training tokens by name. An imported record may have raw tokens only."""

    raw: int
    """Tokens without padding."""
    padded: int | None
    """Tokens that the device computed on."""
    supervised: int | None
    """Tokens in the loss."""


@dataclass
class LossPoint:
    """Training loss of one optimizer step."""

    step: int
    """Number of the step, from 1."""
    tokens: int
    """Raw training tokens up to this step."""
    loss: float
    """Mean over the step's supervised tokens, in nats per token."""
    lr: float
    """Learning rate."""
    grad_norm: float | None
    """Norm of the whole gradient before clipping. null if the backward pass consumes gradients one by one."""


@dataclass
class ValidationPoint:
    """Validation loss at one point of the training."""

    step: int
    """Optimizer steps before it."""
    tokens: int
    """Raw training tokens before it."""
    loss: float
    """Mean over held-out answers, in nats per token."""


@dataclass
class Train:
    """What the training loop measured. On several devices: tokens of all, seconds of the slowest. Imported records
    without single steps have empty step_seconds and loss, and null for the steady rate and batches."""

    steps: int
    """Optimizer steps."""
    tokens: Tokens
    """Tokens of all steps."""
    step_seconds: list[float]
    """Seconds of each optimizer step, from the first forward pass to zeroed gradients, synchronised on both sides.
    Loading of data and validation lie outside."""
    warmup_steps: int
    """First steps that the steady rate leaves out, also after each resume."""
    tokens_per_second_steady: float | None
    """Raw tokens per second: median over steps after warm-up."""
    tokens_per_second_amortised: float
    """All raw tokens over all step seconds, including first steps and GaLore's decompositions."""
    loss: list[LossPoint]
    """Training loss of each step."""
    batches: str | None
    """Hash of the token ids in training order. Equal for cells that saw the same batches."""
    laps: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of each step's parts: forward, backward, optimizer (with clipping). Where the loss is computed in chunks
    (speed-up fused_loss), the head's gradients belong to forward."""
    joules: float | None = None
    """Energy of all steps, of whole devices (NVML) or the processor package (RAPL). null where neither can be read."""
    save_every: int | None = None
    """Steps between checkpoints, which are made outside of timed steps. null: no checkpoints."""
    resumed_at: list[int] = field(default_factory=list)
    """Steps after which the process ended and another one resumed from a checkpoint. Figures of training cover all
    processes. Other phases, `started` and `seconds` are those of the last process."""
    compile_seconds: list[float] = field(default_factory=list)
    """Seconds of torch.compile in each step, without caches. Empty without compilation. The steady rate leaves such
    steps out."""

    def steady_steps(self) -> list[int]:
        """Indices of the steps behind the steady rate: none of warm-up or compilation; else the last step."""
        begins = (0, *self.resumed_at)
        left_out = {i for begin in begins for i in range(begin, begin + self.warmup_steps)}
        left_out |= {i for i, seconds in enumerate(self.compile_seconds) if seconds}
        steps = range(len(self.step_seconds))
        return [i for i in steps if i not in left_out] or list(steps[-1:])


@dataclass
class Merge:
    """Whether scoring used merged weights."""

    merged: bool
    """true if the adapter was folded into the weights for scoring."""
    reason: str | None = None
    """Why it was not merged. null if it was."""
    max_logit_difference: float | None = None
    """Largest difference that merging made to the logits of a validation batch."""
    dequantised: bool = False
    """true if the base was quantised and was expanded before the adapter was folded in."""
    seconds: float | None = None
    """Seconds of folding, and of dequantising, without the check of the logits."""


@dataclass
class Inference:
    """Speed of one form of the model: greedy decoding with a KV cache."""

    batch_size: int
    """Sequences at a time."""
    prompt_tokens: int
    """Tokens read per sequence."""
    new_tokens: int
    """Tokens written per sequence."""
    prefill_seconds: list[float]
    """Seconds to the first token, in each repeat."""
    decode_seconds: list[float]
    """Seconds for all tokens after the first (new_tokens - 1 per sequence), in each repeat."""


@dataclass
class Disk:
    """Size as safetensors, in bytes. Imported records may have the adapter's only."""

    adapter: int | None
    """The saved adapter. null without one."""
    model: int | None
    """All weights as they are served, merged."""


@dataclass
class Score:
    """One metric of one task."""

    task: str
    """lm-eval task or group."""
    metric: str
    """Name of the metric."""
    filter: str
    """lm-eval filter that extracts the answer."""
    value: float
    """Mean over items."""
    stderr: float | None
    """Standard error of the mean over items. null for fewer than two items."""
    n: int
    """Items."""
    num_fewshot: int
    """Examples before each question."""
    version: str
    """Version of the task."""
    higher_is_better: bool
    """Direction of the metric."""


@dataclass
class Overlap:
    """Evaluation items of a task that share an n-gram with the training data: possible contamination."""

    words: int
    """Words per n-gram."""
    items: int
    """Items of the task."""
    looked_at: int
    """Items of 8 words or more. Of an item shorter than an n-gram, all its words are compared."""
    shared: int
    """Items that share an n-gram with the training data."""


@dataclass
class Api:
    """Cost of the answers behind the scores, of a model behind an API. Includes answers from before a crash."""

    kind: Literal["completions", "chat"]
    """completions (log-probabilities and text) or chat (text only, in the model's own format). These are different
    measurements."""
    requests: int
    """Answers that the scores rest on."""
    cached: int
    """Answers that another cell of the study had requested and paid for."""
    tries: int
    """Failed requests that the last process repeated."""
    read: int | None
    """Prompt tokens as counted by the endpoint. null if it does not count."""
    written: int | None
    """Answer tokens as counted by the endpoint. null if it does not count."""
    seconds: float
    """Waiting time in seconds, summed over requests. Up to `concurrency` requests wait at a time."""
    concurrency: int
    """Requests at a time."""
    price_read: float | None
    """Dollars per million prompt tokens, from the settings."""
    price_written: float | None
    """Dollars per million answer tokens, from the settings."""
    dollars: float | None
    """Price of the answers that this cell requested. null without prices or counts."""
    cut: int | None = None
    """Answers that ended at their token limit. null if unknown."""
    left_out: list[str] = field(default_factory=list)
    """Task settings that the endpoint refuses. Without temperature, answers are random."""


@dataclass
class Cell:
    """One point of the grid."""

    id: str
    """Hash of the settings' canonical form."""
    name: str
    """Method, axes and the beginning of the id. Also the name of its files."""
    method: str
    """Name of the method."""
    model: str
    """Name of the model."""
    data: str
    """Name of the data, with limit and noise."""
    rank: int | None
    """Rank. null if the method does not use it."""
    alpha: float | None
    """Alpha. null if the method does not use it."""
    lr: float | None
    """Learning rate. null if the method does not use it."""
    seed: int | None
    """Seed of the training. null of an untuned model."""
    knobs: dict[str, Any]
    """Hyperparameters of this method alone."""
    settings: Settings
    """All settings that decide the result."""


@dataclass
class Shortage:
    """Memory on the device when no more of it was available, in bytes."""

    weights: int
    """Live tensors, as in Kinds."""
    adapters: int
    """Live tensors, as in Kinds."""
    gradients: int
    """Live tensors, as in Kinds."""
    optimizer: int
    """Live tensors, as in Kinds."""
    rest: int | None
    """Everything else that was allocated: activations, temporaries, caches, weights of a model during loading. null on
    CPU outside of the phases load, probe and score."""
    allocated: int | None
    """Sum of all, from CUDA's allocator or our own count on CPU. null on CPU outside of the phases load, probe and
    score."""
    largest_free: int | None
    """Largest block that was available from allocator or device. null on CPU."""


@dataclass
class Failure:
    """Why a cell has no complete result."""

    phase: str
    """Phase in which it failed."""
    step: int | None
    """Training step in which it failed. null outside of training."""
    reason: str
    """One sentence."""
    memory: Shortage | None = None
    """Memory at an out-of-memory error. null for other failures."""


@dataclass
class SmallerBatches:
    """Micro-batches chosen for the device's memory, with train.batch_size=auto or after an out-of-memory error.
    Examples of a step and their order stay the same. The cell's settings hold what was requested."""

    batch_size: int
    """Sequences per micro-batch, at most."""
    grad_accum: int
    """Micro-batches per step."""
    after: list[Failure]
    """Failures that led to this choice."""
    planned: int | None = None
    """Predicted batch_size with train.batch_size=auto. null without a prediction."""


@dataclass
class Precautions:
    """Settings for the case that something goes wrong. They change no result, so they are not part of the cell."""

    timeout: float | None = None
    """Time limit in seconds. null: none."""
    save_every: int | None = None
    """Steps between checkpoints. null: no checkpoints."""
    on_oom: bool = False
    """Whether an out-of-memory error leads to smaller micro-batches."""


@dataclass
class Saved:
    """Tuned weights saved beside the record, in the format of peft and transformers."""

    form: Literal["adapter", "merged", "model"]
    """adapter, merged (the model with the adapter folded in), or model (of a method without adapter)."""
    files: dict[str, str]
    """SHA-256 of each file by its path in the folder. README.md, the model card, may be edited and is left out."""


@dataclass
class Scoring:
    """A later scoring by `harness score`, of saved weights or of the untuned model."""

    tasks: list[str]
    """Tasks of this scoring, whose scores are in the record."""
    started: str
    """Time in UTC."""
    settings: EvalSettings
    """Evaluation settings."""
    environment: dict[str, Any]
    """As in the record."""
    phases: dict[str, Phase]
    """As in the record."""


@dataclass
class Source:
    """Origin of an imported record."""

    project: str
    """Project that made the measurements."""
    file: str
    """Name of its file."""
    sha256: str
    """SHA-256 of the file."""
    notes: list[str]
    """One sentence per number whose meaning differs from the harness's own."""


@dataclass
class Record:
    """What a cell leaves behind, also when it failed."""

    cell: Cell
    """The cell."""
    study: str
    """Folder below results."""
    status: Status
    """ok, failed, oom (out of memory), diverged (loss not finite), or unfit (left out by --fit)."""
    started: str
    """Time in UTC."""
    seconds: float
    """Duration of the job in seconds."""
    environment: dict[str, Any]
    """Versions, git commit, device, processor, threads, precision, number formats, attention, allocator, speed-ups."""
    failure: Failure | None = None
    """null of a cell that ended as ok."""
    precautions: Precautions = field(default_factory=Precautions)
    """Time limit, checkpoints and what happens after an out-of-memory error."""
    smaller_batches: SmallerBatches | None = None
    """null if micro-batches were those of the settings."""
    # As in harness.config.Config; none in records from before they were kept:
    save: Literal["none", "adapter", "merged"] = "none"
    """Requested form of saved weights, as in the settings."""
    tracker: TrackerName | None = None
    """Experiment tracker, as in the settings."""
    parameters: Parameters | None = None
    """Counts of weights."""
    phases: dict[str, Phase] = field(default_factory=dict)
    """Phases by name."""
    probe: Probe | None = None
    """Memory by kind, FLOPs and attention."""
    train: Train | None = None
    """null of an untuned model."""
    validation: list[ValidationPoint] = field(default_factory=list)
    """Validation losses, the last one at the end of training."""
    merge: Merge | None = None
    """Merging of the adapter. null if the cell ended before."""
    inference: dict[str, Inference] = field(default_factory=dict)
    """Inference speed by form: base, unmerged, merged."""
    disk: Disk | None = None
    """Size of the weights."""
    api: Api | None = None
    """Cost of a model behind an API. null for local weights."""
    scores: list[Score] = field(default_factory=list)
    """All scores."""
    items: dict[str, Any] = field(default_factory=dict)
    """Ids of the scored items by task."""
    items_sha256: str | None = None
    """SHA-256 of NAME.items.parquet. null without one."""
    saved: Saved | None = None
    """Saved weights. null if none were kept. The folder may have been removed since."""
    rescored: list[Scoring] = field(default_factory=list)
    """Later scorings."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Hashes of data and model."""
    contamination: dict[str, Overlap] = field(default_factory=dict)
    """Contamination by task. Empty where it was not checked."""
    source: Source | None = None
    """Origin of an imported record. null for the harness's own."""
    schema: int = SCHEMA
    """Version of this format."""


def micro_batches(record: Record) -> tuple[int, int] | None:
    """Sequences (or packs) a micro-batch, and micro-batches a step, as the cell ran; None where that is not known."""
    if (ran := record.smaller_batches) is not None:
        return ran.batch_size, ran.grad_accum
    train = record.cell.settings.train
    if train.sizes_itself or train.batch_size is None:
        return None
    return train.batch_size, train.grad_accum or 1
