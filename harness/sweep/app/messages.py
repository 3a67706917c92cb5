"""Hydra's and OmegaConf's errors as one sentence each, in the words of the command line."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config import FullConfig
from harness.config_folders import group_files, named_sweeps, plugin_groups, selected_groups
from harness.config_help import method_knobs
from harness.errors import UserError, nearest, one_of
from harness.schema import group_of

GROUPS = selected_groups()
OPTIONAL = {"eval", *plugin_groups()}  # groups that a cell does without
FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")  # that data=local reads
# What transformers, trl, peft and lm-eval call a setting of ours.
ELSEWHERE = {
    "lr": ("learning_rate",),
    "rank": ("r", "lora_r", "lora_rank"),
    "alpha": ("lora_alpha",),
    "method.adapt.target_modules": ("target_modules", "lora_target_modules"),
    "model.path": ("model_name_or_path", "pretrained_model_name_or_path", "pretrained", "base_model"),
    "data.path": ("train_file", "data_path", "dataset_path"),
    "data": ("dataset", "dataset_name"),
    "study": ("run_name", "name"),
    "results_dir": ("output_dir", "out_dir"),
    "eval.tasks": ("tasks", "task"),
    "eval.num_fewshot": ("num_fewshot", "shots"),
    "train.batch_size": ("per_device_train_batch_size", "micro_batch_size"),
    "train.grad_accum": ("gradient_accumulation_steps", "gradient_accumulation"),
    "train.max_length": ("max_seq_length", "max_seq_len", "cutoff_len", "block_size", "seq_len"),
    "train.max_steps": ("steps", "num_steps"),
    "train.epochs": ("num_epochs", "num_train_epochs", "max_epochs"),
    "train.warmup_ratio": ("warmup_steps", "warmup"),
    "train.schedule": ("lr_scheduler_type", "lr_scheduler", "lr_schedule"),
    "train.final_lr": ("min_lr", "min_lr_rate", "min_lr_ratio"),
    "train.weight_decay": ("wd", "decay"),
    "train.betas": ("adam_beta1", "adam_beta2", "beta1", "beta2", "adam_betas"),
    "train.adapter_dropout": ("dropout", "lora_dropout"),
    "train.objective": ("loss_type", "pref_loss", "stage"),
    "train.preference_beta": ("beta", "pref_beta"),
    "train.preference_margin": ("gamma", "simpo_gamma"),
    "train.loss_on": (
        "completion_only_loss",
        "train_on_inputs",
        "train_on_input",
        "assistant_only_loss",
        "mask_prompt",
    ),
    "train.validate_every": ("eval_steps", "eval_every"),
    "train.save_every": ("save_steps",),
    "train.precision": ("bf16", "fp16", "mixed_precision"),
    "method": ("load_in_4bit", "load_in_8bit", "quantization_bit", "quantization", "peft_type", "finetuning_type"),
    "train.max_grad_norm": ("gradient_clipping", "grad_clip", "clip_grad_norm"),
}
UNITS = {
    "train.max_steps": " Training is counted in optimizer steps (train.max_steps), passes (train.epochs) or tokens "
    "(train.max_tokens).",
    "train.warmup_ratio": " The warm-up is a share of the steps.",
    "train.final_lr": " It is a share of the learning rate.",
    "train.loss_on": " It is answers or all.",
    "method": " LoRA on a base of 4 bits is method=qlora, of 8 bits method=lora_8bit.",
}

# What may be meant by a name that a config group has no file of.
BESIDE = {
    "model": " Any model of the hub or a folder is model.path=PATH.",
    "eval": " A task is scored by eval.tasks=[{}].",
}

WITHOUT_DEFAULTS = "A sweep's file must begin its list `defaults` with config, which has all settings."
# What OmegaConf says of a value of another type, and the type in the words of the command line.
KINDS = {"converted to Integer": "a whole number", "converted to Float": "a number", "valid bool": "true or false"}

# One value that has letters beyond ASCII.
BEYOND_ASCII = re.compile(r"[^,\[\]()\s][^,\[\]()]*[^\x00-\x7f][^,\[\]()]*|[^\x00-\x7f][^,\[\]()]*")

# The extra that installs the plugin behind a choice of a config group.
EXTRAS = {
    ("hydra/sweeper", "optuna"): "optuna",
    ("hydra/launcher", "submitit_local"): "slurm",
    ("hydra/launcher", "submitit_slurm"): "slurm",
    ("hydra/launcher", "ray"): "ray",
}


def sentence(error: Exception) -> str:
    """The message of an error of Hydra's or OmegaConf's."""
    if isinstance(error, MissingConfigException) and (missing := _missing(error)) is not None:
        return missing
    first, cause = first_line(error), first_line(error.__cause__ or error)
    if isinstance(error, OverrideParseException):
        return _no_override(error.override)
    if match := re.match(r"(?:In '.+': )?Could not override '(.+)'", first):
        if match[1] in _types(FullConfig):
            return WITHOUT_DEFAULTS
        return _no_setting(match[1])
    if match := re.match(r"Could not append to config. An item is already at '(.+)'", first):
        return f"{match[1]} is there already; to change it, write {match[1]}=VALUE, without +."
    if match := re.match(r"Error merging override (.+)", first):
        return _not_merged(match[1], cause)
    if match := re.match(r"Ambiguous value for argument '(.+)'", first):
        key, _, values = match[1].partition("=")
        as_list = f", and {key}=[{values}] is one list" if "list" in _types(FullConfig).get(key, "list") else ""
        return f"{match[1]} names several values: `sweep` runs them all{as_list}."
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {first}."
    return " ".join(f"{error} {error.__cause__ or ''}".split())


def _missing(error: MissingConfigException) -> str | None:
    """What to say of a config file that is not there; None if it is there after all."""
    group, choice = _chosen(str(error.missing_cfg_file))
    if extra := EXTRAS.get((group, choice)):
        return f"{group}={choice} needs the extra `{extra}`: pip install -e '.[{extra}]' in the project's folder."
    if hint := _no_choice(group, choice):
        return hint
    try:
        one_of(group, choice, sorted(error.options or group_files(group) or [choice]))
    except UserError as unknown:
        return str(unknown) + BESIDE.get(group, "").format(choice)
    return None


def _not_merged(override: str, cause: str) -> str:
    """What to say of an override whose value the schema does not take. cause: OmegaConf's words."""
    key, _, value = override.partition("=")
    types = _types(FullConfig)
    if key.startswith("+") and key.lstrip("+") not in types:  # such as +rank.foo
        return _no_setting(key.lstrip("+"))
    if key not in types and (parent := key.rpartition(".")[0]) in types:
        return f"{parent} is one value, without settings below it; write {parent}={value}."
    if "ListConfig" in cause:
        return f"{key} must be a list, got {value}; write {key}=[{value}]."
    if kind := next((kind for said, kind in KINDS.items() if said in cause), None):
        return f"{key} must be {kind}, got {value or 'nothing'}."
    return f"{override}: {cause.rstrip('.')}."


