"""Whether cells that ran again agree with their published records.

How far two runs of one cell may lie apart is what the study itself shows, by the first of these that it has:

1. repeats of its cells, if the new run had the same device, numerics and libraries as they had;
2. the spread from seed to seed: other hardware or libraries should change no more than another seed does;
3. nothing: then a spread is assumed (ASSUMED).

Where a published training was unstable (`unstable_at`), rounding alone decides where it ends, and no seeds of stable
settings say how far. Then only the losses before are compared, and neither the last validation nor scores.

Scores are compared item by item, as both runs answer the same questions. Times are compared only on the same device,
and only with repeats or seeds. `Recheck.allowed` is a 95% limit, corrected for the number of comparisons (Bonferroni).
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from harness import units
from harness.grouping import grouped
from harness.record import Record, Repeat, Score, memory_instrument, train_memory
from harness.report import statistics
from harness.report.conditions import conditions, differing
from harness.report.costs import disturbed_cells
from harness.report.frame import score_name, setting_texts
from harness.report.lint.differences import environment_part
from harness.report.lint.environment import ran_with
from harness.report.pairwise import items, score_of
from harness.report.statistics import ALPHA
from harness.report.statistics.estimates import quantile
from harness.report.tables.entries import ABSENT, rate, score_style
from harness.report.tables.table import Table

# Standard deviation of the log of a validation loss, or of a peak of memory, between two stacks, where a study has
# neither repeats nor seeds.
ASSUMED = 0.01
EXACT = 1e-9  # a relative gap below it is none
STEEP = 5.0  # times the first gradient's norm: a training that passes it is unstable from there on

Agreement = Literal["equal", "agrees", "disagrees", "not compared"]


@dataclass(frozen=True)
class Recheck:
    """One quantity of a cell, as it was published and as it came out again.

    published, again, gap, allowed: as text. gap: of the new run less the published one. allowed: the most that it may
    be. why: what `allowed` rests on, or why nothing is compared.
    """

    cell: str
    quantity: str
    published: str
    again: str
    gap: str
    allowed: str
    agreement: Agreement
    why: str


class Spread(NamedTuple):
    """The standard deviation of a difference between two runs, its degrees of freedom, and what it was measured on."""

    error: float
    freedom: float
    why: str


class _Compared(NamedTuple):
    """A comparison before it is known how many there are. gap, spread: in logarithms, or of a score's own values."""

    cell: str
    quantity: str
    published: str
    again: str
    gap: float
    spread: Spread | None
    shown: Callable[[float], str]
    why: str = ""


Value = Callable[[Record], float | None]  # on the scale that is compared: logarithms of positive quantities
VALIDATION: Value = operator.attrgetter("validation_loss")
RATE: Value = operator.attrgetter("tokens_per_second")


class PublishedStudy:
    """The records of a published study, and how much its cells differ from run to run and from seed to seed.

    folder: of the study, where its items are.
    """

    def __init__(self, records: Sequence[Record], folder: Path):
        self.records, self.folder = records, folder

    @cached_property
    def _seeds(self) -> list[list[Record]]:
        """The finished records of each setting that has several seeds."""
        groups = grouped(
            ((record.cell.model, record.cell.data, record.cell.method, setting), record)
            for record, setting in zip(self.records, setting_texts(self.records), strict=True)
            if record.status == "ok" and record.cell.seed is not None
        )
        return [group for group in groups.values() if len(group) > 1]

    @cached_property
    def _disturbed(self) -> set[str]:
        """The names of cells whose times are not their own."""
        return disturbed_cells(self.records)

    def over_repeats(self, value: Value, of_repeat: Callable[[Repeat], float | None]) -> Spread | None:
        """Of `value`, over repeats that ran under the same conditions as their records."""
        groups = []
        for record in self.records:
            alike = [
                again
                for again in record.repeats
                if again.status == "ok"
                and not differing([record], [replace(record, environment=again.environment)], conditions)
            ]
            groups.append([value(record), *map(of_repeat, alike)])
        n = sum(value is not None for group in groups for value in group[1:])
        return _pooled(groups, f"{units.plural(n, 'repeat')} in the study")

    def over_seeds(self, value: Value, like: Record, undisturbed: bool = False) -> Spread | None:
        """Of `value`, over the seeds of the settings of the method of `like`, else of all methods.

        undisturbed: without cells whose times are not their own.
        """
        here = [g for g in self._seeds if (g[0].cell.model, g[0].cell.data) == (like.cell.model, like.cell.data)]
        if undisturbed:
            here = [[record for record in group if record.cell.name not in self._disturbed] for group in here]
        own = [group for group in here if group and group[0].cell.method == like.cell.method]
        for groups, whose in ((own, like.cell.method), (here, "all methods")):
            values_by_group = [[value(record) for record in group] for group in groups]
            if spread := _pooled(values_by_group, f"seeds of {whose} in the study"):
                return spread
        return None


