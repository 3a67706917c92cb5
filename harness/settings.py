"""The settings of one cell, resolved and typed: all that decides its result, from Hydra's config to the record.

`harness/sweep/cells.py` builds them once; jobs, records and reports take them as they are. A field is null, or at
another neutral default, where the cell has no use for it: an untuned cell takes no optimizer steps. So two points of a
grid that mean the same run have equal settings. Nodes for Hydra's instantiate (load, adapt, …) are free in form.

Settings are hashable: what is free in form counts for equality alone.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import string
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from harness.errors import UserError

T = TypeVar("T", bound="EvalSettings | TrainSettings | InferSettings")

AUTO: Literal["auto"] = "auto"  # the batch size that is chosen where a cell is run
REFERRING = ("dpo", "ipo", "kto")  # objectives that compare the model with its base
WITH_MARGIN = ("simpo", "cpo_simpo")  # objectives that have train.preference_margin
BY_MICRO_BATCH = ("kto", "cpo_simpo", "orpo_trl")  # objectives whose loss depends on how a step is cut
IN_8_BITS = ("int8", "int8wo", "fp8wo")  # formats of a quantised base; all others have 4
HELD_OUT = "held_out"  # the task that is made of the test part of the cell's own data
REWARDS = "rewards"  # the task that an objective's rewards of those answers are, against the untuned model's
ROOMS = re.compile(r"harness\.(?:\w+\.)+(?=\w+\.\w+$)")  # of a callable's path, the folders between
FIELD = re.compile(r"(?!\d+$)[^.\[\]]+")  # of a prompt template: a name, and no place, attribute or index


@dataclass(frozen=True)
class MethodSettings:
    """One method's slots, as in harness.config.MethodConfig, with all interpolations resolved."""

    name: str | None = None
    load: dict[str, Any] = field(default_factory=dict, hash=False)
    adapt: dict[str, Any] | None = field(default=None, hash=False)
    init: dict[str, Any] | None = field(default=None, hash=False)
    optim: dict[str, Any] | None = field(default=None, hash=False)
    init_seed: int | None = None

    @property
    def tuned(self) -> bool:
        """Whether the method trains the model at all."""
        return self.optim is not None

    @property
    def bits(self) -> int | None:
        """Bits of each weight of the quantised base; None if the base is not quantised."""
        return quantised_bits(self.load)

    @property
    def quantisation(self) -> str | None:
        """The format that the base is quantised to, as its function in the file is named; None if it is not."""
        return _quantisation(self.load)

    @property
    def paged(self) -> bool:
        """Whether the optimizer's moments are in paged memory, by the name of its class: bitsandbytes' begin so."""
        return ".Paged" in json.dumps(self.optim)


@dataclass(frozen=True)
class ModelSettings:
    """What is loaded (path, …), or which endpoint answers (name, base_url, …): as in harness.config.ModelConfig."""

    path: str | None = None
    revision: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False
    use_safetensors: bool = True
    upcast: bool = False
    name: str | None = None
    base_url: str | None = None
    tokenizer: str | None = None
    thinking: int = 0
    sha256: str | None = None

    @property
    def is_gguf(self) -> bool:
        """Whether `path` names a GGUF file, here or on the hub."""
        return self.path is not None and self.path.endswith(".gguf")

    @property
    def from_gguf(self) -> bool:
        """Whether its weights were dequantised from a GGUF file, as the embedded SmolLM2's are."""
        return self.is_gguf or str(self.path).startswith("embedded:smollm2")

    @property
    def on_hub(self) -> tuple[str, str] | None:
        """The repository of the hub that `path` may name, and the GGUF file in it (else empty); None if it names none.

        An id is NAME or OWNER/NAME, a file OWNER/NAME/FILE. Whether the hub has it is not asked.
        """
        parts = str(self.path).split("/")
        if parts[0] in ("", ".", "..", "~") or (len(parts) < 3 if self.is_gguf else len(parts) > 2):
            return None
        return "/".join(parts[:2]), "/".join(parts[2:])


