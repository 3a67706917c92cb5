"""The settings people type, typed and checked: the schema behind ``conf/config.yaml``, and its resolvers.

Inert data: nothing here loads a model, touches a device or imports torch.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from omegaconf import MISSING, DictConfig, OmegaConf

from harness import redact
from harness.config_folders import CONF as CONF
from harness.config_folders import ROOT as ROOT
from harness.config_folders import SWEEPS as SWEEPS
from harness.errors import UserError, one_of
from harness.record import STUDY_NAME, Precautions, TrackerName
from harness.settings import AUTO, quantised_bits

ADDED = ("gaussian", "orthogonal", "eva")  # ways for peft's LoRA to begin that leave the base as it is
TRACKERS = get_args(TrackerName)
ADAMW = {
    "torch": "torch.optim.AdamW",
    "8bit": "harness.job.methods.adamw.EightBitAdamW",
    "paged": "harness.job.methods.adamw.PagedAdamW",
    "paged_8bit": "harness.job.methods.adamw.PagedEightBitAdamW",
}


@dataclass
class Method:
    """How a model is tuned. `load`, `adapt`, `init` and `optim` are slots: nodes with a ``_target_`` for Hydra."""

    name: str = MISSING
    """Name in tables and records."""
    lr: float | None = None
    """Default learning rate of the method (null for an untuned model)."""
    adamw: str | None = None
    """AdamW implementation: torch, 8bit (8-bit moments), paged (moments in paged memory) or paged_8bit; all but torch
    are bitsandbytes'. null: the method does not step by AdamW."""
    knobs: dict[str, Any] = field(default_factory=dict)
    """Hyperparameters of this method alone, such as GaLore's scale. The slots read them; tables show them."""
    load: dict[str, Any] = field(default_factory=dict)
    """Arguments of from_pretrained: dtype, quantization_config."""
    adapt: dict[str, Any] | None = None
    """peft config, or function that changes the model (null: the model stays as loaded)."""
    init: dict[str, Any] | None = None
    """Adapter initialisation that needs training data: a function of the model, the peft config and training batches of
    one sequence each that returns the adapted model (null: the peft config decides)."""
    optim: dict[str, Any] | None = None
    """Factory that takes the model and returns its optimizer (null for an untuned model)."""
    incompatible: dict[str, str] = field(default_factory=dict)
    """Settings that the method refuses: SETTING=VALUE, or SETTING!=VALUE for every other value, and the reason."""


@dataclass
class Price:
    """Price of a model behind an API."""

    read: float | None = None
    """Dollars per million prompt tokens (null: unknown)."""
    written: float | None = None
    """Dollars per million answer tokens (null: unknown)."""


@dataclass
class Model:
    """The model that is tuned, or the model behind an API (method=api) that is asked."""

    name: str = MISSING
    """Name in tables and records. Of a model behind an API: the name that the endpoint knows."""
    path: str = MISSING
    """Hub id, local folder, or embedded:NAME."""
    revision: str | None = None
    """Commit, tag or branch of the hub repository (null: its main branch)."""
    dtype: str = "bfloat16"
    """Number format of the weights that are not quantised: bfloat16, float16 or float32."""
    trust_remote_code: bool = False
    """Runs code that comes with the model. The record says so."""
    use_safetensors: bool = True
    """false loads pickled weights, which can run code. The record says so."""
    upcast: bool = False
    """Keeps norms, embeddings, head and biases in fp32, and with them the residual stream. peft's usual preparation
    does so for quantised models alone; here it applies to every method. Requires train.precision=bf16."""
    gradient_checkpointing: bool = False
    """Default of train.gradient_checkpointing. true in the files of models with 3B weights or more."""
    architecture: dict[str, Any] | None = None
    """Dimensions as in the model's config.json (model_type, hidden_size, …), so that `plan` needs no hub
    (null: `plan` reads the model's own config)."""
    base_url: str | None = None
    """Address of an OpenAI-compatible API, without /chat/completions. Requires method=api."""
    tokenizer: str | None = None
    """Hub id or folder of the API model's tokenizer: tasks are then asked as completions with log-probabilities
    (null: as chat)."""
    thinking: int = 0
    """Tokens that an API model may think before each answer, beyond the task's limit."""
    key_env: str | None = None
    """Environment variable that holds the API key (null: no key is sent). Never the key itself."""
    price: Price = field(default_factory=Price)


