"""Simulated studies: records with their items in memory, of methods whose truth is known."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from scipy import special

from harness import record
from harness.record import Record, Score, Status
from harness.settings import Settings

TASKS = {"wordmath": ("wordmath", "exact_match", "flexible-extract"), "mmlu": ("mmlu", "acc", "none")}
TASKS |= {"facts": ("facts", "acc", "none"), "plain_text": ("plain_text", "bits_per_byte", "none")}
METHODS = ("full", "lora", "qlora", "dora", "galore")
RATES = {"full": 2e-5, "galore": 2e-5}


T = TypeVar("T")


def known(value: T | None) -> T:
    """What a simulated study always has, as all its cells are measured. Raises ValueError if it is missing."""
    if value is None:
        raise ValueError("a simulated study lacks a measurement")
    return value


class Study:
    """Records and their items, kept in memory."""

    def __init__(self, draw: np.random.Generator, data: str = "wordmath"):
        self.draw, self.data = draw, data
        self.records: list[Record] = []
        self.tables: dict[str, pa.Table] = {}

    def add(
        self,
        method: str,
        seed: int | None = 0,
        lr: float | None = None,
        rank: int | None = 16,
        loss: float = 1.0,
        mib: float = 1000.0,
        seconds: float = 0.1,
        start: float | None = None,
        status: Status = "ok",
        confirmation: bool = False,
        adapt: dict[str, Any] | None = None,
        train: dict[str, Any] | None = None,
        alpha: float = 32.0,
    ) -> Record:
        """One cell.

        start: in minutes after the study's. confirmation: of a fresh seed of a chosen setting. adapt, train: settings
        of the adapter and of training that are not the defaults.
        """
        lr = (lr or RATES.get(method, 2e-4)) if method != "base" else None
        rank = rank if method in ("lora", "qlora", "dora", "galore") else None
        made = _copy(template(method))
        made.cell = replace(
            made.cell,
            name=f"{method}-{rank}-{lr}-{seed}-{len(self.records)}",
            data=self.data,
            rank=rank,
            alpha=rank and alpha,
            lr=lr,
            seed=seed if method != "base" else None,
        )
        if adapt or train:
            settings = made.cell.settings
            settings = replace(
                settings, method=replace(settings.method, adapt=adapt), train=replace(settings.train, **train or {})
            )
            made.cell = replace(made.cell, settings=settings)
        made.status, made.confirmation = status, confirmation
        if start is not None:
            made.started = datetime.fromtimestamp(1.7e9 + 60 * start, UTC).isoformat()
        if method != "base":
            made.validation = [record.ValidationPoint(50, 20_000, loss)]
            made.probe = replace(known(made.probe), peak=record.Kinds(int(mib * 2**20), 0, 0, 0, 0))
            made.train = replace(known(made.train), step_seconds=[seconds] * 5, warmup_steps=0)
            decode = [0.64 * seconds / 0.1] * 3
            made.inference = {"merged": record.Inference(8, 128, 65, [0.25] * 3, decode)}
        self.records.append(made)
        return made

    def score(self, made: Record, task: str, values: np.ndarray, clusters: np.ndarray) -> None:
        """Give a record a score and its items."""
        name, metric, kind = TASKS[task]
        higher = task != "plain_text"
        error = float(values.std(ddof=1)) / len(values) ** 0.5
        made.scores.append(
            Score(
                task=name,
                metric=metric,
                filter=kind,
                value=float(values.mean()),
                stderr=error,
                n=len(values),
                num_fewshot=0,
                version="1.0",
                higher_is_better=higher,
            )
        )
        texts = {"task": name, "metric": metric, "filter": kind, "subject": task}
        columns = {column: pa.repeat(text, len(values)) for column, text in texts.items()}
        columns |= {"item": np.arange(len(values)), "value": values}
        columns["cluster"] = _labels(int(clusters[-1]) + 1).take(pa.array(clusters))
        self.tables[made.cell.name] = pa.table(columns)


@functools.cache
def template(method: str) -> Record:
    """A record with all that rules look at, of which cells are shallow copies."""
    settings = Settings(seed=0)
    settings = replace(settings, method=replace(settings.method, name=method))
    cell = record.Cell("0" * 64, method, method, "small", "wordmath", None, None, None, 0, {}, settings)
    made = record.Record(cell, "simulated", "ok", "2026-01-02T03:04:05+00:00", 60.0, {"precision": "bf16"})
    made.parameters = record.Parameters(2 * 10**9, 0 if method == "base" else 10**6)
    if method != "base":
        tokens = record.Tokens(raw=20_000, padded=25_000, supervised=9_000)
        made.train = record.Train(5, tokens, [0.1] * 5, 0, 500.0, 500.0, [], "b")
        kinds = record.Kinds(1, 0, 0, 0, 0)
        made.probe = record.Probe(kinds, kinds, 0, 1e9)
    return made


@functools.cache
def _labels(clusters: int) -> pa.Array:
    return pa.array([f"{cluster:04d}" for cluster in range(clusters)])


def _copy(made: Record) -> Record:
    return replace(made, scores=[], validation=[], inference={})


# How answers come about


@functools.cache
def shift(value: float, spread: float) -> float:
    """The log odds at which answers of this spread (of the log odds) are right with probability `value`."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    grid = np.linspace(-6, 6, 601)
    means = special.expit(grid[:, None] + spread * nodes) @ weights / weights.sum()
    return float(np.interp(value, means, grid))


