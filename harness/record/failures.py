"""Why a cell has no complete result, the rule that ends hopeless ones, and settings in case something goes wrong."""

from __future__ import annotations

from dataclasses import dataclass


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


@dataclass(frozen=True)
class StopRule:
    """Rule by which hopeless cells end early: asynchronous successive halving (ASHA) on the validation loss. Cells
    compete with those of their own method, model, data and token budget."""

    first: float
    """Share of a cell's tokens at which the first rung lies. Each further rung is at `factor` times as many."""
    factor: int
    """At each rung, the best 1/factor of the settings that reached it so far go on."""
