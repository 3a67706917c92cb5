"""A grid point, composed once: all that any process needs to run its cell, here or on another machine."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness import cell_runner, plugin, record
from harness import config as settings_of
from harness.protocol import LocalPaths, RunCell
from harness.record import Cell, StopRule
from harness.sweep import cells as cells_of
from harness.sweep import runner
from harness.sweep.store import Study


@dataclass(frozen=True)
class Point:
    """A grid point that was composed and checked.

    request: what its job is asked for. results: the folder of studies, as typed. folder: where one worked when it was
    composed. repeat, statuses: as the settings repeat and retry.statuses. overrides: those that it was composed of.
    architecture: the dimensions that the model's file ships (null: read from the model's own config).
    """

    request: RunCell
    results: str
    folder: str
    repeat: bool
    statuses: list[str]
    overrides: list[str]
    architecture: dict[str, Any] | None

    @property
    def cell(self) -> Cell:
        return self.request.cell

    @property
    def is_local(self) -> bool:
        """Whether the core runs its cell, with weights that are here; else a plug-in does."""
        return self.request.extra is None

    @property
    def study(self) -> Study:
        return Study(Path(self.results).expanduser(), self.request.study)

    def at(self, position: int) -> Point:
        """This point as the one that its sweep launches at `position`, from 1."""
        return dataclasses.replace(self, request=dataclasses.replace(self.request, position=position))

    def to_repeat(self) -> Point:
        """This point as one whose recorded cell is measured again."""
        return dataclasses.replace(self, repeat=True)

    def write(self, path: Path) -> None:
        """Write it to a file, for a process that a launcher starts elsewhere."""
        path.parent.mkdir(parents=True, exist_ok=True)
        record.write_json(record.encode(self), path)

    @classmethod
    def read(cls, path: Path) -> Point:
        return record.decode(Point, json.loads(path.read_bytes()))


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
        request = dataclasses.replace(
            point.request,
            cell=cell,
            precautions=self._one(point.request.precautions),
            local=self._one(point.request.local),
        )
        return dataclasses.replace(
            point, request=request, architecture=self._one(point.architecture), statuses=self._one(point.statuses)
        )

    def _one(self, part: Any) -> Any:
        return self._parts.setdefault(repr(part), part)


def study_of(config: DictConfig) -> Study:
    return Study(Path(config.results_dir).expanduser(), config.study)


def point_of(config: DictConfig, overrides: list[str]) -> Point:
    """The point that `config`, composed of `overrides`, means. UserError if its cell can't work."""
    cell, study = cells_of.from_config(config), study_of(config)
    by_plugin = cell_runner.runner_of(cell.settings)
    request = runner.request_for(
        cell,
        study,
        config.data_root,
        precautions=settings_of.precautions(config),
        save=config.save,
        tracker=config.tracker,
        extra=None if by_plugin is None else by_plugin.extra(config, study.answers(cell)),
        local=LocalPaths.absolute(config.eval.vllm_python, config.eval.include_path),
        confirmation=config.confirmation,
        early_stopping=study.early_stopping(stop_rule(config)),
    )
    statuses = list(config.retry.statuses)
    shipped = _architecture(config, overrides)
    return Point(request, str(config.results_dir), os.getcwd(), config.repeat, statuses, overrides, shipped)


def stop_rule(config: DictConfig) -> StopRule | None:
    """The rule of a plug-in's by which the cell of `config` may end early; None if it is trained to its end."""
    targets = (part.stop_rule for part in plugin.installed())
    rules = (plugin.load(target)(config) for target in targets if target is not None)
    return next((rule for rule in rules if rule is not None), None)


def _architecture(config: DictConfig, overrides: list[str]) -> dict[str, Any] | None:
    """The dimensions that the model's file ships; null where the point names another model by its path."""
    keys = {override.partition("=")[0] for override in overrides}
    if config.model.architecture is None or ("model.path" in keys and "model.architecture" not in keys):
        return None
    dimensions: Any = OmegaConf.to_container(config.model.architecture, resolve=True)
    return dimensions


def architectures(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """By model name."""
    return {point.cell.model: point.architecture for point in points if point.architecture is not None}
