"""Hydra's and OmegaConf's errors as one sentence each, in the words of the command line."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from harness.config import Config
from harness.config_folders import group_files
from harness.errors import UserError, one_of

# The extra that installs the plugin behind a choice of a config group.
EXTRAS = {
    ("hydra/sweeper", "optuna"): "optuna",
    ("hydra/launcher", "submitit_local"): "slurm",
    ("hydra/launcher", "submitit_slurm"): "slurm",
    ("hydra/launcher", "ray"): "ray",
}


def sentence(error: Exception) -> str:
    """The message of an error of Hydra's or OmegaConf's."""
    if isinstance(error, MissingConfigException):
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        if extra := EXTRAS.get((group, choice)):
            return f"{group}={choice} needs the extra `{extra}`: pip install -e '.[{extra}]' in the project's folder."
        try:
            one_of(group, choice, sorted(error.options or [choice]))
        except UserError as unknown:
            return str(unknown)
    first, cause = first_line(error), first_line(error.__cause__ or error)
    if isinstance(error, OverrideParseException):
        return f"An override must be KEY=VALUE, got {error.override!r}; quote a value that has special characters."
    if found := re.match(r"Could not override '(.+)'", first):
        return _no_setting(found[1])
    if found := re.match(r"Error merging override (.+)", first):
        return f"{found[1]}: {cause.rstrip('.')}."
    if found := re.match(r"Ambiguous value for argument '(.+)'", first):
        as_list = found[1].replace("=", "=[", 1) + "]"
        return f"{found[1]} names several values: `sweep` runs them all, and {as_list} is one list."
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {first}."
    return " ".join(f"{error} {error.__cause__ or ''}".split())


def require_choices(overrides: list[str]) -> None:
    """Raise UserError for the first override that gives a config group something other than a name."""
    for override in OverridesParser.create().parse_overrides(overrides):
        named = override.is_sweep_override() or isinstance(override.value(), str | list | None)
        group = override.key_or_group
        if (choices := group_files(group)) and not named:
            one_of(group, override.get_value_element_as_str(), choices)


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _no_setting(key: str) -> str:
    if key.startswith(("method.", "data.load.", "hydra.")):  # open to what the callable they name takes
        return f"There is no setting {key!r}; to add one, put a + before it."
    known = list(_keys(Config))
    near = difflib.get_close_matches(key, known, n=1)
    # A key without its group (max_steps) is as common as a misspelt one.
    near = near or [k for k in known if k.rpartition(".")[2] == key]
    hint = f"did you mean {near[0]}?" if near else "`run --help` lists them."
    return f"There is no setting {key!r}; {hint}"


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a structured config."""
    for f in dataclasses.fields(schema):
        yield prefix + f.name
        if dataclasses.is_dataclass(f.default_factory):
            yield from _keys(f.default_factory, f"{prefix}{f.name}.")
