"""A study's plan: what a sweep asks for, written beside the records before its first cell runs.

``plan.jsonl`` has a line for each sweep that asked for something new. A line is never changed. It holds its own SHA-256
and says which results were there when it was written, so what was added after a look can be told from what was planned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from harness.errors import UserError
from harness.record.codec import Misfit, decode, encode
from harness.record.files import content_of, replacing
from harness.record.ranges import check
from harness.record.schema import Cell
from harness.settings import EvalSettings

PLAN = "plan.jsonl"  # no *.json, as each of those is a record
PLAN_FORMAT = 1
MOST_SEEDS = 10_000  # of a line: each is tried for each record

ComparedGroup = tuple[str, str, str]  # method, model and data


def group_of(cell: Cell) -> ComparedGroup:
    return cell.method, cell.model, cell.data


@dataclass(frozen=True)
class JudgingRules:
    """What judges a study."""

    rules: dict[str, int]
    """Version of each set of rules by name: comparison (of the tables), and those of plug-ins."""
    articles: list[str]
    """Articles whose claims are judged."""
    changed: dict[str, dict[int, list[str]]] = field(default_factory=dict)
    """The claims, as ARTICLE/CLAIM, that a version of a set of rules can judge differently than the one before; of a
    version that is missing here, all."""


@dataclass(frozen=True)
class PlannedMethod:
    """The cells of one method on one model and data, in the grid of a sweep."""

    method: str
    """Name of the method."""
    model: str
    """Name of the model."""
    data: str
    """Name of the data, with limit and noise."""
    trained: bool
    """Whether its cells train. An untuned model is not confirmed."""
    cells: dict[str, str]
    """Id of each cell of the grid by name."""
    tried_before: int = 0
    """Results of this method, model and data that were there already, without confirmations."""
    confirmed_before: int = 0
    """Confirmations that were there already."""

    @property
    def group(self) -> ComparedGroup:
        return self.method, self.model, self.data

    @cached_property
    def ids(self) -> set[str]:
        """The ids of its cells."""
        return set(self.cells.values())


@dataclass(frozen=True)
class StudyPlan:
    """One line of plan.jsonl: what a sweep asks for."""

    created: str
    """Time in UTC."""
    harness: str
    """Git commit of the harness, or its version."""
    command: str
    """The sweep as it was typed."""
    seeds: list[int]
    """Seeds of the grid."""
    confirm: list[int]
    """Fresh seeds of each chosen setting, by `sweep --confirm`. Empty without."""
    evaluation: list[EvalSettings]
    """Evaluation settings of the grid: tasks, number of items (limit), examples."""
    articles: list[str]
    """Articles whose claims are judged."""
    rules: dict[str, int]
    """Version of each set of rules by name: comparison (of methods, in tables), claims (of articles)."""
    methods: list[PlannedMethod] = field(default_factory=list)
    """Cells of the grid by method, model and data."""
    format: int = PLAN_FORMAT
    """Version of this format."""


def read_plans(folder: Path) -> list[StudyPlan]:
    """The plans of the study in `folder`, in the order in which they were written; none of a study without the file.

    Raises UserError if the file can't be read or is not as it was written.
    """
    path = folder / PLAN
    try:
        lines = content_of(path).splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}).") from None
    return [_read(line, f"{path}, line {number},") for number, line in enumerate(lines, 1)]


def _read(line: bytes, where: str) -> StudyPlan:
    remedy = "restore the file from a copy, or remove it, which makes the study exploratory"
    try:
        value = json.loads(line)
        digest = value.pop("sha256")
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise UserError(f"{where} is no plan; {remedy}.") from None
    if line != _sealed(json.dumps(value)).encode() or not isinstance(digest, str):
        raise UserError(f"{where} is not as it was written: its hash differs; {remedy}.")
    if value.get("format") != PLAN_FORMAT:
        raise UserError(f"{where} has format {value.get('format')!r}; this version of the harness reads {PLAN_FORMAT}.")
    try:
        plan: StudyPlan = decode(StudyPlan, value)
        check(plan)
        if max(len(plan.seeds), len(plan.confirm)) > MOST_SEEDS:
            raise Misfit(f"has more than {MOST_SEEDS} seeds", "the line")
    except Misfit as error:
        raise UserError(f"{where} is no plan ({error}); {remedy}.") from None
    return plan


def _sealed(text: str) -> str:
    """`text`, a JSON object, with its own SHA-256 as its last member."""
    return f'{text[:-1]}, "sha256": "{hashlib.sha256(text.encode()).hexdigest()}"}}'


def add_plans(folder: Path, plans: Iterable[StudyPlan]) -> None:
    """Add `plans`, a line each, to those of the study in `folder`, but for those that are there. All or nothing.

    Raises UserError if the file that is there is damaged.
    """
    present = read_plans(folder)
    all_plans = [*present]
    for plan in plans:
        if plan not in all_plans:
            all_plans.append(plan)
    if len(all_plans) == len(present):
        return
    path = folder / PLAN
    folder.mkdir(parents=True, exist_ok=True)
    in_order = sorted(all_plans, key=lambda plan: plan.created)
    text = "".join(f"{_sealed(json.dumps(encode(plan)))}\n" for plan in in_order)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def planned_seeds(plans: Sequence[StudyPlan], choosing: Iterable[int], number: int) -> list[int]:
    """The `number` seeds that confirm chosen settings: those of earlier plans first, then the first above all.

    choosing: seeds that settings are chosen with, which confirm nothing.
    """
    used = set(choosing)
    planned = sorted({seed for plan in plans for seed in plan.confirm} - used)
    above = max([*used, *planned], default=-1) + 1
    return [*planned, *range(above, above + number)][:number]
