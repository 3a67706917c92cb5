"""Figures that others published, typed from their sources: the tables of results/published/.

A row of a table is one figure: a score, a peak of memory or a time of one method in one setting.
docs/published-results.md says which figures are taken.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, get_args

from harness.errors import UserError

Metric = Literal["score", "memory", "seconds"]
Ability = Literal["numerical", "knowledge", "reasoning", "code", "mmlu", "instructions", "average", "cost"]
ErrorKind = Literal["", "sd", "se", "unstated"]
Name = TypeVar("Name", bound=str)
YES_NO = {"yes": True, "no": False}
REQUIRED = ("source", "address", "place", "seen", "model", "billions", "data", "task", "ability", "trained", "metric")
FOLDER = "published"  # below the results
LEAST_BILLIONS = 1.0  # weights of a model that counts
MOST_SCORE = 100.0
TRAINING = "training"  # the task of memory and times


class PublishedSetting(NamedTuple):
    """What two figures must share to be compared; `length` of training may be empty."""

    source: str
    model: str
    data: str
    task: str
    metric: str
    length: str = ""

    @property
    def label(self) -> str:
        """Llama-2-7B, MetaMathQA, GSM8K"""
        parts = (self.model, self.data, "" if self.task == TRAINING else self.task, self.length)
        return ", ".join(dict.fromkeys(part for part in parts if part))


@dataclass(frozen=True)
class Figure:
    """One published figure, in the order of a table's columns.

    address, place: where it stands. seen: "yes", or what was read in place of the source. billions: of weights. data:
    trained on. length: of training; empty if the source shows one. ability: that the task tests; of memory and time
    "cost". trained: whether the data train for the task. rank: None if the method has none or the source gives none.
    runs: whose mean the figure is; None if the source does not say. value: scores in percent, memory and seconds in any
    unit. error: of error_is; None if the source gives none. items: of the task; None if unknown.
    """

    source: str
    address: str
    place: str
    seen: str
    model: str
    billions: float
    data: str
    length: str
    task: str
    ability: Ability
    trained: bool
    metric: Metric
    method: str
    rank: int | None
    runs: int | None
    value: float
    error: float | None
    error_is: ErrorKind
    items: int | None
    comment: str

    @property
    def setting(self) -> PublishedSetting:
        return PublishedSetting(self.source, self.model, self.data, self.task, self.metric, self.length)


COLUMNS = [field.name for field in fields(Figure)]


def published_figures(folder: Path) -> list[Figure]:
    """All figures of the tables in `folder`; UserError for a bad row or if there is no table."""
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        raise UserError(
            f"There are no tables of published results in {folder}; they are in results/ of the harness's repository: "
            "give the command there, or name that folder with --results-dir."
        )
    figures = [figure for path in paths for figure in _read(path)]
    return figures


def _read(path: Path) -> Iterator[Figure]:
    seen: dict[tuple[PublishedSetting, str, int | None], int] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise UserError(f"{path.name} must have the columns {', '.join(COLUMNS)}.")
        for row in reader:
            where = f"{path.name}, line {reader.line_num}"
            if None in row or None in row.values():
                raise UserError(f"{where} must have {len(COLUMNS)} cells.")
            figure = _figure(row, where)
            key = (figure.setting, figure.method, figure.rank)
            if key in seen:
                raise UserError(f"{where} must differ from line {seen[key]} in setting, method or rank.")
            seen[key] = reader.line_num
            yield figure


def _figure(row: Mapping[str, str], where: str) -> Figure:
    """The figure of a row; UserError, one sentence, for the first cell that can't be."""
    for name in (*REQUIRED, "method", "value"):
        if not row[name].strip():
            raise UserError(f"{where}: {name} is required.")
    if not row["address"].startswith("https://"):
        raise UserError(f"{where}: address must start with https://, got {row['address']}.")
    figure = Figure(
        **{name: row[name] for name in ("source", "address", "place", "seen", "model", "data", "length", "task")},
        **{name: row[name] for name in ("method", "comment")},
        billions=_number(row, "billions", where),
        ability=_choice(row, "ability", get_args(Ability), where),
        trained=YES_NO[_choice(row, "trained", tuple(YES_NO), where)],
        metric=_choice(row, "metric", get_args(Metric), where),
        rank=_count(row, "rank", where),
        runs=_count(row, "runs", where),
        value=_number(row, "value", where),
        error=_number(row, "error", where) if row["error"] else None,
        error_is=_choice(row, "error_is", get_args(ErrorKind), where),
        items=_count(row, "items", where),
    )
    _check(figure, where)
    return figure


def _check(figure: Figure, where: str) -> None:
    """UserError for cells that contradict each other."""
    if figure.billions < LEAST_BILLIONS:
        raise UserError(f"{where}: billions must be at least {LEAST_BILLIONS:g}, got {figure.billions:g}.")
    if figure.metric == "score" and figure.value > MOST_SCORE:
        raise UserError(f"{where}: a score must be in percent, got {figure.value:g}.")
    if (figure.metric == "score") == (figure.ability == "cost"):
        raise UserError(f"{where}: ability is cost for memory and seconds alone, got {figure.ability}.")
    if figure.error == 0 or (figure.metric != "score" and figure.value == 0):
        raise UserError(f"{where}: value and error must be positive, got 0.")
    if (figure.error is None) != (figure.error_is == ""):
        raise UserError(f"{where}: error and error_is require each other.")
    if figure.error_is == "sd" and (figure.runs or 0) < 2:
        raise UserError(f"{where}: error_is=sd requires at least 2 runs.")


def _number(row: Mapping[str, str], name: str, where: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{where}: {name} must be a number of at least 0, got {row[name]}.")
    return value


def _count(row: Mapping[str, str], name: str, where: str) -> int | None:
    if not row[name]:
        return None
    if not row[name].isascii() or not row[name].isdigit() or int(row[name]) < 1:
        raise UserError(f"{where}: {name} must be a positive whole number, got {row[name]}.")
    return int(row[name])


def _choice(row: Mapping[str, str], name: str, choices: Sequence[Name], where: str) -> Name:
    for choice in choices:
        if row[name] == choice:
            return choice
    raise UserError(f"{where}: {name} must be one of {', '.join(filter(None, choices))}, got {row[name]}.")
