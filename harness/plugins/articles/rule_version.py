"""The version of the rules that judge claims, and the articles: what a sweep's plan notes of this plug-in."""

from __future__ import annotations

from pathlib import Path

from harness.record import JudgingRules

CLAIMS = 4
"""Version of the claims and of the rules that judge them (claims.py, rules.py, evidence.py, merged.py, designed.py and
each article's folder). Raise it with each change after which a claim could be judged differently;
tests/house/test_rules.py notices one."""

PAIRED = (
    *("lora-memory", "qlora-memory", "dora-memory", "adapters-galore-memory", "galore-memory", "galore-states"),
    *("memory-order", "dora-parameters", "dora-training", "dora-serving", "galore-weights"),
)
RATES = (
    *(f"beyond_lora/{claim}" for claim in ("lr-adapters", "lr-full", "lr-ratio", "alpha-rank")),
    *(f"lora_without_regret/{claim}" for claim in ("lr-ratio", "lr-rank")),
)
CHANGED = {3: [f"beyond_lora/{claim}" for claim in (*PAIRED, "low-rank-divergence")], 4: [*RATES]}
"""The claims that a version can judge differently than the one before, as ARTICLE/CLAIM; of a version that is not named
here, all. 3: only runs with weights of one dtype are compared in memory, time and counts; only adapters of the same
layers in how often runs diverge. Intervals allow for several looks, too, at studies of which none has a plan. 4: best
rates have intervals by each rate's own spread, and of runs that diverged. Over several studies more than half must
support a claim: that takes verdicts away and gives none, so that it makes no claim of one study exploratory."""
FOLDER = Path(__file__).resolve().parent


def judging_rules() -> JudgingRules:
    return JudgingRules({"claims": CLAIMS}, names(), {"claims": CHANGED})


def names() -> list[str]:
    """The names of all articles: the packages in this folder."""
    return sorted(path.parent.name for path in FOLDER.glob("*/__init__.py"))