@dataclass
class Data:
    """Training and validation data."""

    name: str = MISSING
    """Name in tables and records."""
    path: str | None = None
    """Your file (data=local): jsonl, json, csv, tsv or parquet, below data_root or the working folder."""
    load: dict[str, Any] = field(default_factory=dict)
    """Function (_target_) that returns the splits train and validation."""
    prompt: str = "Question: {question}\nAnswer:"
    """Text before the answer, with the record's fields in braces, as the evaluation asks it."""
    prompt_if_empty: str | None = None
    """Prompt of records in which a field of the prompt is empty (null: the same prompt)."""
    columns: dict[str, str | None] = field(default_factory=dict)
    """Column of each prompt field, of the answer, or of the messages, in your file (data=local)."""
    limit: int | None = None
    """Training items (null: all). Every cell takes the same ones."""
    noise: float = 0.0
    """Share of training answers that are replaced by wrong ones, from 0 to 1. Every cell has the same wrong answers;
    validation keeps the right ones."""


@dataclass
class Eval:
    """Scoring by lm-eval."""

    tasks: list[str] = field(default_factory=list)
    """lm-eval tasks or groups ([]: no scoring)."""
    limit: int | None = None
    """Items per task or group (null: all): a seeded, stratified sample, the same for every cell."""
    num_fewshot: int | None = None
    """Examples before each question (null: the task's own number)."""
    batch_size: int = 16
    """Sequences scored at a time."""
    seed: int = 0
    """Seed of the sample of items, the same for every cell."""
    engine: str = "auto"
    """auto scores the model in the training process; vllm saves it and has vLLM answer. vllm requires CUDA."""
    chat_template: bool = False
    """Asks each question as a message in the tokenizer's chat template."""
    fewshot_as_multiturn: bool = False
    """Puts each few-shot example into a turn of its own. Requires eval.chat_template=true."""
    system_instruction: str | None = None
    """System prompt before every question (null: none)."""
    unsafe_code: bool = False
    """Allows tasks that run code written by the model (humaneval) on this machine."""


@dataclass
class Train:
    """The training loop, the same for every method."""

    max_steps: int = 200
    """Optimizer steps."""
    batch_size: int | str = 8
    """Sequences per micro-batch. auto: the largest micro-batch that fits the device's memory; it is predicted, then
    halved after a shortage. Requires train.global_batch."""
    grad_accum: int = 1
    """Micro-batches per optimizer step."""
    global_batch: int | None = None
    """Sequences per optimizer step with train.batch_size=auto (null: batch_size × grad_accum)."""
    max_tokens: int | None = None
    """Ends training with the step that reaches this number of raw tokens (null: max_steps decides)."""
    max_length: int = 512
    """Tokens at which a sequence is cut."""
    warmup_ratio: float = 0.1
    """Share of the steps in which the learning rate rises; after that it falls along a cosine."""
    max_grad_norm: float | None = 1.0
    """Norm at which the whole gradient is clipped (null: no clipping)."""
    validate_every: int | None = None
    """Steps between validation losses (null: one, at the end)."""
    validation_items: int = 64
    """Held-out items behind the validation loss."""
    precision: str = "auto"
    """Precision of forward and backward passes: bf16 (autocast), fp32, or auto. auto is bf16 where the device gains by
    it, else fp32; with speedups=off it is fp32."""
    bucketing: int = 1
    """Batches that are drawn together and regrouped by length (1: none)."""
    packing: bool = False
    """Fills each of the batch_size rows with whole sequences up to max_length tokens. Each sequence attends to itself
    alone."""
    gradient_checkpointing: bool = False
    """Keeps only the input of each decoder layer and recomputes the rest in the backward pass: the same losses and
    gradients in less memory, for about a third more time."""
    save_every: int | None = None
    """Steps between checkpoints, from which a killed cell resumes (null: no checkpoints, and existing ones are
    ignored). Not part of the cell."""
    devices: int = 1
    """Devices that train one cell together. Each takes its share of every micro-batch."""
    parallel: str = "ddp"
    """How several devices train: ddp (each holds the whole model) or fsdp (each holds a share of it)."""
    activation_offload: bool = False
    """Keeps activations in host memory between forward and backward pass: less device memory, but time for the copies.
    Requires CUDA."""
    compile: bool = False
    """Compiles each decoder layer with torch.compile for training. Validation, inference and scoring run uncompiled."""


