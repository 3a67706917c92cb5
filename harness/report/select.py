"""Which setting of each method a study should be judged by: the best on validation loss; test scores take no part."""

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

    place: study, model and data; key: what `by` named beside them, such as ("lora",) or ("lora", 16);
        its first part is the method.
    setting, rank, alpha, lr: those of the chosen setting; None where none could be chosen or the method has no such.
    index: positions of the chosen setting's records, one a seed, in the frame.
    loss: mean of its validation losses over the seeds, nats per token; None where there is nothing to choose from.
    tries: how many settings were tried; lost: how many of them failed, by status, or did not finish ("unfinished").
    edges: a sentence for each axis of which the choice is the lowest or the highest value that was tried.
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

    data: as `harness.report.frame.frame` makes it. by: columns, the method first; ("method", "rank") takes each rank's
    best learning rate, as a comparison of ranks wants it. The best over all is the best of these, so that choosing the
    learning rate first and the rank then comes to the same as taking the least loss at once.

    A setting is a candidate if it finished with every seed that its group was run with; its loss is the mean of the
    last validation losses over them. One that failed with a seed is a try that lost. The least loss wins, of equal
    ones the lowest rank and then the lowest learning rate. A single setting needs no validation loss to be chosen.
    """
    if data.empty:
        return []
    keys = [*PLACE, *by]
    tries = data.assign(failed=data["status"].where(data["status"] != "ok"), row=range(len(data)))
    tries = tries.groupby(list(dict.fromkeys([*keys, "setting"])), sort=False, dropna=False, as_index=False).agg(
        **{name: (name, "first") for name in ("rank", "alpha", "lr", "failed") if name not in by},
        rows=("row", tuple),
        seeds=("seed", "nunique"),
        losses=("validation_loss", "count"),
        loss=("validation_loss", "mean"),
    )
    tries["loss"] = tries["loss"].where(tries["losses"] == tries["rows"].map(len))
    groups = tries.groupby(keys, sort=False, dropna=False)
    return [_choice(tuple(map(_plain, key)), group) for key, group in groups]


def _choice(key: tuple, tries: pd.DataFrame) -> Choice:
    """The choice among `tries`, one row a setting."""
    unfinished = tries["failed"].isna() & (tries["seeds"] < tries["seeds"].max())
    lost = Counter(tries["failed"].mask(unfinished, "unfinished").dropna())
    finished = tries[tries["failed"].isna() & ~unfinished]
    best, reason = None, None
    if finished.empty:
        reason = "no setting finished with every seed"
    elif len(tries) > 1 and finished["loss"].isna().any():
        reason = "settings without a validation loss can't be chosen from"
    else:
        best = finished.sort_values(["loss", "rank", "lr", "alpha"], kind="stable").iloc[0]
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


def _edges(chosen: pd.Series, tries: pd.DataFrame) -> Iterator[str]:
    """Failed tries count as tried: beyond the highest rate that finished may lie one that diverged.

    Alpha is no axis of its own here: unless it is swept, it follows the rank.
    """
    for axis, others in (("lr", ["rank", "alpha"]), ("rank", ["lr"])):
        alike = (tries[others].fillna(-1) == chosen[others].fillna(-1)).all(axis=1)
        values = sorted(set(tries.loc[alike, axis].dropna()))
        if len(values) < 2:  # no grid: the axes were drawn together
            values = sorted(set(tries[axis].dropna()))
        if len(values) < 2:
            continue
        for end, value in (("lowest", values[0]), ("highest", values[-1])):
            if chosen[axis] == value:
                yield f"{axis}={value:g} is the {end} of {len(values)} tried"


def _plain(value: Any) -> Any:
    """A pandas scalar as Python's own; what is missing as None."""
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value
