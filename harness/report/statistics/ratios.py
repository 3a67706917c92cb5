"""Ratios of positive quantities on the log scale: of losses, of memory, and of times."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple, TypeVar

import numpy as np

from harness.grouping import grouped
from harness.report.statistics.estimates import ALPHA, Interval, Statistic
from harness.report.statistics.variances import Level, combined, moderated

# The least standard deviation of the log of a peak of memory from run to run. Batches differ by seed: in
# results/reference/smollm2 by 1.1% at most. A peak that jumps by 6% in one of fifteen runs varies by 1.5%.
LEAST_SPREAD = 0.015


class MemoryPeak(NamedTuple):
    """A peak of memory of one run: bytes, the seed, and the setting, such as the learning rate."""

    value: float
    seed: Hashable
    setting: Hashable


class Run(NamedTuple):
    """A measured time of one run: seconds (or another positive quantity), its seed, and when it started, in seconds."""

    value: float
    seed: Hashable
    start: float | None


class Ratio(NamedTuple):
    """A ratio, its 95% interval, and how many independent units the smaller side has.

    logs: of the ratio's logarithm; of several with unlike errors the interval covers all of theirs.
    """

    value: float
    low: float
    high: float
    units: int
    logs: tuple[Statistic, ...]

    @property
    def interval(self) -> Interval:
        return Interval(self.value, self.low, self.high)

    def among(self, comparisons: float) -> Interval:
        """The interval widened so that all of `comparisons` such intervals cover in 95% of studies (Bonferroni)."""
        return _exp(self.units, *self.logs, alpha=ALPHA / comparisons).interval


Seed = TypeVar("Seed", bound=Hashable)


def of_losses(
    losses: Sequence[Mapping[Seed, float]],
    reference: Sequence[Mapping[Seed, float]],
    field: Sequence[Mapping[Seed, float]] = (),
) -> Ratio | None:
    """The ratio of two products of as many mean losses, each with one loss by seed; None without two seeds of each.

    field: losses of other settings, whose spread counts too where a ratio has two seeds. From three on its own spread
        is enough: settings that vary more or less than these would make the interval too wide or too narrow.

    Runs of one seed saw the same batches in the same order, so much of what a seed changes is common to all of them:
    the ratio is taken within each seed that all losses of the ratio have. Without two such seeds it is the ratio of
    means, and the spread from seed to seed is shrunk over all losses.
    """
    factors = [*losses, *reference]
    if min(map(len, factors)) < 2:
        return None
    signs = [1] * len(losses) + [-1] * len(reference)
    common = set.intersection(*(set(factor) for factor in factors))
    if len(common) < 2:
        statistic = _contrast([list(map(math.log, factor.values())) for factor in factors], signs)
        return _exp(min(map(len, factors)), statistic)
    others = [other for other in field if common <= set(other)] if len(common) == 2 else []
    logs = np.log([[row[seed] for seed in sorted(common, key=str)] for row in [*factors, *others]])
    return _exp(len(common), within(logs, signs))


def of_memory(
    ones: Sequence[MemoryPeak], others: Sequence[MemoryPeak], field: Sequence[Sequence[MemoryPeak]] = ()
) -> Ratio:
    """The ratio of two methods' peaks of memory, at equal batches.

    field: peaks of other methods at the same batches, whose spread counts too.

    A peak is exact for its setting and its batches. So it differs by seed, since batches do; cells of one seed at
    several learning rates have the same batches and are no repeats. The unit is the seed; if peaks differ by setting,
    the interval is the wider one of those over seeds and over settings. Two methods that ran with the same seeds had
    the same batches, and are paired.

    Runs that were equal may hide that one in some jumps: three of four studies of three runs do not show a jump in one
    run of ten. So an interval is no shorter than that of peaks that vary by LEAST_SPREAD, as many as there are seeds.
    From two seeds on it covers a jump of 6% that up to one run in five has. Of one seed it is all that is known.
    """
    value, over_seeds = _paired([ones, others, *field], lambda peak: peak.seed)
    _, over_settings = _paired([ones, others], lambda peak: peak.setting)
    seeds = [len({peak.seed for peak in side}) for side in (ones, others)]
    assumed = Statistic(value, LEAST_SPREAD * sum(1 / n for n in seeds) ** 0.5, math.inf)
    statistics = [statistic for statistic in (over_seeds, over_settings) if statistic is not None]
    return _exp(min(seeds), assumed, *(statistic._replace(value=value) for statistic in statistics))


def of_times(runs: Mapping[str, Sequence[Run]], one: str, other: str) -> Ratio | None:
    """The ratio of the times of two methods; None without two units of each.

    runs: of all methods that ran on the machine, alone, since their order tells what is independent. A machine has slow
    spells, so runs of a method that follow each other without one of another method are one unit. Where the order is
    unknown (equal starts) the seed is the unit. The spread from unit to unit is shrunk over the methods.
    """
    times = units(runs)
    logs = {name: list(map(math.log, values)) for name, values in times.items() if len(values) > 1}
    if one not in logs or other not in logs:
        return None
    names = [one, other, *(name for name in logs if name not in (one, other))]
    statistic = _contrast([logs[name] for name in names], [1, -1] + [0] * (len(names) - 2))
    return _exp(min(len(logs[one]), len(logs[other])), statistic)


def units(runs: Mapping[str, Sequence[Run]]) -> dict[str, list[float]]:
    """The geometric mean of each independent unit of each method's runs, as in `of_times`."""
    flat = [(name, run) for name, own in runs.items() for run in own]
    started = [(run.start, name, run) for name, run in flat if run.start is not None]
    groups: dict[str, dict[Hashable, list[float]]] = {name: defaultdict(list) for name in runs}
    if len({start for start, _, _ in started}) < len(flat):
        for name, run in flat:
            groups[name][run.seed].append(math.log(run.value))
    else:
        block, last = 0, None
        for _, name, run in sorted(started, key=lambda entry: entry[0]):
            block += name != last
            last = name
            groups[name][block].append(math.log(run.value))
    return {name: [math.exp(fmean(logs)) for logs in own.values()] for name, own in groups.items()}


