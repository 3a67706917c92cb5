"""Imported experiments compared by what their source published: a score and its number of items, in one run or more.

Without answers to single items nothing can be paired. Experiments that were run again show how much a score moves from
run to run, and with the versions of the libraries.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from harness.grouping import grouped
from harness.record import Record, Score
from harness.report.frame import score_name
from harness.report.statistics import ALPHA, Interval, holm, seeds_interval, share_interval

STACK = ("torch", "transformers")  # libraries whose versions name a group of runs


@dataclass(frozen=True)
class ExperimentRun:
    """One run of an experiment: the record or one of its repeats. stack: versions of STACK, as text."""

    record: Record
    started: str
    stack: str
    score: Score


@dataclass(frozen=True)
class Shift:
    """By how much the accuracies of the same experiments moved from one stack to another; proportions.

    experiments: how many ran on both.
    """

    before: str
    after: str
    experiments: int
    change: Interval


@dataclass(frozen=True)
class Experiment:
    """An experiment among the others. interval: of its accuracy, over items and runs. above, below: positions of the
    others, in `Reruns.experiments`, that it is significantly better and worse than."""

    record: Record
    runs: list[ExperimentRun]
    interval: Interval
    above: tuple[int, ...]
    below: tuple[int, ...]


@dataclass(frozen=True)
class Reruns:
    """What the runs of a study's experiments show about one score.

    spread: variance of an accuracy p between runs, as a share of p(1 - p)/n, the variance over items; 0 without an
        experiment that ran twice. repeated: how many ran twice or more.
    sd: the standard deviation between runs of an accuracy of one half, a proportion.
    pairs: how many pairs of experiments there are, and how many of them differ significantly.
    """

    score: str
    experiments: list[Experiment]
    shifts: list[Shift]
    spread: float
    sd: float
    repeated: int
    pairs: tuple[int, int]


def only_published(records: Sequence[Record]) -> bool:
    """Whether `records` are of one model and data, and all imported without items and validation losses."""
    places = {(record.study, record.cell.model, record.cell.data) for record in records}
    return len(places) == 1 and not any(
        record.source is None or record.items_sha256 or record.validation for record in records
    )


def reruns(records: Sequence[Record]) -> Reruns | None:
    """The finished experiments of `records` by their first score, an accuracy, best first; None without any.

    The accuracy of a run is modelled as experiment + stack + noise, by weighted least squares; the noise has a variance
    of `spread` · p(1 - p)/n, so that a model that is right on no item does not vary. Two experiments are compared by
    their latest runs: the variance of the difference is that of the items, taken as independent as no answers are
    published, which makes it too wide, and that of the runs. Their p-values are corrected by Holm.
    """
    groups = [runs for record in records if record.status == "ok" and (runs := _runs(record))]
    if not groups:
        return None
    score = groups[0][-1].score
    groups = [runs for runs in groups if score_name(runs[-1].score) == score_name(score)]
    repeated = [runs for runs in groups if len(runs) > 1]
    spread = _spread([run for runs in repeated for run in runs])
    experiments = _compared(groups, spread)
    return Reruns(
        score=score_name(score),
        experiments=experiments,
        shifts=_shifts(repeated),
        spread=spread,
        sd=(spread * 0.25 / score.n) ** 0.5,
        repeated=len(repeated),
        pairs=(len(groups) * (len(groups) - 1) // 2, sum(len(experiment.above) for experiment in experiments)),
    )


def best_on_validation(summary: Reruns) -> dict[str, Experiment]:
    """By method, the experiment with the highest accuracy on the source's validation items, where there are some."""
    best: dict[str, tuple[float, Experiment]] = {}
    for experiment in summary.experiments:
        accuracy, method = _validation(experiment), experiment.record.cell.method
        if accuracy is not None and (method not in best or accuracy > best[method][0]):
            best[method] = accuracy, experiment
    return {method: experiment for method, (_, experiment) in best.items()}


def _validation(experiment: Experiment) -> float | None:
    return next((score.value for score in experiment.record.scores if score.task == "validation"), None)