@dataclass
class Infer:
    """The measurement of inference speed, the same for every cell."""

    repeats: int = 5
    """Timed rounds after one discarded round (0: inference is not measured)."""
    batch_size: int = 1
    """Sequences at a time."""
    prompt_tokens: int = 128
    """Tokens per prompt."""
    new_tokens: int = 16
    """Tokens written per sequence, at least 2. The first belongs to prefill, the others to decoding."""


@dataclass
class Retry:
    """Which recorded cells run again. All others are kept."""

    statuses: list[str] = field(default_factory=lambda: ["failed"])
    """The next sweep runs cells with these statuses again: failed, oom, diverged."""
    on_oom: bool = False
    """Runs a cell that ran out of memory in training again at once, with half the micro-batch and twice the
    accumulation, until it fits. Its speed and memory are then not comparable, and the record says so.
    train.batch_size=auto always does this."""


@dataclass
class Api:
    """How a model behind an API is asked. None of this is part of the cell, as it changes no answer."""

    concurrency: int = 8
    """Requests at a time."""
    per_minute: float | None = None
    """Requests started per minute (null: no limit)."""
    timeout: float = 120
    """Time limit per request in seconds."""
    retries: int = 6
    """Further attempts after a request that failed (server busy, connection lost, bad JSON)."""
    backoff: float = 1.0
    """Seconds before the second attempt, doubled before each further one. The endpoint's Retry-After has priority."""


@dataclass
class Config:
    """All settings of a cell, and where its record goes."""

    method: Method = field(default_factory=Method)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    eval: Eval = field(default_factory=Eval)
    train: Train = field(default_factory=Train)
    infer: Infer = field(default_factory=Infer)
    retry: Retry = field(default_factory=Retry)
    api: Api = field(default_factory=Api)
    rank: int = 16
    """Rank of adapters and of GaLore's projections."""
    alpha: float = 32
    """LoRA's alpha: the update is scaled by alpha / rank."""
    lr: float | None = None
    """Learning rate."""
    lr_scale: float = 1.0
    """Factor on the method's default learning rate: a sweep over it tries the same number of rates for each method."""
    seed: int = 0
    """Random seed of training: order of the batches, adapter initialisation."""
    study: str = "adhoc"
    """Folder below results_dir in which the records lie."""
    results_dir: str = "results"
    """Folder of all studies."""
    data_root: str | None = None
    """Folder with local copies of hub data sets under their names, such as openai/gsm8k (null: the hub)."""
    speedups: str = "auto"
    """auto enables every speed-up that does not change results; off trains and scores without them, to check."""
    timeout: float | None = None
    """Time limit per cell in seconds (null: none). A cell beyond it is ended and recorded as failed."""
    save: str = "none"
    """Tuned weights to keep beside the record: none, adapter, or merged (the model with the adapter folded in). Of a
    method without adapters, both keep the whole model. Not part of the cell."""
    tracker: str | None = None
    """Experiment tracker that follows the training: tensorboard, mlflow, wandb or trackio (null: none). Not part of the
    cell."""


# What a cell can be run again with in place of what it ran with.
PRECAUTIONS = {"timeout": "timeout", "train.save_every": "save_every", "retry.on_oom": "on_oom"}


def check_precautions(config: DictConfig) -> None:
    """Raise UserError for the first of a cell's precautions that can't be."""
    if config.timeout is not None and not config.timeout > 0:
        raise UserError(f"timeout={config.timeout} can't be: it must be positive, or null for none.")
    if config.train.save_every is not None and config.train.save_every < 1:
        raise UserError(f"train.save_every={config.train.save_every} can't be: it must be 1 or more.")


def precautions(config: DictConfig) -> Precautions:
    return Precautions(**{name: OmegaConf.select(config, key) for key, name in PRECAUTIONS.items()})