def _contrast(logs: Sequence[Sequence[float]], signs: Sequence[int]) -> Statistic:
    """The sum of signs × means, with the variances shrunk over all of `logs` (each of at least 2).

    Its degrees of freedom are Cochran's (`combined`). A table has thousands of these of a few values each, for which
    numpy is slower than Python.
    """
    means = list(map(fmean, logs))
    squares = [sum((log - mean) ** 2 for log in values) for values, mean in zip(logs, means, strict=True)]
    counts = np.array(list(map(len, logs)))
    variances, freedoms = moderated(squares / (counts - 1.0), counts - 1.0)
    used = [i for i, sign in enumerate(signs) if sign]
    value = sum(signs[i] * means[i] for i in used)
    total, freedom = variances[used[0]] / counts[used[0]], freedoms[used[0]]
    for i in used[1:]:
        total, freedom = combined(Level(total, 0.0, freedom), variances[i] / counts[i], freedoms[i])
    return Statistic(value, float(total) ** 0.5, float(freedom))


def _paired(
    sides: Sequence[Sequence[MemoryPeak]], unit: Callable[[MemoryPeak], Hashable]
) -> tuple[float, Statistic | None]:
    """The log ratio of the first side to the second, and the same with its error: None without two units of both.

    By the units that both have, else by the means of each side's own.
    """
    means = []
    for side in sides:
        logs = grouped((unit(peak), math.log(peak.value)) for peak in side)
        means.append({key: float(np.mean(values)) for key, values in logs.items()})
    one, other = means[:2]
    common = [key for key in one if key in other]
    if len(common) > 1:
        table = [[side[key] for key in common] for side in means if all(key in side for key in common)]
        statistic = within(np.array(table), [1, -1])
        return statistic.value, statistic
    value = float(np.mean(list(one.values())) - np.mean(list(other.values())))
    if min(len(one), len(other)) > 1:
        return value, _contrast([list(side.values()) for side in (one, other)], [1, -1])._replace(value=value)
    return value, None


def within(table: np.ndarray, signs: Sequence[int]) -> Statistic:
    """The sum of signs × the first rows of `table` (rows, units), its mean over the units, with the error of that mean.

    The signs sum to 0, so what a unit changes in all rows cancels. The variance over units is shrunk towards that of
    all other contrasts of the rows, which two-way analysis of variance tells: what is left of rows and units.
    """
    sums = np.array(signs) @ table[: len(signs)]
    own, n, size = float(np.var(sums, ddof=1)), len(sums), len(signs)
    variance, freedom = own, n - 1.0
    if len(table) > 2:
        rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
        others, degrees = float((rest**2).sum()) - own * (n - 1) / size, (len(table) - 2) * (n - 1)
        variances, freedoms = moderated(
            np.array([own, size * max(0.0, others) / degrees]), np.array([n - 1.0, degrees])
        )
        variance, freedom = float(variances[0]), float(freedoms[0])
    return Statistic(float(sums.mean()), (variance / n) ** 0.5, freedom)


def _exp(units: int, *logs: Statistic, alpha: float = ALPHA) -> Ratio:
    """The ratio of which these are the logarithms, all of one value."""
    intervals = [log.interval(alpha) for log in logs]
    ends = intervals[0].value, min(own.low for own in intervals), max(own.high for own in intervals)
    value, low, high = (math.exp(min(end, 700.0)) for end in ends)
    return Ratio(value, low, high, units, logs)
