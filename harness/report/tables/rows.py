"""The rows of a comparison: records grouped by method and setting."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median, variance
from typing import Any

import pandas as pd

from harness.grouping import grouped
from harness.record import Instrument, Record, Score
from harness.report.frame import KINDS, decoded_tokens, frame, measures, score_name, setting_texts
from harness.report.lint import Finding, findings
from harness.report.lint.environment import POWER_LIMIT, ran_with, throttling
from harness.report.memory import comparable, instruments
from harness.report.select import Choice, latest, select

METHODS = [  # their order in tables; other methods follow by name
    *("base", "base_nf4", "full", "lora", "qlora", "dora", "dora_fast", "qdora", "galore", "galore_rsvd"),
    *("base_int8", "lora_8bit", "base_int8wo", "lora_int8wo", "base_fp8wo", "lora_fp8wo", "qlora_paged"),
    *("full_bf16", "full_kahan", "galore_bf16", "galore_8bit_layer"),
    *("adamw_layer", "galore_layer", "adamw_8bit", "galore_8bit", "adafactor", "apollo", "apollo_mini", "muon"),
    *("rslora", "loraplus", "lorafa", "riemannian", "pissa", "olora", "eva", "corda", "lora_ga", "loftq", "adalora"),
    "api",
]


@dataclass
class MeanScore:
    """A score over the seeds of a row. Two are comparable if `of` (items, shots and task version) is equal."""

    value: float
    stderr: float | None
    of: tuple[int, int, str]


@dataclass
class Row:
    """The records of one method in one setting, which differ only in their seeds. Seeds that confirm it have a row of
    their own.

    Means are over the finished records, or over all records if none finished, so that a failed cell shows what it
    measured. Only finished rows are compared with others.
    """

    place: tuple[str, str, str]
    method: str
    setting: str
    rank: int | None
    records: list[Record]

    @property
    def confirms(self) -> bool:
        """Whether the seeds are fresh ones, which had no part in choosing settings."""
        return self.records[0].confirmation

    @cached_property
    def finished(self) -> bool:
        return any(record.status == "ok" for record in self.records)

    @cached_property
    def measured(self) -> list[Record]:
        return [record for record in self.records if record.status == "ok"] or self.records

    def values(self, measure: str) -> list[float]:
        """The values of a column of `frame`, for the seeds that have it; none if they are not comparable."""
        if not comparable(self.instruments, measure):
            return []
        return [value for numbers in self._counted if (value := numbers[measure]) is not None]

    def mean(self, measure: str) -> float | None:
        """The mean of `values`; None if no seed has it."""
        values = self.values(measure)
        return fmean(values) if values else None

    def over(self, other: Row, measure: str) -> float | None:
        """The mean of a column of `frame` over that of `other`; None if one has none or they are not comparable."""
        own, of = self.mean(measure), other.mean(measure)
        if own is None or not of or not self.beside(other):
            return None
        if not comparable(self.instruments | other.instruments, measure):
            return None
        return own / of

    def beside(self, other: Row) -> bool:
        """Whether all cells of both ran on one kind of device, as far as is known: only then do costs compare."""
        return len(self.devices | other.devices) < 2

    @cached_property
    def devices(self) -> set[str]:
        """The kinds of devices that the cells ran on, as far as is known."""
        return {device for record in self.measured if (device := ran_with(record).get("device"))}

    @cached_property
    def throttled(self) -> bool:
        """Whether a GPU lowered its clocks while one of the cells was timed, and not just to keep its power limit.

        A healthy card reaches that at any full load, so it would mark all rows.
        """
        return any(throttling(record) - {POWER_LIMIT} for record in self.measured)

    @cached_property
    def kinds(self) -> dict[str, float]:
        """Bytes of live tensors by kind at the probe's peak, means over seeds; empty unless every kind was measured."""
        means = ((kind, self.mean(f"peak_{kind}")) for kind in KINDS)
        by_kind = {kind: mean for kind, mean in means if mean is not None}
        return by_kind if len(by_kind) == len(KINDS) else {}

    @cached_property
    def scores(self) -> dict[str, MeanScore]:
        by_name = grouped((score_name(score), score) for record in self.measured for score in record.scores)
        return {name: _mean_score(scores) for name, scores in by_name.items()}

    @cached_property
    def served(self) -> list[tuple[Record, float]]:
        """The records that measured it, with the median seconds per decoded token of the model as it is served
        (merged, or without adapter)."""
        latencies = []
        for record in self.measured:
            forms = record.inference
            speed = forms.get("merged") or (None if "unmerged" in forms else forms.get("base"))
            if speed is None or not (tokens := decoded_tokens(speed)):
                continue
            if (seconds := median(speed.decode_seconds or [0.0])) > 0:
                latencies.append((record, seconds / tokens))
        return latencies

    @cached_property
    def numbers(self) -> list[dict[str, float | None]]:
        """`measures` of each of `records`."""
        return [measures(record) for record in self.records]

    @cached_property
    def _counted(self) -> list[dict[str, float | None]]:
        """`measures` of each of `measured`."""
        numbered = zip(self.records, self.numbers, strict=True)
        return [numbers for record, numbers in numbered if record.status == "ok" or not self.finished]

    @cached_property
    def instruments(self) -> set[Instrument]:
        """Those behind the headline memory."""
        return instruments(self.records)


