"""What makes the cells of a study hard to compare: a pure function of its records, one sentence per finding.

    for finding in findings(records):
        print(finding.sentence)

A difference that all methods share is an axis of the study (for example two batch sizes, each run by all methods) and
no finding, unless it is one of the data or the weights: settings would be chosen among cells that had different ones.
Nor is what defines a method: its adapter, its optimizer, NF4 weights, no steps for an untuned row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.record import Record
from harness.report.lint.completeness import (
    ended_early,
    failed_cells,
    missing_base,
    pruned_cells,
    seed_counts,
    stop_rules,
)
from harness.report.lint.differences import Sentences, group_by
from harness.report.lint.drift import drifted
from harness.report.lint.environment import (
    clocks,
    code,
    device,
    memory_instruments,
    overlap,
    power_limits,
    same_environment,
    sources,
    speedups,
    throttled,
    versions,
    versions_of_runs,
)
from harness.report.lint.evaluation import (
    asked_by,
    classes,
    contaminated,
    cut_off,
    drawn,
    evaluation,
    fingerprints,
    inference,
    rescored,
    too_long,
    written_by,
)
from harness.report.lint.training import (
    adapter_targets,
    attention,
    batch_order,
    effective_batches,
    first_projections,
    fitting_batches,
    per_layer,
    precision,
    resumed,
    smaller_batches,
    token_budgets,
    training_settings,
    tries,
)

# Rules on facts that are unknown for models behind an API
OF_WEIGHTS = {"precision", "fingerprints", "device", "speedups", "base"}


@dataclass(frozen=True)
class Finding:
    """One sentence on what makes cells hard to compare.

    rule: a key of `RULES`. kind: unequal if compared cells differ, incomplete if the study lacks something. cells:
    names of the cells that stand out, in the records' order; empty if the finding is about all cells.
    """

    study: str
    rule: str
    kind: Literal["unequal", "incomplete"]
    sentence: str
    cells: tuple[str, ...] = ()


def findings(records: Sequence[Record]) -> list[Finding]:
    """All findings on `records`, study by study, in the order of `RULES`."""
    studies = group_by(records, lambda record: record.study)
    return [
        Finding(study, rule, kind, sentence, cells)
        for study, members in studies.items()
        for rule, (kind, look) in RULES.items()
        for sentence, cells in look(_with_weights(members) if rule in OF_WEIGHTS else members)
    ]


def _with_weights(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if not record.cell.settings.behind_api]


RULES: dict[str, tuple[Literal["unequal", "incomplete"], Callable[[Sequence[Record]], Sentences]]] = {
    "tokens": ("unequal", token_budgets),
    "order": ("unequal", batch_order),
    "batch": ("unequal", effective_batches),
    "training": ("unequal", training_settings),
    "targets": ("unequal", adapter_targets),
    "precision": ("unequal", precision),
    "attention": ("unequal", attention),
    "tries": ("unequal", tries),
    "stop": ("unequal", stop_rules),
    "early stopping": ("unequal", ended_early),
    "evaluation": ("unequal", evaluation),
    "written by": ("unequal", written_by),
    "asked by": ("unequal", asked_by),
    "cut off": ("unequal", cut_off),
    "drawn": ("unequal", drawn),
    "fingerprints": ("unequal", fingerprints),
    "inference": ("unequal", inference),
    "versions": ("unequal", same_environment("Library versions differ", versions)),
    "versions of runs": ("unequal", versions_of_runs),
    "device": ("unequal", same_environment("Devices differ", device)),
    "memory": ("unequal", memory_instruments),
    "throttled": ("unequal", throttled),
    "power limit": ("unequal", power_limits),
    "clocks": ("unequal", clocks),
    "drift": ("unequal", drifted),
    "code": ("unequal", code),
    "speedups": ("unequal", speedups),
    "source": ("unequal", sources),
    "overlap": ("unequal", overlap),
    "per layer": ("unequal", per_layer),
    "projection": ("incomplete", first_projections),
    "resumed": ("unequal", resumed),
    "smaller batches": ("unequal", smaller_batches),
    "chosen batches": ("unequal", fitting_batches),
    "rescored": ("unequal", rescored),
    "contamination": ("incomplete", contaminated),
    "classes": ("incomplete", classes),
    "too long": ("incomplete", too_long),
    "base": ("incomplete", missing_base),
    "seeds": ("incomplete", seed_counts),
    "failed": ("incomplete", failed_cells),
    "pruned": ("incomplete", pruned_cells),
}
