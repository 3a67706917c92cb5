"""Engines of plug-ins that write the answers of tasks that ask for text, elsewhere and over saved weights.

Everything else of an evaluation stays with the engine of the harness. eval.engine names one.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from transformers import PreTrainedTokenizerBase

from harness import plugin
from harness.errors import UserError
from harness.protocol import LocalPaths
from harness.record import Cell, VllmUsage
from harness.settings import AUTO, Settings

SAVE_FOR = "save_for_"  # with the engine's name: the phase in which it gets the weights


@dataclass(frozen=True)
class ScoredModel:
    """The model of `cell` that is scored, `net`.

    path: of the cell's record. bf16: whether it computes in bf16. whole: the folder that holds it as a whole model;
    None if there is none yet.
    """

    cell: Cell
    path: Path
    net: nn.Module
    tokenizer: PreTrainedTokenizerBase
    bf16: bool
    whole: Path | None


class ElsewhereWriter(Protocol):
    """Writes the answers of one scoring. usage: what they took, as the record has it; None before there are any."""

    @property
    def usage(self) -> VllmUsage | None: ...

    def beside(self, ordinary: Any, answered: Callable[[], None] | None) -> tuple[Any, MutableMapping[str, str]]:
        """A model of lm-eval that has this one write, and `ordinary` do the rest.

        With it comes what it adds to the record's speed-ups while it answers: "on", or "off: " and the reason.
        answered: called after each answer.
        """


class AnswerEngine(Protocol):
    """Has answers written elsewhere."""

    def check(self, settings: Settings, local: LocalPaths) -> None:
        """Raise UserError if it can't answer for a cell of these settings, on this machine."""

    def writer(self, model: ScoredModel, local: LocalPaths) -> ElsewhereWriter:
        """Writes the answers of `model`. Raises CellEnded if that can't be had, UserError for bad input."""


def named(name: str) -> AnswerEngine | None:
    """The engine of this name; None for ``auto``, that of the harness. UserError if no plug-in has it."""
    if name == AUTO:
        return None
    for part in plugin.installed():
        if name in part.engines:
            engine: AnswerEngine = plugin.load(part.engines[name])()
            return engine
    raise UserError(f"eval.engine={name} requires a plug-in that has this engine.")


def check(settings: Settings, local: LocalPaths) -> None:
    """Raise UserError if the engine that `settings` name can't answer for a cell of theirs, on this machine."""
    if (engine := named(settings.eval.engine)) is not None:
        engine.check(settings, local)