def register_resolvers() -> None:
    """Make these known to OmegaConf.

    ``${mul:a,b}`` (null if a factor is), ``${share:part,whole}`` (steps: rounded down), ``${basename:path}``,
    ``${below:folder,path}``, ``${adamw:kind}`` (the class that method.adamw means).
    """
    OmegaConf.register_new_resolver("mul", _multiply, replace=True)
    OmegaConf.register_new_resolver("adamw", lambda kind: ADAMW.get(kind, kind), replace=True)
    OmegaConf.register_new_resolver("share", lambda part, whole: int(part * whole), replace=True)
    OmegaConf.register_new_resolver("below", lambda folder, path: str(folder / Path(path).expanduser()), replace=True)
    OmegaConf.register_new_resolver("basename", lambda path: re.split(r"[/:]", path.rstrip("/"))[-1], replace=True)


def _multiply(a: float | None, b: float | None) -> float | None:
    # Six significant digits: 2e-4 × 5 must be the 1e-3 that people type, not 0.001000…2, or they'd be two cells.
    return None if a is None or b is None else float(f"{a * b:.6g}")


LEAST = {
    "train": dict.fromkeys(
        (
            *("max_steps", "grad_accum", "global_batch", "max_length", "validation_items"),
            *("validate_every", "bucketing", "max_tokens", "devices"),
        ),
        1,
    ),
    "data": {"limit": 1},
    "eval": {"limit": 1, "num_fewshot": 0, "batch_size": 1},
    "infer": {"repeats": 0, "batch_size": 1, "prompt_tokens": 1, "new_tokens": 2},
    "api": {"concurrency": 1, "retries": 0, "backoff": 0},
}


def check(config: DictConfig) -> None:
    """Raise UserError for the first setting that can't work; what only the model can tell is checked by the job."""
    if config.model.key_env is not None:
        redact.named.add(config.model.key_env)
    redact.refuse(OmegaConf.to_container(config, resolve=True))
    tuned = config.method.optim is not None
    for key in ("rank", "alpha", "lr_scale", *(["lr"] if tuned else [])):
        value = OmegaConf.select(config, key)
        if value is None or not 0 < value < float("inf"):
            raise UserError(f"{key}={value} can't be: {key} must be a positive number.")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed={config.seed} can't be: it must be at least 0 and below 2**32.")
    for group, bounds in LEAST.items():
        for key, least in bounds.items():
            value = config[group][key]
            if value is not None and value < least:
                raise UserError(f"{group}.{key}={value} can't be: it must be {least} or more.")
    if not 0 <= config.train.warmup_ratio < 1:
        raise UserError(f"train.warmup_ratio={config.train.warmup_ratio} can't be: it must be at least 0 and below 1.")
    if config.train.max_grad_norm is not None and not config.train.max_grad_norm > 0:
        raise UserError(f"train.max_grad_norm={config.train.max_grad_norm} can't be: it must be positive, or null.")
    if not 0 <= config.data.noise <= 1:
        raise UserError(f"data.noise={config.data.noise} can't be: it is a share of the answers, from 0 to 1.")
    _check_batch(config.train)
    if config.train.compile and config.train.gradient_checkpointing and tuned:
        raise UserError(
            "train.compile=true requires train.gradient_checkpointing=false: tracing does not see which sequences a "
            "layer is computed again for."
        )
    if config.train.packing and config.train.bucketing > 1:
        raise UserError("train.packing fills rows in the order drawn, which train.bucketing would change; take one.")
    check_precautions(config)
    one_of("train.precision", config.train.precision, ["auto", "bf16", "fp32"])
    one_of("train.parallel", config.train.parallel, ["ddp", "fsdp"])
    one_of("speedups", config.speedups, ["auto", "off"])
    _check_api(config)
    one_of("eval.engine", config.eval.engine, ["auto", "vllm"])
    if config.eval.fewshot_as_multiturn and not config.eval.chat_template:
        raise UserError("eval.fewshot_as_multiturn=true can't be without a conversation: set eval.chat_template=true.")
    one_of("save", config.save, ["none", "adapter", "merged"])
    start = OmegaConf.select(config, "method.adapt.init_lora_weights")
    if config.save == "adapter" and isinstance(start, str) and start not in ADDED:
        raise UserError(
            f"save=adapter can't be with init_lora_weights={start}, which changes the base before it adapts that: the "
            "adapter alone would not give the model back; take save=merged."
        )
    if config.tracker is not None:
        one_of("tracker", config.tracker, TRACKERS)
        check_installed(config.tracker)
    one_of("model.dtype", config.model.dtype, ["float32", "bfloat16", "float16"])
    for status in config.retry.statuses:
        one_of("retry.statuses", status, ["failed", "oom", "diverged"])
    if not STUDY_NAME.fullmatch(config.study):
        raise UserError(f"study={config.study} can't name a folder: use letters, digits, '.', '_', '-' and '/'.")
    if config.data_root is not None and not Path(config.data_root).expanduser().is_dir():
        raise UserError(
            f"data_root={config.data_root} is not a folder; name the one that holds openai/gsm8k and the like."
        )
    for setting, reason in config.method.incompatible.items():
        key, comparison, value = re.split(r"(!?=)", setting, maxsplit=1)
        found = typed(OmegaConf.select(config, key))
        if (found == value) == (comparison == "="):
            raise UserError(f"method={config.method.name} can't be combined with {key}={found}: {reason}")
    _check_adamw(config)
    if device_count(config) > 1:
        _check_devices(config)


