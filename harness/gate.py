"""The one gate through which a record passes before anything runs or loads what it names.

A record names functions (the slots of its method, how its data are loaded), a model, tasks and saved weights. It may
come from anywhere. So a command that runs a cell again, or loads its model, takes from a record only what config files
name: those of the harness, and a user's own in ./conf and ./sweeps. What they don't name can be run by a command line
of the user's own, such as a sweep, and never from a record.

What it lets through, by part of the record:

- Slots: a function, and each of its arguments, if a config file has it at the same place. Numbers are free. A text must
  be one that a file has there, or that the setting has which the file refers to.
- Model: weights as safetensors alone, without code of their own.
- Prompts: templates with nothing but names in braces.
- Tasks: names in lm-eval's index, and no files.
- Saved weights: the files of the record's own folder, as they were saved, none of which is code or names code.
"""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from harness.config import ADAMW
from harness.config_folders import conf_folders, sweep_folders
from harness.errors import UserError
from harness.record import Cell, Record, content_of, model_folder, read
from harness.redact import leaves
from harness.settings import Settings, cell_id, plain, prompt_fields
from harness.validate import SETTINGS

GROUPS = ("method", "data")  # of config files, that have functions in them
SLOTS = ("method.load", "method.adapt", "method.init", "method.optim", "data.load")
LAYERS = {  # names of parts of the model, which may be any
    f"method.adapt.{name}" for name in ("target_modules", "exclude_modules", "modules_to_save", "target_parameters")
}
LAYER = re.compile(r"(?=.)[\w.-]*(?:\*[\w.-]*){0,2}")  # an expression with many stars takes hours to match a name
ADAPTER_CONFIG = "adapter_config.json"
EXPRESSIONS = {"target_modules", "exclude_modules", "modules_to_save"}  # of an adapter's config, and each *_pattern
ADDRESS = re.compile(r"\w+://|[/~\\]")  # the beginning of a path that means nothing elsewhere, or is another machine's
TASK = re.compile(r"(?!.*\.ya?ml$)[^/\\*?\[\]{}\s]+")  # lm-eval takes other texts for files, or for patterns of names
WEIGHTS = (".safetensors", ".json", ".jinja", ".txt", ".model", ".md")  # endings of files that no library runs
UNNAMED = "neither the harness nor a file in a conf/ folder of yours has"


def admitted(path: Path, typed: Cell | None = None) -> Record:
    """The record at `path`, for what runs or loads it. Raises UserError if it is refused, and RecordError as `read`.

    typed: the cell as a command line of today has it, which the user trusts. It takes the place of the record's own, so
    that only the weights beside the record are to be looked at.
    """
    record = read(path)
    if typed is None:
        require(record, path)
        return record
    record.cell = typed
    if not typed.settings.model.trust_remote_code and (why := weights_objection(record, model_folder(path))):
        raise UserError(f"{typed.name} is not loaded from its record: {why}. Remove it with `rm`, and run it again.")
    return record


def require(record: Record, path: Path) -> None:
    """Raise UserError if what `record`, whose file is at `path`, names is not to be run or loaded."""
    if (why := refusal(record, path)) is not None:
        raise UserError(
            f"{record.cell.name} is neither run nor loaded from its record: {why}. "
            "Remove it with `rm`, and run its sweep again."
        )


def refusal(record: Record, path: Path) -> str | None:
    """Why `record`, whose file is at `path`, is not to be run or loaded, as a clause; None if it may be."""
    return objection(record) or weights_objection(record, model_folder(path))


def objection(record: Record) -> str | None:
    """Why the settings of a record are not to be run or loaded, as a clause; None if they may be."""
    settings = record.cell.settings
    if record.source is None and cell_id(settings) != record.cell.id:
        return "its id is not that of its settings"
    if settings.model.trust_remote_code or not settings.model.use_safetensors:
        return "it trusts code or pickled weights of its model"
    if settings.eval.unsafe_code:
        return "it runs code that a model writes"
    return next((why for of in (_texts, _prompts, _places, _tasks, _slots) for why in of(settings)), None)


def runnable(record: Record) -> bool:
    """Whether a command may run the settings of a record again."""
    return objection(record) is None


