"""Refuses settings that can't work, before anything is launched; what only libraries can tell, the job checks."""

from __future__ import annotations

import functools
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness import plugin, redact, schema
from harness.config import ADAMW, FullConfig, TrainConfig, typed
from harness.config_folders import group_files
from harness.config_help import method_knobs
from harness.errors import UserError, one_of
from harness.record import STUDY_NAME
from harness.schema import settings_of
from harness.settings import AUTO, BY_MICRO_BATCH, HELD_OUT, WITH_MARGIN, quantised_bits

KEEP_BASE = ("gaussian", "orthogonal", "eva")  # values of init_lora_weights that leave the base as it is
READ_BY = {"path": "local", "columns": "local", "task": "reasoning_gym", "options": "reasoning_gym"}  # fields of data
OF_ADAMW = ("${adamw:", "AdamW", "create_lorafa_optimizer")  # one is in the slots of a method that steps by AdamW
PATTERNS = (("rank_pattern", int, "integer"), ("alpha_pattern", (int, float), "number"))
SETTINGS = {described.key: described for described in settings_of(FullConfig)}
PRECAUTIONS = {key: SETTINGS[key] for key in ("timeout", "train.save_every")}


def check(config: DictConfig) -> None:
    """Raise UserError for the first setting that can't work."""
    if config.model.key_env is not None:
        redact.named.add(config.model.key_env)
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    redact.refuse(resolved)
    if config.method.optim is not None:
        _check_trained(config)
    schema.check(SETTINGS, functools.partial(_value, resolved))
    _check_batch(config.train)
    _check_training(config)
    for part in plugin.installed():
        if part.check is not None:
            plugin.load(part.check)(config)
    if config.repeat and config.train.nodes > 1:
        raise UserError(f"repeat=true requires train.nodes=1, got {config.train.nodes}.")
    if config.eval.fewshot_as_multiturn and not config.eval.chat_template:
        raise UserError("eval.fewshot_as_multiturn=true requires eval.chat_template=true.")
    if config.eval.bertscore is not None and HELD_OUT not in config.eval.tasks:
        raise UserError("eval.bertscore requires eval.tasks=[held_out].")
    _check_saving(config)
    _check_places(config)
    _check_data(config)
    _check_method(config)
    if config.method.optim is not None and config.train.devices * config.train.nodes > 1:
        _check_devices(config)


def _value(resolved: dict[str, Any], key: str) -> Any:
    """The value of a dotted key."""
    value: Any = resolved
    for name in key.split("."):
        value = value[name]
    return value


def check_precautions(config: DictConfig) -> None:
    """Raise UserError for the first of a cell's precautions that can't work."""
    schema.check(PRECAUTIONS, functools.partial(OmegaConf.select, config))


def check_installed(tracker: str) -> None:
    """Raise UserError if the package of `tracker` is not there."""
    if find_spec(tracker) is None:
        raise UserError(f"tracker={tracker} is not installed: pip install {tracker}.")


def _check_trained(config: DictConfig) -> None:
    """Raise UserError for what no method can train with, such as gradients in float16: there is no loss scaling."""
    if config.lr is None:
        raise UserError("lr must be positive, got null.")
    if config.model.dtype == "float16":
        raise UserError(
            f"model.dtype=float16 can't be combined with method={config.method.name}, which trains: small gradients "
            "are 0 in float16; use model.dtype=bfloat16, or float32 on a GPU without bf16."
        )


def _check_batch(train: DictConfig) -> None:
    """Raise UserError if a step's batch is said twice."""
    size, accum = train.batch_size, train.grad_accum
    if size == AUTO and train.global_batch is None:
        raise UserError("train.batch_size=auto requires train.global_batch, the sequences of a step.")
    if size == AUTO and accum != 1:
        raise UserError(f"train.batch_size=auto requires train.grad_accum=1, got {accum}: it accumulates by itself.")
    if size != AUTO and train.global_batch is not None:
        raise UserError(
            f"train.global_batch={train.global_batch} requires train.batch_size=auto; a step of "
            f"train.batch_size={size} has {size * accum} sequences."
        )


