"""Chooses the setting by which each method is judged: the least validation loss. Test scores play no role."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from harness.record import Record
from harness.report import statistics
from harness.report.frame import evaluated_alike, setting_texts, trained_texts

Place = tuple[str, str, str]  # study, model, data
UNVALIDATED = "choosing a setting requires validation losses"


@dataclass(frozen=True)
class Choice:
    """The best setting of one method (or of one of its ranks, …) in one place.

    place: study, model and data; key: the values of the `by` columns, such as ("lora",) or ("lora", 16); the method
        is first.
    setting, rank, alpha, lr: of the chosen setting; None if none could be chosen or the method has no such axis.
    index: positions of the chosen setting's records, one per seed; of the fresh seeds alone if it was confirmed.
    loss: mean validation loss over seeds, in nats per token or pair; None if no loss was recorded.
    tries: number of settings trained, however they were evaluated. lost: how many of them did not finish, by status, or
        are "with fewer seeds".
    rates: number of learning rates tried.
    edges: a text for each axis on which the choice is the lowest or highest value tried.
    reason: why nothing could be chosen, or None.
    confirmed: whether `index` and `loss` are of fresh seeds, which had no part in the choice.
    unfinished: number of fresh seeds that did not finish, by status.
    rivals: number of settings, the chosen one included, whose losses are not surely higher: luck may have chosen
        between them. 1 if fresh seeds confirmed the choice.
    experiments: the finished settings where none could be chosen for want of validation losses, each a choice by
        itself, whose `experiment` is its label.
    """

    place: Place
    key: tuple[Any, ...]
    setting: str | None
    rank: int | None
    alpha: float | None
    lr: float | None
    index: tuple[int, ...]
    loss: float | None
    tries: int
    lost: dict[str, int]
    edges: tuple[str, ...]
    reason: str | None
    confirmed: bool = False
    unfinished: dict[str, int] = field(default_factory=dict)
    rivals: int = 1
    experiments: tuple[Choice, ...] = ()
    experiment: str | None = None
    rates: int = 0

    @property
    def method(self) -> str:
        return self.key[0]

    @property
    def label(self) -> str:
        """`key` as text: "lora", or "lora 16"; of an experiment with its setting."""
        return self.experiment or " ".join(str(part) for part in self.key if part is not None)

    @property
    def described(self) -> str:
        """The label with the setting."""
        return self.experiment or " ".join(filter(None, (self.label, self.setting)))


class Try(NamedTuple):
    """The records of one setting: their positions, and of each its seed and its last validation loss (nan without).

    failed: the first status that is not ok, if there is one. ran: whether any of its cells was launched. items: on
    which a record is scored.
    """

    setting: str
    rank: int | None
    alpha: float | None
    lr: float | None
    failed: str | None
    ran: bool
    positions: tuple[int, ...]
    seeds: tuple[int | None, ...]
    losses: tuple[float, ...]
    items: int


def select(
    records: Sequence[Record], by: Sequence[str] = ("method",), settings: Sequence[str] | None = None
) -> list[Choice]:
    """The best setting for each group of `by` in each place, in the order of the records.

    by: fields of a cell, the method first. ("method", "rank") chooses the best learning rate for each rank, as a
    comparison of ranks requires; the best over all ranks is the overall best. settings: the records' `setting_texts`,
    if they were computed before.

    A setting is a candidate if it finished with every seed that was asked of it, and has at least half as many seeds as
    the most that a setting of its group has; its loss is the mean of the last validation losses over the seeds that all
    candidates have, so that more seeds are no disadvantage. A setting that failed or was pruned with a seed counts as a
    lost try. The least loss wins; ties go to the lowest rank, then the lowest learning rate; of one training that was
    scored in several ways, to the most items. A single setting needs no validation loss to be chosen.

    Seeds that confirm a choice (`Record.confirmation`) take no part in it. The chosen setting is represented by those
    of them that finished, if it has any.
    """
    groups: dict[tuple[Place, tuple[Any, ...]], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    settings = setting_texts(records) if settings is None else settings
    for i, (record, setting) in enumerate(zip(records, settings, strict=True)):
        cell = record.cell
        place = (record.study, cell.model, cell.data)
        groups[place, tuple(getattr(cell, name) for name in by)][setting].append(i)
    return [_chosen(place, key, by_setting, records) for (place, key), by_setting in groups.items()]


def _chosen(place: Place, key: tuple[Any, ...], by_setting: dict[str, list[int]], records: Sequence[Record]) -> Choice:
    unconfirmed = {setting: [i for i in index if not records[i].confirmation] for setting, index in by_setting.items()}
    tries = [_try(setting, index, records) for setting, index in unconfirmed.items() if index]
    of_all = tries or [_try(setting, index, records) for setting, index in by_setting.items()]
    first = [records[attempt.positions[0]] for attempt in of_all]
    trained = [attempt.setting for attempt in of_all] if evaluated_alike(first) else trained_texts(first)
    choice = _choice(place, key, of_all, trained)
    if not tries or choice.setting is None:
        return choice
    fresh = latest([i for i in by_setting[choice.setting] if records[i].confirmation], records)
    if not fresh:
        return choice
    finished = [i for i in fresh if records[i].status == "ok"]
    unfinished = dict(Counter(str(records[i].status) for i in fresh if records[i].status != "ok"))
    if not finished:
        return replace(choice, unfinished=unfinished)
    confirmed = _try(choice.setting, finished, records)
    loss = _mean(confirmed.losses)
    choice = replace(choice, index=confirmed.positions, loss=None if math.isnan(loss) else loss)
    return replace(choice, confirmed=True, unfinished=unfinished, rivals=1)


def experiments(positions: Sequence[int], records: Sequence[Record], settings: Sequence[str]) -> list[Choice]:
    """The record at each of `positions` as a choice by itself. settings: the records' `setting_texts`."""
    places = [(records[i].study, records[i].cell.model, records[i].cell.data) for i in positions]
    tries = [(records[i].cell.method, _try(settings[i], [i], records)) for i in positions]
    choices = [_alone(place, (method,), attempt) for place, (method, attempt) in zip(places, tries, strict=True)]
    seen = Counter((choice.place, choice.label) for choice in choices)
    return [
        replace(choice, experiment=f"{choice.label} seed={attempt.seeds[0]}")
        if seen[choice.place, choice.label] > 1
        else choice
        for choice, (_, attempt) in zip(choices, tries, strict=True)
    ]


