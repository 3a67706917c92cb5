"""The verdicts on a study's page: of each article its table, and its claims with their effects and a forest plot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.plugins.articles.article import Article, effect_text, judged_articles, tally
from harness.plugins.articles.claims import OPEN, Verdict
from harness.plugins.articles.merged import ArticleVerdicts, MergedVerdict
from harness.plugins.articles.verdict_tables import claim_table, not_judged_text
from harness.report.figures.study_results import StudyResults
from harness.report.figures.style import place_titles
from harness.report.pages.page_block import PageBlock, PageSection
from harness.report.tables.entries import ABSENT
from harness.report.tables.table import Table

SCRIPT = Path(__file__).with_name("verdicts.js")


def page_block(study: StudyResults) -> PageBlock:
    """A section for each article that the records say something about."""
    judged = study.once(judged_articles)
    return PageBlock(
        sections=[_section(article, verdicts, study) for article, verdicts in judged],
        summary=[
            f"Verdicts on the claims of “{article.title}”: {tally(verdicts.judged)}." for article, verdicts in judged
        ],
        data={"verdicts": [_plotted(article, verdicts.places) for article, verdicts in judged]},
        scripts=[SCRIPT],
        commands=[words for article, _ in judged for words in _commands(article)],
    )


def _section(article: Article, verdicts: ArticleVerdicts, study: StudyResults) -> PageSection:
    own = {f"{article.name}-table": article.table(study.rows.records, study.folder)} if article.table else {}
    return PageSection(
        id=article.name,
        title=f"“{article.title}”",
        heading=f"“{article.title}”: claims and verdicts",
        contents={**own, f"{article.name}-forest": None, f"{article.name}-verdicts": _verdicts(article, verdicts)},
    )


def _verdicts(article: Article, verdicts: ArticleVerdicts) -> Table:
    """`claim_table` with the claims' texts, and the remark or the command to run beside each verdict."""
    table = claim_table(article, verdicts)
    at = table.columns.index("Claim") + 1
    columns = [*table.columns[:at], "What it says", *table.columns[at:], "Remark or next run"]
    rows = [
        [*row[:at], merged.claim.text, *row[at:], _remark(merged)]
        for row, merged in zip(table.rows, verdicts.judged, strict=True)
    ]
    missing = not_judged_text(verdicts)
    caption = [
        *([f"Not judged, since cells are missing: {missing}. `claims --long` says which."] if missing else []),
        f"Source: {article.source}.",
        *article.caption,
    ]
    return replace(table, columns=columns, rows=rows, caption=caption, answer=())


def _remark(merged: MergedVerdict) -> str:
    why = f"{merged.judgement.why}." if merged.judgement.why else ""
    run = merged.command if merged.decision == OPEN else ""
    return " ".join(filter(None, (why, run))) or ABSENT


def _plotted(article: Article, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The effects of an article's claims, each in its place; infinite ends of intervals are null."""
    titles = place_titles([verdict.place for verdict in verdicts])
    claims = []
    for verdict, title in zip(verdicts, titles, strict=True):
        judgement, effect = verdict.judgement, verdict.judgement.effect
        claims.append(
            {
                "name": verdict.claim.name,
                "text": verdict.claim.text,
                "place": title,
                "decision": verdict.decision,
                "why": judgement.why,
                "shown": effect_text(verdict),
                "scale": verdict.claim.shown.__name__,
                "effect": None if effect is None else [_finite(part) for part in effect],
                "range": None if judgement.range is None else [_finite(end) for end in judgement.range],
                "small": judgement.small,
            }
        )
    return {"title": article.title, "id": article.name, "claims": claims}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _commands(article: Article) -> Iterator[str]:
    if article.table:
        yield f"table --article {article.name}"
    yield f"claims --article {article.name}"