def refuse_slips(overrides: list[str]) -> None:
    """Raise UserError for values that a space separates or a comma ends, for a list where a config group takes one
    name a cell, for a value without a key, and for a setting that is removed.

    Hydra would read the first as two settings, make one cell of the list by the last of its names, and fail where
    another setting is computed from the removed one.
    """
    for before, after in itertools.pairwise([*overrides, "="]):
        if before.endswith(",") and "=" in after:
            raise UserError(f"A value can't end with a comma, got {before}; write {before.rstrip(',')}.")
        if before.endswith(",") or after.startswith(","):
            raise UserError(
                f"Values are separated by commas without spaces, got {before} {after}; write {before}{after}."
            )
    for override in overrides:
        key, equals, value = override.partition("=")
        if equals and not key:
            raise UserError(_no_override(override))
        if key in GROUPS and value.startswith("["):
            names = ",".join(name.strip() for name in value.strip("[]").split(","))
            raise UserError(
                f"{key} must be one name a cell, got {value}; for one cell each, use `sweep {key}={names}`."
            )
        if key.startswith("~") and key[1:] in _types(FullConfig).keys() - OPTIONAL:
            raise UserError(f"{key[1:]} can't be removed, as every cell has it; give it another value, got {override}.")


def dtype_note(overrides: Iterable[str], config: DictConfig) -> str | None:
    """What the user may not expect of a model that `overrides` name by its path alone: it has the default's dtype."""
    keys, model = {override.lstrip("+").partition("=")[0] for override in overrides}, config.model
    if "model.path" not in keys or keys & {"model", "model.dtype"} or model.dtype != "float32":
        return None
    if str(model.path).startswith("embedded:"):
        return None
    return f"{model.path} is loaded in float32, as the default model; model.dtype=bfloat16 takes half the memory."


