"""Which rules judge a study: a sweep's plan names their versions, and a verdict by other rules is exploratory."""

from __future__ import annotations

from collections.abc import Sequence

from harness import plugin
from harness.grouping import grouped
from harness.record import JudgingRules, Record
from harness.report.frame import evaluated_alike

COMPARISON = 3
"""Version of the rules by which methods are compared: how settings are chosen (select.py), and which differences are
significant (pairwise.py, statistics/). Raise it with each change after which a study could be answered differently;
tests/house/test_rules.py notices one."""


def compared_otherwise(version: int, records: Sequence[Record], by_claims: bool) -> bool:
    """Whether `version` of the rules of comparison can answer a study of `records` differently than the one before.

    by_claims: whether claims are judged, for which settings are chosen, and methods not compared pairwise.

    3: of a training that was scored in several ways the one with the most items is taken. In a pairwise comparison a
    method is not found better than one that is ahead on the seeds that both have, which can be so where methods have
    different seeds.
    """
    if version != 3:
        return True
    places = grouped(((record.cell.model, record.cell.data), record) for record in records)
    if not all(map(evaluated_alike, places.values())):
        return True
    return not by_claims and not all(map(_same_seeds, places.values()))


def _same_seeds(records: Sequence[Record]) -> bool:
    """Whether all methods of one place have the same seeds, and the same fresh ones."""
    runs = [record for record in records if record.status == "ok" and record.cell.seed is not None]
    seeds = grouped((record.cell.method, (record.cell.seed, record.confirmation)) for record in runs)
    return len({frozenset(each) for each in seeds.values()}) < 2


def judging_rules() -> JudgingRules:
    """The rules of the core and of plug-ins, and the articles whose claims are judged."""
    of_plugins = [plugin.load(part.rules)() for part in plugin.installed() if part.rules is not None]
    rules = {"comparison": COMPARISON} | {name: version for of in of_plugins for name, version in of.rules.items()}
    changed = {name: versions for of in of_plugins for name, versions in of.changed.items()}
    return JudgingRules(rules, [article for of in of_plugins for article in of.articles], changed)