def latest(index: Sequence[int], records: Sequence[Record]) -> list[int]:
    """Of the positions of one setting's records those that count: of a seed that was run twice, the later run that
    finished.

    A study has two cells of one setting and seed if it was run by two versions of the harness, of which one writes a
    setting that the other lacks. They are no two seeds.
    """
    of_seed = {}
    for i in sorted(index, key=lambda i: (records[i].status == "ok", records[i].started, i)):
        of_seed[records[i].cell.seed] = i
    return sorted(of_seed.values())


def _try(setting: str, index: Sequence[int], records: Sequence[Record]) -> Try:
    index = latest(index, records)
    members = [records[i] for i in index]
    cell = members[0].cell
    return Try(
        setting,
        cell.rank,
        cell.alpha,
        cell.lr,
        next((record.status for record in members if record.status != "ok"), None),
        any(record.status != "unfit" for record in members),
        tuple(index),
        tuple(record.cell.seed for record in members),
        tuple(math.nan if (loss := record.validation_loss) is None else float(loss) for record in members),
        min(sum(score.n for score in record.scores) for record in members),
    )


def _choice(place: Place, key: tuple[Any, ...], tries: Sequence[Try], trained: Sequence[str]) -> Choice:
    """The best of `tries`. trained: what tells their trainings apart, by `trained_texts`."""
    most = max(len(set(attempt.seeds)) for attempt in tries)
    few = ["with fewer seeds" if 2 * len(set(attempt.seeds)) < most else None for attempt in tries]
    reasons = [attempt.failed or fewer for attempt, fewer in zip(tries, few, strict=True)]
    finished = [attempt for attempt, reason in zip(tries, reasons, strict=True) if reason is None]
    reason_of = dict(zip(trained, reasons, strict=True))
    reason_of |= {text: None for text, reason in zip(trained, reasons, strict=True) if reason is None}
    lost = Counter(filter(None, reason_of.values()))
    common = set.intersection(*(set(attempt.seeds) for attempt in finished)) if finished else set()
    if not common:  # those with the most seeds are compared
        most = max((len(set(attempt.seeds)) for attempt in finished), default=0)
        finished = [attempt for attempt in finished if len(set(attempt.seeds)) == most]
    best, reason = None, None
    if not finished:
        ran = any(attempt.ran for attempt in tries)
        reason = "no setting finished with every seed" if ran else "no cell has run"
    elif len(tries) > 1 and any(math.isnan(_mean(attempt.losses)) for attempt in finished):
        reason = UNVALIDATED
    else:
        best = min(finished, key=lambda attempt: _order(attempt, common))
    choice = _settled(place, key, best)
    if reason == UNVALIDATED:
        choice = replace(choice, experiments=tuple(replace(_alone(place, key, t), reason=reason) for t in finished))
    edges = tuple(_edges(best, tries)) if best else ()
    rivals = _rivals(best, finished, common) if best else 1
    rates = len(_tried("lr", tries))
    return replace(
        choice, tries=len(reason_of), rates=rates, lost=dict(lost), edges=edges, reason=reason, rivals=rivals
    )


