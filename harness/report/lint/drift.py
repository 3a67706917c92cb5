"""The drift of a machine over a study: how the speed of one cell changed that the sweep repeated (`sweep --drift`)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean
from typing import Any

from scipy import special

from harness.grouping import grouped
from harness.record import Record
from harness.report.lint.differences import Sentences, point
from harness.report.statistics import TAILS, Interval


@dataclass(frozen=True)
class Drift:
    """The drift of tokens/s on one machine.

    cell: the repeated cell's name. runs: of it. hours: between the first and the last of them. per_hour: change as a
    share of 1, such as -0.01; its ends are nan for two runs. study_hours: between the starts of the first and the last
    cell on the machine.
    """

    cell: str
    runs: int
    hours: float
    per_hour: Interval
    study_hours: float

    @property
    def over_study(self) -> float:
        """The change over the study's time, as a share of 1; 0 if the interval includes no drift or is unknown."""
        significant = self.per_hour.low > 0 or self.per_hour.high < 0  # false for nan
        return self.per_hour.value * self.study_hours if significant else 0.0


def drifts(records: Sequence[Record]) -> list[Drift]:
    """The drift on each machine, by each cell that was repeated there."""
    by_machine = []
    for record in (record for record in records if record.repeats):
        for machine, runs in _runs(record).items():
            if len(runs) < 2 or runs[-1][0] == runs[0][0]:
                continue
            starts = [_hours(r.started) for r in records if r.train and _machine(r.environment) == machine]
            hours, rates = zip(*runs, strict=True)
            span = max(starts) - min(starts) if starts else 0.0
            by_machine.append(Drift(record.cell.name, len(runs), hours[-1] - hours[0], _slope(hours, rates), span))
    return by_machine


def drift_text(drift: Drift) -> str:
    """The drift in words, for captions and `lint`."""
    value, low, high = (_percent(part) for part in drift.per_hour)
    ends = "interval unknown with two runs" if math.isnan(drift.per_hour.low) else f"95% interval {low} to {high}"
    return (
        f"Drift of the machine: tokens/s of {drift.cell} changed by {value} per hour ({ends}; {drift.runs} runs in "
        f"{drift.hours:.1f} h)."
    )


def drifted(records: Sequence[Record]) -> Sentences:
    """The rule that no difference in speed is one that drift alone could make."""
    for drift in drifts(records):
        below, pairs = within_drift(records, drift)
        if below:
            yield (
                f"The machine's drift of {abs(drift.over_study):.1%} in tokens/s over the study's "
                f"{drift.study_hours:.1f} h exceeds the differences of {below} of {pairs} pairs of settings.",
                (),
            )


def within_drift(records: Sequence[Record], drift: Drift) -> tuple[int, int]:
    """How many pairs of settings differ in tokens/s by less than the drift over the study, and of how many pairs."""
    rates = {setting: fmean(measured) for setting, measured in _rates(records).items()}
    gaps = [
        abs(math.log(rates[one] / rates[other]))
        for one, other in itertools.combinations(rates, 2)
        if one[:2] == other[:2]  # the same model and data
    ]
    return sum(gap < abs(drift.over_study) for gap in gaps), len(gaps)


def _rates(records: Sequence[Record]) -> dict[tuple[Any, ...], list[float]]:
    """The tokens/s of the finished records of each setting."""
    return grouped(
        (_compared(record), rate) for record in records if record.status == "ok" and (rate := record.tokens_per_second)
    )


def _compared(record: Record) -> tuple[Any, ...]:
    return record.cell.model, record.cell.data, record.cell.method, point(record)


def _runs(record: Record) -> dict[tuple[Any, ...], list[tuple[float, float]]]:
    """By machine, the hour and the tokens/s of each finished run of the cell."""
    runs = [(record.status, record.started, record.environment, record.tokens_per_second)]
    runs += [(r.status, r.started, r.environment, r.tokens_per_second_steady) for r in record.repeats]
    return grouped(
        (_machine(environment), (_hours(started), rate))
        for status, started, environment, rate in runs
        if status == "ok" and rate
    )


def _machine(environment: dict[str, Any]) -> tuple[Any, ...]:
    """The boot of the machine and its device; without a recorded boot, the processor."""
    parts = (environment.get(name) for name in ("device", "cpu"))
    device, cpu = (part if isinstance(part, dict) else {} for part in parts)
    return environment.get("boot") or cpu.get("name"), device.get("id") or device.get("name")


def _hours(started: str) -> float:
    return datetime.fromisoformat(started).timestamp() / 3600


def _slope(hours: Sequence[float], rates: Sequence[float]) -> Interval:
    """The least-squares slope of the logarithm of `rates`, and its 95% interval by Student's t."""
    n, logs = len(hours), [math.log(rate) for rate in rates]
    middle, level = fmean(hours), fmean(logs)
    spread = sum((hour - middle) ** 2 for hour in hours)
    slope = sum((hour - middle) * (log - level) for hour, log in zip(hours, logs, strict=True)) / spread
    if n < 3:
        return Interval(slope, math.nan, math.nan)
    rest = sum((log - level - slope * (hour - middle)) ** 2 for hour, log in zip(hours, logs, strict=True))
    half = float(special.stdtrit(n - 2, TAILS[1])) * math.sqrt(rest / (n - 2) / spread)
    return Interval(slope, slope - half, slope + half)


def _percent(share: float) -> str:
    text = f"{100 * share:+.2g}"
    return f"{float(text):+,.0f}%".replace("-", "−") if "e+" in text else f"{text}%".replace("-", "−")