def quoted(override: str) -> str:
    """`override` with quotes about what Hydra's grammar takes in quotes alone: letters beyond ASCII, as in a path.

    Values that have quotes or backslashes, and dictionaries, are left as they are.
    """
    key, equals, value = override.partition("=")
    if value.isascii() or value.startswith("{") or {"'", '"', "\\"} & set(value):
        return override
    return key + equals + BEYOND_ASCII.sub(r"'\g<0>'", value)


def require_settings(config: DictConfig) -> None:
    """Raise UserError for the first setting of the composed `config` that nothing reads.

    Hydra adds whatever has a + before it. Only some nodes are open: the arguments of what a slot names, for example.
    """
    settings: Any = OmegaConf.to_container(config, resolve=False)
    if "method" not in settings:
        raise UserError(WITHOUT_DEFAULTS)
    for key in _unknown(settings, FullConfig):
        raise UserError(_no_setting(key))
    method = settings["method"]
    slots, knobs = repr(method | {"knobs": {}}), method["knobs"] or {}
    unread = [name for name in knobs if not re.search(rf"\bknobs(\.{re.escape(name)})?\}}", slots)]
    if unread:
        has = f"; it reads {', '.join(used)}" if (used := [name for name in knobs if name not in unread]) else ""
        raise UserError(f"method.knobs.{unread[0]} is not read by method={method['name']}{has}.")


def slot(override: str) -> str | None:
    """The slot of the method that an override adds a value to, such as ``++method.adapt.r=8``; None if it adds none."""
    match = re.match(r"\+{1,2}method\.(adapt|init|optim)\.", override)
    return match and match[1]


def require_slots(overrides: list[str]) -> None:
    """Raise UserError for the first override that adds a value below one that is null, which Hydra can't."""
    for override in overrides:
        if name := slot(override):
            raise UserError(f"{override} can't be set: the method has no `{name}`.")
        above = re.match(r"\+{0,2}(.+)\.", override.partition("=")[0])
        if above and "None" in _types(FullConfig).get(above[1], ""):
            several = slot(f"++{override}") and any(re.match("method=.*,", other) for other in overrides)
            where = f"; ++{override} sets it for the methods that have one" if several else ""
            raise UserError(f"{override} can't be set: {above[1]} is null{where}.")


def require_dictionary(error: AttributeError) -> None:
    """Raise UserError if `error` is OmegaConf's, of a dictionary that is merged into null."""
    if match := re.search(r"^ *full_key: (\S+)$", str(error), re.MULTILINE):
        raise UserError(
            f"{match[1]} is null, which no {{KEY: VALUE}} of the command line replaces; set it in a file of "
            f"conf/{match[1].partition('.')[0]}/."
        )


def require_choices(overrides: list[str]) -> None:
    """Raise UserError for the first override that gives a config group something other than a name."""
    for override in OverridesParser.create().parse_overrides(overrides):
        named = override.is_sweep_override() or isinstance(override.value(), str | list)
        group = override.key_or_group
        if (choices := group_files(group)) and not named:
            one_of(group, override.get_value_element_as_str(), choices)


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _chosen(missing: str) -> tuple[str, str]:
    """The config group and the choice in the path of a config that is not there; a choice may have slashes."""
    group = next((group for group in GROUPS if missing.startswith(f"{group}/")), missing.rpartition("/")[0])
    return group, missing[len(group) :].removeprefix("/")


def _no_choice(group: str, choice: str) -> str | None:
    """What to type in place of a model's hub id or folder, or of a file of data; None if the choice looks like none."""
    if group == "model" and ("/" in choice or Path(choice).is_dir()):
        named = _named(group, choice)
        alternative = f"model={named}, or " if named else ""
        return f"model must be a name in conf/model/, got {choice}; use {alternative}model.path={choice}."
    if group == "data" and choice.endswith(FILES):
        return f"data must be a name in conf/data/, got the file {choice}; use data=local data.path={choice}."
    if group == "data" and "/" in choice:
        named = _named(group, choice)
        alternative = f"use data={named}" if named else "a data set of the hub needs a file there, as alpaca.yaml is"
        return f"data must be a name in conf/data/, got {choice}; {alternative}."
    return None