def _check_training(config: DictConfig) -> None:
    """Refuse training settings that exclude each other, or that the method has no use for."""
    train = config.train
    if train.packing and train.bucketing > 1:
        raise UserError("train.packing fills rows in the order drawn, which train.bucketing would change; take one.")
    if train.epochs is None and train.max_steps is None:
        raise UserError("train.max_steps=null requires train.epochs.")
    if train.epochs is not None and train.max_steps is not None:
        raise UserError(f"train.epochs={train.epochs:g} requires train.max_steps=null, got {train.max_steps}.")
    if train.final_lr and train.schedule == "constant":
        raise UserError(f"train.final_lr={train.final_lr:g} requires train.schedule=cosine or linear, got constant.")
    _check_early_stopping(config)
    _check_objective(config)
    _check_optimizer(config)


def _check_early_stopping(config: DictConfig) -> None:
    """Raise UserError for what an early end of training needs, or can't be combined with."""
    train = config.train
    if train.early_stopping is None:
        if train.early_stopping_gain:
            raise UserError(f"train.early_stopping_gain={train.early_stopping_gain:g} requires train.early_stopping.")
        return
    if train.validate_every is None:
        raise UserError("train.early_stopping requires train.validate_every, the steps between validations.")
    refused = {
        f"train.save_every={train.save_every}": train.save_every and "checkpoints do not keep the best weights",
        f"train.devices={train.devices}": train.devices > 1 and "it is for one device",
        f"train.nodes={train.nodes}": train.nodes > 1 and "it is for one device",
    }
    for setting, reason in refused.items():
        if reason:
            raise UserError(f"train.early_stopping can't be combined with {setting}: {reason}.")


def _check_objective(config: DictConfig) -> None:
    """Raise UserError for settings of objectives of pairs of answers that `config` has no use for, or lacks."""
    train, default = config.train, TrainConfig()
    if train.objective == default.objective and train.preference_beta != default.preference_beta:
        raise UserError(
            f"train.preference_beta={train.preference_beta:g} requires an objective of pairs, such as "
            "train.objective=dpo."
        )
    if train.objective not in WITH_MARGIN and train.preference_margin != default.preference_margin:
        raise UserError(
            f"train.preference_margin={train.preference_margin:g} requires train.objective=simpo or cpo_simpo."
        )
    if config.model.base_url is None and train.objective != "kto" and _has(config.data, "mark"):
        raise UserError(
            f"data={config.data.name} has single answers, marked as good or bad, and requires train.objective=kto, got "
            f"{train.objective}."
        )
    if train.objective != default.objective:
        _check_pairs(config)


def _check_pairs(config: DictConfig) -> None:
    """Raise UserError for what an objective of pairs can't be combined with."""
    train, data, default = config.train, config.data, TrainConfig()
    objective = f"train.objective={train.objective}"
    single = train.objective == "kto"
    if config.model.base_url is None and not (_has(data, "rejected") or (single and _has(data, "mark"))):
        marked = ", or single ones that are marked (data=local_marked)" if single else ""
        raise UserError(
            f"{objective} requires pairs of a chosen and a rejected answer, such as data=ultrafeedback or "
            f"data=local_preference{marked}, got data={data.name}."
        )
    refused = {
        f"train.loss_on={train.loss_on}": train.loss_on != default.loss_on and "its loss compares answers",
        "train.packing=true": train.packing and "the answers of a pair stay in one batch",
        f"data.noise={data.noise:g}": data.noise and "it changes chosen answers alone",
        f"train.devices={train.devices}": train.devices > 1 and "it is for one device",
        f"train.nodes={train.nodes}": train.nodes > 1 and "it is for one device",
    }
    if train.objective in BY_MICRO_BATCH:
        together = "its loss depends on the pairs of a micro-batch"
        refused["train.batch_size=auto"] = train.batch_size == AUTO and together
        refused["retry.on_oom=true"] = config.retry.on_oom and together
    if train.objective == "kto":
        mismatched = "it pairs prompts with other prompts' answers"
        refused["train.batch_size=1"] = train.batch_size == 1 and mismatched
        refused["train.validation_items=1"] = train.validation_items == 1 and mismatched
    for setting, reason in refused.items():
        if reason:
            raise UserError(f"{objective} can't be combined with {setting}: {reason}.")