def _check_adamw(config: DictConfig) -> None:
    """Raise UserError if method.adamw is none of ADAMW, the method does not step by it, or it can't be saved."""
    kind = config.method.adamw
    if "${adamw:" in json.dumps(OmegaConf.to_container(config.method, resolve=False)):
        one_of("method.adamw", kind, list(ADAMW))
    elif kind not in (None, "torch"):
        raise UserError(f"method.adamw={kind} requires a method that steps by AdamW, got {config.method.name}.")
    if kind in ("paged", "paged_8bit") and config.train.save_every is not None:
        raise UserError(
            f"method.adamw={kind} requires train.save_every=null: paged memory can't be restored from a checkpoint."
        )


def _check_batch(train: DictConfig) -> None:
    """Raise UserError if a step's batch is none, or is said twice."""
    size, accum = train.batch_size, train.grad_accum
    if size != AUTO and (isinstance(size, str) or size < 1):
        raise UserError(f"train.batch_size must be a positive number or auto, got {size}.")
    if size == AUTO and train.global_batch is None:
        raise UserError("train.batch_size=auto requires train.global_batch, the sequences of a step.")
    if size == AUTO and accum != 1:
        raise UserError(f"train.batch_size=auto requires train.grad_accum=1, got {accum}: it accumulates by itself.")
    if size != AUTO and train.global_batch is not None:
        raise UserError(
            f"train.global_batch={train.global_batch} requires train.batch_size=auto; a step of "
            f"train.batch_size={size} has {size * accum} sequences."
        )


def device_count(config: DictConfig) -> int:
    """How many devices the cell of `config` trains on; an untuned row needs one."""
    return config.train.devices if config.method.optim is not None else 1


