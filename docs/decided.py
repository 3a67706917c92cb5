"""Which published study decides each claim on SmolLM2-135M, and what it decided, as far as the studies have run."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

from harness.record import read_study
from harness.report.articles import effect_text, find, tally
from harness.report.claims import DEPENDS, OPEN, REFUTED, SUPPORTED, Claims, Verdict
from harness.report.tables.formats import document

REFERENCE = Path(__file__).resolve().parents[1] / "results" / "reference"

AT_CHANCE = "not decided: MMLU is at chance at 135M (25%), so nothing can be lost or won there"
DECIDED_BY = {
    "beyond_lora": {
        "lora-parameters": "study_memory",
        "lora-memory": "study_memory",
        "qlora-memory": "study_memory",
        "dora-memory": "study_memory",
        "adapters-galore-memory": "study_memory",
        "galore-memory": "study_memory",
        "galore-states": "study_memory",
        "memory-order": "study_memory",
        "dora-parameters": "study_memory",
        "galore-weights": "study_memory",
        "dora-training": "study_speed",
        "dora-serving": "study_speed",
        "dora-task": "study_skill",
        "dora-full": "study_skill",
        "forgetting-text": "study_skill",
        "lr-adapters": "study_lr",
        "lr-full": "study_lr",
        "lr-ratio": "study_lr",
        "rank-capacity": "study_rank_fresh",
        "low-rank-spread": "study_stability",
        "low-rank-divergence": "study_stability",
        "alpha-r": "study_alpha_fresh",
        "alpha-4r": "study_alpha",
        "galore-facts": "study_facts",
        "dora-mmlu": AT_CHANCE,
        "forgetting-mmlu": AT_CHANCE,
    },
    "lora_without_regret": {
        "rank-capacity": "study_rank",
        "lr-ratio": "study_lr",
        "lr-rank": "study_lr",
        "layers-rank": "study_targets",
        "layers-parameters": "study_targets",
        "batch-penalty": "study_batch",
    },
}
"""Of each article's claims, the sweep that decides it on SmolLM2-135M, or why none does; of articles that have such."""


@functools.cache  # table, list and picture show the same
def verdicts(article: str) -> list[Verdict]:
    """The verdicts on an article's claims, each from the study that decides it; of studies that have run, in the
    article's order."""
    whole, found, decided_by = find(article), [], DECIDED_BY.get(article, {})
    for study in sorted(set(decided_by.values())):
        records, _ = read_study(REFERENCE / study)
        if records:
            asked = {
                name: replace(claim, run=f"sweep {study}")
                for name, claim in whole.claims.items()
                if decided_by[name] == study
            }
            found += replace(whole, claims=Claims(asked)).verdicts(records, REFERENCE / study)
    return sorted(found, key=lambda verdict: list(whole.claims).index(verdict.claim.name))


def table(article: str) -> str:
    """These verdicts as one table in Markdown."""
    whole, found = find(article), verdicts(article)
    if not found:
        return f"No study that decides a claim of “{whole.title}” has run yet.\n"
    made = replace(whole.verdict_table(found), title=f"“{whole.title}” on SmolLM2-135M: {tally(found)}")
    return document([made], "md").replace("python -m harness ", "harness ")


def summary(article: str) -> str:
    """The claims in words and their effects, by verdict, as a list."""
    found = verdicts(article)
    heads = {SUPPORTED: "Supported", REFUTED: "Refuted", DEPENDS: "Depends on the setting", OPEN: "Not decided"}
    lines = []
    for decision, head in heads.items():
        of = [verdict for verdict in found if verdict.judgement.decision == decision]
        lines += [f"- **{head}**"] if of else []
        lines += [f"    - {verdict.claim.text}: {effect_text(verdict)}" for verdict in of]
    return "\n".join(lines) + "\n"