def prompt_fields(template: str) -> list[str]:
    """The names of the fields of a prompt template, in order. Who fills one in asks here first: it may be anybody's.

    Raises UserError if a field is more than a name in braces: a width of some digits makes gigabytes, and an attribute
    shows what no prompt is to show.
    """
    try:
        fields = [field[1:] for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise UserError(f"data.prompt must have fields as {{question}}, got {template!r} ({error}).") from None
    if any(form or conversion or not FIELD.fullmatch(name or "") for name, form, conversion in fields):
        raise UserError(
            f"Fields of data.prompt must be names alone, as {{question}}, got {template!r}; a brace that is no field "
            "is written twice, as {{ or }}."
        )
    return [name for name, _, _ in fields if name]


@dataclass(frozen=True)
class DataSettings:
    """As in harness.config.DataConfig; of a model behind an API the name alone, unless it is asked about them."""

    name: str | None = None
    path: str | None = None
    task: str | None = None
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    load: dict[str, Any] = field(default_factory=dict, hash=False)
    prompt: str | None = None
    prompt_if_empty: str | None = None
    columns: dict[str, str | None] = field(default_factory=dict, hash=False)
    limit: int | None = None
    noise: float = 0.0
    test_share: float = 0.0
    answers: str = "auto"
    drop_empty: bool = False
    too_long: str | None = None

    @property
    def length_rule(self) -> str:
        """What happens to records that are too long: error, cut or drop."""
        return self.too_long or ("error" if self.own else "cut")

    @property
    def own(self) -> bool:
        """Whether the data are a file of the user's own."""
        return self.documents or str(self.load.get("_target_")).endswith(".sources.from_file")

    @property
    def documents(self) -> bool:
        """Whether the data are texts of the user's own, without questions: continued pretraining."""
        return str(self.load.get("_target_")).endswith(".sources.from_documents")

    @property
    def marked(self) -> bool:
        """Whether the data are single answers, each marked as good or bad."""
        return bool(self.load.get("mark") or (self.load.get("columns") or {}).get("mark"))

    @property
    def tested(self) -> bool:
        """Whether a part is held out for the task `held_out`: a share of the records, or problems of their own."""
        return self.test_share > 0 or self.task is not None

    @property
    def template(self) -> str:
        """The prompt template. Raises UserError if it is null, so that these data can't be asked about."""
        if self.prompt is None:
            raise UserError("The cell's settings lack data.prompt, so that its data can't be asked about.")
        return self.prompt

    @property
    def question_template(self) -> str | None:
        """The prompt template of a question without context; None for conversations, which use the chat template."""
        of_file = self.load.get("columns") or {}
        if self.documents:
            return "{question}"  # a text to be continued
        if self.load.get("messages") or self.load.get("chosen") or of_file.get("messages"):
            return None
        return self.prompt_if_empty or self.prompt


@dataclass(frozen=True)
class EvalSettings:
    """As in harness.config.EvalConfig."""

    tasks: list[str] = field(default_factory=list, hash=False)
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int | Literal["auto"] | None = None
    seed: int | None = None
    engine: str = "auto"
    chat_template: bool = False
    fewshot_as_multiturn: bool = False
    system_instruction: str | None = None
    unsafe_code: bool = False
    bertscore: str | None = None

    def local(self) -> LocalEval:
        """These settings, of a model that answers here. Raises UserError if one is null that its answers need."""
        return _complete(LocalEval, self, "eval")


@dataclass(frozen=True, kw_only=True)
class LocalEval(EvalSettings):
    """Those of a model that answers on this machine, not behind an API."""

    batch_size: int | Literal["auto"]


@dataclass(frozen=True)
class TrainSettings:
    """As in harness.config.TrainConfig. An untuned cell has only what its validation loss depends on.

    devices: of each machine. parallel is null on one device, preference_beta without pairs,
    preference_margin without an objective that has one. How often checkpoints are
    saved changes no result, so it is not here.
    """

    max_length: int | None = None
    validation_items: int | None = None
    precision: str | None = None
    batch_size: int | Literal["auto"] | None = None
    max_steps: int | None = None
    epochs: float | None = None
    grad_accum: int | None = None
    global_batch: int | None = None
    max_tokens: int | None = None
    warmup_ratio: float | None = None
    schedule: str = "cosine"
    final_lr: float = 0.0
    weight_decay: float = 0.0
    betas: list[float] | None = field(default=None, hash=False)
    adapter_dropout: float = 0.0
    loss_on: str = "answers"
    data_seed: int | None = None
    max_grad_norm: float | None = None
    validate_every: int | None = None
    bucketing: int | None = None
    packing: bool = False
    gradient_checkpointing: bool = False
    devices: int = 1
    parallel: str | None = None
    activation_offload: bool = False
    compile: bool = False
    nodes: int = 1
    objective: str = "sft"
    preference_beta: float | None = None
    preference_margin: float | None = None
    early_stopping: int | None = None
    early_stopping_gain: float = 0.0

    @property
    def paired(self) -> bool:
        """Whether the objective compares answers: pairs of a chosen and a rejected one, or single ones with marks."""
        return self.objective != "sft"

    @property
    def refers(self) -> bool:
        """Whether the objective compares the model with its base, which takes a pass of the base over all answers."""
        return self.objective in REFERRING

    @property
    def total_devices(self) -> int:
        """Devices of all machines together."""
        return self.devices * self.nodes

    @property
    def sizes_itself(self) -> bool:
        """Whether the cell takes the largest micro-batch that fits its device: train.batch_size=auto."""
        return self.batch_size == AUTO

    @property
    def micro_batch(self) -> int | None:
        """Sequences (or packs) of a micro-batch as the settings have it; with `auto` those of the whole step.

        None if they don't say. What is trained on in a step depends on nothing else; how it is cut for a device's
        memory is in the record's SmallerBatches.
        """
        return self.global_batch if self.batch_size == AUTO else self.batch_size

    @property
    def sharded(self) -> bool:
        """Whether several devices each hold a share of the model."""
        return self.parallel == "fsdp"

    def validated(self) -> ValidatedTrain:
        """These settings, of a cell that runs here. Raises UserError if one is null that its validation loss needs."""
        return _complete(ValidatedTrain, self, "train")

    def tuned(self) -> TunedTrain:
        """These settings, of a cell that is trained here. Raises UserError if one is null that training needs."""
        return _complete(TunedTrain, self, "train")


@dataclass(frozen=True, kw_only=True)
class ValidatedTrain(TrainSettings):
    """Those of a cell that runs here, tuned or not: all that its validation loss depends on is there."""

    max_length: int
    validation_items: int
    precision: str
    batch_size: int | Literal["auto"]

    @property
    def micro_batch(self) -> int:
        """As of TrainSettings. Raises UserError for `auto` without the sequences of a step."""
        size = super().micro_batch
        if size is None:
            raise UserError("train.batch_size=auto requires train.global_batch, the sequences of a step.")
        return size


@dataclass(frozen=True, kw_only=True)
class TunedTrain(ValidatedTrain):
    """Those of a cell that is trained here: all that training needs is there."""

    grad_accum: int
    warmup_ratio: float
    bucketing: int


@dataclass(frozen=True)
class InferSettings:
    """As in harness.config.InferConfig; null where inference is not timed."""

    repeats: int = 0
    batch_size: int | None = None
    large_batch_size: int | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None

    def timed(self) -> TimedInfer:
        """These settings, of a cell whose inference is timed. Raises UserError if one is null that timing needs."""
        return _complete(TimedInfer, self, "infer")


@dataclass(frozen=True, kw_only=True)
class TimedInfer(InferSettings):
    """Those of a cell whose inference is timed; without large_batch_size it is timed with one batch size."""

    batch_size: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Settings:
    """All that decides a cell's result.

    other: what the source of an imported record says beside these; empty for what the harness ran.
    """

    method: MethodSettings = field(default_factory=MethodSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    infer: InferSettings = field(default_factory=InferSettings)
    speedups: str | None = None
    seed: int | None = None
    other: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def behind_api(self) -> bool:
        """Whether the model is behind an API, so that nothing but its answers is known of it."""
        return self.model.base_url is not None

    @property
    def loss_term(self) -> str:
        """What the loss is a mean over: token, pair or answer."""
        return "token" if not self.train.paired else "answer" if self.data.marked else "pair"

    @property
    def fast(self) -> bool:
        """Whether the harness's speed-ups are on."""
        return self.speedups != "off"

    @property
    def in_sixteen_bits(self) -> str | None:
        """The setting, as KEY=VALUE, that asks for arithmetic in 16 bits, which takes a GPU that has bf16; or None.

        For float16 too: CUDA's attention over rows requires such a GPU, and there is no autocast with loss scaling.
        """
        if self.train.precision == "bf16":
            return "train.precision=bf16"
        return f"model.dtype={self.model.dtype}" if self.model.dtype in ("bfloat16", "float16") else None

    def train_dict(self) -> dict[str, Any]:
        """The training settings by name, with those of an imported record that have no field here."""
        return plain(self.train) | self.imported("train")

    def imported(self, group: str) -> dict[str, Any]:
        """The settings of the group that an imported record has beyond this schema; none if they are of no use."""
        settings = self.other.get(group)
        return settings if isinstance(settings, dict) else {}


def _complete(kind: type[T], settings: TrainSettings | EvalSettings | InferSettings, group: str) -> T:
    """`settings`, the group of that name, as the narrower `kind`. Raises UserError if one is null that `kind` needs."""
    values = {part.name: getattr(settings, part.name) for part in dataclasses.fields(settings)}
    for part in dataclasses.fields(kind):
        needed = part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING
        if needed and values[part.name] is None:
            raise UserError(f"The cell's settings lack {group}.{part.name}, so that it can't run here.")
    return kind(**values)


def plain(settings: Any) -> dict[str, Any]:
    """`settings`, or a part of them, as a dict without what is at its neutral default.

    So a setting that is added later, with a default that means "as before", changes no cell's id.
    """
    non_neutral = {}
    kind: Any = type(settings)
    for name, neutral, group in _neutral(kind):
        value = getattr(settings, name)
        if group:
            value = plain(value)
        if value != neutral:
            non_neutral[name] = value
    return non_neutral


@functools.cache  # studies have thousands of records
def _neutral(kind: Any) -> list[tuple[str, Any, bool]]:
    """Of each field of a dataclass of settings: its name, its neutral default, and whether it is a group of settings.

    That of a group is no setting.
    """
    fields = []
    for part in dataclasses.fields(kind):
        value = part.default if part.default_factory is dataclasses.MISSING else part.default_factory()
        group = dataclasses.is_dataclass(value)
        fields.append((part.name, {} if group else value, group))
    return fields


def cell_id(settings: Settings) -> str:
    """A cell's identity: the SHA-256 of the canonical form of its settings."""
    return hashlib.sha256(canonical(settings).encode()).hexdigest()


def canonical(settings: Settings) -> str:
    """The one text of all settings that mean the same run.

    The folder of the harness in which a callable lies is no part of it: modules may move.
    """
    return json.dumps(_without_rooms(plain(settings)), sort_keys=True)


def _without_rooms(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _without_rooms(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_rooms(part) for part in value]
    return ROOMS.sub("harness.", value) if key == "_target_" and isinstance(value, str) else value


def quantised_bits(load: dict[str, Any]) -> int | None:
    """Of the base's matrices, as a method's slot `load` has them quantised; None where they are not."""
    if (name := _quantisation(load)) is None:
        return None
    return 8 if name in IN_8_BITS else 4


def _quantisation(load: dict[str, Any]) -> str | None:
    config = load.get("quantization_config")
    return str(config.get("_target_")).rpartition(".")[2] if config else None