def _has(data: DictConfig, field: str) -> bool:
    """Whether the records of `data` have a column of `field`."""
    return bool(data.load.get(field, data.columns.get(field)))


def _check_optimizer(config: DictConfig) -> None:
    """Raise UserError for settings of the optimizer or the adapter that the method has not got."""
    train, method = config.train, f"method={config.method.name}"
    if train.betas is not None and not (len(train.betas) == 2 and all(0 <= beta < 1 for beta in train.betas)):
        raise UserError(f"train.betas must be two numbers from 0 to below 1, got {list(train.betas)}.")
    if config.method.optim is None:
        return
    slots = json.dumps(OmegaConf.to_container(config.method, resolve=False))
    if train.weight_decay and "${train.weight_decay}" not in slots:
        raise UserError(f"train.weight_decay={train.weight_decay:g} can't be combined with {method}, which has none.")
    if train.adapter_dropout and "${train.adapter_dropout}" not in slots:
        raise UserError(f"train.adapter_dropout={train.adapter_dropout:g} can't be combined with {method}: no dropout.")
    if train.betas is not None and not any(name in slots for name in OF_ADAMW):
        raise UserError(f"train.betas requires a method that steps by AdamW, got {config.method.name}.")


def _check_saving(config: DictConfig) -> None:
    start = OmegaConf.select(config, "method.adapt.init_lora_weights")
    if config.save == "adapter" and isinstance(start, str) and start not in KEEP_BASE:
        raise UserError(
            f"save=adapter can't be combined with init_lora_weights={start}, which changes the base before it adapts "
            "that: the adapter alone would not give the model back; take save=merged."
        )
    if config.tracker is not None:
        check_installed(config.tracker)


def _check_places(config: DictConfig) -> None:
    if not STUDY_NAME.fullmatch(config.study):
        raise UserError(f"study must name a folder by letters, digits, '.', '_', '-' and '/', got {config.study}.")
    if config.data_root is not None and not Path(config.data_root).expanduser().is_dir():
        raise UserError(
            f"data_root must be a folder that holds data sets such as openai/gsm8k, got {config.data_root}."
        )


def _check_data(config: DictConfig) -> None:
    """Refuse what the data's function does not read, and a way of scoring beside a task's own."""
    data, slots = config.data, json.dumps(OmegaConf.to_container(config.data.load, resolve=False))
    for key, choice in READ_BY.items():
        if data[key] not in (None, {}) and not re.search(rf"[.]{key}}}", slots):
            raise UserError(f"data.{key} requires data={choice}, got data={data.name}.")
    if str(data.load.get("_target_")).endswith(".from_documents"):
        _check_documents(data)
    if data.task is not None and data.answers != "auto":
        raise UserError(
            f"data.answers={data.answers} can't be combined with data.task={data.task}, whose verifier scores."
        )


def _check_documents(data: DictConfig) -> None:
    """Raise UserError for settings of answers and records, of data that have neither."""
    refused = {
        f"data.answers={data.answers}": data.answers != "auto" and "documents have no answers",
        f"data.noise={data.noise:g}": data.noise and "documents have no answers",
        f"data.too_long={data.too_long}": data.too_long and "documents are cut into blocks of train.max_length tokens",
    }
    for setting, reason in refused.items():
        if reason:
            raise UserError(f"data={data.name} can't be combined with {setting}: {reason}.")


