"""The version of the rules that judge claims, and the articles: what a sweep's plan notes of this plug-in."""

from __future__ import annotations

from pathlib import Path

from harness.record import JudgingRules

CLAIMS = 3
"""Version of the claims and of the rules that judge them (claims.py, rules.py, evidence.py, merged.py, designed.py and
each article's folder). Raise it with each change after which a claim could be judged differently;
tests/house/test_rules.py notices one."""

PAIRED = (
    *("lora-memory", "qlora-memory", "dora-memory", "adapters-galore-memory", "galore-memory", "galore-states"),
    *("memory-order", "dora-parameters", "dora-training", "dora-serving", "galore-weights"),
)
CHANGED = {3: [f"beyond_lora/{claim}" for claim in (*PAIRED, "low-rank-divergence")]}
"""The claims that a version can judge differently than the one before, as ARTICLE/CLAIM; of a version that is not named
here, all. 3: only runs with weights of one dtype are compared in memory, time and counts; only adapters of the same
layers in how often runs diverge. Intervals allow for several looks, too, at studies of which none has a plan."""
FOLDER = Path(__file__).resolve().parent


def judging_rules() -> JudgingRules:
    return JudgingRules({"claims": CLAIMS}, names(), {"claims": CHANGED})


def names() -> list[str]:
    """The names of all articles: the packages in this folder."""
    return sorted(path.parent.name for path in FOLDER.glob("*/__init__.py"))