def _check_devices(config: DictConfig) -> None:
    """Raise UserError for the first setting that several devices can't share, or not in that way."""
    train, slots = config.train, config.method
    devices = f"train.devices={train.devices}"
    method, ddp = f"method={slots.name} can't be combined with {devices}", "use train.parallel=ddp."
    optimizer = str(OmegaConf.select(slots, "optim.optimizer._target_") or slots.optim._target_)
    batch = "global_batch" if train.batch_size == AUTO else "batch_size"
    refused = {
        f"{devices} can't share train.{batch}={train[batch]}, of which each takes as many sequences as the "
        f"others; take a multiple of {train.devices}.": train[batch] % train.devices,
        f"{devices} can't be combined with eval.engine=vllm, which starts processes of its own; use "
        "eval.engine=auto.": config.eval.engine == "vllm",
        f"{devices} can't be combined with train.compile=true, which is for one device.": train.compile,
        f"{method}: it steps each layer while it goes backward, before the gradients of all devices are added "
        "up.": slots.optim.get("per_layer"),
    }
    if train.parallel == "fsdp":
        refused |= {
            f"{method} and train.parallel=fsdp: weights in 8 bits can't be sharded; {ddp}": quantised_bits(slots.load)
            == 8,
            f"{method} and train.parallel=fsdp: it projects whole gradients, and each device has a share of them; "
            f"{ddp}": slots.optim.get("matrices"),
            f"{method} and train.parallel=fsdp: its init, before or after takes whole weights, and each device has a "
            f"share of them; {ddp}": slots.init or slots.optim.get("before") or slots.optim.get("after"),
            f"{method} and train.parallel=fsdp: {optimizer} is not known to step sharded weights; take one of "
            f"torch.optim, or {ddp}": not optimizer.startswith("torch.optim."),
            "model.upcast=true can't be combined with train.parallel=fsdp, which shards weights of one dtype together; "
            f"{ddp}": config.model.upcast,
            "train.activation_offload=true can't be combined with train.parallel=fsdp: weights that are gathered for a "
            f"layer would be moved with its activations; {ddp}": train.activation_offload,
            f"train.save_every={train.save_every} can't be combined with train.parallel=fsdp: a checkpoint holds whole "
            f"weights; leave it out, or {ddp}": train.save_every is not None,
        }
    for sentence, applies in refused.items():
        if applies:
            raise UserError(sentence)


def check_installed(tracker: str) -> None:
    """Raise UserError if the package of `tracker` is not there."""
    if find_spec(tracker) is None:
        raise UserError(f"tracker={tracker} is not installed: pip install {tracker}.")


def typed(value: Any) -> str:
    """A setting's value as one types it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value)


def _check_api(config: DictConfig) -> None:
    """Raise UserError if a model is behind an API and the method needs weights, the other way round, and the like."""
    model, here = config.model, bool(config.method.load)
    if model.base_url is None:
        if not here:
            raise UserError(
                f"method={config.method.name} needs model.base_url=, the address of the model's endpoint, and "
                "model.name=, what that calls it."
            )
        for key in ("tokenizer", "thinking", "key_env"):
            if model[key]:
                raise UserError(f"model.{key} is for models behind an API: add method=api and model.base_url=.")
        return
    if here:
        raise UserError(
            f"method={config.method.name} needs weights, and model.base_url={model.base_url} gives none; a model "
            "behind an API is asked as it is, by method=api."
        )
    if OmegaConf.is_interpolation(model, "name"):
        raise UserError("method=api needs model.name=, what the endpoint calls the model.")
    url = urlsplit(model.base_url)
    if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment or "@" in url.netloc:
        raise UserError(
            "model.base_url must be like https://host/v1: where the API is, with neither a key nor a query in it."
        )
    if not config.eval.tasks:
        raise UserError(
            "method=api with eval.tasks=[] has nothing to do; name the tasks that the model is to be asked."
        )
    if config.eval.engine != "auto":
        raise UserError(f"eval.engine={config.eval.engine} is for weights that are here; leave it out for method=api.")
    if config.eval.chat_template:
        raise UserError(
            "eval.chat_template=true is for weights that are here; method=api without model.tokenizer= chats."
        )
    for key in ("timeout", "per_minute"):
        if config.api[key] is not None and not 0 < config.api[key] < float("inf"):
            raise UserError(f"api.{key}={config.api[key]} can't be: it must be positive.")
    if model.thinking < 0:
        raise UserError(f"model.thinking={model.thinking} can't be: it is a number of tokens, and 0 is none.")
    if model.thinking and model.tokenizer is not None:
        raise UserError("model.thinking= is for models that chat; leave out model.tokenizer, or model.thinking.")
    for key, price in config.model.price.items():
        if price is not None and not 0 <= price < float("inf"):
            raise UserError(f"model.price.{key}={price} can't be: it is dollars for a million tokens.")
    if model.key_env is not None:
        # Not said again, in case it is the key itself.
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", model.key_env):
            raise UserError(
                "model.key_env must be the name of an environment variable, in capitals; the key itself is never a "
                "setting."
            )
        if not os.environ.get(model.key_env):
            raise UserError(f"model.key_env={model.key_env} is not set in the environment; set it to the API's key.")