def _pooled(groups: Sequence[Sequence[float | None]], why: str) -> Spread | None:
    """Of a difference of two runs, by the variance within `groups`; None without a group of two."""
    values_by_group = [[value for value in group if value is not None] for group in groups]
    freedom = float(sum(len(group) - 1 for group in values_by_group if group))
    if not freedom:
        return None
    variance = sum(float(np.var(group)) * len(group) for group in values_by_group if group) / freedom
    return Spread((2 * variance) ** 0.5, freedom, why)


def recheck(study: PublishedStudy, pairs: Sequence[tuple[Record, Record]], folder: Path) -> list[Recheck]:
    """Compare each of `pairs`, a published record and that of the new run, whose items are in `folder`."""
    comparisons = [compared for record, again in pairs for compared in _compare(study, record, again, folder)]
    n = sum(isinstance(compared, _Compared) and compared.spread is not None for compared in comparisons)
    return [compared if isinstance(compared, Recheck) else _judge(compared, n) for compared in comparisons]


def _judge(compared: _Compared, n: int) -> Recheck:
    """n: how many comparisons there are."""
    cell, quantity, published, again, gap, spread, format_gap, why = compared
    if spread is None:
        return Recheck(cell, quantity, published, again, ABSENT, ABSENT, "not compared", why)
    allowed = spread.error * quantile(1 - ALPHA / 2 / n, spread.freedom)
    agreement: Agreement = "equal" if abs(gap) < EXACT else "agrees" if abs(gap) <= allowed else "disagrees"
    return Recheck(
        cell, quantity, published, again, format_gap(gap), f"±{format_gap(allowed)[1:]}", agreement, spread.why
    )


def _compare(study: PublishedStudy, record: Record, again: Record, folder: Path) -> Iterator[_Compared | Recheck]:
    name, step = record.cell.name, unstable_at(record)
    unstable = f"its published training was unstable from step {step}" if step else ""
    if again.status != "ok":
        chance = unstable if again.status == "diverged" else ""
        reason = chance or (again.failure.reason if again.failure else again.status)
        agreement: Agreement = "not compared" if chance else "disagrees"
        yield Recheck(name, "status", record.status, again.status, ABSENT, ABSENT, agreement, reason)
        return
    yield from _inputs(record, again)
    apart = differing([record], [again], conditions)
    yield from _losses(study, record, again, apart, step, unstable)
    yield from _memory(study, record, again, apart)
    for score in record.scores:
        yield _score(study, record, again, score, folder, unstable)
    yield from _speed(study, record, again, apart)


def unstable_at(record: Record) -> int | None:
    """The first step whose gradient's norm is more than STEEP times that of the first step; None if there is none.

    Such a run is at the edge of its learning rate: two runs that differ in nothing but rounding part from there.
    """
    points = record.train.loss if record.train else []
    first = points[0].grad_norm if points else None
    if not first:
        return None
    return next((p.step for p in points if p.grad_norm is not None and p.grad_norm > STEEP * first), None)


def _inputs(record: Record, again: Record) -> Iterator[Recheck]:
    """Whether both had the same weights, data and batches, by their hashes."""
    before, after = _hashes(record), _hashes(again)
    in_both = [name for name in before if before[name] and after.get(name)]
    if in_both:
        other = [name for name in in_both if before[name] != after[name]]
        why = f"other hash of {' and '.join(other)}" if other else f"hashes of {', '.join(in_both)}"
        yield Recheck(
            record.cell.name, "inputs", ABSENT, ABSENT, ABSENT, ABSENT, "disagrees" if other else "equal", why
        )


