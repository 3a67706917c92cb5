"""A composed grid point, and the check that its cell can run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.protocol import ApiAccess, LocalPaths
from harness.record import Cell
from harness.sweep import api_cost, runner
from harness.sweep import cells as cells_of
from harness.sweep.app.pending import study_of
from harness.sweep.app.session import Options


@dataclass(frozen=True)
class Point:
    """A composed grid point: its cell, and the overrides that a launcher composes it from again.

    architecture: the dimensions that the model's file ships (null: read from the model's own config).
    access: how a model behind an API is asked (null: the model is not behind an API).
    """

    cell: Cell
    overrides: list[str]
    architecture: dict[str, Any] | None
    access: ApiAccess | None


class Sharing:
    """Has points share their equal parts, of which a large grid would hold thousands.

    Equal are parts that are written alike: 1, 1.0 and true are not.
    """

    def __init__(self) -> None:
        self._parts: dict[str, Any] = {}

    def __call__(self, point: Point) -> Point:
        """`point`, made of parts of earlier ones."""
        settings = point.cell.settings
        parts = {field.name: self._one(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
        cell = dataclasses.replace(
            point.cell, settings=dataclasses.replace(settings, **parts), knobs=self._one(point.cell.knobs)
        )
        return dataclasses.replace(point, cell=cell, architecture=self._one(point.architecture))

    def _one(self, part: Any) -> Any:
        return self._parts.setdefault(repr(part), part)


def point_of(config: DictConfig, overrides: list[str]) -> Point:
    """The point that `config`, composed of `overrides`, means. UserError if its cell can't work."""
    cell = cells_of.from_config(config)
    return Point(cell, overrides, _architecture(config, overrides), api_cost.access(cell, config, study_of(config)))


def _architecture(config: DictConfig, overrides: list[str]) -> dict[str, Any] | None:
    """The dimensions that the model's file ships; null where the point names another model by its path."""
    given = {override.partition("=")[0] for override in overrides}
    if config.model.architecture is None or ("model.path" in given and "model.architecture" not in given):
        return None
    return OmegaConf.to_container(config.model.architecture, resolve=True)


def architectures(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """By model name."""
    return {point.cell.model: point.architecture for point in points if point.architecture is not None}


def check(points: Sequence[Point], config: DictConfig, options: Options) -> None:
    """Raise UserError if a cell can't run, or if asking the models behind an API would exceed the budget.

    config: of any of the points.
    """
    cells = [point.cell for point in points]
    access = {point.cell.id: point.access for point in points if point.access is not None}
    local = LocalPaths.absolute(config.eval.vllm_python, config.eval.include_path)
    counts = runner.check(_distinct(cells), config.data_root, access, local)
    api_cost.check(api_cost.estimates(cells, access, counts), options.dollars)


def _distinct(cells: Sequence[Cell]) -> list[Cell]:
    """One of all cells that work or don't for the same reasons, and all behind an API.

    A large grid has few of these: a job does not look at seeds, nor at the lr and alpha that validate.py has passed.
    """
    found: dict[str, Cell] = {}
    for cell in cells:
        settings, slots = cell.settings, cell.settings.method
        passed = {"lr": cell.lr, "lora_alpha": cell.alpha}
        slots = dataclasses.replace(slots, adapt=_without(passed, slots.adapt), optim=_without(passed, slots.optim))
        alike = repr((cell.rank, dataclasses.replace(settings, method=slots, seed=None)))
        found.setdefault(cell.id if settings.behind_api else alike, cell)
    return list(found.values())


def _without(passed: dict[str, Any], slot: Any) -> Any:
    """`slot` without the values `passed`, at any depth."""
    if not isinstance(slot, dict):
        return slot
    return {k: _without(passed, v) for k, v in slot.items() if not (k in passed and v == passed[k])}
