"""Which rules judge a study: a sweep's plan names their versions, and a verdict by other rules is exploratory."""

from __future__ import annotations

from harness import plugin
from harness.record import JudgingRules

COMPARISON = 2
"""Version of the rules by which methods are compared: how settings are chosen (select.py), and which differences are
significant (pairwise.py, statistics/). Raise it with each change after which a study could be answered differently;
tests/house/test_rules.py notices one."""


def judging_rules() -> JudgingRules:
    """The rules of the core and of plug-ins, and the articles whose claims are judged."""
    of_plugins = [plugin.load(part.rules)() for part in plugin.installed() if part.rules is not None]
    rules = {"comparison": COMPARISON} | {name: version for of in of_plugins for name, version in of.rules.items()}
    changed = {name: versions for of in of_plugins for name, versions in of.changed.items()}
    return JudgingRules(rules, [article for of in of_plugins for article in of.articles], changed)
