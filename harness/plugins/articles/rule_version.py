"""The version of the rules that judge claims, and the articles: what a sweep's plan notes of this plug-in."""

from __future__ import annotations

from pathlib import Path

from harness.record import JudgingRules

CLAIMS = 2
"""Version of the claims and of the rules that judge them (claims.py, rules.py, evidence.py, merged.py and each
article's folder). Raise it with each change after which a claim could be judged differently; tests/house/test_rules.py
notices one."""
FOLDER = Path(__file__).resolve().parent


def judging_rules() -> JudgingRules:
    return JudgingRules({"claims": CLAIMS}, names())


def names() -> list[str]:
    """The names of all articles: the packages in this folder."""
    return sorted(path.parent.name for path in FOLDER.glob("*/__init__.py"))
