"""Articles whose claims are judged on recorded studies: found by folder, none known by name.

An article is a package `harness/plugins/articles/NAME` whose attribute `ARTICLE` is an `Article`.

    article = find("beyond_lora")
    verdicts = article.merged([(records, folder)])  # one a claim, over all studies
    print(document([claim_lines(article, verdicts)], "md"))
"""

from __future__ import annotations

import importlib
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import one_of
from harness.grouping import grouped
from harness.plugins.articles.apart import parts_of
from harness.plugins.articles.claims import DEPENDS, OPEN, REFUTED, SUPPORTED, TOO_SMALL, Claim, Decision, Verdict
from harness.plugins.articles.deciding import deciding_command
from harness.plugins.articles.designed import DECIDED_BY, for_all_looks
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.merged import ArticleVerdicts, JudgedClaim, merge
from harness.plugins.articles.published_figures import Figure
from harness.plugins.articles.published_rules import PublishedRule, PublishedVerdict, published_verdicts
from harness.plugins.articles.rule_version import names
from harness.record import Record
from harness.report.items.answered import Items
from harness.report.planned import study_plan
from harness.report.statistics import Interval
from harness.report.tables.entries import ABSENT
from harness.report.tables.table import Table

if TYPE_CHECKING:
    from harness.report.figures.study_results import StudyResults


@dataclass(frozen=True)
class Article:
    """An article's claims, and optionally its comparison table filled with measurements.

    name: of its folder. title, source: what to call it, and who published it where. caption: sentences below its
    verdicts. table: makes its table from records and the folder of their study (None: no scores are compared).
    published: how others' published figures decide its claims, by claim. data: the name of a record's data, of which
    claims compare records: as tables have it, with what was changed in them, unless claims are on that.
    """

    name: str
    title: str
    source: str
    claims: Mapping[str, Claim]
    caption: Sequence[str]
    table: Callable[[Sequence[Record], Path | None], Table] | None = None
    published: Mapping[str, PublishedRule] = field(default_factory=dict)
    data: Callable[[Record], str] = operator.attrgetter("cell.data")

    def verdicts(self, records: Sequence[Record], folder: Items | None) -> list[Verdict]:
        """The verdicts on each claim: one for each place with an effect, else the one with the most evidence.

        records: usually of one study, in any order. folder: of the study, where the items are; None compares no scores.
        """
        places = grouped(((record.study, record.cell.model, self.data(record)), record) for record in records)
        evidence = {place: Evidence(places[place], folder) for place in sorted(places, key=str)}
        fresh = {record.cell.name for record in records if record.confirmation}
        plan = study_plan(records, folder)
        verdicts = []
        for claim in self.claims.values():
            judgements = {place: for_all_looks(claim.rule(at), place[0], claim.name) for place, at in evidence.items()}
            each = [
                Verdict(
                    claim,
                    place,
                    one,
                    not fresh.isdisjoint(one.records),
                    plan.of_names(one.records, self.name, claim.name),
                    parts_of(one, evidence[place].records, place),
                    deciding_command(claim, one, evidence[place].records, folder),
                )
                for place, one in judgements.items()
            ]
            estimated = [verdict for verdict in each if verdict.judgement.effect is not None]
            verdicts += estimated or sorted(each, key=_lack)[:1]
        return verdicts

    def merged(self, studies: Iterable[tuple[Sequence[Record], Items | None]]) -> ArticleVerdicts:
        """One verdict a claim over all places of `studies`: the records of each, and the folder where its items are."""
        verdicts = [verdict for records, folder in studies for verdict in self.verdicts(records, folder)]
        return merge(verdicts, DECIDED_BY.get(self.name))

    def judged_by_others(self, figures: Sequence[Figure]) -> list[PublishedVerdict]:
        """The verdicts of others' published figures, on the claims that such figures can decide."""
        return published_verdicts(self.claims, self.published, figures)


def find(name: str) -> Article:
    """The article of the folder `name`; UserError for an unknown one."""
    one_of("article", name, names())
    return importlib.import_module(f"harness.plugins.articles.{name}").ARTICLE


def every() -> list[Article]:
    """All articles, sorted by name."""
    return [find(name) for name in names()]


def judged_articles(study: StudyResults) -> list[tuple[Article, ArticleVerdicts]]:
    """The articles of whose claims the records estimate an effect, with the verdicts on their claims."""
    judged = [(article, article.merged([(study.rows.records, study.folder)])) for article in every()]
    return [(article, verdicts) for article, verdicts in judged if verdicts.judged]


def tally(verdicts: Sequence[JudgedClaim]) -> str:
    """How many claims are supported, refuted and not decided, and how many have each rarer verdict."""
    return tally_of(verdict.decision for verdict in verdicts)


def tally_of(decisions: Iterable[Decision]) -> str:
    """The same of decisions: 2 supported, 1 refuted, 3 dependent on the setting, 5 not decided."""
    counts = Counter(decisions)
    rare = {TOO_SMALL: TOO_SMALL, DEPENDS: "dependent on the setting"}
    parts = [f"{counts[decision]} {decision}" for decision in (SUPPORTED, REFUTED)]
    parts += [f"{counts[decision]} {words}" for decision, words in rare.items() if counts[decision]]
    return ", ".join([*parts, f"{counts[OPEN]} {OPEN}"])


def effect_text(verdict: JudgedClaim) -> str:
    """The effect, with its 95% interval if it is known; the unit stands once."""
    return interval_text(verdict.judgement.effect, verdict.claim.shown)


def interval_text(effect: Interval | None, shown: Callable[[float], str]) -> str:
    """`effect_text` of an effect and the format of its claim."""
    if effect is None:
        return ABSENT
    if math.isnan(effect.low) or effect.low == effect.high:
        return shown(effect.value)
    low, high = (("any" if math.isinf(end) else shown(end).partition(" ")[0]) for end in effect[1:])
    return f"{shown(effect.value)} ({low} to {high})"


def _lack(verdict: Verdict) -> tuple[bool, bool]:
    return verdict.judgement.effect is None, not verdict.judgement.records