def _named(group: str, place: str) -> str | None:
    """The choice of `group` whose file has `place`, a hub id or a folder."""
    for name, path in group_files(group).items():
        content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if place in (content.get("path"), content.get("load", {}).get("path")):
            return name
    return None


def _no_override(word: str) -> str:
    """What to type in place of a word that sets nothing."""
    wrong = f"An override must be KEY=VALUE, got {word!r}"
    if word in _types(FullConfig):
        return f"{wrong}; write {word}=VALUE, without spaces."
    if word in named_sweeps():
        return f"{wrong}; `sweep {word}` runs the sweep of that name, one at a time."
    if group := next((group for group in GROUPS if word in group_files(group)), None):
        return f"{wrong}; did you mean {group}={word}?"
    if any(word.count(opening) != word.count(closing) for opening, closing in ("[]", "{}", "()")):
        return f"{wrong}; close its brackets, and put it into quotes for the shell."
    if ",," in word:
        return f"{wrong}; a value between two commas is missing."
    if "=" not in word:
        return f"{wrong}; `run --help` lists the settings, and commas without spaces separate values of one."
    if not word.partition("=")[0].isascii():
        return f"{wrong}; before = are the letters a to z alone, as in +data.columns.topic=COLUMN for any COLUMN."
    return f"{wrong}; quote a value that has special characters, as KEY=\\'VALUE\\'."


def _no_setting(key: str) -> str:
    if key.startswith("method.knobs."):
        return _no_knob(key.removeprefix("method.knobs."))
    types = _types(FullConfig)
    # Open to what the callable that they name takes.
    if key.startswith(("hydra.", *(f"{name}." for name, kind in types.items() if kind.startswith("dict[")))):
        return f"There is no setting {key!r}; to add one, put ++ before it."
    group, _, last = key.rpartition(".")
    keys = sorted(types, key=lambda k: k.count("."))
    elsewhere = [ours for ours, theirs in ELSEWHERE.items() if last in theirs]
    # A key without its group (max_steps) is as common as a misspelt one.
    own = [k for k in keys if k.rpartition(".")[2] == last]
    if not group and not elsewhere and len(own) > 1:  # such as batch_size: training's first
        own.sort(key=lambda k: not k.startswith("train."))
        return f"There is no setting {key!r}; did you mean {', '.join(own[:-1])} or {own[-1]}?"
    beside = {k.rpartition(".")[2]: k for k in keys if group and k.rpartition(".")[0] == group}
    like = beside.get(nearest(last, beside) or "") if beside else nearest(key, keys)
    if near := next(iter(elsewhere or own), like):
        return f"There is no setting {key!r}; did you mean {near}?{UNITS.get(near, '') if elsewhere else ''}"
    return f"There is no setting {key!r}; `run --help` lists them."


def _no_knob(knob: str) -> str:
    """What to type instead of a knob that a method of the command does not have."""
    knobs_of = {name: method_knobs(path) for name, path in group_files("method").items()}
    having = [name for name, knobs in knobs_of.items() if knob in knobs]
    if having:
        alone = "sweep it with these alone, into the same study=NAME"
        return f"A method here has no knob {knob!r}; {', '.join(having)} have it: {alone}."
    near = nearest(knob, {name for knobs in knobs_of.values() for name in knobs})
    return f"No method has a knob {knob!r}" + (f"; did you mean {near}?" if near else ".")


def _unknown(settings: dict[str, Any], schema: type, prefix: str = "") -> Iterator[str]:
    """The dotted keys of `settings` that `schema` does not have, each down to its first value."""
    groups = {f.name: group_of(f) for f in dataclasses.fields(schema)}
    for name, value in settings.items():
        if name in groups:
            if (group := groups[name]) is not None and isinstance(value, dict):
                yield from _unknown(value, group, f"{prefix}{name}.")
            continue
        path = [name]
        while isinstance(value, dict) and value:
            name, value = next(iter(value.items()))
            path.append(name)
        yield prefix + ".".join(map(str, path))


def _types(schema: type, prefix: str = "") -> dict[str, str]:
    """The dotted keys of a structured config, each with its type as it is written there."""
    types = {}
    for f in dataclasses.fields(schema):
        types[prefix + f.name] = str(f.type)
        if (group := group_of(f)) is not None:
            types |= _types(group, f"{prefix}{f.name}.")
    return types