def _hashes(record: Record) -> dict[str, str]:
    batches = record.train.batches if record.train else None
    return record.fingerprints | ({"batches": batches} if batches else {})


def _losses(
    study: PublishedStudy, record: Record, again: Record, apart: Sequence[str], step: int | None, unstable: str
) -> Iterator[_Compared]:
    """The last validation loss, and the mean training loss, of an unstable training that of the steps before.

    Repeats keep the first alone, whose spread is for both. step, unstable: where that begins, and the same in words.
    """
    repeats = None if apart else study.over_repeats(_log(VALIDATION), lambda run: _log_of(run.validation_loss))
    mean = _mean_before(step)
    quantity = f"mean training loss before step {step}" if step else "mean training loss"
    ended = None if unstable else repeats or study.over_seeds(_log(VALIDATION), record) or _assumed()
    yield from _ratio(record, again, "validation loss", VALIDATION, ended, units.significant, unstable)
    spread = repeats or study.over_seeds(_log(mean), record) or _assumed()
    yield from _ratio(record, again, quantity, mean, spread, units.significant)


def _memory(study: PublishedStudy, record: Record, again: Record, apart: Sequence[str]) -> Iterator[_Compared]:
    value, spread = _log(train_memory), None
    if memory_instrument(record) == memory_instrument(again):
        repeats = None if apart else study.over_repeats(value, _repeated_peak)
        spread = repeats or study.over_seeds(value, record) or _assumed()
    why = "measured by another instrument"
    yield from _ratio(record, again, "peak train memory", train_memory, spread, units.size, why)


def _speed(study: PublishedStudy, record: Record, again: Record, apart: Sequence[str]) -> Iterator[_Compared]:
    spread, why = None, f"the runs differ in {', '.join(apart)}"
    if not apart:
        spread = study.over_repeats(_log(RATE), lambda run: _log_of(run.tokens_per_second_steady))
        spread = spread or study.over_seeds(_log(RATE), record, undisturbed=True)
        why = "the study has no repeats or seeds that ran alone"
    yield from _ratio(record, again, "tokens/s", RATE, spread, rate, why)


def _mean_before(step: int | None) -> Value:
    """The mean loss of the steps of training before `step`; of all for None."""

    def mean(record: Record) -> float | None:
        losses = [p.loss for p in record.train.loss if step is None or p.step < step] if record.train else []
        return fmean(losses) if losses else None

    return mean


def _repeated_peak(run: Repeat) -> float | None:
    """On CUDA alone: on a CPU the peak is the probe's, which repeats do not keep."""
    return _log_of(run.memory.allocated_peak) if run.memory else None


def _log(value: Value) -> Value:
    return lambda record: _log_of(value(record))


def _log_of(value: float | None) -> float | None:
    return math.log(value) if value else None


def _assumed() -> Spread:
    return Spread(ASSUMED * 2**0.5, math.inf, f"assumed, {ASSUMED:.0%} a run: the study has no repeats or seeds")


def _ratio(
    record: Record,
    again: Record,
    quantity: str,
    value: Value,
    spread: Spread | None,
    format_value: Callable[[float], str],
    why: str = "",
) -> Iterator[_Compared]:
    """A positive quantity compared by its logarithm; nothing if the published record lacks it."""
    before, after = value(record), value(again)
    if before:
        gap = math.log(after / before) if after else 0.0
        texts = (format_value(before), format_value(after) if after else ABSENT)
        if not after:
            spread, why = None, "the new run has none"
        yield _Compared(record.cell.name, quantity, *texts, gap, spread, _percent, why)


def _percent(log: float) -> str:
    percent = f"{100 * math.expm1(log):+.2g}"
    percent = f"{float(percent):+,.0f}" if "e+" in percent else percent
    return f"{percent}%".replace("-", "−")


