"""The settings of the rule by which hopeless cells end early."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec

from omegaconf import DictConfig

from harness.errors import UserError
from harness.record import StopRule
from harness.schema import setting


@dataclass
class StopConfig:
    """Early end of hopeless cells of a sweep, by the same rule for all methods."""

    name: str = setting("none", choices=("none", "asha"), label="stop", axis=False, in_cell=False)
    """none, or asha (successive halving by optuna): at each rung, a cell ends whose validation loss is not among the
    best of its method, model, data and token budget. It becomes a row with the status pruned. It pays with ten settings
    a method or more."""
    first: float = setting(
        0.15, above=0, below=1, words="a share of the tokens above 0 and below 1", axis=False, in_cell=False
    )
    """Share of a cell's tokens at which the first rung lies."""
    factor: int = setting(4, least=2, axis=False, in_cell=False)
    """Each rung lies at this many times the tokens of the one before, and the best 1/factor go on from it."""


def stop_rule(config: DictConfig) -> StopRule | None:
    """The rule that may end the cell of `config` early; None for a confirmation and for an untuned model."""
    may_end = config.stop.name == "asha" and not config.confirmation and config.method.optim is not None
    return StopRule(config.stop.first, config.stop.factor) if may_end else None


def check(config: DictConfig) -> None:
    """Refuse a rule for ending cells early none of whose rungs a cell can reach, or whose package is not there."""
    stop, train = config.stop, config.train
    if stop.name == "none" or config.method.optim is None:
        return
    if train.early_stopping is not None:
        raise UserError("stop=asha can't be combined with train.early_stopping: take one rule for ending early.")
    if find_spec("optuna") is None:
        raise UserError("stop=asha needs the extra `asha`: pip install -e '.[asha]' in the project's folder.")
    if train.max_steps is not None and math.ceil(stop.first * train.max_steps) >= train.max_steps:
        raise UserError(
            f"stop=asha requires a rung before the last step, but stop.first={stop.first:g} of "
            f"train.max_steps={train.max_steps} is step {train.max_steps}."
        )