class Rows(list[Row]):
    """The rows of a table, and results on all of them that are computed once.

    superseded: records that no row has, since a later one has their setting and seed (`select.latest`). price: dollars
    for an hour of one device (None: cells have no cost).
    """

    def __init__(self, rows: Iterable[Row], superseded: Sequence[Record] = (), price: float | None = None):
        super().__init__(rows)
        self.superseded, self.price = superseded, price

    def cost(self, record: Record) -> float | None:
        """Dollars for the devices of the record's job; None without a price or `device_hours`."""
        hours = device_hours(record)
        return None if self.price is None or hours is None else self.price * hours

    @cached_property
    def records(self) -> list[Record]:
        return [record for row in self for record in row.records]

    @cached_property
    def settings(self) -> list[str]:
        """`setting_texts` of `records`."""
        return [row.setting for row in self for _ in row.records]

    @cached_property
    def data(self) -> pd.DataFrame:
        """`frame` of `records`."""
        numbers = (numbers for row in self for numbers in row.numbers)
        return frame(self.records, zip(self.settings, numbers, strict=True))

    @cached_property
    def choices(self) -> list[Choice]:
        """The choices of `select` among all settings; their `index` refers to `records`."""
        return select(self.records, settings=self.settings)

    @cached_property
    def chosen(self) -> set[int]:
        """The ids of the rows that were chosen among several settings of their method."""
        row_of = [row for row in self for _ in row.records]
        settings = {(row.place, row.method, row.setting) for row in self}
        several = Counter((place, method) for place, method, _ in settings)
        return {
            id(row_of[choice.index[0]])
            for choice in self.choices
            if choice.index and several[choice.place, choice.method] > 1
        }

    @cached_property
    def findings(self) -> list[Finding]:
        """The linter's, on `records`."""
        return findings(self.records)

    @cached_property
    def by_method(self) -> dict[tuple[Any, ...], list[Row]]:
        """Finished rows by method and place, by method and model of a study, and by method, place and rank.

        Searching all rows for each row would take quadratic time.
        """
        rows_by_key = defaultdict(list)
        for row in self:
            if row.finished:
                for key in ((row.place,), (row.place[:2],), (row.place, row.rank)):
                    rows_by_key[row.method, *key].append(row)
        return rows_by_key


def device_hours(record: Record) -> float | None:
    """Hours of the devices of the record's job, from its start to its end; None if it has no time.

    A model behind an API runs on devices of others.
    """
    settings = record.cell.settings
    if settings.behind_api or not record.seconds:
        return None
    return record.seconds / 3600 * settings.train.total_devices


def group(records: Sequence[Record], price: float | None = None) -> Rows:
    """The rows of `records`, methods in their usual order. price: as in `Rows`."""
    groups = defaultdict(list)
    for record, setting in zip(records, setting_texts(records), strict=True):
        cell = record.cell
        place = (record.study, cell.model, cell.data)
        order = METHODS.index(cell.method) if cell.method in METHODS else len(METHODS)
        axes = tuple((value is not None, value or 0) for value in (cell.rank, cell.alpha, cell.lr))
        groups[place, order, cell.method, axes, setting, record.confirmation].append(record)
    rows, superseded = [], []
    for (place, _, method, _, setting, _), members in sorted(groups.items(), key=lambda item: item[0]):
        counted = [members[i] for i in latest(range(len(members)), members)]
        superseded += [record for record in members if not any(record is other for other in counted)]
        counted.sort(key=lambda record: record.cell.seed or 0)
        rows.append(Row(place, method, setting, counted[0].cell.rank, counted))
    return Rows(rows, superseded, price)


def _mean_score(scores: list[Score]) -> MeanScore:
    values, errors = [score.value for score in scores], [s.stderr for s in scores if s.stderr is not None]
    stderr = None
    if len(errors) == len(scores):
        seeds = variance(values) / len(values) if len(values) > 1 else 0.0
        stderr = (fmean(error**2 for error in errors) + seeds) ** 0.5
    first = scores[0]
    if stderr == 0 and first.higher_is_better and values[0] in (0, 1):  # none or all right: that is not known exactly
        right, wrong = (share * first.n + 0.5 for share in (values[0], 1 - values[0]))
        stderr = (right * wrong / (first.n + 2)) ** 0.5 / (first.n + 1)  # of Jeffreys' posterior
    return MeanScore(fmean(values), stderr, (first.n, first.num_fewshot, first.version))


def several_seeds(rows: Iterable[Row]) -> bool:
    return any(len(row.measured) > 1 for row in rows)
