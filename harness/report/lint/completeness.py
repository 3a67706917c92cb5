"""Rules on what a study lacks: a base row, more seeds, finished cells."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

from harness import units
from harness.record import Record
from harness.report.frame import BUT_SEED
from harness.report.lint.differences import Sentences, alike, differ, finished, group_by, hashable, tuned, unit
from harness.settings import MethodSettings, plain

NAMED = 4  # cells of one reason that are named


def missing_base(records: Sequence[Record]) -> Sentences:
    """A base row serves all data sets of its model, since the weights are the same."""
    models = group_by(records, lambda record: record.cell.model)
    missing = [
        model
        for model, members in models.items()
        if not any(r.cell.method == "base" and r.status == "ok" and r.scores for r in members)
        and any(record.scores for record in members)
    ]
    if missing:
        where = f" for {', '.join(missing)}" if len(missing) < len(models) else ""
        yield f"No finished base row{where}: Δ is not shown.", ()


def seed_counts(records: Sequence[Record]) -> Sentences:
    original = [record for record in tuned(finished(records)) if not record.confirmation]
    fresh = [record for record in tuned(finished(records)) if record.confirmation]
    rows = list(_repeated(original))
    counts = {len(members) for members in rows}
    if counts == {1} and max((len(members) for members in _repeated(fresh)), default=0) > 1:
        yield "Settings were chosen by a single seed; fresh seeds compare the chosen ones.", ()
    elif counts == {1}:
        yield "Single seed: error bars exclude seed-to-seed variance.", ()
    elif len(counts) > 1:
        cells = {id(record): len(members) for members in rows for record in members}
        counted = [record for record in records if id(record) in cells]
        yield from differ("Numbers of seeds differ", counted, lambda r: units.plural(cells[id(r)], "seed"))


def _repeated(records: Sequence[Record]) -> Iterator[list[Record]]:
    """`records` in groups that have all settings but the seed of the training in common."""
    for members in group_by(records, lambda r: (r.cell.model, r.cell.data, unit(r))).values():
        if alike(members, lambda r: BUT_SEED(r.cell.settings)):
            yield members
        else:
            yield from group_by(members, _unseeded).values()


def _unseeded(record: Record) -> Hashable:
    settings = record.cell.settings
    method = hashable(plain(settings.method))  # as text: methods hash by their names alone
    return method, dataclasses.replace(settings, method=MethodSettings(), seed=None)


def failed_cells(records: Sequence[Record]) -> Sentences:
    """Cells that were not run, a sentence a reason, which says what to do; then those that failed."""
    refused: dict[str, list[str]] = {}
    for record in records:
        if record.status == "unfit":
            reason = record.failure.reason.strip() if record.failure else ""
            refused.setdefault(reason or "unfit", []).append(record.cell.name)
    for reason, names in refused.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        yield f"Cells not run: {', '.join(names[:NAMED])}{more}: {reason.removesuffix('.')}.", tuple(names)
    if failed := [record for record in records if record.status not in ("ok", "unfit", "pruned")]:
        reasons = "; ".join(f"{record.cell.name}: {_reason(record)}" for record in failed)
        yield f"Failed cells: {reasons}.", tuple(record.cell.name for record in failed)


def pruned_cells(records: Sequence[Record]) -> Sentences:
    """What the rows of cells that stop=asha ended do and do not show."""
    pruned = [record for record in records if record.status == "pruned"]
    if not pruned:
        return
    of = sum(record.stop is not None for record in records)
    at = Counter(r.failure.step for r in pruned if r.failure and r.failure.step is not None)
    steps = ", ".join(f"step {step} ({units.plural(count, 'cell')})" for step, count in sorted(at.items()))
    yield (
        f"stop=asha ended {len(pruned)} of {units.plural(of, 'cell')} early, at {steps}: their rows show losses of "
        "that step and no score.",
        tuple(record.cell.name for record in pruned),
    )


def ended_early(records: Sequence[Record]) -> Sentences:
    """Which steps' weights train.early_stopping chose, beside cells that ran to their end."""
    early = [(record, record.best) for record in records if record.best and record.best.later]
    if not early:
        return
    at = Counter(best.step for _, best in early)
    steps = ", ".join(f"step {step} ({units.plural(count, 'cell')})" for step, count in sorted(at.items()))
    of = units.plural(len(tuned(records)), "tuned cell")
    yield (
        f"train.early_stopping scored {len(early)} of {of} before the last step they took, at {steps}: "
        "compared cells had different numbers of steps.",
        tuple(record.cell.name for record, _ in early),
    )


def stop_rules(records: Sequence[Record]) -> Sentences:
    """Confirmations and untuned models have none."""
    competing = [record for record in tuned(records) if not record.confirmation and record.status != "unfit"]
    yield from differ("Rules for ending cells early differ", competing, _stop_rule)


def _stop_rule(record: Record) -> str:
    rule = record.stop
    return "none" if rule is None else f"stop=asha (first rung at {rule.first:g} of the tokens, factor {rule.factor})"


def _reason(record: Record) -> str:
    failure = record.failure
    if failure is None:
        return record.status
    clause = re.split(r"[.;]\s|\n", failure.reason.strip())[0].rstrip(".;")
    place = failure.phase + (f", step {failure.step}" if failure.step is not None else "")
    return f"{textwrap.shorten(clause, 100, placeholder=' …')} ({place})"