def _rivals(best: Try, finished: Sequence[Try], common: set[int | None]) -> int:
    """Of `finished`, `best` included, those whose loss is not surely higher: by a t-test at 1% over common seeds."""
    seeds = sorted(common, key=lambda seed: seed or 0)
    if len(seeds) < 2 or len(finished) < 2:
        return len(finished)
    losses = {id(attempt): dict(zip(attempt.seeds, attempt.losses, strict=True)) for attempt in finished}
    own = np.array([losses[id(best)][seed] for seed in seeds])
    others = [[losses[id(attempt)][seed] for seed in seeds] for attempt in finished if attempt is not best]
    above = np.array(others) - own
    freedom = np.full(len(above), len(seeds) - 1.0)
    variance, freedom = statistics.moderated(above.var(axis=1, ddof=1) / len(seeds), freedom)
    return 1 + int(np.sum(above.mean(axis=1) <= special.stdtrit(freedom, 0.995) * variance**0.5))


def _settled(place: Place, key: tuple[Any, ...], best: Try | None) -> Choice:
    """The choice of `best`, the one try."""
    loss = math.nan if best is None else _mean(best.losses)
    return Choice(
        place=place,
        key=key,
        setting=best and best.setting,
        rank=best and best.rank,
        alpha=best and best.alpha,
        lr=best and best.lr,
        index=best.positions if best else (),
        loss=None if math.isnan(loss) else loss,
        tries=1,
        lost={},
        edges=(),
        reason=None,
    )


def _alone(place: Place, key: tuple[Any, ...], attempt: Try) -> Choice:
    """The setting of `attempt` as a choice by itself."""
    choice = _settled(place, key, attempt)
    return replace(choice, experiment=choice.described)


def _order(attempt: Try, common: set[int | None]) -> tuple[float, ...]:
    """The mean loss over the seeds in `common` (over all if there is none), then the axes; a missing one is last. At
    last the most items."""
    shared = [loss for seed, loss in zip(attempt.seeds, attempt.losses, strict=True) if seed in common]
    axes = (attempt.rank, attempt.lr, attempt.alpha)
    return _mean(shared or attempt.losses), *(math.inf if value is None else value for value in axes), -attempt.items


def _mean(losses: Sequence[float]) -> float:
    """nan if one is missing."""
    return sum(losses) / len(losses)


def _edges(best: Try, tries: Sequence[Try]) -> Iterator[str]:
    """Failed tries count: the highest rate that finished is no edge if a higher one diverged.

    Alpha is ignored: it follows the rank unless it is swept.
    """
    for axis, others in (("lr", ("rank", "alpha")), ("rank", ("lr",))):
        alike = [t for t in tries if all(getattr(t, other) == getattr(best, other) for other in others)]
        values = _tried(axis, alike)
        if len(values) < 2:  # not a grid: the axes were sampled together
            values = _tried(axis, tries)
        if len(values) < 2:
            continue
        for end, value in (("lowest", values[0]), ("highest", values[-1])):
            if getattr(best, axis) == value:
                yield f"{axis}={value:g} is the {end} of {len(values)} tried"


def _tried(axis: str, tries: Sequence[Try]) -> list[float]:
    return sorted({value for attempt in tries if (value := getattr(attempt, axis)) is not None})
