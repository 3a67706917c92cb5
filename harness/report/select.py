"""Chooses the setting by which each method is judged: the least validation loss. Test scores play no role."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

PLACE = ["study", "model", "data"]


@dataclass(frozen=True)
class Choice:
    """The best setting of one method (or of one of its ranks, …) in one place.

    place: study, model and data; key: the values of the `by` columns, such as ("lora",) or ("lora", 16); the method
        is first.
    setting, rank, alpha, lr: of the chosen setting; None if none could be chosen or the method has no such axis.
    index: positions in the frame of the chosen setting's records, one per seed.
    loss: mean validation loss over seeds, nats per token; None if no loss was recorded.
    tries: number of settings tried. lost: how many of them failed, by status, or lack seeds ("unfinished").
    edges: a text for each axis on which the choice is the lowest or highest value tried.
    reason: why nothing could be chosen, or None.
    """

    place: tuple[str, str, str]
    key: tuple
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

    @property
    def method(self) -> str:
        return self.key[0]

    @property
    def label(self) -> str:
        """`key` as text: "lora", or "lora 16"."""
        return " ".join(str(part) for part in self.key if part is not None)


def select(data: pd.DataFrame, by: Sequence[str] = ("method",)) -> list[Choice]:
    """The best setting for each group of `by` in each place, in the order of the frame's rows.

    data: a frame of `harness.report.frame.frame`. by: columns, the method first. ("method", "rank") chooses the best
    learning rate for each rank, as a comparison of ranks requires; the best over all ranks is the overall best.

    A setting is a candidate if it finished with every seed that was asked of it, and has at least half as many seeds as
    the most that a setting of its group has; its loss is the mean of the last validation losses over the seeds that all
    candidates have, so that more seeds are no disadvantage. A setting that failed with a seed counts as a lost try. The
    least loss wins; ties go to the lowest rank, then the lowest learning rate. A single setting needs no validation
    loss to be chosen.
    """
    if data.empty:
        return []
    keys = [*PLACE, *by]
    tries = data.assign(failed=data["status"].where(data["status"] != "ok"), row=range(len(data)))
    tries = tries.groupby(list(dict.fromkeys([*keys, "setting"])), sort=False, dropna=False, as_index=False).agg(
        **{name: (name, "first") for name in ("rank", "alpha", "lr", "failed") if name not in by},
        rows=("row", tuple),
        seeds=("seed", lambda seeds: tuple(map(_plain, seeds))),
        losses=("validation_loss", tuple),
    )
    groups = tries.groupby(keys, sort=False, dropna=False)
    return [_choice(tuple(map(_plain, key)), group) for key, group in groups]


def _choice(key: tuple, tries: pd.DataFrame) -> Choice:
    """The choice among `tries`, one row a setting."""
    counts = tries["seeds"].map(lambda seeds: len(set(seeds)))
    unfinished = tries["failed"].isna() & (2 * counts < counts.max())
    lost = Counter(tries["failed"].mask(unfinished, "unfinished").dropna())
    finished = tries[tries["failed"].isna() & ~unfinished]
    if len(finished):
        common = set.intersection(*map(set, finished["seeds"]))
        if not common:  # those with the most seeds are compared
            finished = finished[counts[finished.index] == counts[finished.index].max()]
        pairs = list(zip(finished["seeds"], finished["losses"], strict=True))
        own = [_mean(losses) for _, losses in pairs]
        shared = [
            _mean([loss for seed, loss in zip(*pair, strict=True) if seed in common] or pair[1]) for pair in pairs
        ]
        finished = finished.assign(loss=own, compared=shared)
    best, reason = None, None
    if finished.empty:
        reason = "no setting finished with every seed"
    elif len(tries) > 1 and finished["loss"].isna().any():
        reason = "choosing a setting requires validation losses"
    else:
        best = finished.sort_values(["compared", "rank", "lr", "alpha"], kind="stable").iloc[0]
    axes = {axis: None if best is None else _plain(best[axis]) for axis in ("setting", "rank", "alpha", "lr")}
    return Choice(
        place=key[:3],
        key=key[3:],
        **axes,
        index=() if best is None else best["rows"],
        loss=None if best is None else _plain(best["loss"]),
        tries=len(tries),
        lost=dict(lost),
        edges=() if best is None else tuple(_edges(best, tries)),
        reason=reason,
    )


def _mean(losses: Sequence[float]) -> float:
    """nan if one is missing; pandas would leave it out."""
    return sum(map(float, losses)) / len(losses)


def _edges(chosen: pd.Series, tries: pd.DataFrame) -> Iterator[str]:
    """Failed tries count: the highest rate that finished is no edge if a higher one diverged.

    Alpha is ignored: it follows the rank unless it is swept.
    """
    for axis, others in (("lr", ["rank", "alpha"]), ("rank", ["lr"])):
        alike = (tries[others].fillna(-1) == chosen[others].fillna(-1)).all(axis=1)
        values = sorted(set(tries.loc[alike, axis].dropna()))
        if len(values) < 2:  # not a grid: the axes were sampled together
            values = sorted(set(tries[axis].dropna()))
        if len(values) < 2:
            continue
        for end, value in (("lowest", values[0]), ("highest", values[-1])):
            if chosen[axis] == value:
                yield f"{axis}={value:g} is the {end} of {len(values)} tried"


def _plain(value: Any) -> Any:
    """A pandas scalar as a Python value; missing values as None."""
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value