def _runs(record: Record) -> list[ExperimentRun]:
    """The runs of `record` that have its first score, earliest first."""
    if not record.scores or record.source is None:
        return []
    first = record.scores[0]
    scored_runs = [(record.started, record.environment, [first])]
    scored_runs += [
        (again.started, again.environment, again.scores) for again in record.repeats if again.status == "ok"
    ]
    of_it = [
        ExperimentRun(record, started, stack(environment), score)
        for started, environment, scores in scored_runs
        for score in scores
        if score_name(score) == score_name(first) and score.n == first.n
    ]
    return sorted(of_it, key=lambda run: run.started)


def stack(environment: dict[str, Any]) -> str:
    """The versions of STACK without builds and commits, such as "torch 2.13.0, transformers 5.13.1"."""
    versions = environment.get("versions") or {}
    return ", ".join(f"{name} {versions[name].split('+')[0].split(' ')[0]}" for name in STACK if name in versions)


def _spread(runs: Sequence[ExperimentRun]) -> float:
    """`Reruns.spread`: the weighted residual variance of experiment + stack."""
    usable = [run for run in runs if 0 < run.score.value < 1]  # at its bounds an accuracy can't vary
    if not usable:
        return 0.0
    experiments = list(dict.fromkeys(id(run.record) for run in usable))
    stacks = list(dict.fromkeys(run.stack for run in usable))
    design = np.zeros((len(usable), len(experiments) + len(stacks) - 1))
    for i, run in enumerate(usable):
        design[i, experiments.index(id(run.record))] = 1.0
        if (stack := stacks.index(run.stack)) > 0:
            design[i, len(experiments) + stack - 1] = 1.0
    values = np.array([run.score.value for run in usable])
    errors = np.sqrt([_over_items(run.score) for run in usable])
    fitted, _, rank, _ = np.linalg.lstsq(design / errors[:, None], values / errors, rcond=None)
    freedom = len(usable) - rank
    if freedom < 1:
        return 0.0
    return float(np.sum(((values - design @ fitted) / errors) ** 2) / freedom)


def _over_items(score: Score) -> float:
    """The variance of an accuracy over items; of 0 or 1 with half an item of each added, as Jeffreys' interval has."""
    share = (score.value * score.n + 0.5) / (score.n + 1)
    return share * (1 - share) / score.n


def _shifts(groups: Sequence[Sequence[ExperimentRun]]) -> list[Shift]:
    """The changes between stacks on which at least three experiments ran, by Student's t over experiments."""
    changes = grouped(
        ((before.stack, after.stack), after.score.value - before.score.value)
        for runs in groups
        for before, after in itertools.pairwise(runs)
        if before.stack != after.stack
    )
    shifts = []
    for (old, new), values in changes.items():
        if len(values) > 2 and (change := seeds_interval(values)):
            shifts.append(Shift(old, new, len(values), change))
    return shifts


def _compared(groups: Sequence[list[ExperimentRun]], spread: float) -> list[Experiment]:
    """The experiments by their latest runs, best first."""
    higher = groups[0][-1].score.higher_is_better
    groups = sorted(groups, key=lambda runs: -runs[-1].score.value if higher else runs[-1].score.value)
    values = np.array([runs[-1].score.value for runs in groups])
    variances = np.array([_over_items(runs[-1].score) * (1 + spread) for runs in groups])
    pairs = list(itertools.combinations(range(len(groups)), 2))
    gaps = np.array([values[i] - values[j] for i, j in pairs])
    errors = np.sqrt([variances[i] + variances[j] for i, j in pairs])
    corrected = holm(2 * special.ndtr(-np.abs(gaps) / errors)) if pairs else np.ones(0)
    differ = [pair for pair, p in zip(pairs, corrected, strict=True) if p < ALPHA]
    return [
        Experiment(
            record=runs[-1].record,
            runs=runs,
            interval=_interval(runs[-1].score, spread),
            above=tuple(j for i, j in differ if i == k),
            below=tuple(i for i, j in differ if j == k),
        )
        for k, runs in enumerate(groups)
    ]


def _interval(score: Score, spread: float) -> Interval:
    """Jeffreys' interval of a proportion whose variance is 1 + `spread` times that of its items."""
    return share_interval(score.value, 0.0, math.inf, score.n / (1 + spread))
