"""The record, field by field. Its parts are in measurements.py, scores.py and failures.py.

Units: bytes, seconds, tokens. What was not measured is ``null``; there are no sentinels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.record.failures import Failure, Precautions, SmallerBatches, StopRule
from harness.record.measurements import (
    BestStep,
    Disk,
    Gpu,
    HeldOut,
    Inference,
    Memory,
    Merge,
    Parameters,
    Phase,
    Probe,
    Train,
    ValidationPoint,
)
from harness.record.own_data import Lengths, OwnData
from harness.record.scores import ApiUsage, ClassCounts, Contamination, Judging, Score, Scoring, VllmUsage
from harness.score_names import score_label
from harness.settings import Settings

SCHEMA = 4

Status = Literal["ok", "failed", "oom", "diverged", "unfit", "pruned"]
COMPLETE: tuple[Status, ...] = ("ok", "pruned")  # of cells that ended as intended, the latter early
TrackerName = Literal["tensorboard", "mlflow", "wandb", "trackio"]  # each is also the name of its package


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
class Saved:
    """Tuned weights saved beside the record, in the format of peft and transformers."""

    form: Literal["adapter", "merged", "model"]
    """adapter, merged (the model with the adapter folded in), or model (of a method without adapter)."""
    files: dict[str, str]
    """SHA-256 of each file by its path in the folder. README.md, the model card, may be edited and is left out."""


@dataclass
class Repeat:
    """Another run of the same cell, which is no further seed. A later one by a sweep with --drift or with repeat=true
    shows the machine's drift, and its scores are not kept. An earlier one of an imported record has its scores."""

    number: int
    """2 is the first run after the record's own."""
    status: Status
    """As in the record."""
    started: str
    """Time in UTC."""
    seconds: float
    """Duration of the job in seconds."""
    environment: dict[str, Any]
    """As in the record."""
    position: int | None
    """As in the record."""
    tokens_per_second_steady: float | None
    """As in Train."""
    validation_loss: float | None
    """The last one. It differs from the record's where training is not deterministic."""
    memory: Memory | None
    """Peaks of the training window."""
    gpus: list[Gpu]
    """As in the record."""
    scores: list[Score] = field(default_factory=list)
    """As in the record, of an imported run."""


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
    """ok, failed, oom (out of memory), diverged (loss not finite, or at the end no better than a uniform guess), unfit
    (left out by --fit or --skip-impossible), or pruned (ended early by stop=asha)."""
    started: str
    """Time in UTC."""
    seconds: float
    """Duration of the job in seconds."""
    environment: dict[str, Any]
    """Versions, git commit, device, processor, threads, precision, number formats, attention, allocator, speed-ups,
    eval_batch_size (sequences answered at a time), left_out (where adapters leave experts as they are), auto_class (of
    transformers, that loads the model, if it is not AutoModelForCausalLM)."""
    failure: Failure | None = None
    """null of a cell that ended as ok."""
    precautions: Precautions = field(default_factory=Precautions)
    """Time limit, checkpoints and what happens after an out-of-memory error."""
    smaller_batches: SmallerBatches | None = None
    """null if micro-batches were those of the settings."""
    stop: StopRule | None = None
    """Rule that could end the cell early. null: none, as of confirmations and untuned models."""
    best: BestStep | None = None
    """Step whose weights are scored. null without train.early_stopping: the last one."""
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
    held_out: HeldOut | None = None
    """Size of the validation answers. null of an objective of pairs, and in records from before it was kept."""
    gpus: list[Gpu] = field(default_factory=list)
    """State of each GPU during training, in the order of the ranks. Empty on CPU and of an untuned model."""
    decoding_gpus: list[Gpu] = field(default_factory=list)
    """State of the GPU while decoding was timed. Empty on CPU, and in records from before it was kept."""
    merge: Merge | None = None
    """Merging of the adapter. null if the cell ended before."""
    inference: dict[str, Inference] = field(default_factory=dict)
    """Inference speed by form: base, unmerged, merged. At infer.batch_size."""
    batched_inference: dict[str, Inference] = field(default_factory=dict)
    """The same at infer.large_batch_size. Empty where that is null."""
    disk: Disk | None = None
    """Size of the weights."""
    api: ApiUsage | None = None
    """Cost of a model behind an API. null for local weights."""
    vllm: VllmUsage | None = None
    """Answers that vLLM wrote. null where the harness wrote all."""
    scores: list[Score] = field(default_factory=list)
    """All scores."""
    classes: dict[str, ClassCounts] = field(default_factory=dict)
    """By task whose answers are labels, what items of each class were taken for."""
    items: dict[str, str] = field(default_factory=dict)
    """Hash of the ids of the scored items by task. The column `item` of NAME.items.parquet has the ids."""
    items_sha256: str | None = None
    """SHA-256 of NAME.items.parquet. null without one."""
    saved: Saved | None = None
    """Saved weights. null if none were kept. The folder may have been removed since. Of a failed cell: the weights that
    it was to be scored with, from which `retry` resumes."""
    rescored: list[Scoring] = field(default_factory=list)
    """Later scorings."""
    judged: list[Judging] = field(default_factory=list)
    """Comparisons by a judge, whose shares are in `scores`."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Hashes of data and model, and of BERTScore's encoder."""
    own_data: OwnData | None = None
    """How the user's own file was read. null of other data, and in records from before it was kept."""
    lengths: Lengths | None = None
    """Training records that were cut or left out as too long. null of an untuned model, and in records from before it
    was kept."""
    truncated_requests: int | None = None
    """Requests of the scoring whose beginning was cut off, as the model has no room for them; of a model behind an API
    before they were sent, so that what its endpoint cuts is not in it. null where nothing was scored, and in records
    from before it was counted."""
    written_answers: int | None = None
    """Answers that the model wrote for the scores. null where nothing was scored, behind an API (`api.requests`), and
    in records from before it was counted."""
    cut_answers: int | None = None
    """Those of them that ended at their task's limit of tokens. null likewise; behind an API it is `api.cut`."""
    contamination: dict[str, Contamination] = field(default_factory=dict)
    """Contamination by task. Empty where it was not checked."""
    position: int | None = None
    """Place of the cell among those that its sweep started, from 1. null of `run` and `retry`."""
    confirmation: bool = False
    """Whether the seed is a fresh one of a chosen setting, by `sweep --confirm`. It takes no part in the choice."""
    repeats: list[Repeat] = field(default_factory=list)
    """Other runs of the same cell, in the order in which they ran."""
    source: Source | None = None
    """Origin of an imported record. null for the harness's own."""
    schema: int = SCHEMA
    """Version of this format."""

    @property
    def question_template(self) -> str | None:
        """The prompt template of a question without context; None for conversations, which use the chat template."""
        if self.own_data is not None and self.own_data.conversations:
            return None
        return self.cell.settings.data.question_template

    @property
    def validation_loss(self) -> float | None:
        """The last validation loss, nats per token; None without one."""
        return self.validation[-1].loss if self.validation else None

    @property
    def tokens_per_second(self) -> float | None:
        """The steady rate of training, raw tokens; None without one."""
        return self.train.tokens_per_second_steady if self.train else None

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What a notebook shows, where all fields would fill pages."""
        facts: list[str] = [self.status, *([] if self.failure is None else [self.failure.reason])]
        facts += [f"validation loss {point.loss:.4g}" for point in self.validation[-1:]]
        facts += [f"{score_label(score.task, score.metric, score.filter)} {score.value:.4g}" for score in self.scores]
        printer.text(f"<Record {self.study}/{self.cell.name}: {', '.join(facts)}>")


def repeat_of(run: Record, number: int) -> Repeat:
    """What another record of the same cell keeps of `run`, without its scores."""
    trained = run.phases.get("train")
    return Repeat(
        number=number,
        status=run.status,
        started=run.started,
        seconds=run.seconds,
        environment=run.environment,
        position=run.position,
        tokens_per_second_steady=run.tokens_per_second,
        validation_loss=run.validation_loss,
        memory=trained.memory if trained else None,
        gpus=run.gpus,
    )


def losses_by_seed(records: Iterable[Record]) -> dict[int | None, float]:
    """The last validation loss by seed of records that differ in their seeds."""
    return {record.cell.seed: loss for record in records if (loss := record.validation_loss) is not None}


def awaits_scoring(record: Record) -> bool:
    """Whether scores are all that is missing: the cell was trained, scoring failed, and its weights were saved."""
    return record.status != "ok" and record.saved is not None


def micro_batches(record: Record) -> tuple[int, int] | None:
    """Sequences (or packs) a micro-batch, and micro-batches a step, as the cell ran; None where that is not known."""
    if (ran := record.smaller_batches) is not None:
        return ran.batch_size, ran.grad_accum
    train = record.cell.settings.train
    if not isinstance(train.batch_size, int):  # auto, or the cell is not trained
        return None
    return train.batch_size, train.grad_accum or 1