def _check_method(config: DictConfig) -> None:
    """Refuse what the method's file says it can't do, and an AdamW that it has no use for."""
    for setting, reason in config.method.incompatible.items():
        key, comparison, value = re.split(r"(!?=)", setting, maxsplit=1)
        actual = typed(OmegaConf.select(config, key))
        if (actual == value) == (comparison == "="):
            raise UserError(f"method={config.method.name} can't be combined with {key}={actual}: {reason}")
    _check_adamw(config)
    _check_knobs(config)
    _check_patterns(config)


def _check_adamw(config: DictConfig) -> None:
    """Raise UserError if method.adamw is none of ADAMW, the method does not step by it, or it can't be saved."""
    kind = config.method.adamw
    if "${adamw:" in json.dumps(OmegaConf.to_container(config.method, resolve=False)):
        one_of("method.adamw", "null" if kind is None else kind, list(ADAMW))
    elif kind not in (None, "torch"):
        raise UserError(f"method.adamw={kind} requires a method that steps by AdamW, got {config.method.name}.")
    if kind in ("paged", "paged_8bit") and config.train.save_every is not None:
        raise UserError(
            f"method.adamw={kind} requires train.save_every=null: paged memory can't be restored from a checkpoint."
        )


def _check_knobs(config: DictConfig) -> None:
    """Raise UserError for a knob that is no positive number although its default is one, or no number from 0 up.

    With no tokens of its own, for example, a method would train nothing.
    """
    knobs = config.method.knobs
    file = group_files("method").get(config.method.name) if knobs else None
    for name, default in ({} if file is None else method_knobs(file)).items():
        value = knobs.get(name)
        if _is_number(default) and (not _is_number(value) or (value <= 0 and value != default)):
            kind = "a number, at least 0" if default == 0 else "a positive number"
            raise UserError(f"method.knobs.{name} must be {kind}, got {'null' if value is None else value}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_patterns(config: DictConfig) -> None:
    """Raise UserError for a rank or an alpha of some layers that is no positive number, by which peft would fail."""
    node: Any = OmegaConf.to_container(config.method, resolve=True)
    for name, kinds, kind in PATTERNS:
        values = (node["adapt"] or {}).get(name)
        if values is not None and not (
            isinstance(values, dict) and all(isinstance(value, kinds) and value > 0 for value in values.values())
        ):
            raise UserError(f"method.adapt.{name} must have a positive {kind} by layer, as {{q_proj:8}}, got {values}.")


def _check_devices(config: DictConfig) -> None:
    """Raise UserError for the first setting that several devices can't share, or not in that way."""
    train, slots = config.train, config.method
    devices = " ".join(f"train.{key}={train[key]}" for key in ("nodes", "devices") if train[key] > 1)
    count = train.nodes * train.devices
    method = f"method={slots.name} can't be combined with {devices}"
    batch = "global_batch" if train.batch_size == AUTO else "batch_size"
    refused = {
        f"{devices} can't share train.{batch}={train[batch]}, of which each takes as many sequences as the "
        f"others; take a multiple of {count}.": train[batch] % count,
        f"{devices} can't be combined with eval.engine={config.eval.engine}, which starts processes of its own; use "
        "eval.engine=auto.": config.eval.engine != "auto",
        f"{devices} can't be combined with train.compile=true, which is for one device.": train.compile,
        f"{method}: it steps each layer while it goes backward, before the gradients of all devices are added "
        "up.": slots.optim.get("per_layer"),
    }
    if train.parallel == "fsdp":
        refused |= _sharding_refused(config, method)
    for sentence, applies in refused.items():
        if applies:
            raise UserError(sentence)


def _sharding_refused(config: DictConfig, method: str) -> dict[str, Any]:
    """By sentence, whether it applies: why this cell can't be trained on sharded weights."""
    train, slots, ddp = config.train, config.method, "use train.parallel=ddp."
    optimizer = str(OmegaConf.select(slots, "optim.optimizer._target_") or slots.optim._target_)
    return {
        f"{method} and train.parallel=fsdp: weights in 8 bits can't be sharded; {ddp}": quantised_bits(slots.load) == 8,
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
    }
