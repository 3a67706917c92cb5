"""The published studies of SmolLM2-135M: which was designed to decide each claim, and how often one was looked at.

A verdict uses all studies.
"""

from __future__ import annotations

from dataclasses import replace

from harness.plugins.articles.claims import Judgement
from harness.report.statistics import ALPHA

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
        "dora-stability": "study_speed",
        "dora-convergence": "smollm2",
        "dora-task": "study_skill",
        "dora-full": "study_skill",
        "forgetting-text": "study_skill",
        "lora-numerical": "study_skill",
        "lora-niche": "study_facts",
        "lr-adapters": "study_lr",
        "lr-full": "study_lr",
        "lr-ratio": "study_lr",
        "rank-capacity": "study_rank_fresh",
        "low-rank-spread": "study_stability",
        "low-rank-divergence": "study_stability",
        "alpha-r": "study_alpha_fresh",
        "alpha-4r": "study_alpha",
        "alpha-rank": "study_alpha_rank",
        "galore-facts": "study_facts",
        "dora-mmlu": AT_CHANCE,
        "forgetting-mmlu": AT_CHANCE,
        "forgetting-reasoning": "not decided: a model of 135M solves no problem of GSM8K, so nothing can be lost there",
        "forgetting-format": "not decided: no study asks IFEval",
    },
    "lora_without_regret": {
        "rank-capacity": "study_rank",
        "lr-ratio": "study_lr",
        "lr-rank": "study_lr",
        "layers-rank": "study_targets",
        "layers-parameters": "study_targets",
        "batch-penalty": "study_batch",
    },
    "rank_for_rows": {
        "needed-rank-grows": "rank_for_rows",
        "small-ranks-suffice": "rank_for_rows",
        "rank-16-suffices": "rank_for_rows",
    },
}
"""Of each article's claims, the sweep that was designed to decide it, or why none can; of articles that have such."""

LOOKS = {
    "reference/study_targets": dict.fromkeys(("layers-rank", "layers-parameters"), 3),
    "reference/study_lr": dict.fromkeys(("lr-adapters", "lr-full", "lr-ratio", "lr-rank"), 2),
    "reference/study_facts": dict.fromkeys(("lora-niche", "galore-facts"), 2),
}
"""How often claims were looked at whose records got more seeds after a look, by study (docs/study-design.md). Whoever
runs the same sweeps anew looks once."""
POCOCK = {2: 0.0294, 3: 0.0221}
"""The level of each of so many looks, so that one study in twenty is wrong in any (Pocock, Biometrika 64, 1977)."""


def for_all_looks(judgement: Judgement, study: str, claim: str) -> Judgement:
    """`judgement` by intervals that allow for all looks at `claim` in `study`. The effect keeps its own interval."""
    looks = LOOKS.get(study, {}).get(claim)
    if looks is None or (corrected := judgement.corrected) is None:
        return judgement
    factor = ALPHA / POCOCK[looks]
    decision = corrected(factor)
    why = f"Not decided by intervals for {looks} looks" if decision != judgement.decision else judgement.why
    return replace(judgement, decision=decision, why=why, corrected=lambda among: corrected(factor * among))