@dataclass(frozen=True)
class Noise:
    """What makes answers differ, in log odds where not said otherwise.

    seed_points: standard deviation from seed to seed, in points. together: the part of its square by which a seed moves
    all methods alike. clusters × size: the items. shared: of clusters, for all methods; own: of clusters, for each
    method.
    """

    seed_points: float = 1.0
    together: float = 0.0
    clusters: int = 57
    size: int = 20
    shared: float = 0.6
    own: float = 0.3
    item: float = 1.5
    rest: float = 0.5

    @property
    def spread(self) -> float:
        parts = (self.shared, self.own, self.item, self.rest, self.seed)
        return float(np.sqrt(np.square(parts).sum()))

    @property
    def seed(self) -> float:
        return self.seed_points / 100 / 0.14  # about the slope of a probability by log odds, over such items


def answer(
    study: Study,
    task: str,
    values: dict[str, float],
    seeds: int,
    noise: Noise,
    erratic: Mapping[str, Noise] = {},
    lost: Mapping[str, int] = {},
    items: np.random.Generator | None = None,
) -> None:
    """Cells of each method with `seeds` seeds (base: one), whose true accuracies are `values`.

    erratic: the noise of methods whose seeds differ more than the others'. lost: of methods that lack some of the
    seeds, how many. items: draws the items and what each method makes of them; two studies with equal ones have the
    same test. By default the study's own.
    """
    draw, n = study.draw, noise.clusters * noise.size
    of_items = items or draw
    place = np.repeat(np.arange(noise.clusters), noise.size)
    item = of_items.normal(0, noise.shared, noise.clusters)[place] + of_items.normal(0, noise.item, n)
    common = draw.normal(0, noise.seed, seeds) if noise.together else np.zeros(seeds)
    for method, value in values.items():
        own = of_items.normal(0, noise.own, noise.clusters)[place] + of_items.normal(0, noise.rest, n) + item
        kind = erratic.get(method, noise)
        level = shift(value, kind.spread)
        for seed in range(1 if method == "base" else seeds - lost.get(method, 0)):
            odds = level + own
            if method != "base":
                alone = (1 - noise.together) ** 0.5 * draw.normal(0, kind.seed)
                odds = odds + noise.together**0.5 * common[seed] + alone
            right = (draw.random(n) < special.expit(odds)).astype(float)
            study.score(study.add(method, seed), task, right, place)
