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
from harness.errors import UserError, one_of
from harness.record import AUTO, STUDY_NAME, Precautions, TrackerName, bits

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
SWEEPS = ROOT / "sweeps"
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
    """One way to tune. `load`, `adapt`, `init` and `optim` are slots: ``_target_`` nodes for hydra's instantiate.

    lr: the method's own default learning rate; null for an untuned row.
    adamw: whose AdamW steps it: ``torch``, or bitsandbytes' with moments in 8 bits (``8bit``), in memory that moves to
        the host where the device's runs short (``paged``), or both (``paged_8bit``); null where it steps otherwise.
    knobs: axes of the method's own (GaLore's scale), interpolated by its slots and shown in tables.
    load: keyword arguments of ``from_pretrained`` (dtype, quantization_config).
    adapt: a peft config, or a function of the model that changes it, or null to leave it as it is.
    init: how an adapter starts that needs data for it: a function of the model, the peft config and training batches of
        one sequence each, that returns the adapted model (harness.job.methods.adapter_init); null where its config says all.
    optim: a factory that takes the model and returns its optimizer; null for an untuned row.
    incompatible: what the method can't do: a setting as typed (``train.grad_accum=2``), or all but one
        (``train.grad_accum!=1``) -> the reason.
    """

    name: str = MISSING
    lr: float | None = None
    adamw: str | None = None
    knobs: dict[str, Any] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)
    adapt: dict[str, Any] | None = None
    init: dict[str, Any] | None = None
    optim: dict[str, Any] | None = None
    incompatible: dict[str, str] = field(default_factory=dict)


@dataclass
class Price:
    """Dollars for a million tokens, read and written (null: not known)."""

    read: float | None = None
    written: float | None = None


@dataclass
class Model:
    """path: a hub id, a local folder, or ``embedded:NAME``; dtype: of the weights that are not quantised.

    gradient_checkpointing: the default of train.gradient_checkpointing: on where a model is too large to do without.

    trust_remote_code: run the code that comes with the model, where it needs some. use_safetensors: false loads pickled
    weights instead, which can run code too. Both are recorded if asked for.

    upcast: put norms, embeddings, head and biases in fp32, and with them the residual stream, as peft's usual
    preparation does to quantised models alone; here every method has it or none. It needs train.precision=bf16.

    architecture: the dimensions as in the model's config.json (model_type, hidden_size, …), so that `plan` needs no
    hub; null: ask the model's own config.

    Of a model behind an API (method=api) name is what the endpoint calls it, and none of the above is looked at:
    base_url: where OpenAI's protocol is spoken, up to and without ``/chat/completions``.
    tokenizer: a hub id or a local folder: the tasks are asked as completions, with log-probabilities; null: as chat.
    thinking: tokens that such a model may write before each answer, beyond the task's limit; it is part of a cell.
    key_env: the environment variable that holds the key (null: none is sent); it and the price are no part of a cell.
    """

    name: str = MISSING
    path: str = MISSING
    revision: str | None = None
    dtype: str = "bfloat16"
    trust_remote_code: bool = False
    use_safetensors: bool = True
    upcast: bool = False
    gradient_checkpointing: bool = False
    architecture: dict[str, Any] | None = None
    base_url: str | None = None
    tokenizer: str | None = None
    thinking: int = 0
    key_env: str | None = None
    price: Price = field(default_factory=Price)


@dataclass
class Data:
    """load: a ``_target_`` that returns the splits; prompt: the text before the answer, as the evaluation asks it.

    prompt_if_empty: the prompt of a record in which one of the prompt's fields is empty (null: the same).
    path: of a file of one's own, below data_root or the folder one works in; null where the data is no such file.
    columns: of such a file (data=local): of each field of the prompt, and of the answer or the messages, the column.
    limit: items to train on (null: all), the same for every cell. noise: share of their answers that are replaced by
        wrong ones, the same for every cell; validation keeps the right ones.
    """

    name: str = MISSING
    path: str | None = None
    load: dict[str, Any] = field(default_factory=dict)
    prompt: str = "Question: {question}\nAnswer:"
    prompt_if_empty: str | None = None
    columns: dict[str, str | None] = field(default_factory=dict)
    limit: int | None = None
    noise: float = 0.0


@dataclass
class Eval:
    """tasks: lm-eval tasks or groups; limit: items a task or group, a seeded stratified sample (null: all).

    num_fewshot: null leaves each task its own; seed: of the sample of items, the same for every cell.
    engine: ``auto`` scores the model where it is, as it was trained; ``vllm`` saves it and has vLLM answer (CUDA).
    chat_template: put each question as a message, in the tokenizer's own template; fewshot_as_multiturn: each example
    as a message and its answer, instead of all in one. system_instruction: said before every question.
    unsafe_code: score tasks that run what the model writes (humaneval), on this machine.
    """

    tasks: list[str] = field(default_factory=list)
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 16
    seed: int = 0
    engine: str = "auto"
    chat_template: bool = False
    fewshot_as_multiturn: bool = False
    system_instruction: str | None = None
    unsafe_code: bool = False