def weights_objection(record: Record, folder: Path) -> str | None:
    """Why the saved weights of a record, in `folder`, are not to be loaded, as a clause; None if they may be.

    That they are the files that were saved is for `harness.studies.verify` to say: it takes long for large ones.
    """
    if record.saved is None or not folder.is_dir():
        return None
    if folder.is_symlink():
        return f"{folder.name} is a link"
    for path in sorted(folder.rglob("*")):
        name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
        if path.is_symlink():
            return f"{name} is a link"
        if path.is_file() and path.suffix not in WEIGHTS:
            return f"{name} is none of the kinds of files that weights are saved as ({', '.join(WEIGHTS)})"
        if path.suffix == ".json" and (key := _names_code(path)) is not None:
            return f"{name} names code in its {key}"
    if (config := folder / ADAPTER_CONFIG).is_file() and (why := _endless(config, record.cell.settings)):
        return f"{folder.name}/{ADAPTER_CONFIG} {why}"
    return None


def _endless(path: Path, settings: Settings) -> str | None:
    """What in an adapter's config at `path` may hang the process that loads it, or fill its memory, as a clause.

    peft matches its texts as regular expressions with the names of all layers. Those of the cell's own settings have
    been looked at.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        return "must be an adapter's config as a JSON object"
    if config.get("layer_replication"):
        return "has layer_replication, which repeats layers of the base without end"
    own = {text for value in (settings.method.adapt or {}).values() for text in _words(value)}
    for field, value in config.items():
        if field in EXPRESSIONS or field.endswith("_pattern"):
            for text in _words(value):
                if text not in own and LAYER.fullmatch(text) is None:
                    return f"has an expression in its {field} that may take hours to match"
    return None


def _words(value: Any) -> set[str]:
    """The texts that `value` is, lists or names."""
    parts = [value] if isinstance(value, str) else value if isinstance(value, (list, dict)) else []
    return {part for part in parts if isinstance(part, str)}


def _texts(settings: Settings) -> Iterator[str]:
    """Objections to texts that no settings have: they are resolved, and some are a choice of few."""
    for key, value in leaves(plain(settings)):
        if isinstance(value, str) and "${" in value:
            yield f"{key} is an interpolation"
        choices = SETTINGS[key].rule.choices if key in SETTINGS else ()
        if isinstance(value, str) and choices and value not in choices:
            yield f"{key}={value} is unknown"


def _prompts(settings: Settings) -> Iterator[str]:
    """Objections to prompt templates: one may exhaust the memory, or show what its fields hold inside."""
    for key in ("prompt", "prompt_if_empty"):
        template = getattr(settings.data, key) or ""
        try:
            prompt_fields(template)
        except UserError:
            yield f"data.{key}={template!r} has more in its braces than names"


def _places(settings: Settings) -> Iterator[str]:
    """Objections to where the model and the data are."""
    path = settings.model.path or ""
    if re.match(r"\w+://", path):
        yield f"model.path={path} is an address"
    for model in (path, *filter(None, [settings.eval.bertscore])):
        if _is_file(config := Path(model, "config.json")) and (key := _names_code(config, ("auto_map",))):
            yield f"{model}/config.json names code in its {key}"
    data = settings.data
    if data.path is not None and ADDRESS.match(data.path):
        yield f"data.path={data.path} is neither below data_root nor beside the working folder"
    for key, value in leaves(data.options, "data.options"):
        if isinstance(value, str) and re.search(r"[/\\]", value):
            yield f"{key}={value} may be a file"


def _is_file(path: Path) -> bool:
    """Whether `path` is a file; False of a path that no file system takes, as it is too long."""
    try:
        return path.is_file()
    except OSError:
        return False


def _tasks(settings: Settings) -> Iterator[str]:
    for task in settings.eval.tasks:
        if not isinstance(task, str) or not TASK.fullmatch(task):
            yield f"eval.tasks names {task!r}, which is no task of an index but may be a file"


def _names_code(path: Path, inert: tuple[str, ...] = ()) -> str | None:
    """The key of a saved config by which transformers or peft would import code; None if there is none.

    Neither needs trust_remote_code for the attention of a package of kernels, nor for Megatron's modules. inert: keys
    that are left out.
    """
    try:
        config = json.loads(content_of(path))
    except (OSError, ValueError, RecursionError):
        return "text, which can't be read"
    for key, value in leaves(config):
        parts = key.split(".")
        last = parts[-1]
        if set(parts) & {"auto_map", "auto_mapping", "megatron_config"} - {*inert} and value is not None:
            return key
        if last.endswith("_implementation") and isinstance(value, str) and re.search(r"[/:@]", value):
            return key
        if last == "megatron_core" and value not in (None, "megatron.core"):
            return key
    return None


@dataclass(frozen=True)
class Named:
    """What config files have at each place, by its dotted key, with the indices of lists left out.

    keys: all places. words: texts. references: interpolations, such as ``${model.dtype}``.
    """

    keys: set[str]
    words: dict[str, set[str]]
    references: dict[str, set[str]]

    def add(self, key: str, value: Any) -> None:
        """Take in what a file has at `key` and below."""
        self.keys.add(key)
        if isinstance(value, dict):
            for name, part in value.items():
                self.add(f"{key}.{name}", part)
        elif isinstance(value, list):
            for part in value:
                self.add(key, part)
        elif isinstance(value, str):
            (self.references if "${" in value else self.words)[key].add(value)


def _slots(settings: Settings) -> Iterator[str]:
    """Objections to the functions of the cell and their arguments."""
    named = _named((*conf_folders(), *sweep_folders()))
    for slot in SLOTS:
        group, _, name = slot.partition(".")
        yield from _unnamed(slot, getattr(getattr(settings, group), name), named, settings)


def _unnamed(key: str, value: Any, named: Named, settings: Settings) -> Iterator[str]:
    """What of `value`, which a record has at `key`, no config file names."""
    if any(_refers(reference, value, named, settings) for reference in named.references.get(key, ())):
        return
    if isinstance(value, dict):
        for name, part in value.items():
            if f"{key}.{name}" not in named.keys | LAYERS:
                yield f"{UNNAMED} {key}.{name}"
            yield from _unnamed(f"{key}.{name}", part, named, settings)
    elif isinstance(value, list):
        for part in value:
            yield from _unnamed(key, part, named, settings)
    elif isinstance(value, str):
        layer = key in LAYERS and LAYER.fullmatch(value)
        if not layer and value not in named.words.get(key, ()):
            yield f"{UNNAMED} {key}={value}"


def _refers(reference: str, value: Any, named: Named, settings: Settings) -> bool:
    """Whether `value` is what an interpolation of a config file gives for these settings."""
    if re.fullmatch(r"\$\{adamw:.*\}", reference):
        return value in ADAMW.values()
    if knob := re.fullmatch(r"\$\{(method\.knobs\.\w+)\}", reference):
        return isinstance(value, str) and value in named.words[knob[1]]
    # ${..path} stands in a slot of data, so it is of the data.
    setting = re.fullmatch(r"\$\{(?:(model|data|train)\.|\.\.)(\w+)\}", reference)
    return setting is not None and value == getattr(getattr(settings, setting[1] or "data"), setting[2], None)


@functools.lru_cache(8)
def _named(folders: tuple[Path, ...]) -> Named:
    """What the config files below `folders` name, as they were at the first call."""
    named = Named(set(SLOTS), defaultdict(set), defaultdict(set))
    files = list(dict.fromkeys(path for folder in folders for path in sorted(folder.rglob("*.yaml"))))  # folders nest
    for group in GROUPS:
        for path in files:
            if path.parent.name == group:
                _named_by_file(named, group, path)
    for path in files:
        if path.parent.name not in GROUPS:
            _named_by_sweep(named, path)
    return named


def _named_by_file(named: Named, group: str, path: Path, mounts: bool = True) -> None:
    """Take in the file of a config group at `path`.

    Where its list of defaults puts files of another group below one of its own keys, as ``/data@load.real: gsm8k``,
    all files of that group may stand there.
    """
    config = _written(path)
    for default in config.pop("defaults", []):
        if not mounts or not isinstance(default, dict):
            continue
        if place := re.fullmatch(r"/(\w+)@(.+)", next(iter(default))):
            for other in sorted((path.parent.parent / place[1]).glob("*.yaml")):
                _named_by_file(named, f"{group}.{place[2]}", other, mounts=False)
    named.add(group, config)


def _named_by_sweep(named: Named, path: Path) -> None:
    """Take in the settings of a named sweep, and those of its axes and candidates."""
    config = _written(path)
    for group in GROUPS:
        named.add(group, config.get(group, {}))
    sweeper = (config.get("hydra") or {}).get("sweeper") or {}
    overrides = [word for line in sweeper.get("candidates") or [] for word in line.split()]
    overrides += [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key.partition(".")[0] in GROUPS and "." in key:
            named.add(key, re.findall(r"[^\[\],]+", value))


def _written(path: Path) -> dict[str, Any]:
    """The content of a config file; empty if it has none, or is no YAML: who composes it says what is wrong."""
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception:  # YAML's own kinds, OmegaConf's, a file that can't be read
        return {}
    return config if isinstance(config, dict) else {}
