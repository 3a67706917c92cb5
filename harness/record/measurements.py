"""What a job measured: memory, probe, training, merging, inference speed, sizes.

Units: bytes, seconds, tokens. What was not measured is ``null``; there are no sentinels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


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

    @property
    def total(self) -> int:
        """Of all kinds together."""
        return self.weights + self.adapters + self.gradients + self.optimizer + self.activations


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
    busy_share: float | None = None
    """Share of a step in which the GPU ran a kernel, from 0 to 1: two further steps under torch.profiler, over the time
    of the same steps without it. null on CPU, with train.compile, and of an untuned model."""
    kernels: float | None = None
    """Kernels that a step started, likewise."""


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


@dataclass(frozen=True)
class LossPoint:
    """Training loss of one optimizer step."""

    step: int
    """Number of the step, from 1."""
    tokens: int
    """Raw training tokens up to this step."""
    loss: float
    """Mean over the step's supervised tokens, in nats per token; of an objective of pairs over the pairs, or over
    single answers, in nats."""
    lr: float
    """Learning rate."""
    grad_norm: float | None
    """Norm of the whole gradient before clipping. null if the backward pass consumes gradients one by one."""


@dataclass(frozen=True)
class PairRewards:
    """The implicit rewards that an objective gives the answers of held-out pairs, or held-out single answers: means."""

    chosen: float | None
    """Reward of the chosen answer; of a good single one. null without a good one."""
    rejected: float | None
    """Reward of the rejected answer; of a bad single one. null without a bad one."""
    margin: float | None
    """`chosen` less `rejected`. null if one of them is."""
    accuracy: float
    """Share of pairs whose chosen answer has the larger reward; of single answers, of those whose reward is positive if
    they are good, and negative if they are bad."""


@dataclass
class ValidationPoint:
    """Validation loss at one point of the training."""

    step: int
    """Optimizer steps before it."""
    tokens: int
    """Raw training tokens before it."""
    loss: float
    """Mean over held-out answers, in nats per token; of an objective of pairs over the pairs, or over single answers,
    in nats."""
    rewards: PairRewards | None = None
    """Of an objective of pairs. null of others, and in records from before they were kept."""


@dataclass
class BestStep:
    """The step whose weights are scored and saved, with train.early_stopping: that of the lowest validation loss."""

    step: int
    """Optimizer steps before it. Steps after it count in Train, as their cost was paid."""
    ended_early: bool
    """Whether training ended before its last step, as the validation loss gained no more."""
    later: list[ValidationPoint]
    """Validations after it. They are not in the record's `validation`, whose last one is of the scored weights."""


@dataclass
class HeldOut:
    """The answers that the validation loss is the mean over: what it takes to compare it between tokenizers."""

    tokens: int
    """Supervised tokens, the ends of text included."""
    bytes: int
    """Bytes of the answers' text in UTF-8."""


@dataclass
class Train:
    """What the training loop measured. On several devices: tokens of all, seconds of the slowest. Imported records
    without single steps have empty step_seconds and loss, and null for the steady rate and batches."""

    steps: int
    """Optimizer steps."""
    tokens: Tokens
    """Tokens of all steps."""
    step_seconds: Sequence[float]
    """Seconds of each optimizer step, from the first forward pass to zeroed gradients, synchronised on both sides.
    Loading of data and validation lie outside."""
    warmup_steps: int
    """First steps that the steady rate leaves out, also after each resume."""
    tokens_per_second_steady: float | None
    """Raw tokens per second: median over steps after warm-up. null: one step alone."""
    tokens_per_second_amortised: float
    """All raw tokens over all step seconds, including first steps and GaLore's decompositions."""
    loss: Sequence[LossPoint]
    """Training loss of each step."""
    batches: str | None
    """Hash of the token ids in training order. Equal for cells that saw the same batches."""
    laps: dict[str, Sequence[float]] = field(default_factory=dict)
    """Seconds of each step's parts: forward, backward, optimizer (with clipping). Where the loss is computed in chunks
    (speed-up fused_loss), the head's gradients belong to forward."""
    joules: float | None = None
    """Energy of all steps, of whole devices (NVML) or the processor package (RAPL). null where neither can be read."""
    save_every: int | None = None
    """Steps between checkpoints, which are made outside of timed steps. null: no checkpoints."""
    resumed_at: list[int] = field(default_factory=list)
    """Steps after which the process ended and another one resumed from a checkpoint. Figures of training cover all
    processes. Other phases, `started` and `seconds` are those of the last process."""
    compile_seconds: Sequence[float] = field(default_factory=list)
    """Seconds of torch.compile in each step; fewer where an earlier cell compiled the same layers. Empty without
    compilation. The steady rate leaves such steps out."""

    def steady_steps(self) -> list[int]:
        """Indices of the steps behind the steady rate: none of warm-up or compilation; else the last step.

        Empty if there was one step alone, which is the first one and slow.
        """
        begins = (0, *self.resumed_at)
        steps = range(len(self.step_seconds))
        left_out = {i for begin in begins for i in steps[begin : begin + self.warmup_steps]}
        left_out |= {i for i, seconds in enumerate(self.compile_seconds) if seconds}
        return [i for i in steps if i not in left_out] or list(steps[-1:]) if len(steps) > 1 else []


@dataclass
class Gpu:
    """State of one GPU while training or decoding was timed, from NVML, about once a second; if resumed, in the last
    process. null where NVML does not tell, as under MIG and on some consumer cards."""

    samples: int
    """Readings that the figures rest on."""
    sm_mhz: float | None
    """Clock of the streaming multiprocessors: median."""
    sm_mhz_max: int | None
    """The highest reading."""
    memory_mhz: float | None
    """Clock of the memory: median."""
    memory_mhz_max: int | None
    """The highest reading."""
    power_limit_watts: float | None
    """Enforced power limit: the lowest reading."""
    celsius: int | None
    """Temperature: the highest reading."""
    throttle_reasons: list[str] | None
    """Why clocks were lower than possible, of all readings: sw_power_cap, hw_slowdown, sync_boost, sw_thermal_slowdown,
    hw_thermal_slowdown, hw_power_brake, application_clocks, display_clock. Idle moments are left out. Empty if clocks
    were never held back."""
    idle_watts: float | None
    """Power before the cell loaded its model."""


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