@dataclass
class Train:
    """The training loop's settings, the same for every method.

    max_steps: optimizer steps; batch_size: sequences a micro-batch; grad_accum: micro-batches a step.
    batch_size=auto: the largest micro-batch that fits the device's memory, which does not change a step's global_batch
        sequences; it is planned, and halved on a shortage. An untuned row takes the default.
    global_batch: sequences a step of batch_size=auto, which requires it (null: batch_size × grad_accum).
    max_tokens: raw tokens after which training ends, with the step that reaches them (null: max_steps alone decides).
    max_length: tokens at which a sequence is cut; warmup_ratio: share of steps with rising learning rate.
    max_grad_norm: global clipping (null: none). validate_every: steps between validation losses (null: the end).
    validation_items: held-out answers the validation loss is taken on.
    precision: ``auto`` is bf16 autocast where the device computes in bf16, else fp32 (as without speedups).
    bucketing: batches that are drawn together and cut anew by length (1: none are), for every method alike.
    packing: a micro-batch is batch_size rows of whole sequences, as many in each as have max_length tokens or less, for
        every method alike; each sequence still attends to itself alone.
    gradient_checkpointing: keep of each decoder layer its input alone, and compute the rest again in the backward pass:
        the same losses and gradients in less memory, for about a third more time.
    save_every: steps between checkpoints, from which a cell that was killed goes on (null: none are made, and one that
        is there is not looked at). It changes no result, so it is no part of a cell.
    devices: how many train one cell together, each its share of every micro-batch; an untuned row has no use for more
        than one. parallel: how they do: ``ddp``, each with the whole model, or ``fsdp``, each with a share of it.
    activation_offload: keep activations in the host's memory between forward and backward (CUDA): less memory on the
        device, for the time of the copies.
    compile: torch.compile each decoder layer for training; validation, inference and scoring run it as it is.
    """

    max_steps: int = 200
    batch_size: int | str = 8
    grad_accum: int = 1
    global_batch: int | None = None
    max_tokens: int | None = None
    max_length: int = 512
    warmup_ratio: float = 0.1
    max_grad_norm: float | None = 1.0
    validate_every: int | None = None
    validation_items: int = 64
    precision: str = "auto"
    bucketing: int = 1
    packing: bool = False
    gradient_checkpointing: bool = False
    save_every: int | None = None
    devices: int = 1
    parallel: str = "ddp"
    activation_offload: bool = False
    compile: bool = False


@dataclass
class Infer:
    """How inference is timed, the same for every cell.

    repeats: timed rounds, after a short one that is discarded (0: inference is not measured); batch_size: sequences at
        a time.
    prompt_tokens, new_tokens: of each sequence; one new token is the prefill's, so decoding needs 2 or more.
    """

    repeats: int = 5
    batch_size: int = 1
    prompt_tokens: int = 128
    new_tokens: int = 16


@dataclass
class Retry:
    """Which recorded cells are run again; the rest are kept.

    statuses: those with one of these, by the next sweep.
    on_oom: one that ran out of memory in training, at once, with half the micro-batch and twice the accumulation, until
        it fits or a micro-batch is one sequence. The record says so, and it is no fair comparison of speed or memory.
        train.batch_size=auto does so in any case.
    """

    statuses: list[str] = field(default_factory=lambda: ["failed"])
    on_oom: bool = False


@dataclass
class Api:
    """How a model behind an API is asked. It changes no answer, so it is no part of a cell.

    concurrency: requests at a time; per_minute: as many are begun in a minute at most (null: no limit).
    timeout: seconds that a request may take; retries: further tries of one that failed (busy, broken off, no JSON).
    backoff: seconds before the second try, twice as many before each next one; what the endpoint asks for comes first.
    """

    concurrency: int = 8
    per_minute: float | None = None
    timeout: float = 120
    retries: int = 6
    backoff: float = 1.0


@dataclass
class Config:
    """speedups: ``auto`` takes all that leave results as they are; ``off`` is the plain way, to check them against.

    timeout: seconds that a cell may take (null: as long as it does); one that hangs is ended then, and recorded.
    save: what is kept of tuned weights, beside the record: ``none``, the ``adapter``, or the model with it ``merged``;
        of a method without adapters either is the whole model. tracker: one of TRACKERS, which is told how training
        goes (null: none). Both change no result, so they are no part of a cell.
    """

    method: Method = field(default_factory=Method)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    eval: Eval = field(default_factory=Eval)
    train: Train = field(default_factory=Train)
    infer: Infer = field(default_factory=Infer)
    retry: Retry = field(default_factory=Retry)
    api: Api = field(default_factory=Api)
    rank: int = 16
    alpha: float = 32
    lr: float | None = None
    lr_scale: float = 1.0
    seed: int = 0
    study: str = "adhoc"
    results_dir: str = "results"
    data_root: str | None = None
    speedups: str = "auto"
    timeout: float | None = None
    save: str = "none"
    tracker: str | None = None


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
            f"{method} and train.parallel=fsdp: weights in 8 bits can't be sharded; {ddp}": bits(slots.load) == 8,
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
