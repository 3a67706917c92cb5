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
from harness.report.lint import completeness, drift, environment, evaluation, training
from harness.report.lint.differences import Sentences, group_by

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
    "tokens": ("unequal", training.token_budgets),
    "order": ("unequal", training.batch_order),
    "batch": ("unequal", training.effective_batches),
    "training": ("unequal", training.training_settings),
    "targets": ("unequal", training.adapter_targets),
    "precision": ("unequal", training.precision),
    "attention": ("unequal", training.attention),
    "tries": ("unequal", training.tries),
    "stop": ("unequal", completeness.stop_rules),
    "early stopping": ("unequal", completeness.ended_early),
    "evaluation": ("unequal", evaluation.evaluation),
    "written by": ("unequal", evaluation.written_by),
    "asked by": ("unequal", evaluation.asked_by),
    "cut off": ("unequal", evaluation.cut_off),
    "drawn": ("unequal", evaluation.drawn),
    "refused": ("unequal", evaluation.refused),
    "fingerprints": ("unequal", evaluation.fingerprints),
    "inference": ("unequal", evaluation.inference),
    "versions": ("unequal", environment.same_environment("Library versions differ", environment.versions)),
    "versions of runs": ("unequal", environment.versions_of_runs),
    "device": ("unequal", environment.same_environment("Devices differ", environment.device)),
    "memory": ("unequal", environment.memory_instruments),
    "throttled": ("unequal", environment.throttled),
    "power limit": ("unequal", environment.power_limits),
    "clocks": ("unequal", environment.clocks),
    "drift": ("unequal", drift.drifted),
    "code": ("unequal", environment.code),
    "speedups": ("unequal", environment.speedups),
    "source": ("unequal", environment.sources),
    "overlap": ("unequal", environment.overlap),
    "per layer": ("unequal", training.per_layer),
    "projection": ("incomplete", training.first_projections),
    "resumed": ("unequal", training.resumed),
    "smaller batches": ("unequal", training.smaller_batches),
    "chosen batches": ("unequal", training.fitting_batches),
    "rescored": ("unequal", evaluation.rescored),
    "contamination": ("incomplete", evaluation.contaminated),
    "classes": ("incomplete", evaluation.classes),
    "too long": ("incomplete", evaluation.too_long),
    "base": ("incomplete", completeness.missing_base),
    "seeds": ("incomplete", completeness.seed_counts),
    "failed": ("incomplete", completeness.failed_cells),
    "pruned": ("incomplete", completeness.pruned_cells),
}