def _score(
    study: PublishedStudy, record: Record, again: Record, score: Score, folder: Path, unstable: str
) -> _Compared:
    """By the items that both answered and, if that is more, by how much the score differs from seed to seed.

    unstable: why nothing is compared; "" if it is.
    """
    name = score_name(score)
    header, format_value = score_style(score, [score.value])
    other = score_of(again, name)
    if other is None:
        return _Compared(
            record.cell.name, header, format_value(score.value), ABSENT, 0.0, None, format_value, "the new run has none"
        )
    spreads = [_over_items(record, again, name, study.folder, folder), _score_over_seeds(study, record, name)]
    usable = [spread for spread in spreads if spread is not None and not unstable]
    spread = max(usable, key=lambda spread: spread.error, default=None)
    texts = (format_value(score.value), format_value(other.value))
    points = units.points if "(%)" in header else lambda gap: f"{gap:+.2g}".replace("-", "−")
    why = unstable or "its items and standard error are missing"
    return _Compared(record.cell.name, header, *texts, other.value - score.value, spread, points, why)


def _over_items(record: Record, again: Record, name: str, folder: Path, folder_again: Path) -> Spread | None:
    ones, others = items(folder, [record], name), items(folder_again, [again], name)
    if ones and others and ones[1] == others[1]:
        changed = int(np.sum(ones[0].values != others[0].values))
        gap = statistics.differences([ones[0], others[0]])[0, 1]
        return Spread(gap.error, gap.freedom, f"{ones[0].values.size} paired items, {changed} answered otherwise")
    scores = [score for side in (record, again) if (score := score_of(side, name))]
    errors = [score.stderr for score in scores if score.stderr is not None]
    if len(errors) < 2:
        return None
    return Spread(math.hypot(*errors), math.inf, "standard errors over items, which are not paired")


def _score_over_seeds(study: PublishedStudy, record: Record, name: str) -> Spread | None:
    def value(of: Record) -> float | None:
        score = score_of(of, name)
        return score.value if score else None

    return study.over_seeds(value, record)


COLUMNS = ["Cell", "What", "Published", "Again", "Difference", "Allowed", "Verdict", "By"]


def reproduction_table(study: str, rechecks: Sequence[Recheck], pairs: Sequence[tuple[Record, Record]]) -> Table:
    """The rechecks of the cells of `pairs`, published and new; its answer says how many agree, and what does not."""
    wrong = [check for check in rechecks if check.agreement == "disagrees"]
    cells = {check.cell for check in rechecks}
    bad = {check.cell for check in wrong}
    compared = {check.cell for check in rechecks if check.agreement != "not compared"}
    answer = [f"{len(compared - bad)} of {len(cells)} cells agree with their published records."]
    if alone := len(cells - compared):
        answer += [f"Of {units.plural(alone, 'cell')} nothing could be compared."]
    answer += [
        f"{check.cell} disagrees in {check.quantity}: {check.published} → {check.again} ({check.why})."
        for check in wrong
    ]
    n = sum(check.allowed != ABSENT for check in rechecks)
    caption = [
        f"Allowed: 95% limit of the difference of two runs, corrected for {units.plural(n, 'comparison')}; By: what it "
        "rests on.",
        *_where(pairs),
    ]
    return Table(
        title=f"{study}: {len(cells)} of its cells again",
        columns=COLUMNS,
        rows=[[c.cell, c.quantity, c.published, c.again, c.gap, c.allowed, c.agreement, c.why] for c in rechecks],
        caption=caption,
        data=pd.DataFrame([asdict(check) for check in rechecks]),
        text_columns=("Cell", "What", "Verdict", "By"),
        answer=answer,
    )


def _where(pairs: Sequence[tuple[Record, Record]]) -> Iterator[str]:
    """What differs between where and how the cells ran, once for all of them: what may have moved a number."""
    facts: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for sides in pairs:
        before, after = ({**conditions(side), **ran_with(side), **_speedups(side)} for side in sides)
        for name in before.keys() & after.keys():
            if before[name] != after[name]:
                facts[name].add((before[name], after[name]))
    for name in sorted(facts):
        yield f"{name}: " + "; ".join(f"{after}, published {before}" for before, after in sorted(facts[name])) + "."
    if pairs and not facts:
        yield "The cells ran with the same device, libraries and harness as those that are published."


def _speedups(record: Record) -> dict[str, str]:
    return {f"speed-up {name}": state for name, state in environment_part(record, "speedups").items()}
